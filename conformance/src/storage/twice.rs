//! Each step twice equals once.

use bytes::Bytes;
use mcp_adapter_core::{
    Cancelled, OutcomeKind, Position, RpcId, StreamId, WaiterToken,
    storage::{
        Append, Appended, Claim, Dead, Entered, Held, Hold, NewEvent, OpenStream, Place, Put,
        RequestState, Settle, Settled, Storage, StreamEnd, Updated,
    },
};

use super::{Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq};

pub(crate) async fn create(store: Store) -> Verdict {
    let a = store.open().await?;
    let mut new = new_session(key())?;
    let first = new.record.clone();
    claim!(a.create(&new).await?, "the first");
    claim!(a.create(&new).await?, "its repeat");
    new.creator = WaiterToken::generate();
    new.record = Bytes::from_static(b"another");
    for _ in 0..2 {
        claim!(!a.create(&new).await?, "another creator");
    }
    match a.enter(&new.session, &ME, None).await? {
        Entered::Session { record, revision } => claim_eq!((record, revision), (first, 1)),
        other => return Err(Failure::new(format!("{other:?}"))),
    }
    Ok(())
}

pub(crate) async fn enter(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = session(&a).await?;
    let only = OpenStream {
        max_open: 1,
        ..open("s")?
    };
    for _ in 0..2 {
        let entered = a.enter(&session, &ME, Some(&only)).await?;
        claim!(matches!(entered, Entered::Session { .. }), "{entered:?}");
    }
    let second = OpenStream {
        max_open: 1,
        ..open("t")?
    };
    for _ in 0..2 {
        let entered = a.enter(&session, &ME, Some(&second)).await?;
        claim!(matches!(entered, Entered::TooManyStreams), "{entered:?}");
    }
    let (events, state) = page(&a, &cursor(session, "s")?).await?;
    claim!(events.is_empty(), "{events:?}");
    claim_eq!(
        (state.owner, state.end, state.cancelled),
        (Some(A), None, false)
    );
    let holder = state.holder.map(|holder| (holder.instance, holder.number));
    claim_eq!(holder, Some((A, 1)), "the owner is holder number 1");
    // Its repeat after it has gone on is no new stream.
    stored(&a, &owned(session, at(1, 1), "1")?).await?;
    a.enter(&session, &ME, Some(&only)).await?;
    claim_eq!(texts(&a, session, "s").await?, ["1"]);
    Ok(())
}

pub(crate) async fn update(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = session(&a).await?;
    let next = Bytes::from_static(b"{\"v\":1,\"next\":true}");
    let first = super::steps::update(session, 1, next.clone());
    for _ in 0..2 {
        claim_eq!(a.update(&first).await?, Updated::Done(2));
    }
    // Another writer that writes the same is no repeat.
    for other in [
        next.clone(),
        Bytes::from_static(b"{\"v\":1,\"other\":true}"),
    ] {
        let other = super::steps::update(session, 1, other);
        claim_eq!(a.update(&other).await?, Updated::Conflict);
    }
    match a.enter(&session, &ME, None).await? {
        Entered::Session { record, revision } => claim_eq!((record, revision), (next, 2)),
        other => return Err(Failure::new(format!("{other:?}"))),
    }
    Ok(())
}

pub(crate) async fn delete(store: Store) -> Verdict {
    let [a, b, c] = store.handles().await?;
    let session = stream(&a).await?;
    super::steps::hold(&b, session, B, Hold::Take).await?;
    put(&c, &PutRequestBy(C).of(session)).await?;
    let mut told = a.delete(&session, &ME).await?;
    if let Some(told) = &mut told {
        told.sort_unstable();
        told.dedup();
    }
    claim_eq!(told, Some(vec![A, B, C]), "who owns, follows and waits");
    claim_eq!(a.delete(&session, &ME).await?, None);
    claim!(!is_there(&a, session).await?, "it is gone");
    Ok(())
}

/// A request that waits at this instance.
struct PutRequestBy(mcp_adapter_core::InstanceId);

impl PutRequestBy {
    fn of(self, session: mcp_adapter_core::SessionKey) -> mcp_adapter_core::storage::PutRequest {
        mcp_adapter_core::storage::PutRequest {
            owner: self.0,
            ..request(session, 1)
        }
    }
}

pub(crate) async fn append_by_the_owner(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = stream(&a).await?;
    let next = Append {
        event: Some(NewEvent {
            prev: Some(at(1, 3)),
            data: Bytes::from_static(b"4"),
        }),
        ..owned(session, at(2, 1), "")?
    };
    for round in 0..2 {
        for seq in 1..=3 {
            let entry = owned(session, at(1, seq), &seq.to_string())?;
            for _ in 0..2 {
                claim_eq!(stored(&a, &entry).await?, at(1, seq), "round {round}");
            }
        }
        claim_eq!(
            stored(&a, &next).await?,
            at(2, 1),
            "its own new epoch, round {round}"
        );
    }
    claim_eq!(texts(&a, session, "s").await?, ["1", "2", "3", "4"]);
    let (events, state) = page(&a, &cursor(session, "s")?).await?;
    claim_eq!(events[3].prev, Some(at(1, 3)), "what the epoch follows");
    claim_eq!((state.top, state.oldest), (at(2, 1), Some(at(1, 1))));
    let late = append(&a, &owned(session, at(1, 4), "late")?).await?;
    claim_eq!(
        late,
        Appended::Fenced,
        "a new event of an epoch that is over"
    );
    let thief = Append {
        place: Place::Owned {
            owner: B,
            position: at(2, 2),
        },
        ..owned(session, at(2, 2), "x")?
    };
    claim_eq!(
        append(&b, &thief).await?,
        Appended::Fenced,
        "another writer"
    );
    claim_eq!(
        texts(&a, session, "s").await?.len(),
        4,
        "nothing was changed"
    );
    Ok(())
}

pub(crate) async fn append_of_a_batch(store: Store) -> Verdict {
    let a = store.open().await?;
    let (one, two) = (stream(&a).await?, stream(&a).await?);
    let missing = key();
    let batch = [
        owned(one, at(1, 1), "1")?,
        owned(two, at(1, 1), "a")?,
        owned(missing, at(1, 1), "x")?,
        owned(one, at(1, 2), "2")?,
        shared(two, A, 1, "s")?,
        Append {
            finish: Some(LONG),
            ..owned(one, at(1, 3), "3")?
        },
        owned(one, at(1, 4), "x")?,
        owned(two, at(1, 2), "b")?,
    ];
    for _ in 0..2 {
        let answers = a.append(&batch).await?;
        let places: Vec<_> = answers
            .iter()
            .map(|answer| match answer {
                Appended::Stored { position, .. } => Ok(*position),
                other => Err(*other),
            })
            .collect();
        // Each on its own merits: one that is refused holds up no other.
        let expected = vec![
            Ok(at(1, 1)),
            Ok(at(1, 1)),
            Err(Appended::NoSession),
            Ok(at(1, 2)),
            places[4],
            Ok(at(1, 3)),
            Err(Appended::Finished),
            Ok(at(1, 2)),
        ];
        claim!(places[4].is_ok(), "{:?}", places[4]);
        claim_eq!(places, expected);
    }
    claim_eq!(texts(&a, one, "s").await?, ["1", "2", "3"]);
    claim_eq!(texts(&a, two, "s").await?, ["a", "b"]);
    claim_eq!(texts(&a, two, "standalone").await?, ["s"]);
    Ok(())
}

pub(crate) async fn append_to_the_standalone_stream(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = session(&a).await?;
    let mut places = Vec::new();
    for tag in 1..=5 {
        for (at, writer) in [(&a, A), (&b, B)] {
            let entry = shared(session, writer, tag, &format!("{writer:?} {tag}"))?;
            let first = stored(at, &entry).await?;
            claim_eq!(
                stored(at, &entry).await?,
                first,
                "a repeat gets the id first given"
            );
            places.push((at, entry, first));
        }
    }
    claim!(
        places.windows(2).all(|two| two[0].2 < two[1].2),
        "positions rise"
    );
    for (at, entry, first) in &places {
        claim_eq!(stored(at, entry).await?, *first, "a late repeat, too");
    }
    claim_eq!(texts(&a, session, "standalone").await?.len(), 10);
    Ok(())
}

pub(crate) async fn finish(store: Store) -> Verdict {
    let a = store.open().await?;
    for terminal in [true, false] {
        let session = stream(&a).await?;
        stored(&a, &owned(session, at(1, 1), "1")?).await?;
        let last = if terminal { at(1, 2) } else { at(1, 1) };
        let mut end = Append {
            finish: Some(LONG),
            ..owned(session, last, "2")?
        };
        if !terminal {
            end.event = None;
        }
        for _ in 0..2 {
            claim_eq!(stored(&a, &end).await?, last);
        }
        let late = append(&a, &owned(session, at(1, 3), "late")?).await?;
        claim_eq!(late, Appended::Finished);
        let found = state(&a, session).await?;
        claim_eq!((found.top, found.end), (last, Some(StreamEnd::Finished)));
        claim_eq!(
            texts(&a, session, "s").await?.len(),
            1 + usize::from(terminal)
        );
    }
    // Given up by its writer: it ends, and nobody writes it any more.
    let session = stream(&a).await?;
    let give_up = Append {
        event: None,
        finish: Some(LONG),
        end: StreamEnd::OwnerLost,
        ..owned(session, at(1, 0), "")?
    };
    for _ in 0..2 {
        stored(&a, &give_up).await?;
    }
    claim_eq!(state(&a, session).await?.end, Some(StreamEnd::OwnerLost));
    Ok(())
}

pub(crate) async fn hold(store: Store) -> Verdict {
    let [a, b, c] = store.handles().await?;
    let session = stream(&a).await?;
    stored(&a, &owned(session, at(1, 1), "1")?).await?;
    stored(&a, &owned(session, at(1, 2), "2")?).await?;
    let (first, former, cursor) = super::steps::hold(&b, session, B, Hold::Take).await?;
    claim_eq!(former, Some(A));
    claim!(first > 1, "the number rises: {first}");
    let (again, _, same) = super::steps::hold(&b, session, B, Hold::Take).await?;
    claim!(again > first, "under a higher number: {again}");
    claim_eq!(same, cursor, "its own hold goes on with the same cursor");
    for _ in 0..2 {
        let mine = super::steps::hold(&b, session, B, Hold::TakeFrom(None)).await?;
        claim_eq!((mine.0, mine.2), (again, cursor), "it holds it already");
    }
    let busy = c
        .hold(&session, &name("s")?, C, Hold::TakeFrom(None))
        .await?;
    let Held::Busy(holder) = busy else {
        return Err(Failure::new(format!("somebody else holds it: {busy:?}")));
    };
    claim_eq!((holder.instance, holder.number), (B, again));
    let stale = Hold::Release {
        number: first,
        cursor: at(1, 1),
    };
    super::steps::hold(&b, session, B, stale).await?;
    claim_eq!(
        state(&a, session).await?.holder,
        Some(holder),
        "an old number lets go of nothing"
    );
    let release = Hold::Release {
        number: again,
        cursor: at(1, 1),
    };
    for _ in 0..2 {
        super::steps::hold(&b, session, B, release).await?;
    }
    claim_eq!(state(&a, session).await?.holder, None);
    let (third, _, cursor) = super::steps::hold(&c, session, C, Hold::TakeFrom(None)).await?;
    claim_eq!(
        cursor,
        at(1, 1),
        "it goes on where the former holder let go"
    );
    let repeat = super::steps::hold(&c, session, C, Hold::TakeFrom(None)).await?;
    claim_eq!((repeat.0, repeat.2), (third, cursor));
    // A late repeat of the release does not let go for the next holder.
    super::steps::hold(&b, session, B, release).await?;
    let holder = state(&a, session).await?.holder;
    claim_eq!(holder.map(|holder| holder.instance), Some(C));
    // From the one that is named, who may be dead.
    let from = super::steps::hold(&a, session, A, Hold::TakeFrom(holder)).await?;
    claim_eq!(from.1, Some(C));
    Ok(())
}

pub(crate) async fn put_request(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = session(&a).await?;
    let first = mcp_adapter_core::storage::PutRequest {
        max_pending: 1,
        ..request(session, 1)
    };
    for _ in 0..2 {
        claim_eq!(put(&a, &first).await?, Put::Done);
    }
    let other = mcp_adapter_core::storage::PutRequest {
        max_pending: 1,
        ..request(session, 2)
    };
    for _ in 0..2 {
        claim_eq!(put(&a, &other).await?, Put::TooMany);
    }
    let second = mcp_adapter_core::storage::PutRequest {
        owner: B,
        max_pending: 1,
        ..request(session, 1)
    };
    claim_eq!(put(&b, &second).await?, Put::Replaced(A));
    let repeat = put(&b, &second).await?;
    claim!(matches!(repeat, Put::Done | Put::Replaced(_)), "{repeat:?}");
    // A late repeat of the first does not replace back.
    claim_eq!(put(&a, &first).await?, Put::Done);
    let now = request_state(&a, session, 1, Some(second.token)).await?;
    claim_eq!(now, RequestState::Pending { owner: B });
    let former = request_state(&a, session, 1, Some(first.token)).await?;
    claim_eq!(
        former,
        RequestState::Ended(OutcomeKind::Replaced, Bytes::new())
    );
    Ok(())
}

pub(crate) async fn settle(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = session(&a).await?;
    let asked = request(session, 1);
    put(&a, &asked).await?;
    let answers = [answer(session, 1, "first"), answer(session, 1, "second")];
    let mut settled = Vec::new();
    for _ in 0..2 {
        settled = a.settle(&answers).await?;
        let expected = [Settled::Won, Settled::Already(OutcomeKind::Answered)];
        claim_eq!(settled, expected, "a repeat of the winner has won");
    }
    claim_eq!(settled.len(), 2);
    let ended = RequestState::Ended(OutcomeKind::Answered, Bytes::from_static(b"first"));
    for token in [None, Some(asked.token)] {
        claim_eq!(request_state(&a, session, 1, token).await?, ended);
    }
    let by_other = Settle {
        token: Some(WaiterToken::generate()),
        outcome: OutcomeKind::TimedOut,
        payload: Bytes::new(),
        ..answer(session, 1, "")
    };
    let replaced = Settled::Already(OutcomeKind::Replaced);
    claim_eq!(super::steps::settle(&a, &by_other).await?, replaced);
    let unknown = super::steps::settle(&a, &answer(session, 2, "x")).await?;
    claim_eq!(unknown, Settled::Unknown);
    claim_eq!(
        request_state(&a, session, 2, None).await?,
        RequestState::Missing
    );
    Ok(())
}

pub(crate) async fn mark_cancel(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = stream(&a).await?;
    let call = RpcId::Number(1);
    for _ in 0..2 {
        claim_eq!(
            a.mark_cancel(&session, &call).await?,
            Some(Cancelled::Marked(name("s")?))
        );
    }
    claim!(state(&a, session).await?.cancelled, "the mark is there");
    let text = RpcId::String("1".into());
    claim_eq!(
        a.mark_cancel(&session, &text).await?,
        Some(Cancelled::NotRunning)
    );
    let twin = stream(&a).await?;
    a.enter(&twin, &ME, Some(&open("t")?)).await?;
    for _ in 0..2 {
        claim_eq!(
            a.mark_cancel(&twin, &call).await?,
            Some(Cancelled::Ambiguous)
        );
    }
    claim!(!state(&a, twin).await?.cancelled, "none of the two");
    claim_eq!(a.mark_cancel(&key(), &call).await?, None, "no session");
    Ok(())
}

pub(crate) async fn heartbeat(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let counts = |beats: Vec<mcp_adapter_core::storage::Beat>| -> Vec<_> {
        beats
            .into_iter()
            .map(|beat| (beat.instance, beat.count))
            .collect()
    };
    for _ in 0..2 {
        claim_eq!(counts(beat(&a, A, 1).await?), [(A, 1)]);
    }
    claim_eq!(
        counts(beat(&b, B, 7).await?),
        [(A, 1), (B, 7)],
        "all are read"
    );
    claim_eq!(counts(beat(&a, A, 2).await?), [(A, 2), (B, 7)]);
    // A late repeat takes no life away.
    claim_eq!(counts(beat(&a, A, 1).await?), [(A, 2), (B, 7)]);
    Ok(())
}

pub(crate) async fn claim(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = stream(&a).await?;
    beat(&a, A, 3).await?;
    stored(&a, &owned(session, at(1, 1), "1")?).await?;
    let claim = [Claim {
        session,
        stream: name("s")?,
        dead: Dead {
            instance: A,
            beat: Some(3),
        },
        finished_ttl: LONG,
    }];
    claim_eq!(a.claim(&claim).await?, 1);
    claim_eq!(a.claim(&claim).await?, 0, "it is ended already");
    let ended = state(&a, session).await?;
    claim_eq!(ended.end, Some(StreamEnd::OwnerLost));
    claim!(ended.top.epoch > 1, "its epoch is over: {:?}", ended.top);
    // What was stored can be repeated, and nothing can be added.
    claim_eq!(stored(&a, &owned(session, at(1, 1), "1")?).await?, at(1, 1));
    let thawed = append(&a, &owned(session, at(1, 2), "2")?).await?;
    claim_eq!(thawed, Appended::Fenced);
    claim_eq!(texts(&a, session, "s").await?, ["1"]);
    Ok(())
}

pub(crate) async fn shrink_and_sweep(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = stream(&a).await?;
    for seq in 1..=5 {
        stored(&a, &owned(session, at(1, seq), "0123456789")?).await?;
    }
    for _ in 0..2 {
        claim_eq!(a.shrink(&session, 30).await?, 30, "bytes that are left");
    }
    let (events, state) = page(&a, &cursor(session, "s")?).await?;
    claim_eq!(
        events.first().map(|event| event.position),
        Some(at(1, 3)),
        "the oldest go"
    );
    claim_eq!((state.top, state.oldest), (at(1, 5), Some(at(1, 3))));
    for _ in 0..2 {
        a.sweep(100, &[], LONG).await?;
    }
    claim!(is_there(&a, session).await?, "what lives is not swept");
    claim_eq!(a.shrink(&session, 0).await?, 0);
    let (events, state) = page(&a, &cursor(session, "s")?).await?;
    claim!(events.is_empty(), "{events:?}");
    claim_eq!(
        (state.top, state.oldest),
        (at(1, 5), None),
        "its place is known"
    );
    claim_eq!(
        stored(&a, &owned(session, at(1, 6), "x")?).await?,
        at(1, 6),
        "it goes on"
    );
    let standalone = a
        .hold(&session, &StreamId::standalone(), A, Hold::Take)
        .await?;
    let Held::Done { cursor, .. } = standalone else {
        return Err(Failure::new(format!("{standalone:?}")));
    };
    claim_eq!(
        cursor,
        Position::START,
        "the first holder begins at the start"
    );
    Ok(())
}
