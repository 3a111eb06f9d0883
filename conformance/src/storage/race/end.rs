//! Steps that end or remove, with appends and with each other.

use std::time::Duration;

use futures::FutureExt;
use mcp_adapter_core::{
    SessionKey, StreamId,
    storage::{
        Append, Appended, Claim, Dead, Hold, OpenStream, PutRequest, Read, Storage, StreamEnd,
    },
};

use super::{
    super::{AnyStorage, Store, steps::*},
    ALL, BYTES, EVENTS, Runner, at_once, come_to, handles, is_whole, text, write_call,
    write_shared,
};
use crate::wait::{Failure, Verdict, claim, claim_eq};

/// How often what can happen once in a session is tried.
const ROUNDS: usize = 10;

pub(crate) async fn a_claim_that_races_appends(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    beat(&a, A, 3).await?;
    let dead = Dead {
        instance: A,
        beat: Some(3),
    };
    for round in 0..ROUNDS {
        let session = stream(&a).await?;
        stored(&a, &owned(session, at(1, 1), &text(1))?).await?;
        let claim = |store: &AnyStorage| -> Runner<u64> {
            let store = store.clone();
            async move {
                // In the middle of the appends, wherever that is.
                for _ in 0..round {
                    read(&store, &cursor(session, "s")?).await?;
                }
                let claim = Claim {
                    session,
                    stream: name("s")?,
                    dead,
                    finished_ttl: LONG,
                };
                Ok(store.claim(&[claim]).await? as u64)
            }
            .boxed()
        };
        let ended = at_once(vec![write_call(&a, session, EVENTS), claim(&b), claim(&c)]).await?;
        claim_eq!(ended[1] + ended[2], 1, "claims that ended the stream");
        let found = state(&reader, session).await?;
        claim_eq!(found.end, Some(StreamEnd::OwnerLost));
        claim!(found.top.epoch >= 2, "its epoch is over: {:?}", found.top);
        is_whole(&reader, session, ended[0], 0).await?;
        let thawed = append(&a, &owned(session, at(1, ended[0] + 1), "x")?).await?;
        claim_eq!(thawed, Appended::Fenced, "no append after the claim");
    }
    Ok(())
}

/// Sweeps until there is nothing left to do; how much was removed.
fn sweep_all(store: &AnyStorage, dead: Vec<Dead>) -> Runner<u64> {
    let store = store.clone();
    async move {
        let mut removed = 0;
        for _ in 0..1000 {
            let swept = store.sweep(5, &dead, LONG).await?;
            removed += swept.removed as u64;
            if !swept.more && swept.removed == 0 {
                return Ok(removed);
            }
        }
        Err(Failure::new("there is more for ever"))
    }
    .boxed()
}

pub(crate) async fn sweeps_that_race_appends(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    beat(&a, A, 3).await?;
    let dead = Dead {
        instance: A,
        beat: Some(3),
    };
    let mut sessions = Vec::new();
    for _ in 0..ROUNDS {
        let session = stream(&a).await?;
        put(&a, &request(session, 1)).await?;
        sessions.push(session);
    }
    let mut runners: Vec<_> = sessions
        .iter()
        .map(|session| write_call(&a, *session, EVENTS / 2))
        .collect();
    runners.push(sweep_all(&b, vec![dead]));
    runners.push(sweep_all(&c, vec![dead]));
    let mut written = at_once(runners).await?;
    let mut swept = written.split_off(ROUNDS);
    // One that met an append may have left a session to the next round.
    swept.push(sweep_all(&b, vec![dead]).await?);
    claim_eq!(
        swept.iter().sum::<u64>(),
        ROUNDS as u64 * 2,
        "streams and requests of the dead, each ended by one sweep and counted there"
    );
    let mut events = 0;
    for (session, written) in sessions.into_iter().zip(written) {
        let end = state(&reader, session).await?.end;
        claim_eq!(end, Some(StreamEnd::OwnerLost));
        is_whole(&reader, session, written, 0).await?;
        events += written;
    }
    let rounds = ROUNDS as u64;
    come_to(&reader, [rounds, rounds, events, events * BYTES, 0]).await
}

pub(crate) async fn sweeps_of_finished_streams_that_race_appends(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = stream(&a).await?;
    let kept = store.ticks(&a, 5);
    let count = ROUNDS as u64;
    for n in 0..ROUNDS {
        let call = OpenStream {
            max_open: 1000,
            ..open(&format!("t{n}"))?
        };
        a.enter(&session, &ME, Some(&call)).await?;
        let last = Append {
            stream: call.stream,
            finish: Some(kept),
            ..owned(session, at(1, 1), &text(1))?
        };
        stored(&a, &last).await?;
    }
    tokio::time::sleep(kept + store.ticks(&a, 10)).await;
    let runners = vec![
        write_call(&a, session, EVENTS),
        write_shared(&b, B, session),
        sweep_all(&b, Vec::new()),
        sweep_all(&c, Vec::new()),
    ];
    let answers = at_once(runners).await?;
    // An append may meet them first.
    let swept = answers[2] + answers[3];
    claim!(swept <= count, "{swept} of {count} streams were removed");
    is_whole(&reader, session, EVENTS, EVENTS).await?;
    let events = EVENTS * 2;
    come_to(&reader, [1, 2, events, events * BYTES, 0]).await
}

pub(crate) async fn shrinks_that_race_appends(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let session = stream(&a).await?;
    let shrink = |store: &AnyStorage| -> Runner<u64> {
        let store = store.clone();
        async move {
            for _ in 0..EVENTS {
                let left = store.shrink(&session, 20 * BYTES).await?;
                claim!(
                    left <= 20 * BYTES,
                    "{left} bytes are left, of {}",
                    20 * BYTES
                );
            }
            Ok(0)
        }
        .boxed()
    };
    at_once(vec![
        write_call(&a, session, EVENTS),
        write_shared(&b, B, session),
        shrink(&b),
        shrink(&c),
    ])
    .await?;
    let mut bytes = 0;
    let mut events = 0;
    for stream in ["s", "standalone"] {
        let (found, state) = page(&reader, &cursor(session, stream)?).await?;
        let seqs: Vec<_> = found.iter().map(|event| event.position.seq).collect();
        let first = seqs.first().copied().unwrap_or(EVENTS + 1);
        claim_eq!(
            seqs,
            (first..=EVENTS).collect::<Vec<_>>(),
            "{stream}: the oldest go, and nothing between"
        );
        claim_eq!(state.top.seq, EVENTS, "{stream}: its place is known");
        claim_eq!(
            state.oldest,
            found.first().map(|event| event.position),
            "{stream}"
        );
        for (event, seq) in found.iter().zip(seqs) {
            let data = event.data.as_deref();
            claim_eq!(data, Some(text(seq).as_bytes()), "{stream}: event {seq}");
        }
        events += found.len() as u64;
        bytes += found.len() as u64 * BYTES;
    }
    claim_eq!(
        reader.shrink(&session, ALL).await?,
        bytes,
        "the bytes of the session, and those of its events"
    );
    come_to(&reader, [1, 2, events, bytes, 0]).await
}

pub(crate) async fn deletes_that_race_everything(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    for round in 0..ROUNDS {
        let session = stream(&a).await?;
        let delete = |store: &AnyStorage| -> Runner<u64> {
            let store = store.clone();
            async move {
                for _ in 0..round {
                    read(&store, &cursor(session, "s")?).await?;
                }
                let deleted = store.delete(&session, &ME).await?;
                // From its answer on there is nothing.
                let late = append(&store, &shared(session, C, 1000, "late")?).await?;
                claim_eq!(late, Appended::NoSession, "after `delete` has answered");
                Ok(u64::from(deleted.is_some()))
            }
            .boxed()
        };
        let twice = {
            let reader = reader.clone();
            async move { Ok(u64::from(reader.delete(&session, &ME).await?.is_some())) }.boxed()
        };
        let ended = at_once(vec![
            write_call(&a, session, EVENTS),
            meddle(&b, session),
            delete(&c),
            twice,
        ])
        .await?;
        claim_eq!(ended[2] + ended[3], 1, "deletes that removed the session");
        claim!(
            !is_there(&reader, session).await?,
            "a step that ran beside `delete` brought the session back"
        );
    }
    let swept = sweep_all(&c, Vec::new()).await?;
    claim_eq!(
        swept,
        0,
        "what a delete left to be cleaned up does not count"
    );
    come_to(&reader, [0; 5]).await
}

/// Other writes to a session that may go at any time.
fn meddle(b: &AnyStorage, session: SessionKey) -> Runner<u64> {
    let b = b.clone();
    async move {
        let standalone = StreamId::standalone();
        for n in 1..=EVENTS / 2 {
            let asked = PutRequest {
                owner: B,
                ..request(session, i64::try_from(n).unwrap_or(0))
            };
            put(&b, &asked).await?;
            append(&b, &shared(session, B, n, &text(n))?).await?;
            b.hold(&session, &standalone, B, Hold::Take).await?;
            let opened = OpenStream {
                owner: B,
                ..open(&format!("t{n}"))?
            };
            b.enter(&session, &ME, Some(&opened)).await?;
            b.shrink(&session, 5 * BYTES).await?;
        }
        Ok(0)
    }
    .boxed()
}

pub(crate) async fn sweeps_that_race_a_session_that_is_used(store: Store) -> Verdict {
    let [a, b, c, reader] = handles(&store).await?;
    let ttl = store.ticks(&a, 60);
    for _ in 0..3 {
        let new = mcp_adapter_core::storage::NewSession {
            idle_ttl: ttl,
            ..new_session(key())?
        };
        a.create(&new).await?;
        a.enter(&new.session, &ME, Some(&open("s")?)).await?;
        let sweeps = |store: &AnyStorage| -> Runner<(u64, bool)> {
            let store = store.clone();
            async move {
                let until = tokio::time::Instant::now() + ttl * 2;
                let mut removed = 0;
                while tokio::time::Instant::now() < until {
                    removed += store.sweep(5, &[], LONG).await?.removed as u64;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok((removed, false))
            }
            .boxed()
        };
        let write = {
            let a = a.clone();
            let session = new.session;
            async move {
                let until = tokio::time::Instant::now() + ttl * 2;
                let (mut seq, mut slow) = (0, false);
                while tokio::time::Instant::now() < until {
                    seq += 1;
                    let before = tokio::time::Instant::now();
                    let answer = append(&a, &owned(session, at(1, seq), &text(seq))?).await?;
                    tokio::time::sleep(ttl / 8).await;
                    slow |= before.elapsed() > ttl / 2;
                    let stored = matches!(answer, Appended::Stored { .. });
                    claim!(
                        stored || slow,
                        "a session that is used was removed: {answer:?}"
                    );
                }
                Ok((seq, slow))
            }
            .boxed()
        };
        let answers = at_once(vec![write, sweeps(&b), sweeps(&c)]).await?;
        let (written, slow) = answers[0];
        if slow {
            continue; // the machine was too slow to tell
        }
        claim_eq!(answers[1].0 + answers[2].0, 0, "nothing has expired");
        let found = read(&reader, &cursor(new.session, "s")?).await?;
        claim!(matches!(found, Read::Page { .. }), "{found:?}");
        return is_whole(&reader, new.session, written, 0).await;
    }
    Err(Failure::new(
        "the machine is too slow to tell before from after",
    ))
}
