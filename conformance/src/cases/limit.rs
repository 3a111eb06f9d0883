//! Limits: E4 and E5.

use mcp_adapter_core::{EndReason, ErrorKind, Principal, SessionId, StreamId, TailEvent, TailFrom};
use tokio::time::{Instant, sleep};

use super::{TOO_SLOW, TRIES, counted, fresh_stats, kind, number, record_of};
use crate::{
    fleet::Fleet,
    instance::{show, start_of},
    wait::{Verdict, claim, claim_eq, eventually, within},
};

/// An event of so many bytes.
fn sized(bytes: usize) -> String {
    "x".repeat(bytes)
}

pub(crate) async fn the_oldest_events_go_first(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.stream_events(5))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let mut ids = Vec::new();
    for n in 1..=12 {
        ids.push(writer.append(n.to_string()).await?);
    }
    for reader in [&a, &b] {
        let replay = reader.replay(&id, &start_of(writer.stream()), 100).await?;
        claim_eq!(
            replay.events.first(),
            Some(&TailEvent::Gap {
                oldest: Some(ids[7].clone())
            })
        );
        let shown: Vec<_> = replay.events.iter().skip(1).map(show).collect();
        claim_eq!(shown, counted(8, 12, None));
        // Who has the last evicted one misses nothing.
        let replay = reader.replay(&id, &ids[6], 100).await?;
        let shown: Vec<_> = replay.events.iter().map(show).collect();
        claim_eq!(shown, counted(8, 12, None));
        let replay = reader.replay(&id, &ids[5], 100).await?;
        claim_eq!(
            replay.events.first().map(show),
            Some("gap".into()),
            "one is missing"
        );
    }
    for n in 1..=12 {
        b.append(&id, n.to_string()).await?;
    }
    let shared = a.replay_all(&id, &StreamId::standalone()).await?;
    claim_eq!(shared.first().map(String::as_str), Some("gap"));
    // A shared stream may overshoot by a batch: here, of one event.
    claim!((6..=7).contains(&shared.len()), "{shared:?}");
    claim!(shared.ends_with(&counted(8, 12, None)), "{shared:?}");
    Ok(())
}

pub(crate) async fn bytes_of_a_stream_are_bounded(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.event_bytes(100).stream_bytes(350))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    for _ in 0..10 {
        writer.append(sized(100)).await?;
    }
    let expected = ["gap".to_owned(), sized(100), sized(100), sized(100)];
    claim_eq!(b.replay_all(&id, writer.stream()).await?, expected);
    // Small events are bounded by their bytes, not by their number.
    for _ in 0..40 {
        writer.append(sized(10)).await?;
    }
    let found = b.replay_all(&id, writer.stream()).await?;
    claim_eq!(found.len(), 1 + 35, "a gap and 350 bytes");
    Ok(())
}

pub(crate) async fn an_oversized_event_changes_nothing(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.event_bytes(100))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let too_large = Some(ErrorKind::TooLarge);
    claim_eq!(kind(writer.append(sized(101)).await), too_large);
    claim_eq!(kind(a.append(&id, sized(101)).await), too_large);
    claim_eq!(kind(writer.finish(Some(&sized(101))).await), too_large);
    claim_eq!(fresh_stats(&fleet, &a).await?.events.value(), 0, "events");
    // The call is still running, and what fits is its first event.
    let first = writer.append(sized(100)).await?;
    claim_eq!(first.position.seq, 1);
    writer.finish(Some("end")).await?;
    claim_eq!(
        b.replay_all(&id, writer.stream()).await?,
        [sized(100), "end".into()]
    );
    Ok(())
}

pub(crate) async fn open_streams_are_bounded_and_finished_ones_do_not_count(
    fleet: Fleet,
) -> Verdict {
    let fleet = fleet.with(|limits| limits.open_streams(3))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let one = a.call(&id, 1).await?;
    let two = b.call(&id, 2).await?;
    let three = a.call(&id, 3).await?;
    for instance in [&a, &b] {
        claim_eq!(
            kind(instance.call(&id, 4).await),
            Some(ErrorKind::Overloaded)
        );
    }
    // A request that opens nothing and another session are not concerned.
    b.look(&id, None).await?;
    let other = b.session().await?;
    b.call(&other, 1).await?;
    b.append(&id, "standalone").await?;
    one.finish(None).await?;
    let four = a.call(&id, 4).await?;
    claim_eq!(
        kind(a.call(&id, 5).await),
        Some(ErrorKind::Overloaded),
        "full again"
    );
    four.finish(Some("x")).await?;
    b.call(&id, 5).await?;
    two.finish(Some("result")).await?;
    claim_eq!(a.replay_all(&id, two.stream()).await?, ["result"]);
    drop(three);
    Ok(())
}

pub(crate) async fn bytes_of_a_session_are_bounded(fleet: Fleet) -> Verdict {
    let fleet =
        fleet.with(|limits| limits.event_bytes(100).stream_bytes(300).session_bytes(500))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let mut finished = Vec::new();
    for n in 0..2 {
        let writer = a.call(&id, n).await?;
        writer.append(sized(100)).await?;
        writer.finish(Some(&sized(100))).await?;
        finished.push(writer);
    }
    let running = b.call(&id, 9).await?;
    running.append(sized(100)).await?;
    claim_eq!(
        fresh_stats(&fleet, &a).await?.bytes.value(),
        500,
        "all of it fits"
    );
    running.append(sized(100)).await?;
    let gone = || async {
        let replay = a.replay_all(&id, finished[0].stream()).await;
        Ok((kind(replay) == Some(ErrorKind::StreamGone)).then_some(()))
    };
    eventually(
        "the oldest finished stream goes: the engine shrinks by `Usage::session_bytes`",
        fleet.patience(),
        gone,
    )
    .await?;
    claim_eq!(
        a.replay_all(&id, finished[1].stream()).await?.len(),
        2,
        "the other stays"
    );
    claim_eq!(
        b.replay_all(&id, running.stream()).await?.len(),
        2,
        "what runs stays"
    );
    // With no finished stream left the oldest events of the others go.
    for n in 10..13 {
        let writer = a.call(&id, n).await?;
        writer.append(sized(100)).await?;
        writer.append(sized(100)).await?;
        drop(writer);
    }
    let bounded = || async {
        let bytes = b.stats().await?.bytes.value();
        Ok((bytes <= 500).then_some(()))
    };
    eventually("at most 500 bytes", fleet.patience(), bounded).await
}

pub(crate) async fn bytes_of_a_principal_are_bounded(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| {
        limits
            .event_bytes(100)
            .stream_bytes(200)
            .session_bytes(200)
            .principal_bytes(300)
    })?;
    let [a, b] = fleet.instances().await?;
    let (alice, bob) = (Principal::new("alice"), Principal::new("bob"));
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let id = SessionId::generate();
        a.create(&id, record_of(&alice)).await?;
        for _ in 0..2 {
            a.append(&id, sized(100)).await?;
        }
        sessions.push(id);
    }
    let (fresh, theirs) = (SessionId::generate(), SessionId::generate());
    a.create(&fresh, record_of(&alice)).await?;
    a.create(&theirs, record_of(&bob)).await?;
    let refused = || async {
        let opened = b.open(&fresh, Some(&alice), &number(1)).await;
        Ok((kind(opened) == Some(ErrorKind::QuotaExceeded)).then_some(()))
    };
    eventually("the share is used up", fleet.patience(), refused).await?;
    b.look(&fresh, Some(&alice)).await?;
    b.open(&theirs, Some(&bob), &number(1)).await?;
    // What is deleted is given back.
    a.delete(&sessions[0], Some(&alice)).await?;
    let opened = || async {
        let opened = b.open(&fresh, Some(&alice), &number(1)).await;
        Ok(opened.is_ok().then_some(()))
    };
    eventually("there is room again", fleet.patience(), opened).await
}

pub(crate) async fn a_finished_stream_stays_for_its_time(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.finished_ttl(fleet.ticks(60)))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let running = a.call(&id, 2).await?;
    running.append("runs").await?;
    let mut told = false;
    for _ in 0..TRIES {
        let writer = a.call(&id, 1).await?;
        let event = writer.append("1").await?;
        let finishing = Instant::now();
        writer.finish(Some("2")).await?;
        sleep(fleet.limits().finished_ttl() / 2).await;
        let replay = b.replay(&id, &event, 10).await;
        if finishing.elapsed() > fleet.limits().finished_ttl() * 4 / 5 {
            continue; // the machine was too slow to tell
        }
        claim_eq!(replay?.end, Some(EndReason::Finished), "it is still there");
        sleep(fleet.limits().finished_ttl()).await;
        for instance in [&a, &b] {
            let replay = instance.replay(&id, &event, 10).await;
            claim_eq!(kind(replay), Some(ErrorKind::StreamGone), "it is gone");
            let tail = instance.tail(&id, TailFrom::After(event.clone())).await;
            claim_eq!(kind(tail), Some(ErrorKind::StreamGone), "it is gone");
        }
        told = true;
        break;
    }
    claim!(told, "{TOO_SLOW}");
    claim_eq!(
        b.replay_all(&id, running.stream()).await?,
        ["runs"],
        "what runs stays"
    );
    let left = || async {
        let stats = b.stats().await?;
        Ok((stats.streams.value() == 1 && stats.bytes.value() == 4).then_some(()))
    };
    eventually("it is counted no more", fleet.patience(), left).await
}

pub(crate) async fn what_is_evicted_under_a_tail_is_a_gap(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.stream_events(3))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let first = writer.append("1").await?;
    // It follows elsewhere and does not read: what it would read is evicted.
    let mut slow = b.tail(&id, TailFrom::After(first)).await?;
    let mut ids = Vec::new();
    for n in 2..=9 {
        ids.push(writer.append(n.to_string()).await?);
    }
    let gap = within("a gap", fleet.patience(), slow.next()).await?;
    let expected = TailEvent::Gap {
        oldest: Some(ids[5].clone()),
    };
    claim_eq!(gap, Some(expected), "7 is the oldest that is left");
    for n in 7..=9 {
        claim_eq!(slow.text(fleet.patience()).await?, n.to_string());
    }
    writer.append("10").await?;
    writer.finish(None).await?;
    claim_eq!(
        slow.until_end(fleet.patience()).await?,
        ["10", "end: Finished"],
        "it goes on"
    );
    Ok(())
}
