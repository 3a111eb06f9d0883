//! Stores that are closed and opened again: F1.

use mcp_adapter_core::{
    Answer, Delivery, EventId, NewClientRequest, OutcomeKind, SessionId, StreamId,
};

use super::{NOT_FOUND, counted, kind, number};
use crate::{
    fleet::{Ending, Fleet},
    instance::record,
    wait::{Failure, Verdict, claim, claim_eq},
};

/// What was acknowledged before all instances ended.
struct Stored {
    session: SessionId,
    deleted: SessionId,
    /// A call that runs on, and one that is finished.
    running: StreamId,
    finished: StreamId,
    last: EventId,
}

/// Nothing of an instance is left when this returns.
async fn store(fleet: &Fleet) -> Result<Stored, Failure> {
    let [a, b] = fleet.instances().await?;
    let session = SessionId::generate();
    let created = a.create(&session, record()).await?;
    let mut next = record();
    next.log_level = Some("warning".into());
    next.state = serde_json::json!({"count": 7});
    b.update(&session, created.revision, next).await?;
    let running = a.call(&session, 1).await?;
    let finished = b.call(&session, 2).await?;
    for n in 1..=20 {
        running.append(n.to_string()).await?;
        b.append(&session, n.to_string()).await?;
    }
    finished.append("1").await?;
    let last = finished.finish(Some("2")).await?;
    let last = last.ok_or_else(|| Failure::new("a terminal event has no id"))?;
    let waiting = a.ask(&session, NewClientRequest::new(number(1))).await?;
    let yes = Answer::Result("yes".into());
    let delivered = b.answer(&session, &number(1), yes).await?;
    claim_eq!(delivered, Delivery::Delivered);
    drop(waiting);
    let deleted = a.session().await?;
    a.append(&deleted, "x").await?;
    b.delete(&deleted, None).await?;
    Ok(Stored {
        session,
        deleted,
        running: running.stream().clone(),
        finished: finished.stream().clone(),
        last,
    })
}

async fn survives(fleet: &Fleet, ending: Ending) -> Verdict {
    let stored = store(fleet).await?;
    fleet.restart(ending).await?;
    let patience = fleet.patience();
    let [a, b] = fleet.instances().await?;
    let session = &stored.session;
    let found = a.look(session, None).await.map_err(|error| {
        Failure::new(format!(
            "a session that was acknowledged is not there after the store was closed and opened \
             again: {error}"
        ))
    })?;
    claim_eq!(found.record.log_level.as_deref(), Some("warning"));
    claim_eq!(found.record.state, serde_json::json!({"count": 7}));
    claim_eq!(kind(b.look(&stored.deleted, None).await), NOT_FOUND);
    let shared = a.replay_all(session, &StreamId::standalone()).await?;
    claim_eq!(shared, counted(1, 20, None), "the standalone stream");
    let mut tail = b.tail_all(session, &stored.finished).await?;
    let expected = counted(1, 2, Some("end: Finished"));
    claim_eq!(tail.until_end(patience).await?, expected, "a finished call");
    let after = b.replay(session, &stored.last, 10).await?;
    claim!(after.events.is_empty(), "{after:?}");
    // Its owner is gone: closed or dead.
    let mut tail = b.tail_all(session, &stored.running).await?;
    let expected = counted(1, 20, Some("end: OwnerLost"));
    claim_eq!(tail.until_end(patience).await?, expected, "a call that ran");
    let late = a
        .answer(session, &number(1), Answer::Result("late".into()))
        .await?;
    claim_eq!(late, Delivery::AlreadyEnded(OutcomeKind::Answered));
    // It goes on.
    let next = a.append(session, "next").await?;
    let tail = b.replay_all(session, &next.stream).await?;
    claim_eq!(tail.last().map(String::as_str), Some("next"));
    let writer = b.call(session, 3).await?;
    let mut follows = a.tail_all(session, writer.stream()).await?;
    writer.finish(Some("result")).await?;
    claim_eq!(
        follows.until_end(patience).await?,
        ["result", "end: Finished"]
    );
    Ok(())
}

pub(crate) async fn what_was_acknowledged_survives_a_restart(fleet: Fleet) -> Verdict {
    survives(&fleet, Ending::Closed).await
}

pub(crate) async fn what_was_acknowledged_survives_a_crash(fleet: Fleet) -> Verdict {
    survives(&fleet, Ending::Killed).await
}
