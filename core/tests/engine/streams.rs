//! Streams across instances: order, repeats, takeovers, limits, ends.

use std::time::Duration;

use futures::future::join_all;
use mcp_adapter_core::{
    Cancelled, ErrorKind, EventId, Limits, Position, Revocation, SessionAdapter, StreamId,
    TailEvent, TailFrom,
};

use super::support::{
    self, Fleet, all, begins, begins_in, bytes, next, number, open, record, session, start_of, text,
};

fn limits() -> mcp_adapter_core::LimitsBuilder {
    Limits::builder()
}

#[tokio::test(start_paused = true)]
async fn another_instance_follows_a_running_call_to_its_end() {
    let fleet = Fleet::new(Limits::default());
    for lossy in [false, true] {
        let (a, b) = (fleet.instance(), fleet.instance());
        if lossy {
            b.link.lose_knocks();
        }
        let id = session();
        a.engine.create(&id, record()).await.unwrap();
        let entered = a.engine.enter(&id, None, Some(&number(7))).await.unwrap();
        let writer = entered.writer.unwrap();
        let mut own = writer.attach();
        let first = writer.append(bytes("1")).await.unwrap();
        assert_eq!(text(&mut own).await, "1");

        let mut tail = b.engine.tail(&id, TailFrom::After(first)).await.unwrap();
        assert_eq!(text(&mut own).await, "Superseded");
        for n in 2..500 {
            let ack = writer.append(bytes(&n.to_string()));
            if n % 7 == 0 {
                ack.await.unwrap();
            }
        }
        let last = writer.finish(Some(bytes("500"))).await.unwrap().unwrap();
        let mut expected: Vec<_> = (2..=500).map(|n| n.to_string()).collect();
        expected.push("Finished".into());
        assert_eq!(all(&mut tail).await, expected);

        let mut again = b.engine.tail(&id, TailFrom::After(last)).await.unwrap();
        assert_eq!(all(&mut again).await, ["Finished"]);
        let late = writer.append(bytes("late")).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Finished);
    }
}

#[tokio::test(start_paused = true)]
async fn lost_answers_store_nothing_twice() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    a.link.lose_replies(2);
    a.engine.create(&id, record()).await.unwrap();
    a.link.lose_replies(2);
    let writer = open(&a.engine, &id, 1).await;
    let stream = writer.stream().clone();
    for n in 0..20 {
        a.link.lose_replies(n % 3);
        writer.append(bytes(&n.to_string())).await.unwrap();
        a.link.lose_replies(n % 3);
        a.engine.append(&id, bytes(&format!("s{n}"))).await.unwrap();
    }
    a.link.lose_replies(2);
    writer.finish(Some(bytes("end"))).await.unwrap();
    assert_eq!(a.link.replies_left_to_lose(), 0);

    let mut expected: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    expected.extend(["end".into(), "Finished".into()]);
    let mut tail = b.engine.tail(&id, start_of(&stream)).await.unwrap();
    assert_eq!(all(&mut tail).await, expected);
    let mut shared = b.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    for n in 0..20 {
        assert_eq!(text(&mut shared).await, format!("s{n}"));
    }
}

#[tokio::test(start_paused = true)]
async fn two_instances_write_one_standalone_stream_and_all_readers_see_one_order() {
    let fleet = Fleet::new(Limits::default());
    let (a, b, c) = (fleet.instance(), fleet.instance(), fleet.inline());
    let id = session();
    c.create(&id, record()).await.unwrap();
    let mut tail = c.tail(&id, TailFrom::Standalone).await.unwrap();
    // Both are up: from here on the order of calls is the order of appends.
    a.engine.stats().await.unwrap();
    b.engine.stats().await.unwrap();
    let appends = (0..200).map(|n| {
        let (writer, id) = (if n % 2 == 0 { &a } else { &b }, &id);
        async move {
            let event = bytes(&n.to_string());
            writer.engine.append(id, event).await.unwrap()
        }
    });
    let ids = join_all(appends).await;
    let mut live = Vec::new();
    for _ in 0..200 {
        live.push(text(&mut tail).await);
    }
    let start = EventId::new(StreamId::standalone(), Position::START);
    let replay = c.replay(&id, &start, 1000).await.unwrap();
    assert!(!replay.more);
    let replayed: Vec<_> = replay.events.into_iter().map(support::show).collect();
    assert_eq!(live, replayed);
    let mut sorted: Vec<u32> = live.iter().map(|n| n.parse().unwrap()).collect();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..200), "each exactly once");
    // What one instance appended in order is in that order.
    for parity in 0..2 {
        let own: Vec<_> = ids
            .iter()
            .skip(parity)
            .step_by(2)
            .map(|id| id.position)
            .collect();
        assert!(own.is_sorted());
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_plain_get_is_silent_until_the_first_ends() {
    let fleet = Fleet::new(limits().waiting_streams(2).build().unwrap());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    a.engine.append(&id, bytes("before any get")).await.unwrap();
    let mut first = a.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    assert_eq!(text(&mut first).await, "before any get");
    let mut second = b.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    let mut third = a.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    let idle = tokio::time::timeout(Duration::from_secs(5), next(&mut second)).await;
    assert!(idle.is_err(), "it is silent");
    let idle = tokio::time::timeout(Duration::from_secs(5), next(&mut third)).await;
    assert!(idle.is_err(), "it is silent at the holder's instance, too");
    a.engine.append(&id, bytes("one")).await.unwrap();
    assert_eq!(text(&mut first).await, "one");
    drop(third);
    drop(first);
    a.engine.append(&id, bytes("two")).await.unwrap();
    assert_eq!(text(&mut second).await, "two");
    // Who comes back is alive beside the second one.
    let resumed = TailFrom::After(EventId::new(StreamId::standalone(), Position::START));
    let mut resumed = a.engine.tail(&id, resumed).await.unwrap();
    // Of the first one's hold, and no more: the rest is the second one's.
    for expected in ["before any get", "one"] {
        assert_eq!(text(&mut resumed).await, expected);
    }
    let idle = tokio::time::timeout(Duration::from_secs(5), next(&mut resumed)).await;
    assert!(idle.is_err(), "it waits for its turn");
    a.engine.append(&id, bytes("three")).await.unwrap();
    assert_eq!(text(&mut second).await, "three");
    drop(second);
    a.engine.append(&id, bytes("four")).await.unwrap();
    assert_eq!(text(&mut resumed).await, "four");
}

#[tokio::test(start_paused = true)]
async fn a_plain_get_begins_where_the_former_yielded_last() {
    let fleet = Fleet::new(limits().build().unwrap());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let mut ids = Vec::new();
    for text in ["1", "2", "3"] {
        ids.push(a.engine.append(&id, bytes(text)).await.unwrap());
    }
    let mut first = a.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    assert_eq!(begins(&mut first).await, Position::START);
    let mut second = b.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    // All three are read, and one is yielded.
    assert_eq!(text(&mut first).await, "1");
    drop(first);
    assert_eq!(begins(&mut second).await, ids[0].position);
    assert_eq!(text(&mut second).await, "2");
    assert_eq!(text(&mut second).await, "3");
    drop(second);
    let mut third = a.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    let (began, hold) = begins_in(&mut third).await;
    assert_eq!(began, ids[2].position);
    a.engine.append(&id, bytes("4")).await.unwrap();
    assert_eq!(text(&mut third).await, "4");
    // Who was told where it begins can come back there, and nobody else: at the
    // same place the hold before has ended.
    let back = |hold| TailFrom::Returning {
        after: ids[2].position,
        hold,
    };
    let mut other = b.engine.tail(&id, back(None)).await.unwrap();
    let idle = tokio::time::timeout(Duration::from_secs(5), next(&mut other)).await;
    assert!(idle.is_err(), "it waits for its turn");
    let mut resumed = b.engine.tail(&id, back(Some(hold))).await.unwrap();
    assert_eq!(text(&mut resumed).await, "4");
}

#[tokio::test(start_paused = true)]
async fn evicted_events_show_as_a_gap_at_the_start_and_in_the_middle() {
    let fleet = Fleet::new(limits().stream_events(3).build().unwrap());
    for inline in [true, false] {
        let a = fleet.instance();
        let (b, id) = (fleet.inline(), session());
        let writer = if inline {
            b.create(&id, record()).await.unwrap();
            b.enter(&id, None, Some(&number(1)))
                .await
                .unwrap()
                .writer
                .unwrap()
        } else {
            a.engine.create(&id, record()).await.unwrap();
            a.engine
                .enter(&id, None, Some(&number(1)))
                .await
                .unwrap()
                .writer
                .unwrap()
        };
        let first = writer.append(bytes("1")).await.unwrap();
        // A tail that does not read: what it would have read is trimmed.
        let mut slow = fleet
            .instance()
            .engine
            .tail(&id, TailFrom::After(first.clone()))
            .await
            .unwrap();
        for n in 2..=9 {
            writer.append(bytes(&n.to_string())).await.unwrap();
        }
        let TailEvent::Gap { oldest } = next(&mut slow).await else {
            panic!("a gap")
        };
        let oldest = oldest.unwrap();
        assert_eq!(oldest.position, Position::new(1, 7));
        for n in 7..=9 {
            assert_eq!(text(&mut slow).await, n.to_string());
        }
        writer.finish(None).await.unwrap();
        assert_eq!(text(&mut slow).await, "Finished");
        let replay = b.replay(&id, &first, 10).await.unwrap();
        let shown: Vec<_> = replay.events.into_iter().map(support::show).collect();
        assert_eq!(shown, ["gap", "7", "8", "9"]);
    }
}

#[tokio::test(start_paused = true)]
async fn limits_are_typed_errors_and_change_nothing() {
    let fleet = Fleet::new(
        limits()
            .event_bytes(100)
            .stream_bytes(300)
            .session_bytes(500)
            .principal_bytes(1000)
            .open_streams(2)
            .build()
            .unwrap(),
    );
    let a = fleet.instance();
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let writer = open(&a.engine, &id, 1).await;
    let oversized = writer.append(bytes(&"x".repeat(101))).await.unwrap_err();
    assert_eq!(oversized.kind(), ErrorKind::TooLarge);
    let oversized = a
        .engine
        .append(&id, bytes(&"x".repeat(101)))
        .await
        .unwrap_err();
    assert_eq!(oversized.kind(), ErrorKind::TooLarge);
    let first = writer.append(bytes("1")).await.unwrap();
    assert_eq!(
        first.position,
        Position::new(1, 1),
        "nothing was stored before"
    );
    let oversized = writer
        .finish(Some(bytes(&"x".repeat(101))))
        .await
        .unwrap_err();
    assert_eq!(oversized.kind(), ErrorKind::TooLarge);
    // The session's bytes stay under their limit over all its streams.
    let second = a
        .engine
        .enter(&id, None, Some(&number(2)))
        .await
        .unwrap()
        .writer
        .unwrap();
    let third = a
        .engine
        .enter(&id, None, Some(&number(3)))
        .await
        .unwrap_err();
    assert_eq!(third.kind(), ErrorKind::Overloaded);
    for _ in 0..5 {
        writer.append(bytes(&"a".repeat(100))).await.unwrap();
        second.append(bytes(&"b".repeat(100))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(a.engine.stats().await.unwrap().bytes.value() <= 500);
    }
    // Another session of the same principal has the same share.
    let other = session();
    a.engine.create(&other, record()).await.unwrap();
    for _ in 0..5 {
        a.engine
            .append(&other, bytes(&"c".repeat(100)))
            .await
            .unwrap();
    }
    second.finish(None).await.unwrap();
    a.engine
        .enter(&other, None, Some(&number(1)))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn over_the_principals_bytes_nothing_is_opened() {
    let limits = limits()
        .event_bytes(100)
        .stream_bytes(200)
        .session_bytes(200)
        .principal_bytes(300)
        .build()
        .unwrap();
    let fleet = Fleet::new(limits);
    let a = fleet.instance();
    for _ in 0..2 {
        let id = session();
        a.engine.create(&id, record()).await.unwrap();
        for _ in 0..2 {
            a.engine.append(&id, bytes(&"c".repeat(100))).await.unwrap();
        }
    }
    let id = session();
    a.engine.create(&id, record()).await.unwrap();
    let refused = a
        .engine
        .enter(&id, None, Some(&number(1)))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    let mut other = record();
    other.principal = Some(mcp_adapter_core::Principal::new("alice"));
    let principal = other.principal.clone();
    let id = session();
    a.engine.create(&id, other).await.unwrap();
    a.engine
        .enter(&id, principal.as_ref(), Some(&number(1)))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_the_writer_and_only_the_one_call() {
    let fleet = Fleet::new(Limits::default());
    for deaf in [false, true] {
        let (a, b) = (fleet.instance(), fleet.instance());
        if deaf {
            a.link.lose_knocks();
        }
        let id = session();
        a.engine.create(&id, record()).await.unwrap();
        let one = a
            .engine
            .enter(&id, None, Some(&number(1)))
            .await
            .unwrap()
            .writer
            .unwrap();
        let two = a
            .engine
            .enter(&id, None, Some(&number(2)))
            .await
            .unwrap()
            .writer
            .unwrap();
        let cancelled = SessionAdapter::cancel(&b.engine, &id, &number(3))
            .await
            .unwrap();
        assert_eq!(cancelled, Cancelled::NotRunning);
        let cancelled = SessionAdapter::cancel(&b.engine, &id, &number(1))
            .await
            .unwrap();
        assert!(matches!(cancelled, Cancelled::Marked(_)), "{cancelled:?}");
        assert_eq!(one.revoked().await, Revocation::Cancelled);
        one.finish(None).await.unwrap();
        let twin = b
            .engine
            .enter(&id, None, Some(&number(2)))
            .await
            .unwrap()
            .writer;
        let cancelled = SessionAdapter::cancel(&b.engine, &id, &number(2))
            .await
            .unwrap();
        assert_eq!(cancelled, Cancelled::Ambiguous);
        let running = tokio::time::timeout(Duration::from_secs(5), two.revoked()).await;
        assert!(running.is_err());
        drop(twin);
    }
}

#[tokio::test(start_paused = true)]
async fn delete_ends_everything_everywhere() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = session();
    let mut owned = record();
    owned.principal = Some(mcp_adapter_core::Principal::new("alice"));
    let alice = owned.principal.clone();
    a.engine.create(&id, owned.clone()).await.unwrap();
    let again = b.engine.create(&id, owned).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let entered = a
        .engine
        .enter(&id, alice.as_ref(), Some(&number(1)))
        .await
        .unwrap();
    let writer = entered.writer.unwrap();
    let mut get = a.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    let mallory = mcp_adapter_core::Principal::new("mallory");
    assert!(!b.engine.delete(&id, Some(&mallory)).await.unwrap());
    assert!(!b.engine.delete(&id, None).await.unwrap());
    assert!(b.engine.delete(&id, alice.as_ref()).await.unwrap());
    assert!(!b.engine.delete(&id, alice.as_ref()).await.unwrap());
    let error = writer.append(bytes("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionNotFound);
    assert_eq!(writer.revoked().await, Revocation::SessionEnded);
    assert_eq!(text(&mut get).await, "SessionEnded");
    for engine in [&a.engine, &b.engine] {
        let kind = |result: Option<mcp_adapter_core::Error>| result.unwrap().kind();
        assert_eq!(
            kind(engine.enter(&id, alice.as_ref(), None).await.err()),
            ErrorKind::SessionNotFound
        );
        assert_eq!(
            kind(engine.append(&id, bytes("x")).await.err()),
            ErrorKind::SessionNotFound
        );
        assert_eq!(
            kind(engine.update(&id, 1, record()).await.err()),
            ErrorKind::SessionNotFound
        );
        assert_eq!(
            kind(engine.tail(&id, TailFrom::Standalone).await.err()),
            ErrorKind::SessionNotFound
        );
    }
    assert_eq!(a.engine.stats().await.unwrap().sessions.value(), 0);
}

#[tokio::test(start_paused = true)]
async fn expiry_slides_with_what_runs_and_what_is_held_and_with_nothing_else() {
    let ttl = Duration::from_secs(60);
    let fleet = Fleet::new(limits().idle_ttl(ttl).build().unwrap());
    let (a, b) = (fleet.instance(), fleet.instance());
    let gone = |result: Option<mcp_adapter_core::Error>| result.unwrap().kind();

    let running = session();
    a.engine.create(&running, record()).await.unwrap();
    let writer = a
        .engine
        .enter(&running, None, Some(&number(1)))
        .await
        .unwrap()
        .writer
        .unwrap();
    let held = session();
    a.engine.create(&held, record()).await.unwrap();
    let get = a.engine.tail(&held, TailFrom::Standalone).await.unwrap();
    let idle = session();
    a.engine.create(&idle, record()).await.unwrap();
    tokio::time::sleep(ttl * 3).await;
    let missing = b.engine.enter(&idle, None, None).await.err();
    assert_eq!(gone(missing), ErrorKind::SessionNotFound);
    writer.finish(Some(bytes("late"))).await.unwrap();
    drop(get);
    b.engine.enter(&held, None, None).await.unwrap();
    tokio::time::sleep(ttl * 2).await;
    for id in [&running, &held] {
        let missing = b.engine.enter(id, None, None).await.err();
        assert_eq!(gone(missing), ErrorKind::SessionNotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn forged_and_foreign_event_ids_reveal_nothing() {
    let fleet = Fleet::new(Limits::default());
    let a = fleet.instance();
    let (mine, theirs) = (session(), session());
    a.engine.create(&mine, record()).await.unwrap();
    a.engine.create(&theirs, record()).await.unwrap();
    let writer = a
        .engine
        .enter(&theirs, None, Some(&number(1)))
        .await
        .unwrap()
        .writer
        .unwrap();
    let event = writer.append(bytes("secret")).await.unwrap();
    let foreign = a
        .engine
        .tail(&mine, TailFrom::After(event.clone()))
        .await
        .unwrap_err();
    let forged = EventId::new("never.n1".parse().unwrap(), Position::new(1, 1));
    let forged = a
        .engine
        .tail(&mine, TailFrom::After(forged))
        .await
        .unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::StreamGone);
    assert_eq!(foreign.to_string(), forged.to_string());
    let foreign = a.engine.replay(&mine, &event, 10).await.unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::StreamGone);
}
