//! Stores of several parts, of which one is away.

use std::time::Duration;

use mcp_adapter_core::{
    Answer, ClientRequestAdapter, Delivery, Limits, NewClientRequest, OutcomeKind, SessionAdapter,
    SessionId,
};

use super::support::{
    Fleet, PATIENCE, bytes, number, open, record, session, shard_of, start_of, text,
};

/// A part of the store is away for longer than a lease. Sessions of the other go
/// on: appends and requests do not wait behind those that get no answer, and what
/// is not knocked at is still seen with the next round of catching up.
#[tokio::test(start_paused = true)]
async fn a_shard_that_is_away_holds_up_only_its_own_sessions() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let in_shard = |shard| loop {
        let id: SessionId = session();
        if shard_of(&id.key()) == shard {
            return id;
        }
    };
    let (here, away) = (in_shard(0), in_shard(1));
    let mut writers = Vec::new();
    for id in [&here, &away] {
        SessionAdapter::create(&a.engine, id, record())
            .await
            .unwrap();
        writers.push(open(&a.engine, id, 1).await);
    }
    let start = start_of(writers[0].stream());
    let mut tail = b.engine.tail(&here, start).await.unwrap();
    // The other's stream is followed, too, so that it is caught up with.
    let mut held_up = b
        .engine
        .tail(&away, start_of(writers[1].stream()))
        .await
        .unwrap();
    a.link.shard_away(Some(1));
    b.link.shard_away(Some(1));
    b.link.lose_knocks();
    let waiting = writers[1].append(bytes("held up"));
    let waiting = tokio::spawn(waiting);
    let until = tokio::time::Instant::now() + fleet.limits.lease() * 3;
    let mut count = 0;
    let mut slowest = [Duration::ZERO; 3];
    while tokio::time::Instant::now() < until {
        count += 1;
        let sent = tokio::time::Instant::now();
        writers[0].append(bytes(&count.to_string())).await.unwrap();
        slowest[0] = slowest[0].max(sent.elapsed());
        assert_eq!(text(&mut tail).await, count.to_string());
        slowest[1] = slowest[1].max(sent.elapsed());
        let asked = tokio::time::Instant::now();
        let request = NewClientRequest::new(number(count));
        let pending = ClientRequestAdapter::create(&a.engine, &here, request)
            .await
            .unwrap();
        let answer = Answer::Result(bytes("yes"));
        let told = b
            .engine
            .answer(&here, &number(count), answer)
            .await
            .unwrap();
        assert_eq!(told, Delivery::Delivered);
        assert_eq!(pending.await.kind, OutcomeKind::Answered);
        slowest[2] = slowest[2].max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The first round meets the silence as a whole; from then on shards are apart.
    let first_round = PATIENCE + fleet.limits.catch_up() * 2;
    assert!(slowest[0] < Duration::from_millis(100), "{slowest:?}");
    assert!(slowest[1] < first_round, "{slowest:?}");
    // Each heartbeat that fails is waited for once in its interval at most.
    assert!(slowest[2] < fleet.limits.lease() / 2, "{slowest:?}");
    assert!(count > 50, "{count} rounds: {slowest:?}");
    a.link.shard_away(None);
    b.link.shard_away(None);
    let held = waiting.await.unwrap();
    assert!(held.is_err_and(|error| error.is_retryable()));
    writers[1].append(bytes("goes on")).await.unwrap();
    let first = text(&mut held_up).await;
    assert!(first == "gap" || first == "goes on", "{first}");
}
