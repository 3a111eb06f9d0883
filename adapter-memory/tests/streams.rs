//! Streams: appends, reads, holders, limits.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::*;
use mcp_adapter_core::{
    Position,
    storage::{
        Append, Appended, Cursor, Hold, NewEvent, OpenStream, Place, Read, Storage as _, StreamEnd,
    },
};

fn text(events: &[(Position, String)]) -> Vec<&str> {
    events.iter().map(|(_, data)| data.as_str()).collect()
}

#[test]
fn a_repeated_owned_append_is_stored_once() {
    let (store, session) = stream();
    for _ in 0..2 {
        for seq in 1..=3 {
            let one = owned(session, "s", at(1, seq), &seq.to_string());
            assert_eq!(stored_at(append(&store, &one)), at(1, seq));
        }
    }
    assert_eq!(text(&events(&store, session, "s")), ["1", "2", "3"]);
    assert_eq!(stats(&store), [1, 1, 3, 3, 0]);
}

#[test]
fn an_append_says_who_holds_and_what_is_stored() {
    let (store, session) = stream();
    hold(&store, session, "s", B, Hold::Take);
    append(&store, &shared(session, B, 1, "shared"));
    let Appended::Stored { holder, usage, .. } =
        append(&store, &owned(session, "s", at(1, 1), "abc"))
    else {
        panic!()
    };
    assert_eq!(holder, Some(B));
    assert_eq!((usage.session_bytes, usage.principal_bytes), (9, 9));
}

#[test]
fn the_terminal_event_is_repeated_and_nothing_follows_it() {
    let (store, session) = stream();
    let last = Append {
        finish: Some(KEPT),
        ..owned(session, "s", at(1, 1), "last")
    };
    for _ in 0..2 {
        assert_eq!(stored_at(append(&store, &last)), at(1, 1));
    }
    assert_eq!(
        append(&store, &owned(session, "s", at(1, 2), "late")),
        Appended::Finished
    );
    assert_eq!(text(&events(&store, session, "s")), ["last"]);
    assert_eq!(state(&store, session, "s").end, Some(StreamEnd::Finished));
}

#[test]
fn a_stream_can_be_finished_without_an_event() {
    let (store, session) = stream();
    append(&store, &owned(session, "s", at(1, 1), "one"));
    let finish = Append {
        event: None,
        finish: Some(KEPT),
        ..owned(session, "s", at(1, 1), "")
    };
    for _ in 0..2 {
        assert_eq!(stored_at(append(&store, &finish)), at(1, 1));
    }
    assert_eq!(state(&store, session, "s").end, Some(StreamEnd::Finished));
    assert_eq!(stats(&store)[2], 1);
}

#[test]
fn a_finish_tells_of_events_that_never_came() {
    let (store, session) = stream();
    append(&store, &owned(session, "s", at(1, 1), "one"));
    let finish = Append {
        event: None,
        finish: Some(KEPT),
        ..owned(session, "s", at(1, 3), "")
    };
    for _ in 0..2 {
        assert_eq!(stored_at(append(&store, &finish)), at(1, 3));
    }
    assert_eq!(state(&store, session, "s").top, at(1, 3));
    assert_eq!(text(&events(&store, session, "s")), ["one"]);
}

#[test]
fn an_owner_can_abandon_its_stream() {
    let (store, session) = stream();
    append(&store, &owned(session, "s", at(1, 1), "one"));
    let abandon = Append {
        event: None,
        finish: Some(KEPT),
        end: StreamEnd::OwnerLost,
        ..owned(session, "s", at(1, 1), "")
    };
    for _ in 0..2 {
        assert_eq!(stored_at(append(&store, &abandon)), at(1, 1));
    }
    let state = state(&store, session, "s");
    assert_eq!(
        (state.top, state.end),
        (at(1, 1), Some(StreamEnd::OwnerLost))
    );
    assert_eq!(
        append(&store, &owned(session, "s", at(1, 2), "x")),
        Appended::Fenced
    );
}

#[test]
fn only_the_owner_writes_and_may_open_a_new_epoch() {
    let (store, session) = stream();
    append(&store, &owned(session, "s", at(1, 1), "one"));
    let thief = Append {
        place: Place::Owned {
            owner: B,
            position: at(1, 2),
        },
        ..owned(session, "s", at(1, 2), "x")
    };
    assert_eq!(append(&store, &thief), Appended::Fenced);
    assert_eq!(
        append(
            &store,
            &Append {
                stream: name("s"),
                ..shared(session, A, 1, "x")
            }
        ),
        Appended::Fenced
    );
    let next = Append {
        event: Some(NewEvent {
            prev: Some(at(1, 1)),
            data: "two".into(),
        }),
        ..owned(session, "s", at(2, 1), "")
    };
    for _ in 0..2 {
        assert_eq!(stored_at(append(&store, &next)), at(2, 1));
    }
    // Behind it only what is there already is accepted.
    assert_eq!(
        stored_at(append(&store, &owned(session, "s", at(1, 1), "one"))),
        at(1, 1)
    );
    assert_eq!(
        append(&store, &owned(session, "s", at(1, 2), "x")),
        Appended::Fenced
    );
    let (events, _) = page(&store, &cursor(session, "s", at(1, 1)));
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].prev, Some(at(1, 1)));
}

#[test]
fn a_stream_that_was_never_opened_is_not_made_by_its_writer() {
    let (store, session) = store();
    assert_eq!(
        append(&store, &owned(session, "s", at(1, 1), "x")),
        Appended::NoStream
    );
    assert!(matches!(
        read(&store, session, "s", Position::START),
        Read::NoStream
    ));
    assert_eq!(stats(&store)[1], 0);
}

#[test]
fn shared_appends_are_ordered_and_recognised_by_their_number() {
    let (store, session) = store();
    let batch: Vec<_> = (1..=100)
        .map(|tag| {
            shared(
                session,
                if tag % 3 == 0 { B } else { A },
                tag,
                &tag.to_string(),
            )
        })
        .collect();
    let first: Vec<_> = now(store.append(&batch))
        .into_iter()
        .map(stored_at)
        .collect();
    let again: Vec<_> = now(store.append(&batch))
        .into_iter()
        .map(stored_at)
        .collect();
    assert_eq!(first, (1..=100).map(|seq| at(1, seq)).collect::<Vec<_>>());
    assert_eq!(again, first);
    assert_eq!(stats(&store)[2], 100);
}

#[test]
fn a_shared_append_whose_event_was_evicted_is_a_repeat_still() {
    let (store, session) = store();
    let keep_one = |tag| Append {
        keep_events: 1,
        ..shared(session, A, tag, "x")
    };
    append(&store, &keep_one(5));
    // Between the two, number 7 was never stored.
    append(&store, &keep_one(6));
    append(
        &store,
        &Append {
            keep_events: 9,
            ..keep_one(8)
        },
    );
    assert_eq!(stored_at(append(&store, &keep_one(5))), at(1, 1));
    assert_eq!(stored_at(append(&store, &keep_one(8))), at(1, 3));
    assert_eq!(
        stored_at(append(
            &store,
            &Append {
                keep_events: 9,
                ..keep_one(7)
            }
        )),
        at(1, 4)
    );
    assert_eq!(stats(&store)[2], 3);
}

#[test]
fn streams_keep_so_many_events_and_bytes() {
    let (store, session) = stream();
    for seq in 1..=10 {
        let one = Append {
            keep_events: 4,
            keep_bytes: 25,
            ..owned(session, "s", at(1, seq), "0123456789")
        };
        append(&store, &one);
    }
    let kept: Vec<_> = events(&store, session, "s")
        .iter()
        .map(|(at, _)| at.seq)
        .collect();
    assert_eq!(kept, [9, 10]);
    assert_eq!(state(&store, session, "s").oldest, Some(at(1, 9)));
    assert_eq!(stats(&store), [1, 1, 2, 20, 0]);
    // The newest one stays, whatever its size.
    let large = Append {
        keep_bytes: 1,
        ..owned(session, "s", at(1, 11), "large")
    };
    append(&store, &large);
    assert_eq!(text(&events(&store, session, "s")), ["large"]);
}

#[test]
fn pages_are_bounded_and_hold_one_event_at_least() {
    let (store, session) = stream();
    for seq in 1..=5 {
        append(&store, &owned(session, "s", at(1, seq), "0123456789"));
    }
    let seqs = |cursor: &Cursor| -> Vec<u64> {
        page(&store, cursor)
            .0
            .iter()
            .map(|event| event.position.seq)
            .collect()
    };
    let all = cursor(session, "s", at(1, 1));
    assert_eq!(seqs(&all), [2, 3, 4, 5]);
    assert_eq!(
        seqs(&Cursor {
            max_events: 2,
            ..all.clone()
        }),
        [2, 3]
    );
    assert_eq!(
        seqs(&Cursor {
            max_bytes: 29,
            ..all.clone()
        }),
        [2, 3]
    );
    assert_eq!(
        seqs(&Cursor {
            max_bytes: 1,
            ..all.clone()
        }),
        [2]
    );
    assert!(
        seqs(&Cursor {
            max_events: 0,
            ..all.clone()
        })
        .is_empty()
    );
    assert!(
        seqs(&Cursor {
            after: at(1, 5),
            ..all.clone()
        })
        .is_empty()
    );
    assert!(
        seqs(&Cursor {
            after: at(7, 0),
            ..all
        })
        .is_empty()
    );
}

#[test]
fn shrinking_takes_finished_streams_first_and_then_the_oldest_events() {
    let (store, session) = store();
    for (stream, finish) in [("f1", true), ("f2", true), ("o1", false), ("o2", false)] {
        let open = OpenStream {
            owner: A,
            ..open(stream)
        };
        enter(&store, session, Some(&open));
        let one = Append {
            finish: finish.then_some(KEPT),
            ..owned(session, stream, at(1, 1), "0123456789")
        };
        append(&store, &one);
    }
    append(&store, &owned(session, "o1", at(1, 2), "0123456789"));
    let shrink = |bytes| now(store.shrink(&session, bytes));
    assert_eq!((shrink(45), shrink(45)), (40, 40));
    assert!(matches!(
        read(&store, session, "f1", Position::START),
        Read::NoStream
    ));
    assert_eq!(shrink(30), 30);
    assert!(matches!(
        read(&store, session, "f2", Position::START),
        Read::NoStream
    ));
    assert_eq!(shrink(20), 20);
    assert_eq!(state(&store, session, "o1").oldest, Some(at(1, 2)));
    assert_eq!(shrink(19), 10);
    assert_eq!(state(&store, session, "o2").oldest, None);
    assert_eq!(stats(&store), [1, 2, 1, 10, 0]);
}
