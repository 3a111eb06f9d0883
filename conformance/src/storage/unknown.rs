//! Writes whose answer is lost.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use mcp_adapter_core::{
    Answer, Cancelled, ClientRequestAdapter, Delivery, Engine, EventId, Limits, NewClientRequest,
    OutcomeKind, Position, Revocation, RpcId, SessionAdapter, SessionId, SessionRecord, StreamId,
    TailEvent, TailFrom,
    storage::{Append, Claim, Dead, Entered, Hold, Read, RequestState, Storage, StreamEnd},
};

use super::{AnyStorage, Store, steps::*};
use crate::{
    faults::{Far, Link},
    instance::show,
    wait::{Failure, Verdict, claim, claim_eq, within},
};

pub(crate) async fn every_write_can_be_read_back(store: Store) -> Verdict {
    // Each is read by another handle, as after a reconnect.
    let [a, b, c] = store.handles().await?;
    let new = new_session(key())?;
    let session = new.session;
    claim!(!is_there(&b, session).await?, "before `create`");
    a.create(&new).await?;
    claim!(is_there(&b, session).await?, "read after `create`");
    a.update(&update(session, 1, Bytes::from_static(b"next")))
        .await?;
    match b.enter(&session, &ME, None).await? {
        Entered::Session { record, revision } => {
            let next = Bytes::from_static(b"next");
            claim_eq!((record, revision), (next, 2), "read after `update`");
        }
        other => return Err(Failure::new(format!("{other:?}"))),
    }
    a.enter(&session, &ME, Some(&open("s")?)).await?;
    claim_eq!(
        state(&b, session).await?.owner,
        Some(A),
        "read after `enter`"
    );
    stored(&a, &owned(session, at(1, 1), "1")?).await?;
    claim_eq!(texts(&b, session, "s").await?, ["1"], "read after `append`");
    stored(&a, &shared(session, A, 1, "s")?).await?;
    claim_eq!(
        texts(&b, session, "standalone").await?,
        ["s"],
        "read after `append`"
    );
    hold(&c, session, C, Hold::Take).await?;
    let holder = state(&b, session).await?.holder;
    claim_eq!(
        holder.map(|holder| holder.instance),
        Some(C),
        "read after `hold`"
    );
    a.mark_cancel(&session, &RpcId::Number(1)).await?;
    claim!(
        state(&b, session).await?.cancelled,
        "read after `mark_cancel`"
    );
    put(&a, &request(session, 1)).await?;
    let pending = RequestState::Pending { owner: A };
    claim_eq!(
        request_state(&b, session, 1, None).await?,
        pending,
        "read after `put_requests`"
    );
    settle(&a, &answer(session, 1, "x")).await?;
    let ended = RequestState::Ended(OutcomeKind::Answered, Bytes::from_static(b"x"));
    claim_eq!(
        request_state(&b, session, 1, None).await?,
        ended,
        "read after `settle`"
    );
    let finish = Append {
        finish: Some(LONG),
        ..owned(session, at(1, 2), "2")?
    };
    stored(&a, &finish).await?;
    claim_eq!(
        state(&b, session).await?.end,
        Some(StreamEnd::Finished),
        "read after `finish`"
    );
    let lost = stream(&a).await?;
    beat(&a, A, 5).await?;
    let dead = Dead {
        instance: A,
        beat: Some(5),
    };
    let claimed = Claim {
        session: lost,
        stream: name("s")?,
        dead,
        finished_ttl: LONG,
    };
    a.claim(&[claimed]).await?;
    claim_eq!(
        state(&b, lost).await?.end,
        Some(StreamEnd::OwnerLost),
        "read after `claim`"
    );
    let beats = beat(&b, B, 1).await?;
    let of_a = beats.iter().find(|beat| beat.instance == A);
    claim_eq!(
        of_a.map(|beat| beat.count),
        Some(5),
        "read after `heartbeat`"
    );
    a.shrink(&session, 0).await?;
    claim!(
        texts(&b, session, "standalone").await?.is_empty(),
        "read after `shrink`"
    );
    a.delete(&session, &ME).await?;
    let gone = read(&b, &cursor(session, "s")?).await?;
    claim!(
        matches!(gone, Read::NoSession),
        "read after `delete`: {gone:?}"
    );
    Ok(())
}

/// Two instances over the storage, of which the first has a link with faults.
async fn two(store: &Store, link: &Link) -> Result<[Engine<Far<AnyStorage>>; 2], Failure> {
    let limits = Limits::builder()
        .catch_up(Duration::from_millis(200))
        .build()?;
    let a = Far::new(store.open_with(limits.clone()).await?, link);
    let b = Far::new(store.open_with(limits.clone()).await?, &Link::new());
    Ok([Engine::new(a, limits.clone()), Engine::new(b, limits)])
}

fn numbered(n: u32) -> Bytes {
    Bytes::from(n.to_string())
}

async fn replayed(
    engine: &Engine<Far<AnyStorage>>,
    id: &SessionId,
    stream: &StreamId,
) -> Result<Vec<String>, Failure> {
    let start = EventId::new(stream.clone(), Position::START);
    let replay = engine.replay(id, &start, 1000).await?;
    Ok(replay.events.iter().map(show).collect())
}

pub(crate) async fn a_lost_reply_is_made_up_for_by_the_engine(store: Store) -> Verdict {
    let link = Link::new();
    let [a, b] = two(&store, &link).await?;
    a.stats().await?;
    let id = SessionId::generate();
    let lose = |n: u32| link.lose_replies(n as usize % 3);
    lose(2);
    SessionAdapter::create(&a, &id, SessionRecord::default()).await?;
    lose(2);
    let call = RpcId::Number(1);
    let writer = a.enter(&id, None, Some(&call)).await?.writer;
    let writer = writer.ok_or_else(|| Failure::new("no writer"))?;
    let mut expected = Vec::new();
    for n in 1..=30 {
        lose(n);
        writer.append(numbered(n)).await?;
        lose(n);
        a.append(&id, numbered(n)).await?;
        expected.push(n.to_string());
    }
    lose(1);
    let revision = a.enter(&id, None, None).await?.session.revision;
    lose(2);
    let updated = a.update(&id, revision, SessionRecord::default()).await?;
    claim!(updated > revision, "{updated}");
    lose(2);
    let asked = NewClientRequest::new(RpcId::Number(2));
    let waiting = ClientRequestAdapter::create(&a, &id, asked).await?;
    lose(2);
    let yes = Answer::Result(Bytes::from_static(b"yes"));
    claim_eq!(
        a.answer(&id, &RpcId::Number(2), yes).await?,
        Delivery::Delivered
    );
    let outcome = within("the outcome", PATIENCE, waiting).await?;
    claim_eq!(outcome.kind, OutcomeKind::Answered);
    lose(2);
    claim_eq!(
        SessionAdapter::cancel(&a, &id, &call).await?,
        Cancelled::Marked(writer.stream().clone())
    );
    lose(2);
    writer.finish(None).await?;
    link.mend();
    claim_eq!(replayed(&b, &id, writer.stream()).await?, expected);
    claim_eq!(replayed(&b, &id, &StreamId::standalone()).await?, expected);
    Ok(())
}

pub(crate) async fn lost_knocks_are_made_up_for_by_the_engine(store: Store) -> Verdict {
    let link = Link::new();
    // The first hears nothing of what the second does.
    let [deaf, b] = two(&store, &link).await?;
    link.lose_knocks();
    let id = SessionId::generate();
    SessionAdapter::create(&b, &id, SessionRecord::default()).await?;
    let open = async |engine: &Engine<Far<AnyStorage>>, call: i64| {
        let entered = engine.enter(&id, None, Some(&RpcId::Number(call))).await?;
        entered.writer.ok_or_else(|| Failure::new("no writer"))
    };
    let writer = open(&b, 1).await?;
    let running = open(&deaf, 2).await?;
    let start = EventId::new(writer.stream().clone(), Position::START);
    let mut tail = deaf.tail(&id, TailFrom::After(start)).await?;
    let mut get = deaf.tail(&id, TailFrom::Standalone).await?;
    let begins = within("where a tail begins", PATIENCE, get.next()).await?;
    claim!(
        matches!(begins, Some(TailEvent::Begins { .. })),
        "{begins:?}"
    );
    let asked = NewClientRequest::new(RpcId::Number(3));
    let waiting = ClientRequestAdapter::create(&deaf, &id, asked).await?;
    for n in 1..=5 {
        writer.append(numbered(n)).await?;
        b.append(&id, numbered(n)).await?;
        for tail in [&mut tail, &mut get] {
            match within("an event that nobody announced", PATIENCE, tail.next()).await? {
                Some(TailEvent::Event { data, .. }) => claim_eq!(data, numbered(n)),
                other => return Err(Failure::new(format!("{other:?}"))),
            }
        }
    }
    let yes = Answer::Result(Bytes::from_static(b"yes"));
    b.answer(&id, &RpcId::Number(3), yes).await?;
    let outcome = within("an answer that nobody announced", PATIENCE, waiting).await?;
    claim_eq!(outcome.kind, OutcomeKind::Answered);
    SessionAdapter::cancel(&b, &id, &RpcId::Number(2)).await?;
    let why = within(
        "a cancel that nobody announced",
        PATIENCE,
        running.revoked(),
    )
    .await?;
    claim_eq!(why, Revocation::Cancelled);
    writer.finish(None).await?;
    let end = within("an end that nobody announced", PATIENCE, tail.next()).await?;
    claim_eq!(end.as_ref().map(show), Some("end: Finished".into()));
    b.delete(&id, None).await?;
    let end = within("a delete that nobody announced", PATIENCE, get.next()).await?;
    claim_eq!(end.as_ref().map(show), Some("end: SessionEnded".into()));
    Ok(())
}
