//! Many threads at once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::Barrier, thread};

use common::*;
use mcp_adapter_core::{
    InstanceId, WaiterToken,
    storage::{Append, NewSession, Put, PutRequest, Settled, Storage as _, Updated},
};

const THREADS: u64 = 8;

/// Runs it in threads that begin together.
fn together<T: Send>(work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(usize::try_from(THREADS).unwrap());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let (work, barrier) = (&work, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    work(number)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

#[test]
fn of_many_answers_one_wins() {
    let (store, session) = store();
    for id in 0..100 {
        put(&store, &request(session, id, 1));
        let settled = together(|thread| settle(&store, &answer(session, id, thread.into())));
        let won = settled.iter().filter(|one| **one == Settled::Won).count();
        assert_eq!(won, 1);
    }
    assert_eq!(stats(&store)[4], 0);
}

#[test]
fn no_shared_append_is_lost_or_doubled() {
    const EACH: u64 = 500;
    let (store, session) = store();
    together(|thread| {
        for tag in 1..=EACH {
            let one = shared(
                session,
                InstanceId(thread.into()),
                tag,
                &format!("{thread} {tag}"),
            );
            let first = stored_at(append(&store, &one));
            assert_eq!(stored_at(append(&store, &one)), first);
        }
    });
    let events = events(&store, session, "standalone");
    let seqs: Vec<_> = events.iter().map(|(at, _)| at.seq).collect();
    assert_eq!(seqs, (1..=EACH * THREADS).collect::<Vec<_>>());
    for thread in 0..THREADS {
        let prefix = format!("{thread} ");
        let of_one = events
            .iter()
            .filter_map(|(_, data)| data.strip_prefix(&prefix));
        let tags: Vec<u64> = of_one.map(|tag| tag.parse().unwrap()).collect();
        assert_eq!(tags, (1..=EACH).collect::<Vec<_>>());
    }
}

#[test]
fn of_many_creates_and_updates_one_wins() {
    let store = MemoryStorage::new();
    for number in 0..100 {
        let created = together(|thread| {
            let new = NewSession {
                creator: WaiterToken(thread.into()),
                ..new_session(key(number))
            };
            now(store.create(&new))
        });
        assert_eq!(created.iter().filter(|created| **created).count(), 1);
        let updated = together(|thread| {
            let record = thread.to_string();
            now(store.update(&update(key(number), 1, record.as_bytes())))
        });
        let done = updated.iter().filter(|one| **one == Updated::Done(2));
        assert_eq!(done.count(), 1);
    }
}

#[test]
fn all_counts_return_to_zero_after_a_storm() {
    let store = MemoryStorage::new();
    let session = |round: u64| key(round % 16);
    together(|thread| {
        for round in 0..2000 {
            let session = session(round);
            now(store.create(&new_session(session)));
            let stream = format!("s{thread}.{round}");
            enter(&store, session, Some(&open(&stream)));
            let last = Append {
                finish: (round % 2 == 0).then_some(KEPT),
                ..owned(session, &stream, at(1, 1), "payload")
            };
            append(&store, &last);
            append(
                &store,
                &shared(session, InstanceId(thread.into()), round + 1, "shared"),
            );
            let id = i64::try_from(thread).unwrap();
            let asked = PutRequest {
                token: WaiterToken(round.into()),
                ..request(session, id, 0)
            };
            if put(&store, &asked) == Put::Done {
                settle(&store, &answer(session, id, round.into()));
            }
            if round % 5 == 0 {
                now(store.shrink(&session, 50));
            }
            if round % 7 == 0 {
                now(store.delete(&session, &ME));
            }
            if round % 100 == 0 {
                stats(&store);
                now(store.sweep(10, &[], KEPT));
            }
        }
    });
    for round in 0..16 {
        now(store.delete(&session(round), &ME));
    }
    assert_eq!(stats(&store), [0; 5]);
}
