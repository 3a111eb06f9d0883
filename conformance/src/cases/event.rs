//! Events: E1, E2, E3, E6, E7, E8.

use bytes::Bytes;
use futures::future::join_all;
use mcp_adapter_core::{
    EndReason, ErrorKind, EventId, Position, RpcId, SessionId, StreamId, TailEvent, TailFrom,
};

use super::{NOT_FOUND, counted, fresh_stats, kind, number, string};
use crate::{
    fleet::Fleet,
    instance::{Following, Instance, show, start_of},
    wait::{Failure, Verdict, claim, claim_eq, never_within, within},
};

pub(crate) async fn all_readers_see_one_order_and_each_event_once(fleet: Fleet) -> Verdict {
    const EVENTS: u32 = 300;
    let [a, b, c] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let mut own = writer.attach();
    let mut ids = Vec::new();
    for n in 1..=EVENTS {
        ids.push(writer.append(n.to_string()).await?);
    }
    writer.finish(None).await?;
    claim!(
        ids.windows(2)
            .all(|pair| pair[0].position < pair[1].position),
        "positions rise"
    );
    let expected = counted(1, EVENTS, Some("end: Finished"));
    claim_eq!(
        own.until_end(fleet.patience()).await?,
        expected,
        "its own socket"
    );
    for reader in [&a, &b, &c] {
        let replay = reader.replay(&id, &start_of(writer.stream()), 1000).await?;
        let mut found = Vec::new();
        for item in &replay.events {
            let TailEvent::Event { id, .. } = item else {
                return Err(Failure::new(format!("not an event: {item:?}")));
            };
            found.push(id.clone());
        }
        claim_eq!(found, ids, "the ids that the appends gave");
        claim_eq!(
            (replay.more, replay.end),
            (false, Some(EndReason::Finished))
        );
        let mut tail = reader.tail_all(&id, writer.stream()).await?;
        claim_eq!(tail.until_end(fleet.patience()).await?, expected);
    }
    Ok(())
}

pub(crate) async fn many_writers_share_the_standalone_stream(fleet: Fleet) -> Verdict {
    const EVENTS: usize = 50;
    let instances: [Instance; 3] = fleet.instances().await?;
    let id = instances[0].session().await?;
    let mut live = instances[2].get(&id).await?;
    let appends = (0..3 * EVENTS).map(|n| {
        let (instance, id) = (&instances[n % 3], &id);
        async move { instance.append(id, n.to_string()).await }
    });
    let mut ids = Vec::new();
    for appended in join_all(appends).await {
        ids.push(appended?.position);
    }
    let mut seen = Vec::new();
    for _ in 0..3 * EVENTS {
        seen.push(live.text(fleet.patience()).await?);
    }
    for reader in &instances {
        let replayed = reader.replay_all(&id, &StreamId::standalone()).await?;
        claim_eq!(replayed, seen, "one order for all");
    }
    let mut numbers: Vec<usize> = seen.iter().filter_map(|text| text.parse().ok()).collect();
    let mut sorted: Vec<_> = ids.clone();
    sorted.sort_unstable();
    sorted.dedup();
    claim_eq!(
        sorted.len(),
        ids.len(),
        "each append has a place of its own"
    );
    let order: Vec<_> = numbers.iter().map(|n| ids[*n]).collect();
    claim!(order.is_sorted(), "the ids that appends gave are the order");
    numbers.sort_unstable();
    claim!(
        numbers.into_iter().eq(0..3 * EVENTS),
        "each exactly once: {seen:?}"
    );
    Ok(())
}

pub(crate) async fn places_are_fixed_by_the_order_of_calls(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let acks: Vec<_> = (1..=200)
        .map(|n: u32| writer.append(n.to_string()))
        .collect();
    let finish = writer.finish(Some("last"));
    // Waited for from the last to the first, and some not at all.
    within("the finish", fleet.patience(), finish).await??;
    for (n, ack) in acks.into_iter().enumerate().rev() {
        if n % 3 > 0 {
            within("an append", fleet.patience(), ack).await??;
        }
    }
    let mut expected = counted(1, 200, None);
    expected.push("last".into());
    claim_eq!(b.replay_all(&id, writer.stream()).await?, expected);
    Ok(())
}

pub(crate) async fn replay_is_strictly_after_and_in_pages(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let empty = b.replay(&id, &start_of(writer.stream()), 10).await?;
    claim_eq!(
        (empty.events.len(), empty.more, empty.end),
        (0, false, None)
    );
    let mut ids = Vec::new();
    for n in 1..=10 {
        ids.push(writer.append(n.to_string()).await?);
    }
    for (n, after) in ids.iter().enumerate() {
        let replay = b.replay(&id, after, 3).await?;
        let found: Vec<_> = replay.events.iter().map(show).collect();
        let expected: Vec<_> = (n + 2..=10).take(3).map(|n| n.to_string()).collect();
        claim_eq!(found, expected, "after event {}", n + 1);
        claim_eq!(replay.more, n + 1 + 3 < 10, "more after event {}", n + 1);
    }
    let nothing = b.replay(&id, &ids[0], 0).await?;
    claim_eq!(
        (nothing.events.len(), nothing.more),
        (0, true),
        "at most none"
    );
    writer.finish(None).await?;
    let last = b.replay(&id, &ids[9], 10).await?;
    claim_eq!(
        (last.events.len(), last.more, last.end),
        (0, false, Some(EndReason::Finished))
    );
    Ok(())
}

/// Follows a stream from instance to instance, resuming after some events, as a
/// client does whose connections break.
async fn resume_often(
    fleet: &Fleet,
    instances: &[Instance; 3],
    id: &SessionId,
    stream: &StreamId,
) -> Result<Vec<String>, Failure> {
    let mut seen = Vec::new();
    let mut cursor = start_of(stream);
    for turn in 0_usize.. {
        let mut tail = instances[turn % 3]
            .tail(id, TailFrom::After(cursor.clone()))
            .await?;
        for _ in 0..=turn * 7 % 40 {
            let item = within("the next event", fleet.patience(), tail.next()).await?;
            match item {
                Some(TailEvent::Event { id, data, .. }) => {
                    cursor = id;
                    seen.push(String::from_utf8_lossy(&data).into_owned());
                }
                Some(other) => {
                    seen.push(show(&other));
                    return Ok(seen);
                }
                None => return Err(Failure::new("a tail without an end")),
            }
        }
    }
    Ok(seen)
}

pub(crate) async fn a_tail_is_live_across_instances_without_a_seam(fleet: Fleet) -> Verdict {
    const EVENTS: u32 = 400;
    let instances: [Instance; 3] = fleet.instances().await?;
    let id = instances[0].session().await?;
    let writer = instances[0].call(&id, 1).await?;
    let write = async {
        for n in 1..=EVENTS {
            let ack = writer.append(n.to_string());
            if n % 5 == 0 {
                within("an append", fleet.patience(), ack).await??;
            }
            if n % 20 == 0 {
                tokio::time::sleep(fleet.ticks(1) / 5).await;
            }
        }
        within(
            "the finish",
            fleet.patience(),
            writer.finish(Some("result")),
        )
        .await??;
        Ok::<_, Failure>(())
    };
    let read = resume_often(&fleet, &instances, &id, writer.stream());
    let (written, read) = futures::join!(write, read);
    written?;
    let mut expected = counted(1, EVENTS, None);
    expected.extend(["result".into(), "end: Finished".into()]);
    claim_eq!(read?, expected);
    Ok(())
}

pub(crate) async fn a_tail_says_why_it_ends(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    let finished = a.call(&id, 1).await?;
    let mut tail = b.tail_all(&id, finished.stream()).await?;
    finished.append("1").await?;
    claim_eq!(tail.text(patience).await?, "1");
    finished.finish(Some("2")).await?;
    claim_eq!(tail.until_end(patience).await?, ["2", "end: Finished"]);
    // It says it again to whoever comes later, with nothing left to read.
    let mut late = a.tail_all(&id, finished.stream()).await?;
    claim_eq!(late.until_end(patience).await?, ["1", "2", "end: Finished"]);

    let abandoned = a.call(&id, 2).await?;
    let mut tail = b.tail_all(&id, abandoned.stream()).await?;
    drop(abandoned);
    claim_eq!(tail.until_end(patience).await?, ["end: OwnerLost"]);

    let running = a.call(&id, 3).await?;
    let mut first = b.tail_all(&id, running.stream()).await?;
    let mut second = a.tail_all(&id, running.stream()).await?;
    claim_eq!(first.until_end(patience).await?, ["end: Superseded"]);
    let mut get = b.get(&id).await?;
    a.delete(&id, None).await?;
    claim_eq!(second.until_end(patience).await?, ["end: SessionEnded"]);
    claim_eq!(get.until_end(patience).await?, ["end: SessionEnded"]);
    Ok(())
}

pub(crate) async fn a_cursor_past_the_top_is_valid(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let first = writer.append("1").await?;
    // As it was before a failover that lost the end of the stream.
    let past = EventId::new(
        first.stream.clone(),
        Position::new(first.position.epoch, 99),
    );
    let replay = b.replay(&id, &past, 10).await?;
    claim_eq!(
        (replay.events.len(), replay.more, replay.end),
        (0, false, None)
    );
    let mut tail = b.tail(&id, TailFrom::After(past)).await?;
    writer.append("2").await?;
    never_within("an event before the cursor", fleet.ticks(20), tail.next()).await?;
    writer.finish(None).await?;
    claim_eq!(tail.until_end(fleet.patience()).await?, ["end: Finished"]);
    Ok(())
}

pub(crate) async fn ids_encode_their_stream_and_fit(fleet: Fleet) -> Verdict {
    let a = fleet.instance().await?;
    let id = a.session().await?;
    let calls = [
        number(0),
        number(i64::MIN),
        number(i64::MAX),
        string(""),
        string("a.b_c-d e/ä\u{0}"),
        string(&"x".repeat(StreamId::MAX_CARRIED_ID)),
        string(&"x".repeat(RpcId::MAX_BYTES)),
    ];
    for call in &calls {
        let writer = a.open(&id, None, call).await?;
        let event = writer.append("x").await?;
        let text = event.to_string();
        claim!(text.len() <= EventId::MAX_BYTES, "{text} is too long");
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        claim!(text.bytes().all(fits), "{text} has other characters");
        claim_eq!(text.parse::<EventId>()?, event);
        claim_eq!(&event.stream, writer.stream());
    }
    let long = string(&"x".repeat(RpcId::MAX_BYTES + 1));
    claim_eq!(
        kind(a.open(&id, None, &long).await),
        Some(ErrorKind::InvalidArgument)
    );
    let event = a.append(&id, "x").await?;
    claim!(
        event.stream.is_standalone(),
        "{event} is of the standalone stream"
    );
    Ok(())
}

pub(crate) async fn forged_and_foreign_ids_reveal_nothing(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let (mine, theirs) = (a.session().await?, a.session().await?);
    let writer = a.call(&theirs, 1).await?;
    let secret = writer.append("secret").await?;
    let own = a.call(&mine, 1).await?;
    own.append("own").await?;
    let never = EventId::new(StreamId::for_request(&number(1)), secret.position);
    let odd = EventId::new(
        "x'; DROP TABLE--"
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-")
            .parse()?,
        secret.position,
    );
    let foreign = start_of(writer.stream());
    for instance in [&a, &b] {
        let mut texts = Vec::new();
        for id in [&secret, &foreign, &never, &odd] {
            let replay = instance.replay(&mine, id, 10).await;
            texts.push(replay.as_ref().err().map(ToString::to_string));
            claim_eq!(kind(replay), Some(ErrorKind::StreamGone), "{id}");
        }
        claim!(texts.windows(2).all(|two| two[0] == two[1]), "{texts:?}");
        let mut texts = Vec::new();
        for id in [&secret, &foreign, &never, &odd] {
            let tail = instance.tail(&mine, TailFrom::After(id.clone())).await;
            texts.push(tail.as_ref().err().map(ToString::to_string));
            claim_eq!(
                kind(tail.map(|_: Following| ())),
                Some(ErrorKind::StreamGone),
                "{id}"
            );
        }
        claim!(texts.windows(2).all(|two| two[0] == two[1]), "{texts:?}");
    }
    for bad in [
        "",
        ".",
        "a.b",
        "a.1.",
        "a..1",
        "a.1.1.",
        "a b.1.1",
        &"x".repeat(200),
    ] {
        let parsed = bad.parse::<EventId>();
        claim_eq!(kind(parsed), Some(ErrorKind::StreamGone), "{bad:?}");
    }
    // A stranger's attempts have not taken the stream from its holder.
    let mut own = writer.attach();
    claim_eq!(own.text(fleet.patience()).await?, "secret");
    Ok(())
}

pub(crate) async fn no_append_without_a_session(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let missing = SessionId::generate();
    claim_eq!(kind(a.append(&missing, "x").await), NOT_FOUND);
    claim_eq!(kind(a.look(&missing, None).await), NOT_FOUND);
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    b.delete(&id, None).await?;
    claim_eq!(kind(writer.append("x").await), NOT_FOUND);
    claim_eq!(kind(b.append(&id, "x").await), NOT_FOUND);
    let stats = fresh_stats(&fleet, &a).await?;
    let left = [stats.sessions, stats.streams, stats.events, stats.bytes];
    claim_eq!(
        left.map(mcp_adapter_core::Count::value),
        [0; 4],
        "what is stored"
    );
    // Created again, it has nothing of those appends.
    a.create(&missing, crate::instance::record()).await?;
    let replay = b.replay_all(&missing, &StreamId::standalone()).await;
    let nothing = replay
        .as_ref()
        .map_or_else(|e| e.kind() == ErrorKind::StreamGone, Vec::is_empty);
    claim!(nothing, "{replay:?}");
    Ok(())
}

pub(crate) async fn bytes_come_back_as_they_went_in(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let all: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..1_u32 << 20)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let payloads: Vec<Bytes> = vec![
        Bytes::from(all),
        Bytes::new(),
        Bytes::from_static(b"\0"),
        Bytes::from_static(b" \r\n\t "),
        Bytes::from_static(b"\xff\xfe\x00\x80"),
        Bytes::from_static("{\"text\":\"\\u0000 ä \u{1F600}\"}".as_bytes()),
        Bytes::from_static(b"NULL"),
        Bytes::from(large),
    ];
    let writer = a.call(&id, 1).await?;
    for payload in &payloads {
        writer.append(payload.clone()).await?;
        a.append(&id, payload.clone()).await?;
    }
    for stream in [writer.stream().clone(), StreamId::standalone()] {
        let replay = b.replay(&id, &start_of(&stream), 100).await?;
        let mut tail = b.tail_all(&id, &stream).await?;
        claim_eq!(replay.events.len(), payloads.len(), "events of {stream:?}");
        for (n, payload) in payloads.iter().enumerate() {
            let live = within("an event", fleet.patience(), tail.next()).await?;
            for found in [Some(&replay.events[n]), live.as_ref()] {
                let Some(TailEvent::Event { data, .. }) = found else {
                    return Err(Failure::new(format!("payload {n}: {found:?}")));
                };
                claim!(data == payload, "payload {n} came back as another one");
            }
        }
    }
    Ok(())
}

pub(crate) async fn the_terminal_event_and_the_finish_are_one_write(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    for n in 0..30 {
        let writer = a.call(&id, n).await?;
        let stream = writer.stream().clone();
        let look = async {
            loop {
                let replay = b.replay(&id, &start_of(&stream), 10).await?;
                if !replay.events.is_empty() || replay.end.is_some() {
                    return Ok::<_, Failure>(replay);
                }
            }
        };
        let looking = within("the result", fleet.patience(), look);
        let (seen, finished) = futures::join!(looking, writer.finish(Some("result")));
        let (seen, finished) = (seen??, finished?);
        // Whoever sees one sees the other.
        let shown: Vec<_> = seen.events.iter().map(show).collect();
        claim_eq!(
            (shown, seen.end),
            (vec!["result".to_owned()], Some(EndReason::Finished))
        );
        let last = finished.ok_or_else(|| Failure::new("a terminal event has an id"))?;
        claim_eq!(last.stream, stream);
    }
    Ok(())
}

pub(crate) async fn nothing_follows_the_finish(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    for last in [Some("last"), None] {
        let writer = a.call(&id, 1).await?;
        writer.append("1").await?;
        let finished = writer.finish(last).await?;
        claim_eq!(finished.is_some(), last.is_some(), "whether there is an id");
        for _ in 0..2 {
            claim_eq!(kind(writer.append("late").await), Some(ErrorKind::Finished));
            claim_eq!(
                kind(writer.finish(Some("late")).await),
                Some(ErrorKind::Finished)
            );
        }
        let mut expected = vec!["1".to_owned()];
        expected.extend(last.map(Into::into));
        claim_eq!(b.replay_all(&id, writer.stream()).await?, expected);
        // Its writer goes away, and it stays finished.
        let stream = writer.stream().clone();
        drop(writer);
        expected.push("end: Finished".into());
        let mut tail = b.tail_all(&id, &stream).await?;
        claim_eq!(tail.until_end(fleet.patience()).await?, expected);
    }
    Ok(())
}
