//! Batches: each entry has its own answer, and sees what those before it have done.

use mcp_adapter_core::{
    RpcId, SessionKey,
    storage::{
        Append, Appended, NewEvent, Put, PutRequest, RequestState, Settled, Storage, StoredEvent,
    },
};

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq};

/// Where each entry of a batch was stored, and whether it was a repeat; or how it was
/// refused.
async fn places(a: &AnyStorage, batch: &[Append]) -> Step<Vec<Result<(u32, u64, bool), Appended>>> {
    let answers = a.append(batch).await?;
    let place = |answer| match answer {
        Appended::Stored {
            position, repeat, ..
        } => Ok((position.epoch, position.seq, repeat)),
        other => Err(other),
    };
    Ok(answers.into_iter().map(place).collect())
}

/// Position and text of each event.
fn read_back(events: &[StoredEvent]) -> Vec<(u32, u64, String)> {
    let one = |event: &StoredEvent| {
        let data = event.data.as_deref().map(String::from_utf8_lossy);
        let text = data.map_or_else(|| "undecodable".into(), String::from);
        (event.position.epoch, event.position.seq, text)
    };
    events.iter().map(one).collect()
}

fn event(session: SessionKey, epoch: u32, seq: u64) -> Step<Append> {
    owned(session, at(epoch, seq), &format!("{epoch}-{seq}"))
}

/// The same, as it is read back.
fn found(places: &[(u32, u64)]) -> Vec<(u32, u64, String)> {
    let one = |&(epoch, seq): &(u32, u64)| (epoch, seq, format!("{epoch}-{seq}"));
    places.iter().map(one).collect()
}

pub(crate) async fn a_hole_within_a_batch_stays_a_hole(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = stream(&a).await?;
    // Event 2 was given up by its writer.
    let batch = [
        event(session, 1, 1)?,
        event(session, 1, 3)?,
        event(session, 1, 4)?,
    ];
    for repeat in [false, true] {
        let answers = places(&a, &batch).await?;
        let expected = [(1, 1), (1, 3), (1, 4)].map(|(epoch, seq)| Ok((epoch, seq, repeat)));
        claim_eq!(answers, expected);
    }
    let (events, state) = page(&b, &cursor(session, "s")?).await?;
    claim_eq!(read_back(&events), found(&[(1, 1), (1, 3), (1, 4)]));
    claim_eq!((state.top, state.oldest), (at(1, 4), Some(at(1, 1))));
    let mut after = cursor(session, "s")?;
    for (place, left) in [(at(1, 1), 2), (at(1, 2), 2), (at(1, 3), 1), (at(1, 4), 0)] {
        after.after = place;
        let (events, _) = page(&b, &after).await?;
        claim_eq!(events.len(), left, "after {place:?}");
    }
    claim_eq!(b.shrink(&session, 1 << 40).await?, 9, "bytes");
    // A second epoch, its first event in the middle of a batch, and a hole again.
    let second = Append {
        event: Some(NewEvent {
            prev: Some(at(1, 5)),
            data: "2-1".into(),
        }),
        ..event(session, 2, 1)?
    };
    let batch = [event(session, 1, 5)?, second, event(session, 2, 4)?];
    places(&a, &batch).await?;
    let (events, state) = page(&b, &cursor(session, "s")?).await?;
    let all = [(1, 1), (1, 3), (1, 4), (1, 5), (2, 1), (2, 4)];
    claim_eq!(read_back(&events), found(&all));
    let prevs: Vec<_> = events.iter().map(|event| event.prev).collect();
    claim_eq!(prevs, [None, None, None, None, Some(at(1, 5)), None]);
    claim_eq!(state.top, at(2, 4));
    Ok(())
}

pub(crate) async fn an_append_sees_those_before_it(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    // Of one epoch, and back to the one before.
    let session = stream(&a).await?;
    let batch = [
        event(session, 1, 1)?,
        event(session, 1, 1)?,
        event(session, 2, 1)?,
        event(session, 1, 1)?,
        event(session, 1, 2)?,
        event(session, 2, 1)?,
        event(session, 2, 2)?,
    ];
    let answers = places(&a, &batch).await?;
    let expected = [
        Ok((1, 1, false)),
        Ok((1, 1, true)),
        Ok((2, 1, false)),
        Ok((1, 1, true)),
        Err(Appended::Fenced),
        Ok((2, 1, true)),
        Ok((2, 2, false)),
    ];
    claim_eq!(
        answers,
        expected,
        "1-1, 1-1, 2-1, 1-1, 1-2, 2-1, 2-2 in one batch"
    );
    let (events, _) = page(&b, &cursor(session, "s")?).await?;
    claim_eq!(read_back(&events), found(&[(1, 1), (2, 1), (2, 2)]));
    // Two of one writer's tag, with another's between.
    let batch = [
        shared(session, A, 6, "6")?,
        shared(session, A, 6, "6")?,
        shared(session, A, 7, "7")?,
        shared(session, A, 6, "6")?,
    ];
    let answers = places(&a, &batch).await?;
    let place = |answer: &Result<(u32, u64, bool), Appended>| {
        answer.map_err(|other| Failure::new(format!("{other:?}")))
    };
    let [six, again, seven, late] = &answers[..] else {
        return Err(Failure::new(format!("{answers:?}")));
    };
    let (six, seven) = (place(six)?, place(seven)?);
    claim!(!six.2 && !seven.2 && six < seven, "{answers:?}");
    for repeat in [again, late] {
        let repeat = place(repeat)?;
        claim_eq!(repeat, (six.0, six.1, true), "the place of the first");
    }
    claim_eq!(texts(&b, session, "standalone").await?, ["6", "7"]);
    // What follows a finish in the same batch.
    let last = Append {
        finish: Some(LONG),
        ..event(session, 2, 3)?
    };
    let batch = [
        last.clone(),
        last,
        event(session, 2, 4)?,
        event(session, 2, 2)?,
    ];
    let answers = places(&a, &batch).await?;
    let expected = [
        Ok((2, 3, false)),
        Ok((2, 3, true)),
        Err(Appended::Finished),
        Ok((2, 2, true)),
    ];
    claim_eq!(answers, expected, "2-3 with the finish, again, 2-4, 2-2");
    Ok(())
}

pub(crate) async fn a_batch_is_trimmed_as_it_is_stored(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = stream(&a).await?;
    let keep = |entry: Append, keep_events, trim| Append {
        keep_events,
        trim,
        ..entry
    };
    let mut batch = Vec::new();
    for seq in 1..=5 {
        let trim = (seq > 2).then(|| at(1, seq - 2));
        batch.push(keep(event(session, 1, seq)?, 2, trim));
    }
    let answers = places(&a, &batch).await?;
    claim!(answers.iter().all(Result::is_ok), "{answers:?}");
    let (events, state) = page(&b, &cursor(session, "s")?).await?;
    claim_eq!(read_back(&events), found(&[(1, 4), (1, 5)]), "two are kept");
    claim_eq!(state.oldest, Some(at(1, 4)));
    claim_eq!(b.shrink(&session, 1 << 40).await?, 6, "bytes");
    // Of an earlier epoch, and gone within the batch: it is told from a repeat.
    let session = stream(&a).await?;
    let batch = [
        keep(event(session, 1, 1)?, 1, None),
        keep(event(session, 2, 1)?, 1, Some(at(1, 1))),
        event(session, 1, 1)?,
        event(session, 2, 1)?,
    ];
    let answers = places(&a, &batch).await?;
    let expected = [
        Ok((1, 1, false)),
        Ok((2, 1, false)),
        Err(Appended::Fenced),
        Ok((2, 1, true)),
    ];
    claim_eq!(
        answers,
        expected,
        "1-1, 2-1 that trims it, 1-1 again, 2-1 again"
    );
    let (events, _) = page(&b, &cursor(session, "s")?).await?;
    claim_eq!(read_back(&events), found(&[(2, 1)]));
    Ok(())
}

pub(crate) async fn requests_are_put_in_their_order(store: Store) -> Verdict {
    let a = store.open().await?;
    let [session, other] = [session(&a).await?, session(&a).await?];
    let room = |session, id| PutRequest {
        max_pending: 1,
        ..request(session, id)
    };
    // One place in each; the first that asks has it.
    let batch = [
        room(session, 2),
        room(other, 1),
        room(session, 1),
        room(other, 2),
        room(session, 2),
    ];
    let answers = a.put_requests(&batch).await?;
    let expected = [
        Put::Done,
        Put::Done,
        Put::TooMany,
        Put::TooMany,
        Put::Replaced(A),
    ];
    claim_eq!(answers, expected);
    for (session, id, there) in [
        (session, 2, true),
        (session, 1, false),
        (other, 1, true),
        (other, 2, false),
    ] {
        let state = request_state(&a, session, id, None).await?;
        let expected = match there {
            true => RequestState::Pending { owner: A },
            false => RequestState::Missing,
        };
        claim_eq!(state, expected, "request {id}");
    }
    // Answers, too: the first wins, whatever the ids are.
    let answers = [
        answer(session, 2, "first"),
        answer(session, 1, "none"),
        answer(session, 2, "second"),
    ];
    let settled = a.settle(&answers).await?;
    let ended = Settled::Already(mcp_adapter_core::OutcomeKind::Answered);
    claim_eq!(settled, [Settled::Won, Settled::Unknown, ended]);
    let key = mcp_adapter_core::storage::RequestKey {
        session,
        id: RpcId::Number(2),
        token: Some(batch[4].token),
    };
    let state = one(a.requests(&[key]).await?)?;
    let first = RequestState::Ended(mcp_adapter_core::OutcomeKind::Answered, "first".into());
    claim_eq!(state, first);
    Ok(())
}
