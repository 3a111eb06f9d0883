//! Appends: what a script decides, and what the native command does beside it.

use std::time::Duration;

use mcp_adapter_core::{
    StreamId, WaiterToken,
    storage::{Append, Appended, Entered, NewEvent, OpenStream, Place, Storage},
};

use super::{
    A, B, Got, LONG, ME, Store, at, connect, new_session, open, owned, shared, sweep::until_gone,
};

const FENCED: Got = Got::Refused(Appended::Fenced);

#[tokio::test]
async fn a_hole_within_a_batch_shows_as_a_hole() {
    let store = Store::open().await;
    let session = store.call().await;
    let batch = |places: &[(u64, &str)]| -> Vec<Append> {
        let places = places.iter();
        let events = places.map(|(seq, text)| owned(session, at(1, *seq), text));
        events.collect()
    };
    // By the script, which has the first event of a stream, and beside the native
    // command, which has the others.
    for places in [
        &[(1, "one"), (3, "three"), (4, "four")][..],
        &[(5, "five")],
        &[(6, "six"), (8, "eight")],
        &[(10, "ten"), (11, "eleven")],
    ] {
        let stored: Vec<_> = places.iter().map(|(seq, _)| Got::At(at(1, *seq))).collect();
        assert_eq!(store.append(&batch(places)).await, stored);
    }
    let (events, state) = store.read(session, "s").await;
    let found: Vec<_> = events
        .iter()
        .map(|(position, _, text)| (position.seq, text.as_str()))
        .collect();
    let all = [
        (1, "one"),
        (3, "three"),
        (4, "four"),
        (5, "five"),
        (6, "six"),
        (8, "eight"),
        (10, "ten"),
        (11, "eleven"),
    ];
    assert_eq!(found, all);
    assert_eq!((state.oldest, state.top), (Some(at(1, 1)), at(1, 11)));
    // Each event counts once, so that the oldest three go.
    let mut more = owned(session, at(1, 12), "twelve");
    more.keep_events = 6;
    more.finish = Some(LONG);
    store.append(&[more]).await;
    let (events, _) = store.read(session, "s").await;
    assert_eq!((events.len(), events[0].0), (6, at(1, 5)));
}

#[tokio::test]
async fn what_an_event_follows_is_kept_within_a_batch() {
    let store = Store::open().await;
    let session = store.call().await;
    let follows = |position, prev, text| {
        let mut append = owned(session, position, text);
        append.event = append.event.map(|event| NewEvent {
            prev: Some(prev),
            ..event
        });
        append
    };
    let batch = [
        owned(session, at(1, 1), "a"),
        follows(at(1, 2), at(1, 1), "b"),
        follows(at(2, 1), at(1, 7), "c"),
        owned(session, at(2, 2), "d"),
    ];
    store.append(&batch).await;
    let (events, _) = store.read(session, "s").await;
    let prevs: Vec<_> = events.iter().map(|(_, prev, _)| *prev).collect();
    assert_eq!(prevs, [None, Some(at(1, 1)), Some(at(1, 7)), None]);
}

#[tokio::test]
async fn a_repeat_changes_nothing_though_it_finishes() {
    let store = Store::open().await;
    let session = store.call().await;
    let event = owned(session, at(1, 1), "one");
    let finishing = Append {
        finish: Some(LONG),
        ..event.clone()
    };
    assert_eq!(store.append(&[event]).await, [Got::At(at(1, 1))]);
    assert_eq!(store.append(&[finishing]).await, [Got::Again(at(1, 1))]);
    assert_eq!(store.read(session, "s").await.1.end, None);
    let two = [owned(session, at(1, 2), "two")];
    assert_eq!(store.append(&two).await, [Got::At(at(1, 2))]);
    // Of the standalone stream, too.
    let event = shared(session, 1, "one");
    let finishing = Append {
        finish: Some(LONG),
        ..event.clone()
    };
    let Got::At(first) = store.append(&[event]).await[0] else {
        panic!("it is new");
    };
    assert_eq!(store.append(&[finishing]).await, [Got::Again(first)]);
    assert_eq!(store.read(session, "standalone").await.1.end, None);
}

#[tokio::test]
async fn a_shared_append_to_the_stream_of_a_call_is_fenced() {
    let store = Store::open().await;
    let session = store.call().await;
    let onto = |event: Append| Append {
        stream: "s".parse().unwrap(),
        ..event
    };
    let silent = |event: Append| Append {
        event: None,
        finish: Some(LONG),
        ..event
    };
    // Its writer is known by a number on the standalone stream.
    store.append(&[shared(session, 5, "x")]).await;
    store.append(&[owned(session, at(1, 1), "one")]).await;
    let tries = [
        onto(shared(session, 6, "new")),
        onto(shared(session, 5, "as old")),
        onto(silent(shared(session, 7, ""))),
    ];
    assert_eq!(store.append(&tries).await, [FENCED; 3], "while it is open");
    let last = Append {
        finish: Some(LONG),
        ..owned(session, at(1, 2), "two")
    };
    assert_eq!(store.append(&[last]).await, [Got::At(at(1, 2))]);
    assert_eq!(store.append(&tries).await, [FENCED; 3], "when it has ended");
    assert_eq!(store.read(session, "s").await.0.len(), 2);
}

#[tokio::test]
async fn a_batch_sees_its_own_events() {
    let store = Store::open().await;
    let session = store.call().await;
    let batch = [
        owned(session, at(1, 1), "one"),
        owned(session, at(2, 1), "two"),
        owned(session, at(1, 1), "one"),
        owned(session, at(1, 2), "never stored"),
    ];
    let (one, two) = (Got::At(at(1, 1)), Got::At(at(2, 1)));
    let again = Got::Again(at(1, 1));
    assert_eq!(store.append(&batch).await, [one, two, again, FENCED]);
    assert_eq!(store.read(session, "s").await.0.len(), 2);

    let tags = [5, 6, 6, 7, 5].map(|tag| shared(session, tag, "x"));
    let answers = store.append(&tags).await;
    let Got::At(first) = answers[0] else {
        panic!("{answers:?}");
    };
    let next = |seq| at(first.epoch, first.seq + seq);
    let (six, seven) = (next(1), next(2));
    let rest = [
        Got::At(six),
        Got::Again(six),
        Got::At(seven),
        Got::Again(first),
    ];
    assert_eq!(answers[1..], rest);
    assert_eq!(store.read(session, "standalone").await.0.len(), 3);
}

/// A batch is its appends one after another: what one evicts is gone for the next.
#[tokio::test]
async fn a_batch_sees_what_it_evicts() {
    let store = Store::open().await;
    let keeping = |events, append| Append {
        keep_events: events,
        ..append
    };
    let session = store.call().await;
    let batch = [
        keeping(1, owned(session, at(1, 1), "one")),
        keeping(1, owned(session, at(2, 1), "two")),
        keeping(1, owned(session, at(1, 1), "one")),
    ];
    let (one, two) = (Got::At(at(1, 1)), Got::At(at(2, 1)));
    assert_eq!(store.append(&batch).await, [one, two, FENCED]);
    // Told by the writer, in place of a number.
    let session = store.call().await;
    let batch = [
        owned(session, at(1, 1), "one"),
        Append {
            trim: Some(at(1, 1)),
            ..owned(session, at(2, 1), "two")
        },
        owned(session, at(1, 1), "one"),
    ];
    assert_eq!(store.append(&batch).await, [one, two, FENCED]);
    // Who keeps more comes too late for what went before.
    let batch = [
        keeping(1, shared(session, 1, "one")),
        keeping(1, shared(session, 2, "two")),
        keeping(9, shared(session, 3, "three")),
        keeping(9, shared(session, 1, "one")),
    ];
    let answers = store.append(&batch).await;
    let (events, state) = store.read(session, "standalone").await;
    let texts: Vec<_> = events.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(texts, ["two", "three"]);
    let Got::Again(evicted) = answers[3] else {
        panic!("{answers:?}");
    };
    assert!(state.oldest.is_some_and(|oldest| evicted < oldest));
}

/// Several events are one entry, which stays while one of them does.
#[tokio::test]
async fn an_evicted_event_of_a_former_epoch_is_none_although_its_entry_is_there() {
    let store = Store::open().await;
    let session = store.call().await;
    let batch = [1, 2, 3].map(|seq| owned(session, at(1, seq), "x"));
    store.append(&batch).await;
    let next = Append {
        trim: Some(at(1, 2)),
        ..owned(session, at(2, 1), "y")
    };
    store.append(&[next]).await;
    let answers = store.append(&batch).await;
    assert_eq!(answers, [FENCED, FENCED, Got::Again(at(1, 3))]);
}

#[tokio::test]
async fn the_repeat_of_an_evicted_event_names_none_that_is_there() {
    let store = Store::open().await;
    let session = store.session().await;
    let event = |tag| Append {
        keep_events: 2,
        ..shared(session, tag, "x")
    };
    for tag in 1..=4 {
        store.append(&[event(tag)]).await;
    }
    let oldest = store.read(session, "standalone").await.1.oldest;
    for tag in [1, 2] {
        let Got::Again(position) = store.append(&[event(tag)]).await[0] else {
            panic!("a repeat");
        };
        assert!(Some(position) < oldest, "{position:?} {oldest:?}");
    }
    // Before another event of its batch, too.
    let Got::Again(position) = store.append(&[event(5), event(1)]).await[1] else {
        panic!("a repeat");
    };
    let (events, state) = store.read(session, "standalone").await;
    assert!(Some(position) < state.oldest, "{position:?} {state:?}");
    assert_eq!(events.len(), 2);
}

/// Each entry on its own merits, whoever wrote the one before it.
#[tokio::test]
async fn each_entry_of_a_batch_has_its_own_writer() {
    let store = Store::open().await;
    let session = store.call().await;
    let of = |owner, seq| Append {
        place: Place::Owned {
            owner,
            position: at(1, seq),
        },
        ..owned(session, at(1, 1), "x")
    };
    let stored = |seq| Got::At(at(1, seq));
    let answers = store.append(&[of(A, 1), of(B, 2), of(A, 2)]).await;
    assert_eq!(answers, [stored(1), FENCED, stored(2)]);
    // The native command has this one, were it not for the other.
    let answers = store.append(&[of(A, 3), of(B, 4)]).await;
    assert_eq!(answers, [stored(3), FENCED]);

    let standalone = |append: Append| Append {
        stream: StreamId::standalone(),
        ..append
    };
    let by = |writer, tag, text| Append {
        place: Place::Shared { writer, tag },
        ..shared(session, 1, text)
    };
    let batch = [
        standalone(of(A, 1)),
        by(A, 7, "a"),
        by(B, 7, "b"),
        standalone(of(A, 1)),
        by(A, 7, "a"),
        by(B, 8, "c"),
    ];
    let answers = store.append(&batch).await;
    assert_eq!(answers[0], Got::Refused(Appended::NoStream));
    let Got::At(first) = answers[1] else {
        panic!("{answers:?}");
    };
    assert_eq!(answers[3..5], [FENCED, Got::Again(first)]);
    let (events, _) = store.read(session, "standalone").await;
    let texts: Vec<_> = events.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(texts, ["a", "b", "c"]);
}

/// The native command refuses what is not above the top; then a script tells.
#[tokio::test]
async fn a_repeat_of_a_native_append_is_stored_once() {
    let store = Store::open().await;
    let session = store.call().await;
    let events: Vec<_> = (1..=40)
        .map(|seq| owned(session, at(1, seq), &seq.to_string()))
        .collect();
    for (seq, event) in (1..).zip(&events) {
        let event = std::slice::from_ref(event);
        assert_eq!(store.append(event).await, [Got::At(at(1, seq))]);
        assert_eq!(store.append(event).await, [Got::Again(at(1, seq))]);
    }
    let all: Vec<_> = (1..=40).map(|seq| Got::Again(at(1, seq))).collect();
    assert_eq!(store.append(&events).await, all, "all at once");
    let (events, _) = store.read(session, "s").await;
    assert_eq!(events.len(), 40);
}

/// What is left of a stream that has expired goes, and no event of the one that has
/// taken its name.
#[tokio::test]
async fn a_stream_that_is_made_again_keeps_its_events() {
    let store = Store::open().await;
    let session = store.session().await;
    let last = Append {
        finish: Some(Duration::from_millis(50)),
        ..shared(session, 1, "one")
    };
    let first = store.append(&[last]).await;
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut tag = 1;
    let second = loop {
        tag += 1;
        let second = store.append(&[shared(session, tag, "two")]).await;
        if let Got::At(position) = second[0] {
            break position;
        }
        assert!(tokio::time::Instant::now() < end, "{second:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let Got::At(first) = first[0] else {
        panic!("{first:?}");
    };
    assert!(second.epoch > first.epoch, "no id comes twice");
    let counted = async || store.redis.stats().await.unwrap().streams.value() == 1;
    until_gone(&store, counted).await;
    let (events, state) = store.read(session, "standalone").await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((events[0].0, state.oldest), (second, Some(second)));
    // What the first had is not told as if it went on: a reader that is behind has a
    // gap.
    assert_eq!(events[0].1, Some(at(first.epoch, u64::MAX)));
}

/// The native command asks nobody whose stream it is.
#[tokio::test]
async fn a_late_append_does_not_reach_the_next_session_that_has_the_key() {
    let store = Store::open().await;
    let session = store.call().await;
    for seq in 1..=2 {
        let event = owned(session, at(1, seq), "former");
        assert_eq!(store.append(&[event]).await, [Got::At(at(1, seq))]);
    }
    let other = connect(&store.server).await;
    assert!(other.delete(&session, &ME).await.unwrap().is_some());
    let next = new_session(session, WaiterToken::generate());
    assert!(other.create(&next).await.unwrap());
    let open = OpenStream {
        owner: B,
        ..open("s")
    };
    let entered = other.enter(&session, &ME, Some(&open)).await.unwrap();
    assert!(matches!(entered, Entered::Session { .. }));
    let of_b = |seq| Append {
        place: Place::Owned {
            owner: B,
            position: at(1, seq),
        },
        ..owned(session, at(1, seq), "next")
    };
    for seq in 1..=2 {
        let answers = other.append(&[of_b(seq)]).await.unwrap();
        assert!(matches!(answers[..], [Appended::Stored { .. }]));
    }
    let late = owned(session, at(1, 3), "former");
    assert_eq!(store.append(&[late]).await, [FENCED]);
    let answers = other.append(&[of_b(3)]).await.unwrap();
    assert!(matches!(
        answers[..],
        [Appended::Stored { repeat: false, .. }]
    ));
    let (events, _) = store.read(session, "s").await;
    assert!(
        events.iter().all(|(_, _, text)| text == "next"),
        "{events:?}"
    );
    assert_eq!(events.len(), 3);
}
