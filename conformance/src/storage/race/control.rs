//! Control steps, with appends and with each other.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::FutureExt;
use mcp_adapter_core::{
    InstanceId, RpcId, SessionKey, StreamId,
    storage::{
        Entered, Held, Hold, OpenStream, Put, PutRequest, RequestState, Settled, Storage, Updated,
    },
};

use super::{
    super::{AnyStorage, Store, steps::*},
    EVENTS, Runner, at_once, come_to, handles, is_whole, write_call, write_shared,
};
use crate::wait::{Failure, Verdict, claim, claim_eq};

/// Repeats of a control step by each handle of a race.
const TURNS: u32 = 20;

/// Appends by `A` and `B` run beside these.
async fn beside_appends(
    [a, b]: [&AnyStorage; 2],
    session: SessionKey,
    steps: Vec<Runner<u64>>,
) -> Step<Vec<u64>> {
    let mut runners = vec![write_call(a, session, EVENTS), write_shared(b, B, session)];
    runners.extend(steps);
    let mut answers = at_once(runners).await?;
    Ok(answers.split_off(2))
}

/// Puts requests under ids of its own, with room for `room` in all; the number of
/// those that found it.
fn put_many(
    store: &AnyStorage,
    owner: InstanceId,
    session: SessionKey,
    ids: std::ops::Range<i64>,
    room: usize,
) -> Runner<u64> {
    let store = store.clone();
    async move {
        let mut done = 0;
        for id in ids {
            let asked = PutRequest {
                owner,
                max_pending: room,
                ..request(session, id)
            };
            match put(&store, &asked).await? {
                Put::Done => done += 1,
                Put::TooMany => {}
                other => return Err(Failure::new(format!("`put_requests` answered {other:?}"))),
            }
        }
        Ok(done)
    }
    .boxed()
}

pub(crate) async fn requests_that_are_put_at_once(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = stream(&a).await?;
    let turns = i64::from(TURNS);
    let room = usize::try_from(TURNS).unwrap_or(0);
    let puts = vec![
        put_many(&a, A, session, 0..turns, room),
        put_many(&b, B, session, turns..turns * 2, room),
        put_many(&c, C, session, turns * 2..turns * 3, room),
    ];
    let done = beside_appends([&a, &b], session, puts).await?;
    claim_eq!(
        done.iter().sum::<u64>(),
        u64::from(TURNS),
        "requests that found room for {TURNS}"
    );
    let mut pending = 0;
    for id in 0..turns * 3 {
        match request_state(&reader, session, id, None).await? {
            RequestState::Pending { .. } => pending += 1,
            RequestState::Missing => {}
            other => return Err(Failure::new(format!("{other:?}"))),
        }
    }
    claim_eq!(pending, TURNS, "requests that wait");
    is_whole(&reader, session, EVENTS, EVENTS).await?;
    let events = EVENTS * 2;
    come_to(&reader, [1, 2, events, events * 10, u64::from(TURNS)]).await
}

pub(crate) async fn requests_that_are_put_under_one_id(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = session(&a).await?;
    let put_one = |store: &AnyStorage, asked: PutRequest| -> Runner<Put> {
        let store = store.clone();
        async move { put(&store, &asked).await }.boxed()
    };
    for id in 0..i64::from(TURNS) {
        let by = |owner| PutRequest {
            owner,
            max_pending: 1000,
            ..request(session, id)
        };
        let asked = [by(A), by(B), by(C)];
        let [one, two, three] = asked.clone();
        let answers = at_once(vec![put_one(&a, one), put_one(&b, two), put_one(&c, three)]).await?;
        let first = answers.iter().filter(|put| **put == Put::Done).count();
        let replaced: BTreeSet<_> = answers
            .iter()
            .filter_map(|put| match put {
                Put::Replaced(owner) => Some(*owner),
                _ => None,
            })
            .collect();
        claim_eq!(
            (first, replaced.len()),
            (1, 2),
            "one after another: {answers:?}"
        );
        let mut waits = Vec::new();
        for asked in &asked {
            let state = request_state(&reader, session, id, Some(asked.token)).await?;
            if state == (RequestState::Pending { owner: asked.owner }) {
                waits.push(asked.owner);
            }
        }
        claim_eq!(waits.len(), 1, "waiters of one request: {waits:?}");
        claim!(
            !replaced.contains(&waits[0]),
            "{waits:?} was replaced: {answers:?}"
        );
    }
    come_to(&reader, [1, 0, 0, 0, u64::from(TURNS)]).await
}

pub(crate) async fn answers_that_race(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = stream(&a).await?;
    for id in 0..i64::from(TURNS) {
        put(&a, &request(session, id)).await?;
    }
    let answer_all = |store: &AnyStorage, text: &'static str| -> Runner<u64> {
        let store = store.clone();
        async move {
            let mut won = 0;
            for id in 0..i64::from(TURNS) {
                let settled = settle(&store, &answer(session, id, text)).await?;
                won += u64::from(settled == Settled::Won);
            }
            Ok(won)
        }
        .boxed()
    };
    let answers = vec![answer_all(&b, "b"), answer_all(&c, "c")];
    let won = beside_appends([&a, &b], session, answers).await?;
    claim_eq!(
        won.iter().sum::<u64>(),
        u64::from(TURNS),
        "answers that won"
    );
    is_whole(&reader, session, EVENTS, EVENTS).await?;
    let events = EVENTS * 2;
    come_to(&reader, [1, 2, events, events * 10, 0]).await
}

pub(crate) async fn cancels_that_race(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = stream(&a).await?;
    let turns = i64::from(TURNS);
    // Two rows of one session, or one row of all: both marks must be there.
    for id in 2..turns + 2 {
        let call = OpenStream {
            request: RpcId::Number(id),
            ..open(&format!("t{id}"))?
        };
        a.enter(&session, &ME, Some(&call)).await?;
    }
    let mark = |store: &AnyStorage, first: i64| -> Runner<u64> {
        let store = store.clone();
        async move {
            for id in (first..turns + 2).step_by(2) {
                store.mark_cancel(&session, &RpcId::Number(id)).await?;
            }
            Ok(0)
        }
        .boxed()
    };
    let own = {
        let store = c.clone();
        async move {
            store.mark_cancel(&session, &RpcId::Number(1)).await?;
            Ok(0)
        }
        .boxed()
    };
    let marks = vec![mark(&b, 2), mark(&c, 3), own];
    beside_appends([&a, &b], session, marks).await?;
    claim!(state(&reader, session).await?.cancelled, "the mark of `s`");
    for id in 2..turns + 2 {
        let (_, found) = page(&reader, &cursor(session, &format!("t{id}"))?).await?;
        claim!(found.cancelled, "the mark of call {id} of {turns}");
        claim_eq!(found.end, None, "it runs");
    }
    is_whole(&reader, session, EVENTS, EVENTS).await
}

pub(crate) async fn updates_that_race(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = stream(&a).await?;
    let begin = update(session, 1, Bytes::from_static(b"0"));
    a.update(&begin).await?;
    let counts = [&a, &b, &c].map(|store| count(store, session)).into();
    beside_appends([&a, &b], session, counts).await?;
    let total = u64::from(TURNS) * 3;
    claim_eq!(
        counter(&reader, session).await?,
        (total, total + 2),
        "increments by compare-and-set, and the revision"
    );
    is_whole(&reader, session, EVENTS, EVENTS).await
}

/// Increments the number in a record, by compare-and-set.
fn count(store: &AnyStorage, session: SessionKey) -> Runner<u64> {
    let store = store.clone();
    async move {
        for _ in 0..TURNS {
            loop {
                let (count, revision) = counter(&store, session).await?;
                // Two that read the same write the same.
                let next = Bytes::from((count + 1).to_string());
                match store.update(&update(session, revision, next)).await? {
                    Updated::Done(_) => break,
                    Updated::Conflict => {}
                    Updated::NoSession => return Err(Failure::new("no session")),
                }
            }
        }
        Ok(0)
    }
    .boxed()
}

/// The number in a record, and the revision.
async fn counter(store: &AnyStorage, session: SessionKey) -> Step<(u64, u64)> {
    match store.enter(&session, &ME, None).await? {
        Entered::Session { record, revision } => {
            let count = std::str::from_utf8(&record).map_err(Failure::new)?;
            Ok((count.parse().map_err(Failure::new)?, revision))
        }
        other => Err(Failure::new(format!("{other:?}"))),
    }
}

/// Takes a stream again and again; the last number that was given.
fn take(store: &AnyStorage, me: InstanceId, session: SessionKey, stream: StreamId) -> Runner<u64> {
    let store = store.clone();
    async move {
        let mut numbers = BTreeSet::new();
        for _ in 0..TURNS {
            let held = store.hold(&session, &stream, me, Hold::Take).await?;
            let Held::Done { number, .. } = held else {
                return Err(Failure::new(format!("{held:?}")));
            };
            claim!(numbers.insert(number), "number {number} was given twice");
        }
        Ok(numbers.last().copied().unwrap_or(0))
    }
    .boxed()
}

pub(crate) async fn holds_that_race(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = stream(&a).await?;
    for (stream, before) in [(name("s")?, 1), (StreamId::standalone(), 0)] {
        let takes = vec![
            take(&b, B, session, stream.clone()),
            take(&c, C, session, stream.clone()),
        ];
        let last = match before {
            1 => beside_appends([&a, &b], session, takes).await?,
            _ => at_once(takes).await?,
        };
        let cursor = cursor(session, stream.as_str())?;
        let holder = page(&reader, &cursor).await?.1.holder;
        let holder = holder.ok_or_else(|| Failure::new("nobody holds what was taken"))?;
        let total = before + u64::from(TURNS) * 2;
        claim_eq!(holder.number, total, "takes are counted, each");
        let of = [B, C].map(|me| me == holder.instance);
        claim_eq!(last.iter().max(), Some(&total));
        claim_eq!(
            of,
            [last[0] == total, last[1] == total],
            "the last one holds it"
        );
    }
    // Of those that would follow one holder, one does.
    let (_, found) = page(&reader, &cursor(session, "s")?).await?;
    let from = Hold::TakeFrom(found.holder);
    let follow = |store: &AnyStorage, me: InstanceId| -> Runner<bool> {
        let store = store.clone();
        async move {
            let held = store.hold(&session, &name("s")?, me, from).await?;
            Ok(matches!(held, Held::Done { .. }))
        }
        .boxed()
    };
    let follows = at_once(vec![follow(&a, A), follow(&b, B), follow(&c, C)]).await?;
    let done = follows.iter().filter(|done| **done).count();
    // The holder's own is no other than a repeat.
    let own = usize::from(found.holder.is_some_and(|holder| holder.instance != A));
    claim!(
        (1..=1 + own).contains(&done),
        "{done} took it from {:?}",
        found.holder
    );
    is_whole(&reader, session, EVENTS, EVENTS).await
}

/// Opens calls, with room for `room` in all; the number of those that found it.
fn open_many(
    store: &AnyStorage,
    owner: InstanceId,
    session: SessionKey,
    prefix: &'static str,
    room: usize,
) -> Runner<u64> {
    let store = store.clone();
    async move {
        let mut opened = 0;
        for n in 0..TURNS {
            let call = OpenStream {
                owner,
                request: RpcId::String(format!("{prefix}{n}").into()),
                max_open: room,
                ..open(&format!("{prefix}{n}"))?
            };
            match store.enter(&session, &ME, Some(&call)).await? {
                Entered::Session { .. } => opened += 1,
                Entered::TooManyStreams => {}
                other => return Err(Failure::new(format!("`enter` answered {other:?}"))),
            }
        }
        Ok(opened)
    }
    .boxed()
}

pub(crate) async fn streams_that_are_opened_at_once(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = stream(&a).await?;
    let room = usize::try_from(TURNS).unwrap_or(0) + 1;
    let opens = vec![
        open_many(&b, B, session, "b", room),
        open_many(&c, C, session, "c", room),
    ];
    let opened = beside_appends([&a, &b], session, opens).await?;
    claim_eq!(
        opened.iter().sum::<u64>(),
        u64::from(TURNS),
        "calls that found room for {TURNS} more"
    );
    is_whole(&reader, session, EVENTS, EVENTS).await?;
    let events = EVENTS * 2;
    let streams = 2 + u64::from(TURNS);
    come_to(&reader, [1, streams, events, events * 10, 0]).await
}

pub(crate) async fn control_steps_that_race_each_other(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = stream(&a).await?;
    let begin = update(session, 1, Bytes::from_static(b"0"));
    a.update(&begin).await?;
    let turns = u64::from(TURNS);
    // Calls that were there before, to be cancelled while others are opened.
    open_many(&a, A, session, "a", 1000).await?;
    let cancel = {
        let b = b.clone();
        async move {
            for n in 0..TURNS {
                let call = RpcId::String(format!("a{n}").into());
                b.mark_cancel(&session, &call).await?;
            }
            Ok(0)
        }
        .boxed()
    };
    let steps = vec![
        put_many(&c, C, session, 0..i64::from(TURNS), 1000),
        count(&a, session),
        count(&c, session),
        take(&b, B, session, name("a0")?),
        open_many(&c, C, session, "c", 1000),
        cancel,
    ];
    let answers = beside_appends([&a, &b], session, steps).await?;
    claim_eq!(answers[0], turns, "requests that were put");
    claim_eq!(answers[4], turns, "calls that were opened");
    for id in 0..i64::from(TURNS) {
        let waits = RequestState::Pending { owner: C };
        claim_eq!(request_state(&reader, session, id, None).await?, waits);
    }
    let counted = counter(&reader, session).await?;
    claim_eq!(
        counted,
        (turns * 2, turns * 2 + 2),
        "increments, and the revision"
    );
    for n in 0..TURNS {
        for (prefix, owner) in [("a", A), ("c", C)] {
            let stream = format!("{prefix}{n}");
            let (_, found) = page(&reader, &cursor(session, &stream)?).await?;
            claim_eq!(found.owner, Some(owner), "`{stream}`");
            claim_eq!(found.cancelled, owner == A, "the mark of `{stream}`");
            if stream == "a0" {
                // Its owner was the first holder.
                let number = found.holder.map(|holder| (holder.instance, holder.number));
                claim_eq!(number, Some((B, turns + 1)), "takes of `{stream}`");
            }
        }
    }
    is_whole(&reader, session, EVENTS, EVENTS).await?;
    let events = EVENTS * 2;
    come_to(&reader, [1, 2 + turns * 2, events, events * 10, turns]).await
}
