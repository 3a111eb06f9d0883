//! Prints what an idle session costs (gate M2), and whether memory grows as
//! sessions come and go.
//!
//! `cargo run --release -p mcp-adapter-memory --example idle_sessions [SESSIONS]`

use std::{env, error::Error, fs, time::Duration};

use bytes::Bytes;
use futures::FutureExt as _;
use mcp_adapter_core::{
    PrincipalKey, Result, SessionId, SessionKey, WaiterToken,
    storage::{Entered, NewSession, Storage as _},
};
use mcp_adapter_memory::MemoryStorage;

const RECORD: [u8; 150] = [b'x'; 150];
const ROUNDS: u64 = 5;

fn now<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
    step.now_or_never()
        .unwrap_or_else(|| unreachable!("every step is inline"))
}

/// Resident bytes of this process.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no VmRSS")?.parse::<u64>()? * 1024)
}

fn key(number: u64) -> Result<SessionKey> {
    Ok(number.to_string().parse::<SessionId>()?.key())
}

fn create(store: &MemoryStorage, number: u64) -> Result<()> {
    let principal = PrincipalKey(key(number)?.0);
    let session = NewSession {
        session: key(number)?,
        principal,
        record: Bytes::from_static(&RECORD),
        idle_ttl: Duration::from_secs(1800),
        absolute_ttl: None,
        creator: WaiterToken(number.into()),
    };
    now(store.create(&session))?;
    // A session that is idle has been used before.
    let entered = now(store.enter(&session.session, &principal, None))?;
    assert!(matches!(entered, Entered::Session { record, .. } if *record == RECORD));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let sessions = env::args()
        .nth(1)
        .map_or(Ok(1_000_000), |text| text.parse())?;
    let empty = resident()?;
    let store = MemoryStorage::new();
    for number in 0..sessions {
        create(&store, number)?;
    }
    let full = resident()?;
    println!(
        "{sessions} sessions: {} bytes each",
        (full - empty) / sessions
    );
    for round in 1..=ROUNDS {
        for number in 0..sessions {
            let old = key((round - 1) * sessions + number)?;
            now(store.delete(&old, &PrincipalKey(old.0)))?;
            create(&store, round * sessions + number)?;
        }
        let rss = resident()?;
        println!(
            "all of them replaced {round} times: {} bytes each",
            (rss - empty) / sessions
        );
    }
    let mut first = ROUNDS * sessions;
    for round in 1..=ROUNDS {
        for number in first..first + sessions {
            let old = key(number)?;
            now(store.delete(&old, &PrincipalKey(old.0)))?;
        }
        first += sessions;
        for number in first..first + sessions {
            create(&store, number)?;
        }
        let rss = resident()?;
        println!(
            "all deleted and created again {round} times: {} bytes each",
            (rss - empty) / sessions
        );
    }
    Ok(())
}
