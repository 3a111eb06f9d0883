//! Without the feature `tls`:
//! `cargo test -p mcp-adapter-postgres --no-default-features --test no_tls`.
#![cfg(not(feature = "tls"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Setting, limits};
use mcp_adapter_postgres::{ConnectError, PostgresAdapter};

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_tls_is_refused_and_who_prefers_it_is_not() {
    let setting = Setting::start(&[]).await;
    for (mode, refused) in [
        ("disable", false),
        ("allow", false),
        ("prefer", false),
        ("require", true),
        ("verify-ca", true),
        ("verify-full", true),
    ] {
        let url = format!("{}?sslmode={mode}", setting.url);
        let opened = PostgresAdapter::connect(&url, limits()).await;
        match opened {
            Ok(_) => assert!(!refused, "{mode}"),
            Err(error) => {
                assert!(refused, "{mode}: {error:?}");
                assert!(matches!(error, ConnectError::Tls(_)), "{mode}: {error:?}");
            }
        }
    }
}
