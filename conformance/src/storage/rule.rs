//! Rules of the seam that are easily missed.

use mcp_adapter_core::{
    InstanceId, SessionKey, StreamId,
    storage::{
        Append, Appended, Claim, Dead, Held, Hold, Holder, NewSession, Put, PutRequest,
        RequestState, Settled, Storage, StreamEnd,
    },
};
use tokio::time::sleep;

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq, eventually, helper};

/// Finishes a stream at its end, with no event.
fn finish(session: SessionKey, epoch: u32, seq: u64) -> Step<Append> {
    Ok(Append {
        event: None,
        finish: Some(LONG),
        ..owned(session, at(epoch, seq), "")?
    })
}

/// Ends the stream `s`, whose owner `A` is dead.
#[track_caller]
fn claimed(a: &AnyStorage, session: SessionKey) -> impl Future<Output = Verdict> {
    helper(async move {
        beat(a, A, 3).await?;
        let dead = Dead {
            instance: A,
            beat: Some(3),
        };
        let claim = Claim {
            session,
            stream: name("s")?,
            dead,
            finished_ttl: LONG,
        };
        claim_eq!(a.claim(&[claim]).await?, 1);
        Ok(())
    })
}

pub(crate) async fn a_finish_tells_of_events_that_never_came(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = stream(&a).await?;
    stored(&a, &owned(session, at(1, 1), "1")?).await?;
    // Events 2 and 3 are lost with an outage; their writer knows of them.
    for _ in 0..2 {
        let position = stored(&a, &finish(session, 1, 3)?).await?;
        claim_eq!(position, at(1, 3), "what the finish answers is the top");
    }
    let found = state(&a, session).await?;
    claim_eq!(
        (found.top, found.end),
        (at(1, 3), Some(StreamEnd::Finished)),
        "the top shows a reader that something is missing at the end"
    );
    claim_eq!(texts(&a, session, "s").await?, ["1"]);
    Ok(())
}

pub(crate) async fn a_dead_owners_finish_is_fenced(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = stream(&a).await?;
    stored(&a, &owned(session, at(1, 1), "1")?).await?;
    claimed(&a, session).await?;
    let thawed = append(&a, &finish(session, 1, 1)?).await?;
    claim_eq!(thawed, Appended::Fenced, "others ended it, in a new epoch");
    let ended = state(&a, session).await?.end;
    claim_eq!(ended, Some(StreamEnd::OwnerLost));
    Ok(())
}

pub(crate) async fn a_claim_opens_epoch_two_at_least(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = stream(&a).await?;
    claimed(&a, session).await?;
    let top = state(&a, session).await?.top;
    claim!(
        top.epoch >= 2,
        "writers begin with epoch 1, whether they have written or not; the top is {top:?}"
    );
    let thawed = append(&a, &owned(session, at(1, 1), "1")?).await?;
    claim_eq!(thawed, Appended::Fenced);
    claim!(texts(&a, session, "s").await?.is_empty(), "nothing came in");
    Ok(())
}

pub(crate) async fn a_repeated_settle_leaves_the_next_request_alone(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = session(&a).await?;
    put(&a, &request(session, 1)).await?;
    let yes = answer(session, 1, "yes");
    claim_eq!(settle(&a, &yes).await?, Settled::Won);
    let next = PutRequest {
        owner: B,
        ..request(session, 1)
    };
    claim_eq!(put(&b, &next).await?, Put::Done, "the same id again");
    // Its first answer was lost.
    for _ in 0..2 {
        claim_eq!(settle(&a, &yes).await?, Settled::Won, "the same `attempt`");
    }
    let waits = RequestState::Pending { owner: B };
    claim_eq!(
        request_state(&a, session, 1, Some(next.token)).await?,
        waits,
        "the answer was not to this request"
    );
    Ok(())
}

pub(crate) async fn a_hold_is_taken_from_the_number_that_was_named(store: Store) -> Verdict {
    let [a, b, c] = store.handles().await?;
    let session = stream(&a).await?;
    let (former, ..) = hold(&b, session, B, Hold::Take).await?;
    let (number, ..) = hold(&b, session, B, Hold::Take).await?;
    let of = |number| Holder {
        instance: B,
        number,
    };
    let from = Hold::TakeFrom(Some(of(former)));
    let late = c.hold(&session, &name("s")?, C, from).await?;
    let Held::Busy(holder) = late else {
        return Err(Failure::new(format!(
            "`TakeFrom` names {:?}, and {:?} holds the stream: {late:?}, not `Busy`",
            of(former),
            of(number)
        )));
    };
    claim_eq!(holder, of(number));
    let from = Hold::TakeFrom(Some(holder));
    let (_, former, _) = hold(&c, session, C, from).await?;
    claim_eq!(former, Some(B));
    Ok(())
}

/// The holder as an append tells it.
#[track_caller]
fn told(a: &AnyStorage, entry: &Append) -> impl Future<Output = Step<Option<InstanceId>>> {
    helper(async move {
        match append(a, entry).await? {
            Appended::Stored { holder, .. } => Ok(holder),
            other => Err(Failure::new(format!("`append` answered {other:?}"))),
        }
    })
}

pub(crate) async fn an_append_tells_who_holds_the_stream(store: Store) -> Verdict {
    let [a, b, c] = store.handles().await?;
    let session = stream(&a).await?;
    let entry = |seq, wake| -> Step<Append> {
        let entry = owned(session, at(1, seq), "x")?;
        Ok(Append { wake, ..entry })
    };
    let first = told(&a, &entry(1, None)?).await?;
    claim_eq!(first, Some(A), "the owner is the first holder");
    let (number, ..) = hold(&b, session, B, Hold::Take).await?;
    let second = told(&a, &entry(2, None)?).await?;
    claim_eq!(second, Some(B), "the writer did not know it");
    let third = told(&a, &entry(3, Some(B))?).await?;
    claim_eq!(third, Some(B), "the writer knew it");
    let cursor = at(1, 3);
    hold(&b, session, B, Hold::Release { number, cursor }).await?;
    let fourth = told(&a, &entry(4, Some(B))?).await?;
    claim_eq!(fourth, None, "nobody any more");
    let standalone = StreamId::standalone();
    let nobody = told(&a, &shared(session, A, 1, "x")?).await?;
    claim_eq!(nobody, None, "the standalone stream");
    c.hold(&session, &standalone, C, Hold::Take).await?;
    let somebody = told(&a, &shared(session, A, 2, "x")?).await?;
    claim_eq!(somebody, Some(C), "the standalone stream");
    Ok(())
}

pub(crate) async fn a_shared_append_to_a_call_is_fenced(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let forged = |session, tag| -> Step<Append> {
        Ok(Append {
            stream: name("s")?,
            ..shared(session, B, tag, "forged")?
        })
    };
    // A call that is open, written, finished, or whose owner is dead.
    let (running, finished, lost) = (stream(&a).await?, stream(&a).await?, stream(&a).await?);
    let is_fenced = async |tag| {
        for (what, session) in [("open", running), ("finished", finished), ("lost", lost)] {
            for entry in [
                forged(session, tag)?,
                Append {
                    finish: Some(LONG),
                    ..forged(session, tag + 1)?
                },
            ] {
                let answer = append(&b, &entry).await?;
                claim_eq!(answer, Appended::Fenced, "a call that is {what}, tag {tag}");
            }
        }
        Ok::<_, Failure>(())
    };
    is_fenced(1).await?;
    claim!(texts(&a, running, "s").await?.is_empty(), "nothing came in");
    for session in [running, finished, lost] {
        stored(&a, &owned(session, at(1, 1), "own")?).await?;
    }
    stored(&a, &finish(finished, 1, 1)?).await?;
    claimed(&a, lost).await?;
    is_fenced(1).await?;
    is_fenced(5).await?;
    for session in [running, finished, lost] {
        claim_eq!(texts(&a, session, "s").await?, ["own"]);
    }
    claim_eq!(state(&a, running).await?.end, None, "it runs");
    Ok(())
}

pub(crate) async fn what_has_expired_is_not_counted(store: Store) -> Verdict {
    let a = store.open().await?;
    let ttl = store.ticks(&a, 20);
    session(&a).await?;
    for _ in 0..3 {
        let new = NewSession {
            idle_ttl: ttl,
            ..new_session(key())?
        };
        a.create(&new).await?;
    }
    sleep(ttl + store.ticks(&a, 10)).await;
    // Nobody has swept. Estimates may lag behind for a while.
    let probe = || async {
        let sessions = counts(&a).await?[0];
        Ok((sessions == 1).then_some(()))
    };
    let counted = eventually("one session of four lives", PATIENCE * 2, probe).await;
    if counted.is_err() {
        let found = counts(&a).await?[0];
        return Err(Failure::new(format!(
            "`stats` counts {found} sessions, of which one has not expired"
        )));
    }
    Ok(())
}
