//! Repeats that come late: known by their names, and to change nothing.

use bytes::Bytes;
use mcp_adapter_core::{
    OutcomeKind,
    storage::{
        Append, Appended, Entered, Put, PutRequest, REMEMBERED, RequestState, Settled, Storage,
        UpdateSession, Updated,
    },
};

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq, helper};

/// Where it was stored, and whether this was a repeat.
#[track_caller]
fn told(
    a: &AnyStorage,
    entry: &Append,
) -> impl Future<Output = Step<(mcp_adapter_core::Position, bool)>> {
    helper(async move {
        match append(a, entry).await? {
            Appended::Stored {
                position, repeat, ..
            } => Ok((position, repeat)),
            other => Err(Failure::new(format!(
                "`append` of {:?} answered {other:?}, not `Stored`",
                entry.place
            ))),
        }
    })
}

pub(crate) async fn an_append_tells_that_it_is_one(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = stream(&a).await?;
    for seq in 1..=3 {
        let entry = owned(session, at(1, seq), "x")?;
        claim_eq!(told(&a, &entry).await?, (at(1, seq), false), "the first");
        claim_eq!(told(&a, &entry).await?, (at(1, seq), true), "again");
        let entry = shared(session, A, seq, "x")?;
        let (place, first) = told(&a, &entry).await?;
        claim!(!first, "the first of tag {seq}");
        claim_eq!(told(&a, &entry).await?, (place, true), "tag {seq} again");
    }
    // One of an earlier epoch, which is still there.
    let next = owned(session, at(2, 1), "x")?;
    claim_eq!(told(&a, &next).await?, (at(2, 1), false));
    let former = owned(session, at(1, 2), "x")?;
    claim_eq!(told(&a, &former).await?, (at(1, 2), true));
    // With the finish, and without an event.
    let last = Append {
        finish: Some(LONG),
        ..owned(session, at(2, 2), "x")?
    };
    let finish = Append {
        event: None,
        ..last.clone()
    };
    claim_eq!(told(&a, &last).await?, (at(2, 2), false));
    claim_eq!(told(&a, &last).await?, (at(2, 2), true));
    claim_eq!(told(&a, &finish).await?, (at(2, 2), true));
    Ok(())
}

pub(crate) async fn of_an_evicted_tag_it_names_no_event_that_is_kept(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = session(&a).await?;
    let keep = |entry: Append| Append {
        keep_events: 3,
        ..entry
    };
    for tag in 1..=9 {
        stored(&a, &keep(shared(session, A, tag, &format!("a{tag}"))?)).await?;
        stored(&b, &keep(shared(session, B, tag, &format!("b{tag}"))?)).await?;
    }
    let cursor = cursor(session, "standalone")?;
    let (kept, before) = page(&b, &cursor).await?;
    let oldest = kept.first().map(|event| event.position);
    let Some(oldest) = oldest.filter(|_| kept.len() < 18) else {
        return Err(Failure::new(format!(
            "of 18 events 3 may be kept: {kept:?}"
        )));
    };
    for tag in 1..=9 {
        for (at, writer, prefix) in [(&a, A, "a"), (&b, B, "b")] {
            let text = format!("{prefix}{tag}");
            let (place, repeat) = told(at, &keep(shared(session, writer, tag, &text)?)).await?;
            claim!(repeat, "tag {tag} was stored: {place:?}");
            let stands = kept.iter().find(|event| event.position == place);
            let own = stands.is_none_or(|event| event.data.as_deref() == Some(text.as_bytes()));
            claim!(
                own && (stands.is_some() || place < oldest),
                "tag {tag} is evicted, or is its own event: {place:?}, and {stands:?} stands there"
            );
        }
    }
    let (after, state) = page(&b, &cursor).await?;
    claim_eq!(after, kept, "repeats change nothing");
    claim_eq!(state, before);
    Ok(())
}

pub(crate) async fn with_a_finish_it_finishes_nothing(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = stream(&a).await?;
    stored(&a, &owned(session, at(1, 1), "1")?).await?;
    stored(&a, &owned(session, at(1, 2), "2")?).await?;
    for seq in [1, 2] {
        let entry = Append {
            finish: Some(LONG),
            ..owned(session, at(1, seq), "another")?
        };
        claim_eq!(told(&a, &entry).await?, (at(1, seq), true));
        claim_eq!(state(&a, session).await?.end, None, "a repeat of 1-{seq}");
    }
    let shared_one = shared(session, A, 1, "1")?;
    stored(&a, &shared_one).await?;
    let entry = Append {
        finish: Some(LONG),
        ..shared_one
    };
    claim!(told(&a, &entry).await?.1, "a repeat");
    let (_, standalone) = page(&a, &cursor(session, "standalone")?).await?;
    claim_eq!(standalone.end, None, "a repeat of a tag");
    claim_eq!(
        told(&a, &owned(session, at(1, 3), "3")?).await?,
        (at(1, 3), false)
    );
    claim_eq!(texts(&a, session, "s").await?, ["1", "2", "3"]);
    Ok(())
}

pub(crate) async fn an_update_is_known_by_its_own_name(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = session(&a).await?;
    let same = Bytes::from_static(b"same");
    // Two writers of one record from one revision.
    let (one, two) = (
        update(session, 1, same.clone()),
        update(session, 1, same.clone()),
    );
    claim_eq!(a.update(&one).await?, Updated::Done(2));
    claim_eq!(
        b.update(&two).await?,
        Updated::Conflict,
        "an equal record of another name"
    );
    claim_eq!(a.update(&one).await?, Updated::Done(2), "its own repeat");
    let mut won = vec![one];
    for revision in 2..=REMEMBERED as u64 {
        let next = update(session, revision, same.clone());
        claim_eq!(b.update(&next).await?, Updated::Done(revision + 1));
        won.push(next);
    }
    let latest = REMEMBERED as u64 + 1;
    // The last ones are known, however late, and change nothing.
    for (revision, late) in (2..).zip(&won) {
        for store in [&a, &b] {
            let answer = store.update(late).await?;
            claim_eq!(answer, Updated::Done(revision), "of the last {REMEMBERED}");
        }
        // Under the same name, whatever it writes.
        let other = UpdateSession {
            record: Bytes::from_static(b"other"),
            ..late.clone()
        };
        claim_eq!(a.update(&other).await?, Updated::Done(revision));
    }
    claim_eq!(b.update(&two).await?, Updated::Conflict, "it has never won");
    match a.enter(&session, &ME, None).await? {
        Entered::Session { record, revision } => claim_eq!((record, revision), (same, latest)),
        other => return Err(Failure::new(format!("{other:?}"))),
    }
    Ok(())
}

pub(crate) async fn of_a_replaced_waiter_it_replaces_nobody(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = session(&a).await?;
    let mut waiters = Vec::new();
    for n in 0..=REMEMBERED {
        let asked = request(session, 1);
        let put = put(&a, &asked).await?;
        let expected = match n {
            0 => Put::Done,
            _ => Put::Replaced(A),
        };
        claim_eq!(put, expected, "waiter {n}");
        waiters.push(asked);
    }
    let last = waiters.pop().ok_or_else(|| Failure::new("no waiter"))?;
    for (n, former) in waiters.iter().enumerate() {
        claim_eq!(put(&a, former).await?, Put::Done, "waiter {n}, late");
        let now = request_state(&b, session, 1, Some(last.token)).await?;
        claim_eq!(now, RequestState::Pending { owner: A }, "after waiter {n}");
        let replaced = RequestState::Ended(OutcomeKind::Replaced, Bytes::new());
        let then = request_state(&b, session, 1, Some(former.token)).await?;
        claim_eq!(then, replaced, "waiter {n}");
    }
    // The next request of the id inherits them.
    settle(&b, &answer(session, 1, "yes")).await?;
    let next = request(session, 1);
    claim_eq!(put(&a, &next).await?, Put::Done);
    waiters.push(last);
    // Nine had the id before it, of which the last eight are known.
    for former in &waiters[1..] {
        claim_eq!(put(&a, former).await?, Put::Done);
    }
    let now = request_state(&b, session, 1, Some(next.token)).await?;
    claim_eq!(now, RequestState::Pending { owner: A }, "the next request");
    Ok(())
}

pub(crate) async fn of_an_answer_it_ends_no_later_request(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = session(&a).await?;
    let mut answers = Vec::new();
    for n in 0..REMEMBERED {
        put(&a, &request(session, 1)).await?;
        let yes = answer(session, 1, &n.to_string());
        claim_eq!(settle(&b, &yes).await?, Settled::Won, "answer {n}");
        answers.push(yes);
        // One that is asked and replaced in between has no answer of its own.
        put(&a, &request(session, 1)).await?;
        let next = request(session, 1);
        claim_eq!(put(&a, &next).await?, Put::Replaced(A));
        for (late, yes) in answers.iter().enumerate() {
            let settled = settle(&b, yes).await?;
            claim_eq!(
                settled,
                Settled::Won,
                "answer {late} again, after answer {n}"
            );
            let now = request_state(&a, session, 1, Some(next.token)).await?;
            let waits = RequestState::Pending { owner: A };
            claim_eq!(now, waits, "answer {late} was not to this request");
        }
        let end = answer(session, 1, "end");
        if n + 1 < REMEMBERED {
            // Withdrawn, with a name that is remembered as well.
            let withdrawn = mcp_adapter_core::storage::Settle {
                outcome: OutcomeKind::Cancelled,
                attempt: answers[n].attempt,
                ..end
            };
            claim_eq!(
                settle(&b, &withdrawn).await?,
                Settled::Won,
                "a repeat by its name"
            );
        }
    }
    Ok(())
}

pub(crate) async fn of_a_create_it_brings_nothing_back(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    if !a.profile().capabilities.shared {
        // Within one process no command comes late.
        return Ok(());
    }
    let session = key();
    let mut creators = Vec::new();
    for n in 0..4 {
        let new = new_session(session)?;
        claim!(a.create(&new).await?, "creator {n} on a free key");
        claim!(b.delete(&session, &ME).await?.is_some(), "it is there");
        creators.push(new);
        for (late, former) in creators.iter().enumerate() {
            claim!(
                !b.create(former).await?,
                "a late create by creator {late} of {n}, whose session was deleted"
            );
            claim!(!is_there(&a, session).await?, "it was brought back");
        }
    }
    let new = PutRequest {
        ..request(session, 1)
    };
    claim_eq!(put(&a, &new).await?, Put::NoSession);
    let next = new_session(session)?;
    claim!(a.create(&next).await?, "the key is free for others");
    for former in &creators {
        claim!(!b.create(former).await?, "another's is there");
    }
    claim!(a.create(&next).await?, "its own repeat");
    Ok(())
}
