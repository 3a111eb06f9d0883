//! What goes wrong: outages, deaths, thaws, and callers that go away.

use std::time::Duration;

use mcp_adapter_core::{
    Cancelled, EndReason, ErrorKind, EventId, Health, Limits, Position, Revocation, Role,
    SessionAdapter, TailFrom,
};

use super::support::{Fleet, all, bytes, number, open, record, session, start_of, text};

fn limits() -> mcp_adapter_core::LimitsBuilder {
    Limits::builder()
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_max_outage_loses_nothing() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let writer = open(&a.engine, &id, 1).await;
    let first = writer.append(bytes("1")).await.unwrap();
    let mut tail = b.engine.tail(&id, TailFrom::After(first)).await.unwrap();
    a.link.cut();
    b.link.cut();
    let lost = writer.append(bytes("2")).await.unwrap_err();
    assert!(lost.is_retryable(), "{lost}");
    let finish = tokio::spawn(writer.finish(Some(bytes("3"))));
    tokio::time::sleep(Duration::from_secs(30)).await;
    a.link.mend();
    b.link.mend();
    finish.await.unwrap().unwrap().unwrap();
    // Its append told that 2 may be lost; the reader is told, too.
    let items = all(&mut tail).await;
    assert!(
        items == ["gap", "3", "Finished"] || items == ["2", "3", "Finished"],
        "{items:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_result_that_cannot_be_stored_goes_to_its_socket_without_an_id() {
    let fleet = Fleet::new(Limits::default());
    let a = fleet.instance();
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let writer = open(&a.engine, &id, 1).await;
    let stream = writer.stream().clone();
    let mut own = writer.attach();
    a.link.cut();
    // Past half a lease others might hold this instance dead.
    tokio::time::sleep(fleet.limits.lease()).await;
    let finish = tokio::spawn(writer.finish(Some(bytes("result"))));
    assert_eq!(all(&mut own).await, ["unstored result", "Finished"]);
    let error = finish.await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    // Nothing stays open for ever: once the backend is back, the stream ends.
    tokio::time::sleep(Duration::from_secs(5)).await;
    a.link.mend();
    // The other one was not there meanwhile, or it had ended the stream.
    let b = fleet.instance();
    let mut tail = b.engine.tail(&id, start_of(&stream)).await.unwrap();
    assert_eq!(all(&mut tail).await, ["gap", "OwnerLost"]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_owner_is_ended_and_a_thawed_one_is_fenced() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let writer = open(&a.engine, &id, 1).await;
    let mut own = writer.attach();
    let first = writer.append(bytes("1")).await.unwrap();
    let mut tail = b.engine.tail(&id, start_of(&first.stream)).await.unwrap();
    assert_eq!(text(&mut tail).await, "1");
    assert_eq!(all(&mut own).await, ["1", "Superseded"]);
    let frozen = tokio::time::Instant::now();
    a.link.cut();
    assert_eq!(text(&mut tail).await, "OwnerLost");
    let took = frozen.elapsed();
    assert!(took >= fleet.limits.lease(), "{took:?}");
    assert!(took < fleet.limits.lease() * 2, "{took:?}");

    a.link.mend();
    assert_eq!(writer.revoked().await, Revocation::Fenced);
    let fenced = writer.append(bytes("2")).await.unwrap_err();
    assert_eq!(fenced.kind(), ErrorKind::Fenced);
    let replay = b.engine.replay(&id, &first, 10).await.unwrap();
    assert!(replay.events.is_empty());
    assert_eq!(replay.end, Some(EndReason::OwnerLost));
}

#[tokio::test(start_paused = true)]
async fn a_thawed_instance_says_nothing_on_a_tail_that_was_taken_over() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let writer = open(&a.engine, &id, 1).await;
    let mut own = writer.attach();
    let first = writer.append(bytes("1")).await.unwrap();
    assert_eq!(text(&mut own).await, "1");
    a.link.cut();
    let mut tail = b.engine.tail(&id, TailFrom::After(first)).await.unwrap();
    assert_eq!(all(&mut tail).await, ["OwnerLost"]);
    a.link.mend();
    assert_eq!(all(&mut own).await, ["Superseded"]);
    assert_eq!(writer.revoked().await, Revocation::Fenced);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_of_a_dead_owner_ends_as_cancelled() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let writer = open(&a.engine, &id, 1).await;
    let first = writer.append(bytes("1")).await.unwrap();
    a.link.cut();
    let marked = SessionAdapter::cancel(&b.engine, &id, &number(1)).await;
    assert_eq!(marked.unwrap(), Cancelled::Marked(first.stream.clone()));
    let mut tail = b.engine.tail(&id, TailFrom::After(first)).await.unwrap();
    assert_eq!(all(&mut tail).await, ["Cancelled"]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_backend_kills_no_owner() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let writer = open(&a.engine, &id, 1).await;
    let first = writer.append(bytes("1")).await.unwrap();
    let mut tail = b.engine.tail(&id, TailFrom::After(first)).await.unwrap();
    a.link.cut();
    b.link.cut();
    tokio::time::sleep(fleet.limits.lease() * 3).await;
    // The observer is back first and must not judge by what it saw before.
    b.link.mend();
    tokio::time::sleep(fleet.limits.lease() / 2).await;
    a.link.mend();
    tokio::time::sleep(fleet.limits.lease() * 2).await;
    writer.finish(Some(bytes("2"))).await.unwrap();
    assert_eq!(all(&mut tail).await, ["2", "Finished"]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_instances_leftovers_end_although_nobody_reads_them() {
    let fleet = Fleet::new(limits().open_streams(1).build().unwrap());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let writer = a
        .engine
        .enter(&id, None, Some(&number(1)))
        .await
        .unwrap()
        .writer;
    let full = b
        .engine
        .enter(&id, None, Some(&number(2)))
        .await
        .unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Overloaded);
    a.link.cut();
    tokio::time::sleep(fleet.limits.lease() * 2).await;
    let entered = b.engine.enter(&id, None, Some(&number(2))).await;
    assert!(entered.is_ok(), "the janitor has made room");
    drop(writer);
}

#[tokio::test(start_paused = true)]
async fn another_history_of_the_server_opens_an_epoch_and_shows_the_hole() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let writer = open(&a.engine, &id, 1).await;
    let first = writer.append(bytes("1")).await.unwrap();
    let second = writer.append(bytes("2")).await.unwrap();
    a.link.change_generation();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let third = writer.append(bytes("3")).await.unwrap();
    assert_eq!(third.position, Position::new(2, 1));
    writer.finish(None).await.unwrap();
    // A reader that has all of the old epoch misses nothing.
    let mut tail = b.engine.tail(&id, TailFrom::After(second)).await.unwrap();
    assert_eq!(all(&mut tail).await, ["3", "Finished"]);
    let mut tail = b
        .engine
        .tail(&id, TailFrom::After(first.clone()))
        .await
        .unwrap();
    assert_eq!(all(&mut tail).await, ["2", "3", "Finished"]);
    // A cursor that only the owner's socket has seen goes on in the next epoch.
    let beyond = EventId::new(first.stream.clone(), Position::new(1, 9));
    let mut tail = b.engine.tail(&id, TailFrom::After(beyond)).await.unwrap();
    assert_eq!(all(&mut tail).await, ["3", "Finished"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_overloaded_and_nothing_of_it_is_lost() {
    let limits = limits().queued_events(10).build().unwrap();
    let fleet = Fleet::new(limits);
    let a = fleet.instance();
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let writer = a
        .engine
        .enter(&id, None, Some(&number(1)))
        .await
        .unwrap()
        .writer
        .unwrap();
    a.link.cut();
    let mut acks = Vec::new();
    for n in 0..100 {
        acks.push((n, writer.append(bytes(&n.to_string()))));
    }
    a.link.mend();
    let mut stored = Vec::new();
    for (n, ack) in acks {
        match ack.await {
            Ok(_) => stored.push(n.to_string()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Overloaded),
        }
    }
    assert!((1..100).contains(&stored.len()), "{}", stored.len());
    writer.finish(None).await.unwrap();
    let mut tail = a.engine.tail(&id, start_of(writer.stream())).await.unwrap();
    stored.push("Finished".into());
    assert_eq!(all(&mut tail).await, stored, "no hole, no gap");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_no_open_stream() {
    let fleet = Fleet::new(limits().open_streams(1).build().unwrap());
    let a = fleet.instance();
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    drop(a.engine.enter(&id, None, Some(&number(1))).await.unwrap());
    {
        let call = number(2);
        let mut entering = Box::pin(a.engine.enter(&id, None, Some(&call)));
        let _ = futures::poll!(&mut entering);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    a.engine.enter(&id, None, Some(&number(3))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_closed_instance_ends_its_calls_at_once_and_serves_nothing() {
    use mcp_adapter_core::Adapter;
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let writer = open(&a.engine, &id, 1).await;
    let first = writer.append(bytes("1")).await.unwrap();
    let mut get = a.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    let mut tail = b.engine.tail(&id, TailFrom::After(first)).await.unwrap();
    let closing = tokio::time::Instant::now();
    a.engine.close().await.unwrap();
    assert_eq!(text(&mut tail).await, "OwnerLost");
    assert!(closing.elapsed() <= fleet.limits.catch_up());
    assert_eq!(text(&mut get).await, "Closed");
    assert_eq!(writer.revoked().await, Revocation::Fenced);
    let closed = a.engine.enter(&id, None, None).await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Closed);
    b.engine.enter(&id, None, None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_killed_instance_writes_nothing_more_and_is_found_dead() {
    use mcp_adapter_core::Adapter;
    for inline in [true, false] {
        let fleet = Fleet::new(Limits::default());
        let (near, far, b) = (fleet.inline(), fleet.instance(), fleet.instance());
        let a: &dyn Adapter = if inline { &near } else { &far.engine };
        let id = session();
        b.engine.create(&id, record()).await.unwrap();
        let entered = a.enter(&id, None, Some(&number(1))).await.unwrap();
        let writer = entered.writer.unwrap();
        let first = writer.append(bytes("1")).await.unwrap();
        let mut tail = b.engine.tail(&id, start_of(&first.stream)).await.unwrap();
        assert_eq!(text(&mut tail).await, "1");
        let killed = tokio::time::Instant::now();
        if inline {
            near.kill();
        } else {
            far.engine.kill();
        }
        let late = writer.append(bytes("2"));
        assert!(futures::FutureExt::now_or_never(late).is_none());
        drop(writer);
        assert_eq!(text(&mut tail).await, "OwnerLost");
        assert!(killed.elapsed() >= fleet.limits.lease(), "not by its drop");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_knows_how_its_backend_is_before_its_first_use() {
    let fleet = Fleet::new(Limits::default());
    let up = fleet.instance();
    let down = fleet.instance();
    down.link.cut();
    assert!(
        matches!(up.engine.health(), Health::Down { .. }),
        "not known yet"
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(up.engine.health(), Health::Ok);
    assert!(matches!(down.engine.health(), Health::Down { .. }));
    down.link.mend();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(down.engine.health(), Health::Ok);
    assert_eq!(fleet.inline().health(), Health::Ok);
}
