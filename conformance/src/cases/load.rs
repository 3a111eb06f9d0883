//! Load: F4.

use futures::future::join_all;
use mcp_adapter_core::ErrorKind;

use crate::{
    fleet::Fleet,
    wait::{Verdict, claim, claim_eq, within},
};

pub(crate) async fn a_client_that_does_not_read_holds_up_no_writer(fleet: Fleet) -> Verdict {
    const EVENTS: usize = 1500;
    let fleet = fleet.with(|limits| limits.stream_events(100))?;
    let [a, b] = fleet.instances().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    // One at the writer, one elsewhere; neither reads.
    let mut own = writer.attach();
    let get = b.get(&id).await?;
    let pad = "x".repeat(1000);
    for n in 1..=EVENTS {
        let ack = writer.append(format!("{n} {pad}"));
        if n % 50 == 0 {
            within("an append that nobody reads", fleet.patience(), ack).await??;
            let shared = a.append(&id, n.to_string());
            within("an append that nobody reads", fleet.patience(), shared).await??;
        }
    }
    within("the finish", fleet.patience(), writer.finish(None)).await??;
    // What it missed is a gap, and what is there goes on to the end.
    let items = own.until_end(fleet.patience()).await?;
    let last = format!("{EVENTS} {pad}");
    claim!(items.contains(&last), "the last event is there");
    claim_eq!(items.last().map(String::as_str), Some("end: Finished"));
    let numbers: Vec<usize> = items
        .iter()
        .filter_map(|item| item.split(' ').next()?.parse().ok())
        .collect();
    let gaps = items.iter().filter(|item| *item == "gap").count();
    let holes = numbers
        .windows(2)
        .filter(|two| two[1] != two[0] + 1)
        .count();
    let missing_first = usize::from(numbers.first() != Some(&1));
    claim_eq!(
        gaps,
        holes + missing_first,
        "a gap for each hole, and no other"
    );
    drop(get);
    Ok(())
}

pub(crate) async fn a_full_queue_is_a_typed_error_and_loses_nothing(fleet: Fleet) -> Verdict {
    let fleet = fleet.with(|limits| limits.queued_events(10).lease(fleet.ticks(3000)))?;
    let a = fleet.linked().await?;
    let id = a.session().await?;
    let writer = a.call(&id, 1).await?;
    a.link().freeze();
    let acks: Vec<_> = (1..=100)
        .map(|n: u32| (n, writer.append(n.to_string())))
        .collect();
    tokio::time::sleep(fleet.ticks(5)).await;
    a.link().mend();
    let waits = acks
        .into_iter()
        .map(|(n, ack)| async move { (n, ack.await) });
    let answers = within("the queue", fleet.patience(), join_all(waits)).await?;
    let mut stored = Vec::new();
    for (n, answer) in answers {
        match answer {
            Ok(_) => stored.push(n.to_string()),
            Err(error) => claim_eq!(error.kind(), ErrorKind::Overloaded, "append {n}"),
        }
    }
    claim!(
        (10..100).contains(&stored.len()),
        "{} were queued",
        stored.len()
    );
    within("the finish", fleet.patience(), writer.finish(None)).await??;
    claim_eq!(a.replay_all(&id, writer.stream()).await?, stored);
    Ok(())
}
