//! Client requests that have the same id one after another.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_core::{
    OutcomeKind, RpcId, SessionKey, WaiterToken,
    storage::{Put, PutRequest, RequestKey, RequestState, Settle, Settled, Storage},
};

use super::{A, B, LONG, Store, sweep::until_gone};

fn put(session: SessionKey, token: u128) -> PutRequest {
    PutRequest {
        session,
        id: RpcId::Number(1),
        token: WaiterToken(token),
        owner: A,
        timeout: LONG,
        result_ttl: LONG,
        max_pending: 10,
    }
}

fn answer(session: SessionKey, attempt: u128) -> Settle {
    Settle {
        session,
        id: RpcId::Number(1),
        token: None,
        outcome: OutcomeKind::Answered,
        payload: Bytes::from_static(b"yes"),
        dead: None,
        attempt: WaiterToken(attempt),
    }
}

async fn state(store: &Store, session: SessionKey) -> RequestState {
    let key = RequestKey {
        session,
        id: RpcId::Number(1),
        token: None,
    };
    store.redis.requests(&[key]).await.unwrap().remove(0)
}

/// An answer that won and comes again is not the answer to who asks now, nor
/// becomes a waiter that was replaced the one that waits.
#[tokio::test]
async fn late_repeats_change_nothing_of_the_requests_that_follow() {
    let store = Store::open().await;
    let session = store.session().await;
    let mut puts: Vec<PutRequest> = Vec::new();
    let mut answers: Vec<Settle> = Vec::new();
    let pending = RequestState::Pending { owner: A };
    for round in 1..=8 {
        // One that is answered, and one that is replaced while it waits.
        puts.push(put(session, round));
        let fresh = puts.last().into_iter().cloned().collect::<Vec<_>>();
        let told = store.redis.put_requests(&fresh).await.unwrap();
        assert!(matches!(told[..], [Put::Done | Put::Replaced(_)]));
        if round % 2 == 0 {
            answers.push(answer(session, 100 + round));
            let won = answers.last().into_iter().cloned().collect::<Vec<_>>();
            assert_eq!(store.redis.settle(&won).await.unwrap(), [Settled::Won]);
        }
    }
    let last = PutRequest {
        owner: A,
        ..put(session, 9)
    };
    store.redis.put_requests(&[last]).await.unwrap();
    for late in &answers {
        let settled = store.redis.settle(std::slice::from_ref(late)).await;
        assert_eq!(settled.unwrap(), [Settled::Won]);
        assert_eq!(state(&store, session).await, pending, "{:?}", late.attempt);
    }
    for mut late in puts {
        late.owner = B;
        let told = store.redis.put_requests(&[late.clone()]).await.unwrap();
        assert_eq!(told, [Put::Done], "{:?}", late.token);
        assert_eq!(state(&store, session).await, pending, "{:?}", late.token);
    }
    // Bounded: what more than eight have replaced is not remembered.
    for token in 10..20 {
        let next = put(session, token);
        store.redis.put_requests(&[next]).await.unwrap();
    }
    let size = size_of_request(&store);
    for token in 20..60 {
        let next = put(session, token);
        store.redis.put_requests(&[next]).await.unwrap();
    }
    assert_eq!(size_of_request(&store), size);
}

/// Bytes of the one request that is stored.
fn size_of_request(store: &Store) -> String {
    let keys = store.server.command(&["KEYS", "*:q"]).unwrap();
    let key = keys.lines().nth(2).unwrap().to_owned();
    store.server.command(&["HSTRLEN", &key, "n1"]).unwrap()
}

/// However it ended, and not when it ended.
#[tokio::test]
async fn a_request_that_is_forgotten_counts_once() {
    let store = Store::open().await;
    let session = store.session().await;
    let short = Duration::from_millis(20);
    let of = |id, timeout, result_ttl| PutRequest {
        id: RpcId::Number(id),
        timeout,
        result_ttl,
        ..put(session, 1)
    };
    let late = of(3, short, LONG);
    store.redis.put_requests(&[late]).await.unwrap();
    let ended = async || {
        let pending = store.redis.stats().await.unwrap().pending_requests;
        pending.value() == 0
    };
    assert_eq!(until_gone(&store, ended).await, 0, "it has timed out");
    let two = [of(1, LONG, short), of(2, short, short)];
    store.redis.put_requests(&two).await.unwrap();
    let settled = store.redis.settle(&[answer(session, 3)]).await;
    assert_eq!(settled.unwrap(), [Settled::Won]);
    let keys = [1, 2].map(|id| RequestKey {
        session,
        id: RpcId::Number(id),
        token: None,
    });
    let forgotten = async || {
        let states = store.redis.requests(&keys).await.unwrap();
        states.iter().all(|state| *state == RequestState::Missing)
    };
    assert_eq!(until_gone(&store, forgotten).await, 2);
}
