//! Appends: what a script decides, and what the native command does beside it.

use std::time::Duration;

use mcp_adapter_core::{
    StreamId, WaiterToken,
    storage::{Append, Appended, Entered, NewEvent, OpenStream, Place, Storage},
};

use super::{
    B, Got, LONG, ME, Store, at, connect, new_session, open, owned, shared, sweep::until_gone,
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

/// What is kept may change within a batch: who keeps more comes too late for what went
/// before.
#[tokio::test]
async fn each_append_of_a_batch_evicts_what_it_says() {
    let store = Store::open().await;
    let session = store.session().await;
    let keeping = |events, append| Append {
        keep_events: events,
        ..append
    };
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

/// Each entry on its own merits, whatever the one before it was.
#[tokio::test]
async fn a_batch_may_have_appends_of_both_kinds_to_one_stream() {
    let store = Store::open().await;
    let session = store.call().await;
    let standalone = |append: Append| Append {
        stream: StreamId::standalone(),
        ..append
    };
    let batch = [
        standalone(owned(session, at(1, 1), "x")),
        shared(session, 7, "a"),
        standalone(owned(session, at(1, 1), "x")),
        shared(session, 7, "a"),
        shared(session, 8, "b"),
    ];
    let answers = store.append(&batch).await;
    assert_eq!(answers[0], Got::Refused(Appended::NoStream));
    let Got::At(first) = answers[1] else {
        panic!("{answers:?}");
    };
    assert_eq!(answers[2..4], [FENCED, Got::Again(first)]);
    let (events, _) = store.read(session, "standalone").await;
    let texts: Vec<_> = events.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(texts, ["a", "b"]);
    // To the stream of a call, beside an event that the native command would take.
    let onto = |append: Append| Append {
        stream: "s".parse().unwrap(),
        ..append
    };
    for seq in 1..=3 {
        let batch = [
            owned(session, at(1, seq), "x"),
            onto(shared(session, 8 + seq, "y")),
        ];
        assert_eq!(store.append(&batch).await, [Got::At(at(1, seq)), FENCED]);
    }
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
    // With one that is new behind it, which the server would take for both.
    let two = [events[39].clone(), owned(session, at(1, 41), "41")];
    let both = [Got::Again(at(1, 40)), Got::At(at(1, 41))];
    assert_eq!(store.append(&two).await, both);
    let all: Vec<_> = (1..=40).map(|seq| Got::Again(at(1, seq))).collect();
    assert_eq!(store.append(&events).await, all, "all at once");
    let (events, _) = store.read(session, "s").await;
    let read: Vec<_> = events.iter().map(|(position, ..)| position.seq).collect();
    assert_eq!(read, Vec::from_iter(1..=41));
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
