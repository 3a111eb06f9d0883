//! Client requests that have the same id one after another.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_core::{
    OutcomeKind, RpcId, SessionKey, WaiterToken,
    storage::{PutRequest, RequestKey, RequestState, Settle, Settled, Storage},
};

use super::{A, LONG, Store, sweep::until_gone};

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

/// What is remembered of those that had the id before is bounded.
#[tokio::test]
async fn a_request_of_an_id_that_is_used_again_and_again_does_not_grow() {
    let store = Store::open().await;
    let session = store.session().await;
    let mut sizes = Vec::new();
    for token in 100..160 {
        let next = put(session, token);
        store.redis.put_requests(&[next]).await.unwrap();
        let settled = store.redis.settle(&[answer(session, 1000 + token)]).await;
        assert_eq!(settled.unwrap(), [Settled::Won]);
        sizes.push(size_of_request(&store));
    }
    sizes.dedup();
    // It grows with each of the first eight, and once to the ninth waiter.
    assert!((2..=9).contains(&sizes.len()), "{sizes:?}");
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
