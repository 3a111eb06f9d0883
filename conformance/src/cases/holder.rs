//! Holders: E9.

use mcp_adapter_core::{ErrorKind, EventId, TailFrom};

use super::kind;
use crate::{
    fleet::Fleet,
    instance::start_of,
    wait::{Failure, Verdict, claim, claim_eq, never_within},
};

pub(crate) async fn a_resume_takes_the_stream_over_wherever_it_is_held(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    let mut holder = writer.attach();
    let first = writer.append("1").await?;
    claim_eq!(holder.text(patience).await?, "1");
    // Elsewhere, there again, back here, and here again.
    for (n, instance) in [&b, &b, &a, &a].into_iter().enumerate() {
        let mut next = instance.tail(&id, TailFrom::After(first.clone())).await?;
        let ended = holder.until_end(patience).await?;
        claim_eq!(
            ended.last().map(String::as_str),
            Some("end: Superseded"),
            "resume {n}"
        );
        writer.append(format!("after {n}")).await?;
        for seen in 0..=n {
            claim_eq!(next.text(patience).await?, format!("after {seen}"));
        }
        holder = next;
    }
    // The standalone stream is taken over as well, but its former tail stays: it
    // may be another client's.
    let mut get = b.get(&id).await?;
    let event = a.append(&id, "s").await?;
    claim_eq!(get.text(patience).await?, "s");
    let mut resumed = a
        .tail(&id, TailFrom::After(start_of(&event.stream)))
        .await?;
    claim_eq!(resumed.text(patience).await?, "s");
    a.append(&id, "t").await?;
    claim_eq!(resumed.text(patience).await?, "t");
    never_within("a tail that was displaced", fleet.ticks(30), get.next()).await?;
    writer.finish(None).await?;
    claim_eq!(holder.until_end(patience).await?, ["end: Finished"]);
    Ok(())
}

pub(crate) async fn a_further_get_is_silent_until_its_turn(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    a.append(&id, "before any").await?;
    let mut first = a.get(&id).await?;
    claim_eq!(first.text(patience).await?, "before any");
    let mut elsewhere = b.get(&id).await?;
    let mut here = a.get(&id).await?;
    b.append(&id, "one").await?;
    claim_eq!(first.text(patience).await?, "one");
    let silence = fleet.ticks(30);
    let (elsewhere_is, here_is) = futures::join!(
        never_within("a GET whose turn it is not", silence, elsewhere.next()),
        never_within("a GET whose turn it is not", silence, here.next())
    );
    elsewhere_is?;
    here_is?;
    drop(first);
    drop(here);
    a.append(&id, "two").await?;
    claim_eq!(
        elsewhere.text(patience).await?,
        "two",
        "it goes on where the first let go"
    );
    let mut last = a.get(&id).await?;
    drop(elsewhere);
    b.append(&id, "three").await?;
    claim_eq!(last.text(patience).await?, "three");
    Ok(())
}

pub(crate) async fn a_get_is_told_where_it_begins(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    let mut first = a.get(&id).await?;
    // Before anything is stored.
    let (start, number) = first.begins(patience).await?;
    claim!(start.stream.is_standalone(), "{start}");
    let one = b.append(&id, "1").await?;
    claim_eq!(first.text(patience).await?, "1");
    let mut second = b.get(&id).await?;
    drop(first);
    let (began, next) = second.begins(patience).await?;
    claim_eq!(began, one);
    claim!(next > number, "{next} after {number}");
    let two = a.append(&id, "2").await?;
    claim_eq!(second.text(patience).await?, "2");
    // Where it began is where its client can come back to.
    let back = |after: &EventId, hold| TailFrom::Returning {
        after: after.position,
        hold,
    };
    let mut resumed = a.tail(&id, back(&one, Some(next))).await?;
    claim_eq!(resumed.text(patience).await?, "2");
    // That of the first one has had all, though it names the same event.
    let mut other = b.tail(&id, back(&one, None)).await?;
    let mut again = a.tail(&id, back(&two, None)).await?;
    a.append(&id, "3").await?;
    claim_eq!(again.text(patience).await?, "3");
    never_within("a GET whose turn it is not", fleet.ticks(30), other.next()).await?;
    Ok(())
}

pub(crate) async fn waiting_gets_are_bounded(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.waiting_streams(2))?;
    let a = fleet.instance().await?;
    let id = a.session().await?;
    let mut gets = Vec::new();
    for _ in 0..3 {
        gets.push(a.get(&id).await?);
    }
    for _ in 0..3 {
        claim_eq!(kind(a.get(&id).await), Some(ErrorKind::Overloaded));
    }
    // Another session is not concerned, and a place that is free can be taken.
    let other = a.session().await?;
    a.get(&other).await?;
    gets.pop();
    gets.push(a.get(&id).await?);
    Ok(())
}

pub(crate) async fn the_place_of_a_dead_holder_is_taken(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let mut held = b.get(&id).await?;
    a.append(&id, "1").await?;
    claim_eq!(held.text(fleet.patience()).await?, "1");
    let mut waits = a.get(&id).await?;
    never_within("a GET whose turn it is not", fleet.ticks(20), waits.next()).await?;
    b.kill().await;
    let append = async {
        loop {
            if let Err(error) = a.append(&id, "2").await {
                return Err::<(), _>(Failure::from(error));
            }
            tokio::time::sleep(fleet.ticks(10)).await;
        }
    };
    let heard = tokio::select! {
        heard = waits.text(fleet.patience()) => heard?,
        failed = append => return failed,
    };
    claim_eq!(
        heard,
        "2",
        "the first event after the place of the dead is taken"
    );
    Ok(())
}
