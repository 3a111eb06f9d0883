//! Sessions: tombstones.

use mcp_adapter_core::{SessionId, WaiterToken, storage::Storage};

use super::{ME, Store, new_session};

/// Memory is bounded, whatever a client does with one key.
#[tokio::test]
async fn tombstones_are_bounded_in_number_and_in_time() {
    let store = Store::open().await;
    let key = SessionId::generate().key();
    for creator in 1..=100 {
        let session = new_session(key, WaiterToken(creator));
        assert!(store.redis.create(&session).await.unwrap());
        assert!(store.redis.delete(&key, &ME).await.unwrap().is_some());
    }
    let latest = new_session(key, WaiterToken(100));
    assert!(!store.redis.create(&latest).await.unwrap());
    let keys = store.server.command(&["KEYS", "*"]).unwrap();
    // Beside what the check of rights has left for a while.
    let of_sessions = |line: &&str| line.starts_with("{mcp:") && !line.contains("check");
    let keys: Vec<_> = keys.lines().filter(of_sessions).collect();
    let [tombstones] = keys[..] else {
        panic!("one key is left: {keys:?}");
    };
    let count = store.server.command(&["ZCARD", tombstones]).unwrap();
    assert_eq!(count.trim(), ":64");
    let left = store.server.command(&["PTTL", tombstones]).unwrap();
    let left: u64 = left.trim().trim_start_matches(':').parse().unwrap();
    assert!((1..=600_000).contains(&left), "{left}");
}
