//! Deadlines are the backend's.

use bytes::Bytes;
use futures::future::join_all;
use mcp_adapter_core::{
    OutcomeKind,
    storage::{
        Append, Dead, NewSession, OpenStream, PutRequest, Read, RequestState, Settled, Storage,
    },
};
use tokio::time::{Instant, sleep};

use super::{Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq};

pub(crate) async fn a_session_expires_by_the_backends_clock(store: Store) -> Verdict {
    let a = store.open().await?;
    let ttl = store.ticks(&a, 60);
    let margin = store.ticks(&a, 10);
    let mut told = false;
    for _ in 0..3 {
        let mut sessions = Vec::new();
        for absolute_ttl in [None, Some(ttl * 2)] {
            let new = NewSession {
                idle_ttl: ttl,
                absolute_ttl,
                ..new_session(key())?
            };
            a.create(&new).await?;
            sessions.push(new.session);
        }
        let [sliding, absolute] = sessions[..] else {
            return Err(Failure::new("two sessions"));
        };
        let idle = session(&a).await?;
        let born = Instant::now();
        let mut slow = false;
        while born.elapsed() < ttl * 3 {
            let before = Instant::now();
            sleep(ttl / 6).await;
            for session in [sliding, absolute] {
                let mut touching = cursor(session, "none")?;
                touching.touch = true;
                let found = read(&a, &touching).await?;
                slow |= before.elapsed() > ttl * 4 / 5;
                let must_be = session == sliding || born.elapsed() < ttl * 2 * 4 / 5;
                let gone = matches!(found, Read::NoSession);
                claim!(slow || !(must_be && gone), "gone although it was used");
            }
        }
        if slow {
            continue; // the machine was too slow to tell
        }
        claim!(
            !is_there(&a, absolute).await?,
            "use does not slide an absolute lifetime"
        );
        // Looking without touching does not slide it, either.
        let until = Instant::now() + ttl + margin;
        while Instant::now() < until {
            is_there(&a, sliding).await?;
            sleep(ttl / 6).await;
        }
        claim!(!is_there(&a, sliding).await?, "it was not used any more");
        claim!(is_there(&a, idle).await?, "one with a longer life");
        told = true;
        break;
    }
    claim!(told, "the machine is too slow to tell before from after");
    Ok(())
}

pub(crate) async fn a_request_ends_by_the_backends_clock(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = session(&a).await?;
    let timeout = store.ticks(&a, 40);
    let asked = PutRequest {
        timeout,
        result_ttl: timeout * 2,
        ..request(session, 1)
    };
    put(&a, &asked).await?;
    let started = Instant::now();
    let now = request_state(&a, session, 1, None).await?;
    if started.elapsed() < timeout / 2 {
        claim_eq!(now, RequestState::Pending { owner: A });
    }
    sleep(timeout + store.ticks(&a, 10)).await;
    // Nobody has ended it, and nobody can answer it.
    let late = settle(&a, &answer(session, 1, "late")).await?;
    let timed_out = RequestState::Ended(OutcomeKind::TimedOut, Bytes::new());
    let now = request_state(&a, session, 1, Some(asked.token)).await?;
    if started.elapsed() < timeout * 5 / 2 {
        claim_eq!(late, Settled::Already(OutcomeKind::TimedOut));
        claim_eq!(now, timed_out);
    }
    sleep(timeout * 2).await;
    claim_eq!(
        request_state(&a, session, 1, None).await?,
        RequestState::Missing,
        "forgotten"
    );
    claim_eq!(
        settle(&a, &answer(session, 1, "late")).await?,
        Settled::Unknown
    );
    Ok(())
}

pub(crate) async fn a_finished_stream_goes_by_the_backends_clock(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = stream(&a).await?;
    a.enter(&session, &ME, Some(&open("t")?)).await?;
    let kept = store.ticks(&a, 40);
    let finish = Append {
        finish: Some(kept),
        ..owned(session, at(1, 1), "last")?
    };
    let started = Instant::now();
    stored(&a, &finish).await?;
    let there = read(&a, &cursor(session, "s")?).await?;
    if started.elapsed() < kept / 2 {
        claim!(matches!(there, Read::Page { .. }), "{there:?}");
    }
    sleep(kept + store.ticks(&a, 10)).await;
    let gone = read(&a, &cursor(session, "s")?).await?;
    claim!(matches!(gone, Read::NoStream), "{gone:?}");
    let open = read(&a, &cursor(session, "t")?).await?;
    claim!(
        matches!(open, Read::Page { .. }),
        "what is open stays: {open:?}"
    );
    Ok(())
}

pub(crate) async fn sweeping_is_bounded_and_safe_at_many(store: Store) -> Verdict {
    const BUDGET: usize = 7;
    let [a, b] = store.handles().await?;
    let ttl = store.ticks(&a, 20);
    let living = stream(&a).await?;
    stored(&a, &owned(living, at(1, 1), "1")?).await?;
    for _ in 0..60 {
        let new = NewSession {
            idle_ttl: ttl,
            ..new_session(key())?
        };
        a.create(&new).await?;
        stored(&a, &shared(new.session, A, 1, "event")?).await?;
    }
    sleep(ttl + store.ticks(&a, 10)).await;
    let sweep = |store: &super::AnyStorage| {
        let store = store.clone();
        async move {
            let mut removed = 0;
            for _ in 0..1000 {
                let swept = store.sweep(BUDGET, &[], LONG).await?;
                if swept.removed > BUDGET {
                    return Err(Failure::new(format!("{swept:?} over its budget")));
                }
                removed += swept.removed;
                if !swept.more {
                    return Ok(removed);
                }
            }
            Err(Failure::new("there is more for ever"))
        }
    };
    let sweeps = async {
        let mut removed = 0;
        for swept in join_all([sweep(&a), sweep(&b), sweep(&a)]).await {
            removed += swept?;
        }
        Ok::<_, Failure>(removed)
    };
    let removed = sweeps.await?;
    claim!(
        removed >= 60,
        "{removed} were removed, of 60 sessions that expired"
    );
    let left = || async {
        let counts = counts(&b).await?;
        Ok((counts[..4] == [1, 1, 1, 1]).then_some(()))
    };
    crate::wait::eventually("one is left", std::time::Duration::from_secs(15), left).await?;
    claim_eq!(texts(&b, living, "s").await?, ["1"]);
    Ok(())
}

pub(crate) async fn a_sweep_counts_what_its_time_is_over_of(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let short = store.ticks(&a, 10);
    beat(&b, B, 1).await?;
    let brief = NewSession {
        idle_ttl: short,
        ..new_session(key())?
    };
    let (expired, living, deleted) = (brief.session, session(&a).await?, stream(&a).await?);
    a.create(&brief).await?;
    for session in [expired, living, deleted] {
        // In a session that goes they go with it.
        for n in 0..3 {
            let call = OpenStream {
                request: mcp_adapter_core::RpcId::Number(n),
                ..open(&format!("done{n}"))?
            };
            a.enter(&session, &ME, Some(&call)).await?;
            let last = Append {
                stream: call.stream,
                finish: Some(short),
                ..owned(session, at(1, 1), "last")?
            };
            stored(&a, &last).await?;
        }
        for id in 0..2 {
            let asked = PutRequest {
                timeout: short / 2,
                result_ttl: short / 2,
                ..request(session, id)
            };
            put(&a, &asked).await?;
        }
        settle(&b, &answer(session, 0, "answered")).await?;
        put(&a, &request(session, 9)).await?;
    }
    // What belongs to the dead, and to nobody else.
    let orphan = OpenStream {
        owner: B,
        ..open("orphan")?
    };
    b.enter(&living, &ME, Some(&orphan)).await?;
    let asked = PutRequest {
        owner: B,
        ..request(living, 10)
    };
    put(&b, &asked).await?;
    a.delete(&deleted, &ME).await?;
    sleep(short * 2 + store.ticks(&a, 10)).await;
    let dead = Dead {
        instance: B,
        beat: Some(1),
    };
    let mut removed = 0;
    let mut steps = 0;
    loop {
        let swept = a.sweep(4, &[dead], LONG).await?;
        removed += swept.removed;
        steps += 1;
        claim!(steps < 1000, "there is more for ever");
        if !swept.more && swept.removed == 0 {
            break;
        }
    }
    claim_eq!(
        removed,
        1 + 3 + 2 + 2,
        "an expired session, of a living one three streams and two requests, and of the dead a \
         stream and a request; not what a delete has left"
    );
    let probe = || async { Ok((counts(&a).await? == [1, 1, 0, 0, 1]).then_some(())) };
    let left = crate::wait::eventually("one session is left", PATIENCE, probe).await;
    if left.is_err() {
        return Err(Failure::new(format!("{:?} is left", counts(&a).await?)));
    }
    Ok(())
}
