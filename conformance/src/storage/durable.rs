//! Stores that are closed and opened again.

use bytes::Bytes;
use mcp_adapter_core::{
    OutcomeKind, SessionKey, StreamId,
    storage::{
        Append, Entered, Held, Hold, Holder, NewEvent, NewSession, OpenStream, Put, PutRequest,
        RequestState, Settle, Settled, Storage, StreamEnd,
    },
};

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq};

/// A session with something of everything in it.
struct Full {
    new: NewSession,
    events: Vec<Append>,
    shared: Vec<Append>,
    places: Vec<mcp_adapter_core::Position>,
    holder: Holder,
    pending: PutRequest,
    answered: PutRequest,
    answer: Settle,
    bytes: u64,
    deleted: SessionKey,
}

/// Nothing of the handle is left when this returns.
async fn fill(store: &Store) -> Result<Full, Failure> {
    let [a, b] = store.handles().await?;
    a.attach(A).await?;
    b.attach(B).await?;
    let new = new_session(key())?;
    let session = new.session;
    a.create(&new).await?;
    for stream in ["s", "done", "cancelled"] {
        let opened = OpenStream {
            request: mcp_adapter_core::RpcId::String(stream.into()),
            ..open(stream)?
        };
        a.enter(&session, &ME, Some(&opened)).await?;
    }
    let mut events = Vec::new();
    for seq in 1..=5 {
        events.push(owned(session, at(1, seq), &format!("first {seq}"))?);
    }
    let next = Append {
        event: Some(NewEvent {
            prev: Some(at(1, 5)),
            data: Bytes::from_static(b"second 1"),
        }),
        ..owned(session, at(2, 1), "")?
    };
    events.push(next);
    a.append(&events).await?;
    let last = Append {
        stream: name("done")?,
        finish: Some(LONG),
        ..owned(session, at(1, 1), "result")?
    };
    stored(&a, &last).await?;
    let mut shared_events = Vec::new();
    let mut places = Vec::new();
    for tag in 1..=3 {
        for (store, writer) in [(&a, A), (&b, B)] {
            let entry = shared(session, writer, tag, &format!("{tag}"))?;
            places.push(stored(store, &entry).await?);
            shared_events.push(entry);
        }
    }
    hold(&b, session, B, Hold::Take).await?;
    let holder = state(&b, session).await?.holder;
    let holder = holder.ok_or_else(|| Failure::new("nobody holds what was taken"))?;
    let standalone = StreamId::standalone();
    let held = b.hold(&session, &standalone, B, Hold::Take).await?;
    let Held::Done { number, .. } = held else {
        return Err(Failure::new(format!("{held:?}")));
    };
    let cursor = places[2];
    b.hold(&session, &standalone, B, Hold::Release { number, cursor })
        .await?;
    let marked = mcp_adapter_core::RpcId::String("cancelled".into());
    b.mark_cancel(&session, &marked).await?;
    let (pending, answered) = (request(session, 1), request(session, 2));
    put(&a, &pending).await?;
    put(&a, &answered).await?;
    let answer = answer(session, 2, "yes");
    settle(&b, &answer).await?;
    let deleted = stream(&a).await?;
    stored(&a, &owned(deleted, at(1, 1), "x")?).await?;
    b.delete(&deleted, &ME).await?;
    let bytes = b.shrink(&session, u64::MAX).await?;
    Ok(Full {
        new,
        events,
        shared: shared_events,
        places,
        holder,
        pending,
        answered,
        answer,
        bytes,
        deleted,
    })
}

/// Two handles on the store that was opened again.
async fn again(store: &Store, session: SessionKey) -> Result<[AnyStorage; 2], Failure> {
    store.restart().await?;
    let [a, b] = [store.open().await?, store.open().await?];
    a.attach(A).await?;
    b.attach(B).await?;
    claim!(
        is_there(&b, session).await?,
        "a session that was acknowledged is not there after the store was closed and opened again"
    );
    Ok([a, b])
}

pub(crate) async fn what_was_acknowledged_is_there_when_the_store_is_opened_again(
    store: Store,
) -> Verdict {
    let full = fill(&store).await?;
    let session = full.new.session;
    let [_a, b] = again(&store, session).await?;
    match b.enter(&session, &ME, None).await? {
        Entered::Session { record, revision } => {
            claim_eq!((record, revision), (full.new.record, 1));
        }
        other => return Err(Failure::new(format!("{other:?}"))),
    }
    let (events, found) = page(&b, &cursor(session, "s")?).await?;
    let data = |entry: &Append| entry.event.clone().map(|event| event.data);
    claim_eq!(
        events
            .iter()
            .map(|event| event.data.clone())
            .collect::<Vec<_>>(),
        full.events.iter().map(data).collect::<Vec<_>>()
    );
    claim_eq!(events[5].prev, Some(at(1, 5)), "what an epoch follows");
    claim_eq!((found.top, found.owner), (at(2, 1), Some(A)));
    claim_eq!(found.holder, Some(full.holder));
    let (_, done) = page(&b, &cursor(session, "done")?).await?;
    claim_eq!(done.end, Some(StreamEnd::Finished));
    claim_eq!(texts(&b, session, "done").await?, ["result"]);
    let (_, cancelled) = page(&b, &cursor(session, "cancelled")?).await?;
    claim!(cancelled.cancelled, "the mark is there");
    claim_eq!(cancelled.end, None, "it is open");
    let (events, _) = page(&b, &cursor(session, "standalone")?).await?;
    let found: Vec<_> = events.iter().map(|event| event.position).collect();
    claim_eq!(found, full.places, "the standalone stream");
    let held = b
        .hold(&session, &StreamId::standalone(), B, Hold::Take)
        .await?;
    let Held::Done { cursor, .. } = held else {
        return Err(Failure::new(format!("{held:?}")));
    };
    claim_eq!(cursor, full.places[2], "where the former holder let go");
    let pending = RequestState::Pending { owner: A };
    let token = Some(full.pending.token);
    claim_eq!(request_state(&b, session, 1, token).await?, pending);
    let ended = RequestState::Ended(OutcomeKind::Answered, Bytes::from_static(b"yes"));
    let token = Some(full.answered.token);
    claim_eq!(request_state(&b, session, 2, token).await?, ended);
    claim_eq!(b.shrink(&session, u64::MAX).await?, full.bytes, "its bytes");
    claim!(!is_there(&b, full.deleted).await?, "it was deleted");
    Ok(())
}

pub(crate) async fn repeats_are_known_when_the_store_is_opened_again(store: Store) -> Verdict {
    let full = fill(&store).await?;
    let session = full.new.session;
    let [a, b] = again(&store, session).await?;
    claim!(a.create(&full.new).await?, "its creator's repeat");
    for (entry, place) in full.shared.iter().zip(&full.places) {
        let mcp_adapter_core::storage::Place::Shared { writer, .. } = entry.place else {
            continue;
        };
        let writer = if writer == A { &a } else { &b };
        claim_eq!(stored(writer, entry).await?, *place, "the repeat of a tag");
    }
    for entry in &full.events {
        let mcp_adapter_core::storage::Place::Owned { position, .. } = entry.place else {
            continue;
        };
        claim_eq!(stored(&a, entry).await?, position, "an owner's repeat");
    }
    claim_eq!(texts(&b, session, "s").await?.len(), full.events.len());
    let shared_now = texts(&b, session, "standalone").await?;
    claim_eq!(
        shared_now.len(),
        full.shared.len(),
        "nothing was stored twice"
    );
    claim_eq!(
        put(&a, &full.pending).await?,
        Put::Done,
        "its waiter's repeat"
    );
    claim_eq!(settle(&b, &full.answer).await?, Settled::Won);
    let other = answer(session, 2, "no");
    let already = Settled::Already(OutcomeKind::Answered);
    claim_eq!(settle(&b, &other).await?, already);
    // What is new is told from a repeat.
    let next = shared(session, A, 4, "next")?;
    let place = stored(&a, &next).await?;
    claim!(Some(&place) > full.places.last(), "{place:?}");
    claim_eq!(
        stored(&a, &owned(session, at(2, 2), "next")?).await?,
        at(2, 2)
    );
    claim_eq!(settle(&a, &answer(session, 1, "yes")).await?, Settled::Won);
    let kept = texts(&b, session, "standalone").await?;
    claim_eq!(kept.last().map(String::as_str), Some("next"));
    Ok(())
}
