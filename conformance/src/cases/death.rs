//! Instances that are dead, frozen or closed: F3.

use mcp_adapter_core::{
    Answer, Cancelled, Delivery, EndReason, ErrorKind, NewClientRequest, OutcomeKind, Revocation,
    TailFrom,
};
use tokio::time::{Instant, sleep};

use super::{counted, kind, number};
use crate::{
    fleet::Fleet,
    wait::{Failure, Verdict, claim, claim_eq, eventually, within},
};

pub(crate) async fn a_dead_owners_call_ends_for_its_reader(fleet: Fleet) -> Verdict {
    let [a, b, c] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let first = writer.append("1").await?;
    let mut tail = b.tail(&id, TailFrom::After(first.clone())).await?;
    writer.append("2").await?;
    claim_eq!(tail.text(fleet.patience()).await?, "2");
    // Known to be alive just now.
    sleep(fleet.limits().heartbeat() * 2).await;
    let killed = Instant::now();
    a.kill().await;
    claim_eq!(tail.until_end(fleet.patience()).await?, ["end: OwnerLost"]);
    let took = killed.elapsed();
    let least = fleet.limits().lease() - fleet.limits().heartbeat() * 2;
    claim!(
        took >= least,
        "held dead after {took:?}, before a lease has passed"
    );
    let mut late = c.tail(&id, TailFrom::After(first)).await?;
    claim_eq!(
        late.until_end(fleet.patience()).await?,
        ["2", "end: OwnerLost"]
    );
    Ok(())
}

pub(crate) async fn a_dead_owners_request_ends_for_its_answerer(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let _waiting = a.ask(&id, NewClientRequest::new(number(1))).await?;
    let writer = a.call(&id, 1).await?;
    let mut tail = b.tail_all(&id, writer.stream()).await?;
    sleep(fleet.limits().heartbeat() * 2).await;
    a.kill().await;
    // So the observer holds it dead.
    claim_eq!(tail.until_end(fleet.patience()).await?, ["end: OwnerLost"]);
    let late = b
        .answer(&id, &number(1), Answer::Result("late".into()))
        .await?;
    claim_eq!(late, Delivery::AlreadyEnded(OutcomeKind::OwnerLost));
    Ok(())
}

pub(crate) async fn a_dead_owners_leftovers_end_although_nobody_looks(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.open_streams(2).pending_requests(2))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let _writers = [a.call(&id, 1).await?, a.call(&id, 2).await?];
    let _waiting = [
        a.ask(&id, NewClientRequest::new(number(1))).await?,
        a.ask(&id, NewClientRequest::new(number(2))).await?,
    ];
    claim_eq!(kind(b.call(&id, 3).await), Some(ErrorKind::Overloaded));
    sleep(fleet.limits().heartbeat() * 2).await;
    a.kill().await;
    let room = || async {
        let opened = b.call(&id, 3).await;
        let asked = b.ask(&id, NewClientRequest::new(number(3))).await;
        Ok((opened.is_ok() && asked.is_ok()).then_some(()))
    };
    eventually("the dead make room", fleet.patience(), room).await
}

pub(crate) async fn an_owner_that_dies_young_is_dead_all_the_same(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.open_streams(1))?;
    let b = fleet.instance().await?;
    let id = b.session().await?;
    sleep(fleet.limits().heartbeat()).await;
    // It may not even have had the time to say that it lives.
    let a = fleet.instance().await?;
    let writer = a.call(&id, 1).await?;
    let _waiting = a.ask(&id, NewClientRequest::new(number(1))).await?;
    a.kill().await;
    let mut tail = b.tail_all(&id, writer.stream()).await?;
    claim_eq!(tail.until_end(fleet.patience()).await?, ["end: OwnerLost"]);
    let late = b
        .answer(&id, &number(1), Answer::Result("late".into()))
        .await?;
    claim_eq!(late, Delivery::AlreadyEnded(OutcomeKind::OwnerLost));
    let room = || async {
        let opened = b.call(&id, 2).await;
        Ok(opened.is_ok().then_some(()))
    };
    eventually("the dead make room", fleet.patience(), room).await
}

pub(crate) async fn a_thawed_owner_is_fenced(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let first = writer.append("1").await?;
    let waiting = a.ask(&id, NewClientRequest::new(number(1))).await?;
    let mut tail = b.tail(&id, TailFrom::After(first.clone())).await?;
    let frozen = a.freeze().await;
    claim_eq!(tail.until_end(patience).await?, ["end: OwnerLost"]);
    // Nobody has met its request: that is the janitor's.
    let ended = || async {
        let pending = b.stats().await?.pending_requests.value();
        Ok((pending == 0).then_some(()))
    };
    eventually("its request is ended", patience, ended).await?;
    drop(frozen);
    claim_eq!(kind(writer.append("2").await), Some(ErrorKind::Fenced));
    claim_eq!(
        kind(writer.finish(Some("3")).await),
        Some(ErrorKind::Fenced)
    );
    let why = within("the writer is told", patience, writer.revoked()).await?;
    claim_eq!(why, Revocation::Fenced);
    claim_eq!(
        b.replay_all(&id, &first.stream).await?,
        ["1"],
        "it wrote nothing"
    );
    let outcome = within("the outcome", patience, waiting).await?;
    claim_eq!(outcome.kind, OutcomeKind::OwnerLost);
    // What it starts from now on is as good as before: it says first that it
    // lives.
    let again = a.call(&id, 2).await?;
    let mut tail = b.tail_all(&id, again.stream()).await?;
    sleep(fleet.limits().lease() * 2).await;
    again.finish(Some("result")).await?;
    claim_eq!(tail.until_end(patience).await?, ["result", "end: Finished"]);
    Ok(())
}

pub(crate) async fn a_thawed_owners_tail_that_was_taken_over_is_superseded(
    fleet: Fleet,
) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    // Written and not; taken over before and while its owner stands still.
    for (round, (events, before)) in [(1, true), (1, false), (0, false)].into_iter().enumerate() {
        let id = a.session().await?;
        let writer = a.call(&id, 1).await?;
        let mut first = writer.attach();
        for n in 1..=events {
            writer.append(n.to_string()).await?;
            claim_eq!(first.text(patience).await?, n.to_string());
        }
        let early = match before {
            true => Some(b.tail_all(&id, writer.stream()).await?),
            false => None,
        };
        let frozen = a.freeze().await;
        let mut tail = match early {
            Some(tail) => tail,
            None => b.tail_all(&id, writer.stream()).await?,
        };
        let ended = tail.until_end(patience).await?;
        let expected = counted(1, events, Some("end: OwnerLost"));
        claim_eq!(ended, expected, "round {round}: at who took it over");
        drop(frozen);
        // Its client reads the other one by now: to it the call has ended there.
        let ended = first.until_end(patience).await?;
        claim_eq!(
            ended,
            ["end: Superseded"],
            "round {round}: the tail that was taken over, at the owner that thawed"
        );
        claim_eq!(kind(writer.append("late").await), Some(ErrorKind::Fenced));
    }
    Ok(())
}

pub(crate) async fn a_cancelled_call_whose_owner_died_ends_as_cancelled(fleet: Fleet) -> Verdict {
    let [a, b, c] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    // Cancelled while its owner lived, and after it died.
    let (before, after, running) = (
        a.call(&id, 1).await?,
        a.call(&id, 2).await?,
        a.call(&id, 3).await?,
    );
    for writer in [&before, &after, &running] {
        writer.append("1").await?;
    }
    let mut tails = Vec::new();
    for writer in [&before, &after, &running] {
        tails.push(b.tail_all(&id, writer.stream()).await?);
    }
    let frozen = a.freeze().await;
    let marked = c.cancel_call(&id, &number(1)).await?;
    claim_eq!(marked, Cancelled::Marked(before.stream().clone()));
    drop(frozen);
    a.kill().await;
    let marked = c.cancel_call(&id, &number(2)).await?;
    claim_eq!(marked, Cancelled::Marked(after.stream().clone()));
    let ends = ["end: Cancelled", "end: Cancelled", "end: OwnerLost"];
    for (n, (mut tail, end)) in tails.into_iter().zip(ends).enumerate() {
        let ended = tail.until_end(patience).await?;
        claim_eq!(ended, ["1", end], "call {}", n + 1);
    }
    // For whoever comes later, too.
    for (writer, end) in [
        (&before, EndReason::Cancelled),
        (&after, EndReason::Cancelled),
        (&running, EndReason::OwnerLost),
    ] {
        let start = crate::instance::start_of(writer.stream());
        let replay = c.replay(&id, &start, 10).await?;
        claim_eq!(replay.end, Some(end));
    }
    Ok(())
}

pub(crate) async fn a_quiet_owner_is_not_dead(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let waiting = a.ask(&id, NewClientRequest::new(number(1))).await?;
    let mut tail = b.tail_all(&id, writer.stream()).await?;
    sleep(fleet.limits().lease() * 4).await;
    let answered = b
        .answer(&id, &number(1), Answer::Result("x".into()))
        .await?;
    claim_eq!(answered, Delivery::Delivered);
    let outcome = within("the outcome", fleet.patience(), waiting).await?;
    claim_eq!(outcome.kind, OutcomeKind::Answered);
    writer.finish(Some("result")).await?;
    claim_eq!(
        tail.until_end(fleet.patience()).await?,
        ["result", "end: Finished"]
    );
    Ok(())
}

pub(crate) async fn a_frozen_observer_ends_nobody(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let mut tail = b.tail_all(&id, writer.stream()).await?;
    let lease = fleet.limits().lease();
    sleep(lease / 2).await;
    let observer = b.freeze().await;
    sleep(lease * 2).await;
    drop(observer);
    writer.append("1").await?;
    claim_eq!(tail.text(fleet.patience()).await?, "1");
    sleep(lease / 2).await;
    // All of them stood still, as on a host that was suspended; the observer is
    // back first and has seen nothing yet.
    let (owner, observer) = (a.freeze().await, b.freeze().await);
    sleep(lease * 2).await;
    drop(observer);
    sleep(lease / 4).await;
    drop(owner);
    sleep(lease / 2).await;
    writer.finish(Some("2")).await?;
    claim_eq!(
        tail.until_end(fleet.patience()).await?,
        ["2", "end: Finished"]
    );
    Ok(())
}

pub(crate) async fn a_closed_instance_gives_its_calls_up_at_once(fleet: Fleet) -> Verdict {
    // Nobody would wait so long for a lease.
    let lease = fleet.ticks(6000);
    let fleet = fleet.with(|limits| limits.lease(lease))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let first = writer.append("1").await?;
    let mut get = a.get(&id).await?;
    let waiting = a.ask(&id, NewClientRequest::new(number(1))).await?;
    let mut tail = b.tail(&id, TailFrom::After(first)).await?;
    a.close().await?;
    let closed = Instant::now();
    claim_eq!(tail.until_end(lease / 2).await?, ["end: OwnerLost"]);
    claim!(
        closed.elapsed() < lease / 2,
        "it took {:?}",
        closed.elapsed()
    );
    claim_eq!(get.until_end(fleet.patience()).await?, ["end: Closed"]);
    let why = within("the writer is told", fleet.patience(), writer.revoked()).await?;
    claim_eq!(why, Revocation::Fenced);
    let outcome = within("the outcome", fleet.patience(), waiting).await?;
    let given_up = matches!(
        outcome.kind,
        OutcomeKind::Cancelled | OutcomeKind::OwnerLost
    );
    claim!(given_up, "{:?}", outcome.kind);
    let late = b
        .answer(&id, &number(1), Answer::Result("late".into()))
        .await?;
    let Delivery::AlreadyEnded(how) = late else {
        return Err(Failure::new(format!(
            "an answer to a closed instance: {late:?}"
        )));
    };
    claim_eq!(how, outcome.kind);
    Ok(())
}
