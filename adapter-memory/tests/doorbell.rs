//! Wake-ups: at once, bounded, one door per instance.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use bytes::Bytes;
use common::*;
use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use mcp_adapter_core::{
    InstanceId, Result, RpcId, SessionKey,
    storage::{Append, Claim, Dead, Door, Hold, Knock, SignalChannel, Storage as _, Target},
};

type Bell = BoxStream<'static, Result<Knock>>;

fn listen(store: &MemoryStorage, me: InstanceId) -> Bell {
    now(store.doorbell(me))
}

/// What has come so far.
fn knocks(bell: &mut Bell) -> Vec<Knock> {
    std::iter::from_fn(|| bell.next().now_or_never().flatten())
        .map(Result::unwrap)
        .collect()
}

fn wake_stream(session: SessionKey, stream: &str) -> Vec<Knock> {
    vec![Knock::Wake(session, Target::Stream(name(stream)))]
}

#[test]
fn steps_knock_at_whom_they_concern() {
    let (store, session) = stream();
    let (mut a, mut b) = (listen(&store, A), listen(&store, B));
    hold(&store, session, "s", B, Hold::Take);
    let wake = Append {
        wake: Some(B),
        ..owned(session, "s", at(1, 1), "x")
    };
    append(&store, &wake);
    assert_eq!(knocks(&mut b), wake_stream(session, "s"));

    put(&store, &request(session, 1, 1));
    settle(&store, &answer(session, 1, 1));
    settle(&store, &answer(session, 1, 2));
    let woken = Knock::Wake(session, Target::Request(RpcId::Number(1)));
    assert_eq!(knocks(&mut a), [woken]);

    now(store.mark_cancel(&session, &RpcId::Number(1)));
    assert_eq!(knocks(&mut a), wake_stream(session, "s"));

    let claim = Claim {
        session,
        stream: name("s"),
        dead: Dead {
            instance: A,
            beat: None,
        },
        finished_ttl: KEPT,
    };
    now(store.claim(&[claim]));
    assert_eq!(knocks(&mut b), wake_stream(session, "s"));

    // What changes nothing wakes nobody.
    append(
        &store,
        &Append {
            wake: Some(B),
            ..owned(session, "s", at(1, 2), "x")
        },
    );
    now(store.mark_cancel(&session, &RpcId::Number(1)));
    assert_eq!((knocks(&mut a), knocks(&mut b)), (vec![], vec![]));
}

#[test]
fn a_sweep_of_the_dead_wakes_holders() {
    let (store, session) = stream();
    let mut bell = listen(&store, B);
    hold(&store, session, "s", B, Hold::Take);
    let dead = Dead {
        instance: A,
        beat: None,
    };
    assert_eq!(now(store.sweep(10, &[dead], KEPT)).removed, 1);
    assert_eq!(knocks(&mut bell), wake_stream(session, "s"));
}

#[test]
fn knocks_reach_one_or_all() {
    let store = MemoryStorage::new();
    let (mut a, mut b) = (listen(&store, A), listen(&store, B));
    let signal = Knock::Signal {
        from: A,
        channel: SignalChannel::Topic("topic".into()),
        payload: Bytes::from_static(b"hello"),
    };
    let knocked = [
        (Door::Of(A), Knock::Probe(1)),
        (Door::All, signal.clone()),
        (Door::Of(InstanceId(9)), Knock::Probe(2)),
    ];
    now(store.knock(&knocked));
    assert_eq!(knocks(&mut a), [Knock::Probe(1), signal.clone()]);
    assert_eq!(knocks(&mut b), [signal]);
}

#[test]
fn an_overflow_leaves_one_knock_for_everything() {
    let store = MemoryStorage::new();
    let mut bell = listen(&store, A);
    let many: Vec<_> = (0..10_000)
        .map(|n| (Door::Of(A), Knock::Probe(n)))
        .collect();
    now(store.knock(&many));
    let came = knocks(&mut bell);
    let everything = came
        .iter()
        .filter(|knock| **knock == Knock::Everything)
        .count();
    assert_eq!((came.len(), everything), (4097, 1));
    assert_eq!(came.last(), Some(&Knock::Everything));
    // It works as before.
    now(store.knock(&many));
    assert_eq!(knocks(&mut bell).len(), 4097);
}

#[test]
fn a_new_door_ends_the_former_one() {
    let store = MemoryStorage::new();
    let mut former = listen(&store, A);
    let mut bell = listen(&store, A);
    assert!(former.next().now_or_never().unwrap().is_none());
    // Its drop does not close the new one.
    drop(former);
    now(store.knock(&[(Door::Of(A), Knock::Probe(1))]));
    assert_eq!(knocks(&mut bell), [Knock::Probe(1)]);
}

#[tokio::test]
async fn a_knock_wakes_who_waits() {
    let store = MemoryStorage::new();
    let mut bell = listen(&store, A);
    let waits = tokio::spawn(async move { bell.next().await.unwrap().unwrap() });
    tokio::task::yield_now().await;
    now(store.knock(&[(Door::All, Knock::Probe(7))]));
    assert_eq!(waits.await.unwrap(), Knock::Probe(7));
}
