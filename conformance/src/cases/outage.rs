//! Outages: F1 and F2.

use bytes::Bytes;
use futures::FutureExt;
use mcp_adapter_core::{
    Answer, Delivery, ErrorKind, Health, NewClientRequest, OutcomeKind, Result, StreamId, TailFrom,
};
use tokio::time::{Instant, sleep};

use super::{counted, fresh_stats, kind, number, string};
use crate::{
    fleet::Fleet,
    instance::Instance,
    wait::{Failure, Verdict, claim, claim_eq, eventually, within},
};

fn result(text: &str) -> Answer {
    Answer::Result(Bytes::copy_from_slice(text.as_bytes()))
}

pub(crate) async fn a_closed_instance_answers_with_a_typed_error(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let event = writer.append("1").await?;
    // On a busy machine its link may just have been replaced.
    let is_well = || async { Ok((a.health() == Health::Ok).then_some(())) };
    eventually("it is well", fleet.patience(), is_well).await?;
    a.close().await?;
    a.close().await?;
    let closed = Some(ErrorKind::Closed);
    claim_eq!(kind(a.look(&id, None).await), closed);
    claim_eq!(kind(a.create(&id, crate::instance::record()).await), closed);
    claim_eq!(kind(a.append(&id, "x").await), closed);
    claim_eq!(kind(a.get(&id).await), closed);
    claim_eq!(kind(a.replay(&id, &event, 1).await), closed);
    claim_eq!(
        kind(a.ask(&id, NewClientRequest::new(number(1))).await),
        closed
    );
    claim_eq!(kind(a.answer(&id, &number(1), result("x")).await), closed);
    claim_eq!(kind(a.stats().await), closed);
    // The others and the store go on.
    b.look(&id, None).await?;
    b.append(&id, "y").await?;
    let c = fleet.instance().await?;
    claim_eq!(c.replay_all(&id, &StreamId::standalone()).await?, ["y"]);
    Ok(())
}

/// Calls of all kinds, each on its own.
fn calls<'a>(
    instance: &'a Instance,
    id: &'a mcp_adapter_core::SessionId,
) -> Vec<(&'static str, futures::future::BoxFuture<'a, Result<()>>)> {
    let other = mcp_adapter_core::SessionId::generate();
    vec![
        ("look", instance.look(id, None).map(|r| r.map(drop)).boxed()),
        ("call", instance.call(id, 7).map(|r| r.map(drop)).boxed()),
        (
            "append",
            instance.append(id, "x").map(|r| r.map(drop)).boxed(),
        ),
        ("get", instance.get(id).map(|r| r.map(drop)).boxed()),
        ("stats", instance.stats().map(|r| r.map(drop)).boxed()),
        (
            "create",
            async move {
                instance
                    .create(&other, crate::instance::record())
                    .await
                    .map(drop)
            }
            .boxed(),
        ),
        (
            "ask",
            async move {
                let asked = instance.ask(id, NewClientRequest::new(number(7))).await;
                asked.map(drop)
            }
            .boxed(),
        ),
        (
            "answer",
            async move { instance.answer(id, &number(8), result("x")).await.map(drop) }.boxed(),
        ),
    ]
}

pub(crate) async fn calls_end_in_a_typed_error_within_their_deadline(fleet: Fleet) -> Verdict {
    let deadline = fleet.ticks(50);
    let fleet = fleet.with(|limits| limits.operation_timeout(deadline).lease(fleet.ticks(9000)))?;
    let a = fleet.linked().await?;
    let id = a.session().await?;
    for frozen in [true, false] {
        if frozen {
            a.link().freeze();
        } else {
            a.link().cut();
        }
        let timed = calls(&a, &id).into_iter().map(|(name, call)| async move {
            let started = Instant::now();
            (name, call.await, started.elapsed())
        });
        let all = futures::future::join_all(timed);
        for (name, ended, took) in within("calls without a backend", fleet.patience(), all).await? {
            let Err(error) = ended else {
                return Err(Failure::new(format!(
                    "{name} needs the backend, which is gone"
                )));
            };
            claim!(error.is_retryable(), "{name}: {error}");
            // One in the queue may be ahead of it.
            let latest = deadline * 2 + fleet.ticks(100);
            claim!(took <= latest, "{name} took {took:?}");
        }
        let down = matches!(a.health(), Health::Down { .. });
        claim!(down, "health: {:?}", a.health());
        a.link().mend();
        for name in calls(&a, &id).into_iter().map(|(name, _)| name) {
            let works = || async {
                let call = calls(&a, &id).into_iter().find(|(other, _)| *other == name);
                let Some((_, call)) = call else {
                    return Ok(None);
                };
                Ok(call.await.is_ok().then_some(()))
            };
            eventually(name, fleet.patience(), works).await?;
        }
        let well = || async { Ok((a.health() == Health::Ok).then_some(())) };
        eventually("good health with no restart", fleet.patience(), well).await?;
    }
    Ok(())
}

pub(crate) async fn tails_and_waits_ride_it_out(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| {
        limits
            .lease(fleet.ticks(9000))
            .operation_timeout(fleet.ticks(50))
    })?;
    let (a, b) = (fleet.instance().await?, fleet.linked().await?);
    let patience = fleet.patience();
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let mut tail = b.tail_all(&id, writer.stream()).await?;
    let mut get = b.get(&id).await?;
    let waiting = b.ask(&id, NewClientRequest::new(string("q"))).await?;
    writer.append("1").await?;
    a.append(&id, "one").await?;
    claim_eq!(tail.text(patience).await?, "1");
    claim_eq!(get.text(patience).await?, "one");
    for (round, frozen) in [(0, false), (1, true)] {
        if frozen {
            b.link().freeze();
        } else {
            b.link().cut();
        }
        let meanwhile = async {
            for n in 0..10 {
                writer.append(format!("{round}.{n}")).await?;
            }
            a.append(&id, format!("{round}")).await?;
            sleep(fleet.ticks(80)).await;
            b.link().mend();
            Ok::<_, Failure>(())
        };
        let follow = async {
            for n in 0..10 {
                claim_eq!(tail.text(patience).await?, format!("{round}.{n}"));
            }
            claim_eq!(get.text(patience).await?, format!("{round}"));
            Ok(())
        };
        let (written, followed) = futures::join!(meanwhile, follow);
        written?;
        followed?;
    }
    b.link().cut();
    claim_eq!(
        a.answer(&id, &string("q"), result("x")).await?,
        Delivery::Delivered
    );
    writer.finish(Some("result")).await?;
    sleep(fleet.ticks(80)).await;
    b.link().mend();
    let outcome = within("the outcome", patience, waiting).await?;
    claim_eq!(outcome.kind, OutcomeKind::Answered);
    claim_eq!(tail.until_end(patience).await?, ["result", "end: Finished"]);
    Ok(())
}

pub(crate) async fn a_result_goes_to_its_socket_without_an_id(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| {
        limits
            .max_outage(fleet.ticks(150))
            .operation_timeout(fleet.ticks(50))
    })?;
    let (a, b) = (fleet.linked().await?, fleet.instance().await?);
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let mut own = writer.attach();
    let first = writer.append("1").await?;
    claim_eq!(own.text(fleet.patience()).await?, "1");
    a.link().cut();
    // Until others may hold it dead, its socket is served at once, with an id.
    sleep(fleet.limits().lease()).await;
    let finish = writer.finish(Some("result"));
    let (items, finished) = futures::join!(own.until_end(fleet.patience()), finish);
    claim_eq!(items?, ["unstored result", "end: Finished"]);
    let given_up = finished.is_err_and(|error| error.is_retryable());
    claim!(given_up, "the result could not be stored");
    // A try that was under way when it was given up may not come through now.
    sleep(fleet.limits().catch_up() * 5).await;
    a.link().mend();
    // Nothing stays open for ever, and the result that is missing shows: as a gap
    // where its writer gave the stream up, and by the end alone where others held the
    // writer dead before.
    let mut tail = b.tail(&id, TailFrom::After(first)).await?;
    let mut items = tail.until_end(fleet.patience()).await?;
    items.retain(|item| item != "gap");
    claim_eq!(items, ["end: OwnerLost"]);
    Ok(())
}

pub(crate) async fn a_lost_reply_stores_nothing_twice(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.lease(fleet.ticks(9000)))?;
    let (a, b) = (fleet.linked().await?, fleet.instance().await?);
    let id = mcp_adapter_core::SessionId::generate();
    // One reply of each kind is lost, and then the reply to its repeat, too.
    for lost in [1, 2] {
        a.stats().await?;
        let other = mcp_adapter_core::SessionId::generate();
        a.link().lose_replies(lost);
        a.create(&other, crate::instance::record()).await?;
    }
    a.create(&id, crate::instance::record()).await?;
    a.link().lose_replies(1);
    let writer = a.call(&id, 1).await?;
    for n in 1..=20_u32 {
        a.link().lose_replies(n as usize % 3);
        writer.append(n.to_string()).await?;
        a.link().lose_replies(n as usize % 3);
        a.append(&id, n.to_string()).await?;
    }
    a.link().lose_replies(1);
    let waiting = a.ask(&id, NewClientRequest::new(number(1))).await?;
    a.link().lose_replies(1);
    // Its own repeat must not tell the winner that it came too late.
    let answered = a.answer(&id, &number(1), result("x")).await?;
    claim_eq!(answered, Delivery::Delivered);
    let outcome = within("the outcome", fleet.patience(), waiting).await?;
    claim_eq!(outcome.kind, OutcomeKind::Answered);
    a.link().lose_replies(2);
    writer.finish(None).await?;
    a.link().mend();
    claim_eq!(
        b.replay_all(&id, writer.stream()).await?,
        counted(1, 20, None)
    );
    let shared = b.replay_all(&id, &StreamId::standalone()).await?;
    claim_eq!(shared, counted(1, 20, None));
    a.link().lose_replies(1);
    a.delete(&id, None).await?;
    a.link().mend();
    claim_eq!(
        fresh_stats(&fleet, &b).await?.sessions.value(),
        2,
        "the sessions that were created"
    );
    Ok(())
}

pub(crate) async fn a_half_open_link_is_noticed(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.lease(fleet.ticks(9000)))?;
    let (a, b) = (fleet.instance().await?, fleet.linked().await?);
    let patience = fleet.patience();
    let id = a.session().await?;
    let mut get = b.get(&id).await?;
    a.append(&id, "1").await?;
    claim_eq!(get.text(patience).await?, "1");
    let well = || async { Ok((b.health() == Health::Ok).then_some(())) };
    eventually("good health", patience, well).await?;
    b.link().freeze();
    // With the default limits, seven seconds.
    let limits = fleet.limits();
    let latest = limits.probe_after() + limits.probe_timeout() + fleet.ticks(100);
    let ill = || async { Ok((b.health() != Health::Ok).then_some(())) };
    eventually("it is noticed that nothing comes", latest, ill).await?;
    a.append(&id, "2").await?;
    b.link().mend();
    claim_eq!(get.text(patience).await?, "2");
    eventually("good health", patience, well).await?;
    // The link that replaced it is as good: it stands for several probes. A busy
    // machine may miss one; what comes and goes never stands so long.
    let span = (limits.probe_after() + limits.probe_timeout()) * 2;
    let mut since = Instant::now();
    let until = since + patience + span * 5;
    while since.elapsed() < span {
        claim!(Instant::now() < until, "the new link comes and goes");
        if b.health() != Health::Ok {
            since = Instant::now();
        }
        // It may be ill for no longer than it takes to connect.
        sleep(fleet.ticks(1) / 5).await;
    }
    a.append(&id, "3").await?;
    claim_eq!(get.text(patience).await?, "3");
    Ok(())
}

pub(crate) async fn it_ends_no_living_owners_call(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.operation_timeout(fleet.ticks(50)))?;
    let (a, b) = (fleet.linked().await?, fleet.linked().await?);
    let lease = fleet.limits().lease();
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let waiting = a.ask(&id, NewClientRequest::new(number(1))).await?;
    let mut tail = b.tail_all(&id, writer.stream()).await?;
    sleep(lease / 2).await;
    // The backend is away for all of them; the observer is back first.
    a.link().cut();
    b.link().cut();
    sleep(lease * 3).await;
    b.link().mend();
    sleep(lease / 4).await;
    a.link().mend();
    sleep(lease * 2).await;
    let answered = b.answer(&id, &number(1), result("x")).await?;
    claim_eq!(answered, Delivery::Delivered);
    let outcome = within("the outcome", fleet.patience(), waiting).await?;
    claim_eq!(outcome.kind, OutcomeKind::Answered);
    within(
        "the finish",
        fleet.patience(),
        writer.finish(Some("result")),
    )
    .await??;
    claim_eq!(
        tail.until_end(fleet.patience()).await?,
        ["result", "end: Finished"]
    );
    Ok(())
}

pub(crate) async fn what_was_acknowledged_survives_all_instances(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    for n in 1..=20 {
        writer.append(n.to_string()).await?;
        b.append(&id, n.to_string()).await?;
    }
    let _waiting = b.ask(&id, NewClientRequest::new(number(1))).await?;
    a.kill().await;
    b.kill().await;
    let c = fleet.instance().await?;
    c.look(&id, None).await?;
    let shared = c.replay_all(&id, &StreamId::standalone()).await?;
    claim_eq!(shared, counted(1, 20, None));
    let mut tail = c.tail_all(&id, writer.stream()).await?;
    let expected = counted(1, 20, Some("end: OwnerLost"));
    claim_eq!(tail.until_end(fleet.patience()).await?, expected);
    let late = || async {
        let how = c.cancel_request(&id, &number(1)).await?;
        Ok(how)
    };
    let how = eventually("the request is known", fleet.patience(), late).await?;
    let ended = matches!(how, OutcomeKind::OwnerLost | OutcomeKind::Cancelled);
    claim!(ended, "{how:?}");
    Ok(())
}

/// Events, ends, answers and cancels of `a` are seen at `b` so soon.
async fn are_seen_within(fleet: &Fleet, latest: std::time::Duration) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let mut tail = b.tail_all(&id, writer.stream()).await?;
    let mut get = b.get(&id).await?;
    let running = b.call(&id, 2).await?;
    let waiting = b.ask(&id, NewClientRequest::new(number(1))).await?;
    a.append(&id, "0").await?;
    claim_eq!(get.text(fleet.patience()).await?, "0", "it follows by now");
    writer.append("0").await?;
    claim_eq!(tail.text(fleet.patience()).await?, "0", "it follows by now");
    for n in 1..=5 {
        writer.append(n.to_string()).await?;
        claim_eq!(tail.text(latest).await?, n.to_string());
        a.append(&id, n.to_string()).await?;
        claim_eq!(get.text(latest).await?, n.to_string());
    }
    a.answer(&id, &number(1), result("x")).await?;
    within("an answer", latest, waiting).await?;
    a.cancel_call(&id, &number(2)).await?;
    within("a cancel", latest, running.revoked()).await?;
    let mut next = a.tail_all(&id, &StreamId::standalone()).await?;
    claim_eq!(next.text(latest).await?, "0");
    writer.finish(None).await?;
    claim_eq!(tail.until_end(latest).await?, ["end: Finished"]);
    Ok(())
}

pub(crate) async fn what_is_written_elsewhere_is_pushed(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.catch_up(fleet.ticks(3000)))?;
    are_seen_within(&fleet, fleet.ticks(150)).await
}

pub(crate) async fn what_is_written_elsewhere_is_seen_within_the_catch_up_interval(
    fleet: Fleet,
) -> Verdict {
    let latest = fleet.limits().catch_up() + fleet.ticks(100);
    are_seen_within(&fleet, latest).await
}
