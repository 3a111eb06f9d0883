//! Sweeping.

use std::time::Duration;

use mcp_adapter_core::{
    SessionId, WaiterToken,
    storage::{Append, Storage},
};
use tokio::time::{Instant, sleep};

use super::{LONG, ME, Store, at, new_session, owned, shared};

/// Sweeps until it is gone; how much was removed meanwhile.
pub(super) async fn until_gone(store: &Store, gone: impl AsyncFn() -> bool) -> usize {
    let end = Instant::now() + Duration::from_secs(20);
    let mut removed = 0;
    let mut is_gone = false;
    loop {
        // A sweep that begins when it is gone sees all of it.
        let before = is_gone;
        let swept = store.redis.sweep(100, &[], LONG).await.unwrap();
        removed += swept.removed;
        if before && !swept.more {
            return removed;
        }
        assert!(Instant::now() < end, "it is still there");
        is_gone = is_gone || gone().await;
        if !is_gone {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn what_expires_counts_once_and_what_is_deleted_does_not() {
    let store = Store::open().await;
    // A deleted session with all kinds of things in it.
    let deleted = store.call().await;
    store.append(&[owned(deleted, at(1, 1), "x")]).await;
    store.append(&[shared(deleted, 1, "x")]).await;
    assert!(store.redis.delete(&deleted, &ME).await.unwrap().is_some());
    // A session that expires with a stream in it: one thing.
    let mut short = new_session(SessionId::generate().key(), WaiterToken(1));
    short.idle_ttl = Duration::from_millis(200);
    assert!(store.redis.create(&short).await.unwrap());
    store.append(&[shared(short.session, 1, "x")]).await;
    // A stream that expires in one that does not: another.
    let session = store.call().await;
    let last = Append {
        finish: Some(Duration::from_millis(200)),
        ..owned(session, at(1, 1), "x")
    };
    store.append(&[last]).await;
    let removed = until_gone(&store, async || {
        let left = store.redis.stats().await.unwrap();
        left.sessions.value() == 1 && left.streams.value() == 0
    })
    .await;
    assert_eq!(removed, 2);
}
