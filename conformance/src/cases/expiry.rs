//! Expiry: S3 and S5.

use futures::future::join_all;
use mcp_adapter_core::{
    Answer, Delivery, ErrorKind, NewClientRequest, OutcomeKind, SessionId, TailFrom,
};
use tokio::time::{Instant, sleep};

use super::{NOT_FOUND, TOO_SLOW, TRIES, is_before, kind, number};
use crate::{
    fleet::Fleet,
    instance::{Instance, record},
    wait::{Failure, Verdict, claim, claim_eq, eventually, within},
};

/// Long enough to tell before from after on a busy machine.
const TTL: u32 = 100;

/// Waits until the session is gone without using it: any request would.
async fn is_gone(fleet: &Fleet) {
    sleep(fleet.limits().idle_ttl() + fleet.ticks(10)).await;
}

pub(crate) async fn an_idle_session_is_gone_at_its_deadline(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.idle_ttl(fleet.ticks(TTL)))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let event = writer.append("1").await?;
    writer.finish(Some("2")).await?;
    let entered = Instant::now();
    let found = b.look(&id, None).await;
    if is_before(entered, fleet.limits()) {
        found?;
    }
    is_gone(&fleet).await;
    for instance in [&b, &a] {
        // Every step decides it by itself, so every step is tried.
        claim_eq!(kind(instance.append(&id, "x").await), NOT_FOUND, "append");
        claim_eq!(kind(instance.get(&id).await), NOT_FOUND, "get");
        let after = TailFrom::After(event.clone());
        claim_eq!(kind(instance.tail(&id, after).await), NOT_FOUND, "resume");
        claim_eq!(
            kind(instance.replay(&id, &event, 1).await),
            NOT_FOUND,
            "replay"
        );
        claim_eq!(
            kind(instance.update(&id, 1, record()).await),
            NOT_FOUND,
            "update"
        );
        claim_eq!(
            kind(instance.cancel_call(&id, &number(1)).await),
            NOT_FOUND,
            "cancel"
        );
        let asked = instance.ask(&id, NewClientRequest::new(number(1))).await;
        claim_eq!(kind(asked), NOT_FOUND, "ask");
        claim_eq!(kind(instance.call(&id, 2).await), NOT_FOUND, "open");
        claim_eq!(kind(instance.look(&id, None).await), NOT_FOUND, "enter");
        claim!(
            !instance.delete(&id, None).await?,
            "there is nothing to delete"
        );
    }
    Ok(())
}

/// Uses the session often enough for three times its life, then looks whether
/// it is there. `false`: the machine was too slow to tell.
async fn used<F>(
    fleet: &Fleet,
    id: &SessionId,
    at: &Instance,
    mut use_it: impl FnMut() -> F,
) -> Result<bool, Failure>
where
    F: Future<Output = Result<(), mcp_adapter_core::Error>>,
{
    let ttl = fleet.limits().idle_ttl();
    let until = Instant::now() + ttl * 3;
    let mut last = Instant::now();
    while Instant::now() < until {
        sleep(ttl / 5).await;
        let used = use_it().await;
        if !is_before(last, fleet.limits()) {
            return Ok(false);
        }
        used?;
        last = Instant::now();
    }
    let found = at.look(id, None).await;
    if !is_before(last, fleet.limits()) {
        return Ok(false);
    }
    found?;
    Ok(true)
}

pub(crate) async fn requests_and_appends_slide_it(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.idle_ttl(fleet.ticks(TTL)))?;
    let [a, b] = fleet.instances().await?;
    for _ in 0..TRIES {
        let (entered, appended) = (a.session().await?, a.session().await?);
        let enter = || async { a.look(&entered, None).await.map(drop) };
        let append = || async { a.append(&appended, "x").await.map(drop) };
        let (enter, append) = futures::join!(
            used(&fleet, &entered, &b, enter),
            used(&fleet, &appended, &b, append)
        );
        if enter? && append? {
            is_gone(&fleet).await;
            for id in [&entered, &appended] {
                claim_eq!(kind(b.look(id, None).await), NOT_FOUND, "not used any more");
            }
            return Ok(());
        }
    }
    Err(Failure::new(TOO_SLOW))
}

pub(crate) async fn a_running_call_and_a_held_stream_slide_it(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.idle_ttl(fleet.ticks(TTL)))?;
    let [a, b, c] = fleet.instances().await?;
    let (running, held, idle) = (a.session().await?, a.session().await?, a.session().await?);
    let writer = a.call(&running, 1).await?;
    let get = b.get(&held).await?;
    sleep(fleet.limits().idle_ttl() * 3).await;
    claim_eq!(kind(c.look(&idle, None).await), NOT_FOUND, "not used");
    writer.finish(Some("result")).await?;
    claim_eq!(c.replay_all(&running, writer.stream()).await?, ["result"]);
    c.append(&held, "x").await?;
    drop(get);
    c.look(&held, None).await?;
    is_gone(&fleet).await;
    // Twice: the holder's last renewal may have been later than its end.
    is_gone(&fleet).await;
    for id in [&running, &held] {
        claim_eq!(kind(c.look(id, None).await), NOT_FOUND, "not used any more");
    }
    Ok(())
}

pub(crate) async fn an_absolute_lifetime_does_not_slide(fleet: Fleet) -> Verdict {
    let ttl = fleet.ticks(TTL);
    let fleet = fleet.with(|limits| limits.absolute_ttl(Some(ttl * 2)))?;
    let [a, b] = fleet.instances().await?;
    let born = Instant::now();
    let id = a.session().await?;
    let created = Instant::now();
    let mut get = b.get(&id).await?;
    let mut used = 0;
    loop {
        // Decided between these two, however long the steps take.
        let youngest = created.elapsed();
        let found = b.look(&id, None).await;
        let oldest = born.elapsed();
        if oldest < ttl * 2 * 4 / 5 {
            found?;
            used += 1;
        } else if youngest > ttl * 2 + fleet.ticks(10) {
            claim_eq!(kind(found), NOT_FOUND, "used {used} times");
            break;
        }
        sleep(ttl / 10).await;
    }
    claim_eq!(
        get.until_end(fleet.patience()).await?,
        ["end: SessionEnded"]
    );
    Ok(())
}

pub(crate) async fn an_expired_id_is_free_and_nothing_is_left_of_it(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.idle_ttl(fleet.ticks(TTL)))?;
    let instances = fleet.instances().await?;
    for _ in 0..TRIES {
        let mut since = Instant::now();
        let told = an_id_has_two_lives(&fleet, &instances, &mut since).await;
        if told.is_ok() || is_before(since, fleet.limits()) {
            return told;
        }
    }
    Err(Failure::new(TOO_SLOW))
}

/// `since`: when the session was there, or was not, for certain.
async fn an_id_has_two_lives(
    fleet: &Fleet,
    [a, b]: &[Instance; 2],
    since: &mut Instant,
) -> Verdict {
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let event = writer.append("old").await?;
    writer.finish(None).await?;
    a.append(&id, "old").await?;
    let request = NewClientRequest::new(number(1)).with_timeout(fleet.ticks(6000));
    let waiting = a.ask(&id, request).await?;
    is_gone(fleet).await;
    *since = Instant::now();
    let created = b.create(&id, record()).await?;
    claim_eq!(created.revision, 1);
    claim_eq!(
        b.replay(&id, &event, 1)
            .await
            .err()
            .map(|error| error.kind()),
        Some(ErrorKind::StreamGone)
    );
    let answered = b
        .answer(&id, &number(1), Answer::Result("x".into()))
        .await?;
    claim_eq!(answered, Delivery::Unknown);
    let outcome = within("the outcome", fleet.patience(), waiting).await?;
    let ended = [
        OutcomeKind::SessionEnded,
        OutcomeKind::Lost,
        OutcomeKind::TimedOut,
    ];
    claim!(ended.contains(&outcome.kind), "{:?}", outcome.kind);
    b.append(&id, "new").await?;
    let mut get = a.get(&id).await?;
    claim_eq!(get.text(fleet.patience()).await?, "new");
    Ok(())
}

pub(crate) async fn what_has_expired_is_swept_by_itself(fleet: Fleet) -> Verdict {
    // More than one step may remove, and more instances than one sweep.
    const SESSIONS: usize = 600;
    let ttl = fleet.ticks(TTL);
    let short = |limits: mcp_adapter_core::LimitsBuilder| limits.idle_ttl(ttl).result_ttl(ttl);
    let fleet = fleet.with(short)?;
    let instances: [Instance; 3] = fleet.instances().await?;
    let fill = |instance: Instance| async move {
        for _ in 0..SESSIONS / 3 {
            let id = instance.session().await?;
            instance.append(&id, "event").await?;
        }
        Ok::<_, Failure>(())
    };
    for filled in join_all(instances.iter().cloned().map(fill)).await {
        filled?;
    }
    let keeper = &instances[0];
    let id = keeper.session().await?;
    keeper.append(&id, "event").await?;
    let held = keeper.get(&id).await?;
    // Nobody asks for the expired ones again.
    let swept = || async {
        let stats = keeper.stats().await?;
        let counts = [stats.sessions, stats.streams, stats.events, stats.bytes];
        Ok((counts.map(mcp_adapter_core::Count::value) == [1, 1, 1, 5]).then_some(()))
    };
    eventually("all but one are swept", fleet.patience(), swept).await?;
    keeper.look(&id, None).await?;
    drop(held);
    Ok(())
}
