//! What a server lost that acknowledges before the disk has it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Setting, is_pushed, sql};
use mcp_adapter_conformance::faults::Signal;
use mcp_adapter_core::{
    EventId, Health, Position, Role, RpcId, SessionAdapter, SessionId, SessionRecord, TailEvent,
};
use tokio::time::{Instant, sleep};

/// A crash takes what is not on the disk, acknowledged or not. Its writer lives, and
/// writes it again before anything new.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_lost_is_written_again() {
    // The log goes to the disk long after the commit.
    let mut setting = Setting::start(&[
        "synchronous_commit=off",
        "wal_writer_delay=10000ms",
        "wal_writer_flush_after=0",
        "autovacuum=off",
    ])
    .await;
    let id = SessionId::generate();
    setting
        .a
        .create(&id, SessionRecord::default())
        .await
        .unwrap();
    let text = |number: u64| Bytes::from(number.to_string());
    let mut writers = Vec::new();
    for request in [1, 2] {
        let request = RpcId::Number(request);
        let entered = setting.a.enter(&id, None, Some(&request)).await.unwrap();
        writers.push(entered.writer.unwrap());
    }
    let mut admin = setting.admin().await;
    for number in 1..=5 {
        writers[0].append(text(number)).await.unwrap();
    }
    // So far everything is on the disk.
    sql(&mut admin, "CHECKPOINT").await;
    for number in 6..=20 {
        writers[0].append(text(number)).await.unwrap();
    }
    writers[1]
        .finish(Some(Bytes::from_static(b"result")))
        .await
        .unwrap();
    setting.server.program().signal(Signal::Quit).unwrap();
    let until = Instant::now() + common::NOTICED;
    while setting.a.health() == Health::Ok {
        assert!(Instant::now() < until, "a crash is not noticed");
        sleep(Duration::from_millis(10)).await;
    }
    let program = setting.server.program();
    tokio::task::block_in_place(|| program.restart().unwrap());
    setting.recovers().await;
    is_pushed(&setting.a, &setting.b).await;
    writers[0].append(text(21)).await.unwrap();
    let replay = async |at: usize| {
        let start = EventId::new(writers[at].stream().clone(), Position::START);
        setting.b.replay(&id, &start, 100).await.unwrap()
    };
    let read = replay(0).await.events;
    let expected: Vec<_> = (1..=21).map(text).collect();
    let data = |events: &[TailEvent]| -> Vec<_> {
        let data = events.iter().map(|event| match event {
            TailEvent::Event { data, .. } => data.clone(),
            other => panic!("{other:?} among {events:?}"),
        });
        data.collect()
    };
    assert_eq!(data(&read), expected);
    let result = replay(1).await;
    assert_eq!(data(&result.events), [Bytes::from_static(b"result")]);
    assert!(result.end.is_some(), "it is finished");
}
