//! Three handles on one file, driven at random, against the reference backend:
//! each step must answer the same, whichever handle does it. What one handle
//! remembers, another one changes.

#![allow(clippy::unwrap_used, reason = "a step that fails ends the test")]

mod others;
mod streams;
mod world;

use std::collections::BTreeSet;

use mcp_adapter_core::{
    Position, SessionKey, StreamId,
    storage::{Cursor, Generation, Storage},
};
use mcp_adapter_memory::MemoryStorage;
use mcp_adapter_sqlite::{SqliteOptions, SqliteStorage};

use crate::world::*;

/// What must come about in the seeds that are run: steps that are rare, and answers
/// that need more than what a row says now.
const ALL: [&str; 17] = [
    "an append is new",
    "an append is a repeat",
    "the repeat of an event that was evicted",
    "an append comes twice in a batch",
    "a shared stream is made again",
    "an update is a repeat",
    "an update of a former revision is a repeat",
    "an update conflicts",
    "a hold is continued",
    "a hold is past",
    "a waiter of long ago",
    "an answer of long ago",
    "an answer wins",
    "a waiter is replaced",
    "a call is cancelled",
    "a cancel is ambiguous",
    "a dead owner's stream is ended",
];

impl World {
    async fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step += 1;
            if self.burst > 0 {
                self.burst -= 1;
                self.appends().await;
                continue;
            }
            if self.random.u8(..40) == 0 {
                let handle = self.random.usize(..self.handles.len());
                self.last = (handle, self.session(), self.stream());
                self.burst = self.random.u8(5..20);
            }
            match self.random.u8(..22) {
                0..8 => self.appends().await,
                8..12 => self.read().await,
                12 | 13 => self.hold().await,
                14 => self.sessions().await,
                15 | 16 => self.enter().await,
                17 | 18 => self.requests().await,
                _ => self.others().await,
            }
        }
        for session in 0..SESSIONS {
            for stream in STREAMS {
                let cursor = Cursor {
                    session: SessionKey([session; 32]),
                    stream: stream.parse().unwrap(),
                    after: Position::START,
                    max_events: 1000,
                    max_bytes: 1 << 20,
                    touch: false,
                };
                let expected = self
                    .model
                    .read(std::slice::from_ref(&cursor))
                    .await
                    .unwrap();
                for handle in &self.handles {
                    let found = handle.read(std::slice::from_ref(&cursor)).await.unwrap();
                    assert_eq!(self.plain(&found), self.plain(&expected));
                }
            }
        }
    }
}

/// Everything that is stored is reached from somewhere.
fn check_file(path: &std::path::Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    let integrity: String = conn
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(integrity, "ok");
    for (what, sql) in [
        ("events", "SELECT count(*) FROM mcp_event"),
        ("heads", "SELECT count(*) FROM mcp_head"),
        ("streams", "SELECT count(*) FROM mcp_stream"),
        ("writers", "SELECT count(*) FROM mcp_writer"),
        ("requests", "SELECT count(*) FROM mcp_request"),
        ("uses", "SELECT count(*) FROM mcp_used"),
        ("principals", "SELECT count(*) FROM mcp_principal"),
        (
            "counts",
            "SELECT sessions + streams + abs(events) + abs(bytes) + pending FROM mcp_total",
        ),
    ] {
        let left: i64 = conn.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "{what} that belong to nothing");
    }
}

async fn one(seed: u64, steps: u64) -> BTreeSet<&'static str> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp.sqlite");
    let options = SqliteOptions::new(&path);
    let handles = (0..3).map(|_| SqliteStorage::new(options.clone()).unwrap());
    let handles: Vec<_> = handles.collect();
    let Generation(history) = handles[0].attach(INSTANCES[0]).await.unwrap();
    let (_, epoch) = history.rsplit_once('-').unwrap();
    // Shared streams begin with it, in the model with 1.
    let ahead = epoch.parse::<u32>().unwrap() - 1;
    let mut world = World {
        random: fastrand::Rng::with_seed(seed),
        model: MemoryStorage::new(),
        handles,
        ahead,
        step: 0,
        ends: 0,
        tags: [0; 3],
        beats: [None; 3],
        tokens: 0,
        updates: Vec::new(),
        holds: Vec::new(),
        puts: Vec::new(),
        settles: Vec::new(),
        shared: Vec::new(),
        burst: 0,
        last: (0, SessionKey([0; 32]), StreamId::standalone()),
        seen: BTreeSet::new(),
    };
    world.run(steps).await;
    world.burst = 0;
    for session in 0..SESSIONS {
        let handle = world.handle();
        handle
            .delete(&SessionKey([session; 32]), &ME)
            .await
            .unwrap();
    }
    for handle in &world.handles {
        while handle.sweep(1000, &[], LONG).await.unwrap().more {}
    }
    check_file(&path);
    world.seen
}

#[tokio::test]
async fn every_handle_answers_as_the_reference_does() {
    // MCP_SEED runs one seed alone.
    if let Ok(seed) = std::env::var("MCP_SEED") {
        one(seed.parse().unwrap(), 1500).await;
        return;
    }
    let mut seen = BTreeSet::new();
    for seed in 0..12 {
        println!("seed {seed}");
        seen.append(&mut one(seed, 1500).await);
    }
    let missing: Vec<_> = ALL.iter().filter(|what| !seen.contains(*what)).collect();
    assert!(missing.is_empty(), "it never happened: {missing:?}");
}
