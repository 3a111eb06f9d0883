//! Deadlines: exact for every step, swept or not.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::*;
use mcp_adapter_core::{
    InstanceId, OutcomeKind, Position,
    storage::{
        Append, Appended, Beat, Cursor, Dead, Entered, NewSession, OpenStream, Put, Read,
        RequestState, Settled, Storage as _, StreamEnd, Swept,
    },
};
use tokio::time::advance;

const TICK: Duration = Duration::from_millis(1);
const C: InstanceId = InstanceId(3);

fn sweep(store: &MemoryStorage, budget: usize, dead: &[Dead]) -> Swept {
    now(store.sweep(budget, dead, KEPT))
}

/// The sum of all steps until there is nothing more.
fn sweep_all(store: &MemoryStorage, budget: usize, dead: &[Dead]) -> usize {
    let mut removed = 0;
    loop {
        let swept = sweep(store, budget, dead);
        assert!(swept.removed <= budget);
        removed += swept.removed;
        if !swept.more {
            return removed;
        }
    }
}

#[test]
fn the_clock_needs_no_runtime() {
    let (store, session) = store();
    assert!(is_there(&store, session));
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_expires_at_its_deadline() {
    let (store, session) = stream();
    append(&store, &owned(session, "s", at(1, 1), "data"));
    advance(IDLE - TICK).await;
    assert!(is_there(&store, session));
    advance(TICK).await;
    assert!(!is_there(&store, session));
    assert_eq!(
        append(&store, &owned(session, "s", at(1, 2), "x")),
        Appended::NoSession
    );
    assert_eq!(stats(&store), [0; 5]);
    // The key is free again.
    let again = NewSession {
        creator: mcp_adapter_core::WaiterToken(2),
        ..new_session(session)
    };
    assert!(now(store.create(&again)));
    assert_eq!(stats(&store), [1, 0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn use_slides_the_expiry() {
    let (store, session) = stream();
    let uses: [&dyn Fn(u64); 4] = [
        &|_| {
            assert!(matches!(
                enter(&store, session, None),
                Entered::Session { .. }
            ))
        },
        &|n| {
            assert_ne!(
                append(&store, &owned(session, "s", at(1, n), "x")),
                Appended::NoSession
            )
        },
        &|n| {
            assert_ne!(
                append(&store, &shared(session, A, n, "x")),
                Appended::NoSession
            )
        },
        &|_| {
            let touch = Cursor {
                touch: true,
                max_events: 0,
                ..cursor(session, "s", Position::START)
            };
            page(&store, &touch);
        },
    ];
    for (n, used) in (1..).zip(uses) {
        advance(IDLE - TICK).await;
        used(n);
        // What is no use slides nothing.
        assert!(is_there(&store, session));
        sweep_all(&store, 10, &[]);
    }
    advance(IDLE - TICK).await;
    assert!(is_there(&store, session));
    advance(TICK).await;
    assert!(!is_there(&store, session));
}

#[tokio::test(start_paused = true)]
async fn an_absolute_lifetime_does_not_slide() {
    let store = MemoryStorage::new();
    let session = key(1);
    let limited = NewSession {
        absolute_ttl: Some(IDLE * 2),
        ..new_session(session)
    };
    now(store.create(&limited));
    for _ in 0..3 {
        advance(IDLE / 2).await;
        assert!(matches!(
            enter(&store, session, None),
            Entered::Session { .. }
        ));
    }
    advance(IDLE / 2).await;
    assert!(matches!(enter(&store, session, None), Entered::NoSession));
}

#[tokio::test(start_paused = true)]
async fn a_finished_stream_is_kept_for_its_time() {
    let (store, session) = stream();
    let last = Append {
        finish: Some(KEPT),
        ..owned(session, "s", at(1, 1), "last")
    };
    append(&store, &last);
    advance(KEPT - TICK).await;
    assert_eq!(stored_at(append(&store, &last)), at(1, 1));
    assert_eq!(stats(&store), [1, 1, 1, 4, 0]);
    advance(TICK).await;
    assert!(matches!(
        read(&store, session, "s", Position::START),
        Read::NoStream
    ));
    assert_eq!(append(&store, &last), Appended::NoStream);
    assert_eq!(stats(&store), [1, 0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_request_times_out_and_is_forgotten_after_a_while() {
    let (store, session) = store();
    let asked = request(session, 1, 1);
    put(&store, &asked);
    advance(asked.timeout - TICK).await;
    assert_eq!(
        outcome(&store, session, 1, None),
        RequestState::Pending { owner: A }
    );
    advance(TICK).await;
    assert_eq!(
        settle(&store, &answer(session, 1, 1)),
        Settled::Already(OutcomeKind::TimedOut)
    );
    let timed_out = RequestState::Ended(OutcomeKind::TimedOut, Bytes::new());
    assert_eq!(outcome(&store, session, 1, None), timed_out);
    assert_eq!(stats(&store)[4], 0);
    // Its repeated create is no new one.
    assert_eq!(put(&store, &asked), Put::Done);
    assert_eq!(outcome(&store, session, 1, None), timed_out);
    advance(KEPT - TICK).await;
    assert_eq!(outcome(&store, session, 1, None), timed_out);
    advance(TICK).await;
    assert_eq!(outcome(&store, session, 1, None), RequestState::Missing);
    assert_eq!(settle(&store, &answer(session, 1, 1)), Settled::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_nobody_saw_is_remembered_from_the_deadline() {
    let (store, session) = store();
    let asked = request(session, 1, 1);
    put(&store, &asked);
    advance(asked.timeout + KEPT).await;
    assert_eq!(outcome(&store, session, 1, None), RequestState::Missing);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_remembered_from_when_it_came() {
    let (store, session) = store();
    put(&store, &request(session, 1, 1));
    advance(Duration::from_secs(5)).await;
    settle(&store, &answer(session, 1, 1));
    advance(KEPT - TICK).await;
    assert_eq!(settle(&store, &answer(session, 1, 1)), Settled::Won);
    advance(TICK).await;
    assert_eq!(settle(&store, &answer(session, 1, 1)), Settled::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_timed_out_request_makes_room() {
    let (store, session) = store();
    let mut asked = request(session, 1, 1);
    asked.max_pending = 1;
    put(&store, &asked);
    let mut next = request(session, 2, 2);
    next.max_pending = 1;
    assert_eq!(put(&store, &next), Put::TooMany);
    advance(asked.timeout).await;
    assert_eq!(put(&store, &next), Put::Done);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_expire_and_never_fall() {
    let store = MemoryStorage::new();
    let beat = |instance, count| {
        let mut beats = now(store.heartbeat(Beat { instance, count }, KEPT));
        beats.sort_by_key(|beat| beat.instance);
        beats
            .into_iter()
            .map(|beat| (beat.instance, beat.count))
            .collect::<Vec<_>>()
    };
    assert_eq!(beat(A, 3), [(A, 3)]);
    advance(KEPT / 2).await;
    assert_eq!(beat(B, 1), [(A, 3), (B, 1)]);
    assert_eq!(beat(B, 0), [(A, 3), (B, 1)]);
    advance(KEPT / 2).await;
    assert_eq!(beat(B, 2), [(B, 2)]);
}

#[tokio::test(start_paused = true)]
async fn sweeping_is_bounded_and_finds_all() {
    let store = MemoryStorage::new();
    for number in 0..1000 {
        now(store.create(&new_session(key(number))));
    }
    assert_eq!(
        sweep(&store, 100, &[]),
        Swept {
            removed: 0,
            more: false
        }
    );
    advance(IDLE / 2).await;
    for number in 0..500 {
        enter(&store, key(number), None);
    }
    advance(IDLE / 2).await;
    // Two that sweep at once do not do it twice.
    let (first, second) = (sweep(&store, 100, &[]), sweep(&store.clone(), 100, &[]));
    assert_eq!((first, second), (first, first));
    assert_eq!(
        first,
        Swept {
            removed: 100,
            more: true
        }
    );
    assert_eq!(sweep_all(&store, 64, &[]), 300);
    assert_eq!(stats(&store)[0], 500);
    advance(IDLE / 2).await;
    assert_eq!(sweep_all(&store, 7, &[]), 500);
    assert_eq!(stats(&store), [0; 5]);
}

#[tokio::test(start_paused = true)]
async fn sweeping_a_large_session_is_bounded_too() {
    let (store, session) = store();
    for number in 0..300 {
        let stream = format!("s{number}");
        let open = OpenStream {
            max_open: usize::MAX,
            ..open(&stream)
        };
        enter(&store, session, Some(&open));
        let last = Append {
            finish: Some(KEPT),
            ..owned(session, &stream, at(1, 1), "x")
        };
        append(&store, &last);
        put(&store, &request(session, number, 1));
        settle(&store, &answer(session, number, 1));
    }
    advance(KEPT).await;
    assert_eq!(sweep_all(&store, 50, &[]), 600);
    assert_eq!(stats(&store), [1, 0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn the_dead_are_swept_and_the_living_are_not() {
    let store = MemoryStorage::new();
    for number in 0..200 {
        now(store.create(&new_session(key(number))));
        for (stream, owner) in [("a", A), ("b", B), ("c", C)] {
            let open = OpenStream {
                owner,
                ..open(stream)
            };
            enter(&store, key(number), Some(&open));
        }
        put(&store, &request(key(number), 1, 1));
    }
    for instance in [A, B] {
        now(store.heartbeat(Beat { instance, count: 1 }, KEPT));
    }
    let dead = |instance, beat| Dead { instance, beat };
    // Neither is dead at this counter.
    let alive = [dead(A, None), dead(B, Some(0)), dead(InstanceId(9), None)];
    assert_eq!(sweep_all(&store, 50, &alive), 0);
    let a_is_dead = [dead(A, Some(1)), dead(B, Some(0))];
    // A search for others that stopped half way does not shorten this one.
    assert!(sweep(&store, 100, &[dead(C, None)]).more);
    assert_eq!(sweep_all(&store, 50, &a_is_dead), 400);
    assert_eq!(sweep_all(&store, 50, &[dead(C, None)]), 100);
    assert_eq!(sweep_all(&store, 50, &a_is_dead), 0);
    for number in 0..200 {
        let [a, b] = ["a", "b"].map(|stream| state(&store, key(number), stream));
        assert_eq!((a.end, a.top), (Some(StreamEnd::OwnerLost), at(2, 0)));
        assert_eq!(b.end, None);
        let lost = RequestState::Ended(OutcomeKind::OwnerLost, Bytes::new());
        assert_eq!(outcome(&store, key(number), 1, None), lost);
    }
    assert_eq!(stats(&store), [200, 600, 0, 0, 0]);
    advance(KEPT).await;
    assert_eq!(stats(&store), [200, 200, 0, 0, 0]);
}
