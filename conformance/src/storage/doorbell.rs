//! Wake-ups.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use mcp_adapter_core::{
    InstanceId, Result, RpcId, SessionKey,
    storage::{Append, Claim, Dead, Door, Hold, Knock, SignalChannel, Storage, Target},
};

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim_eq, helper};

type Bell = BoxStream<'static, Result<Knock>>;

/// A doorbell through which knocks come by now.
async fn bell(store: &AnyStorage, me: InstanceId) -> std::result::Result<Bell, Failure> {
    store.attach(me).await?;
    let mut bell = store.doorbell(me).await?;
    probed(store, me, &mut bell, 1).await?;
    Ok(bell)
}

/// All that came before a probe.
#[track_caller]
fn probed(
    store: &AnyStorage,
    me: InstanceId,
    bell: &mut Bell,
    number: u64,
) -> impl Future<Output = Step<Vec<Knock>>> {
    helper(async move {
        store.knock(&[(Door::Of(me), Knock::Probe(number))]).await?;
        let what = format!("probe {number} at the door of {me:?}, by its own `knock`");
        let mut before = Vec::new();
        loop {
            let next = knock(&what, bell).await?;
            if next == Knock::Probe(number) {
                return Ok(before);
            }
            before.push(next);
        }
    })
}

/// The next knock is this one, which `step` must make at the door of `whom`.
#[track_caller]
fn knocks(
    step: &str,
    whom: InstanceId,
    bell: &mut Bell,
    expected: &Knock,
) -> impl Future<Output = Verdict> {
    helper(async move {
        let what = format!("the knock of {step} at the door of {whom:?}, {expected:?}");
        let found = knock(&what, bell).await?;
        if found == *expected {
            return Ok(());
        }
        Err(Failure::new(format!("instead of {what}, came {found:?}")))
    })
}

pub(crate) async fn knocks_go_to_their_door(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let (mut at_a, mut at_b) = (bell(&a, A).await?, bell(&b, B).await?);
    let session = key();
    let targets = [
        Target::Session,
        Target::Stream(name("s.n1")?),
        Target::Request(RpcId::Number(-1)),
        Target::Request(RpcId::String("1 ä\"'".into())),
    ];
    let wakes: Vec<_> = targets
        .map(|target| (Door::Of(B), Knock::Wake(session, target)))
        .into();
    a.knock(&wakes).await?;
    for (_, wake) in wakes {
        knocks("another instance's `knock`", B, &mut at_b, &wake).await?;
    }
    let payload: Bytes = (0..mcp_adapter_core::MAX_SIGNAL_BYTES)
        .map(|n| n.to_le_bytes()[0])
        .collect();
    let channels = [
        SignalChannel::Session(SessionKey([0; 32])),
        SignalChannel::Session(session),
        SignalChannel::Topic("t".repeat(100).into()),
        SignalChannel::Topic("ä \"'*".into()),
    ];
    for channel in channels {
        let signal = Knock::Signal {
            from: B,
            channel,
            payload: payload.clone(),
        };
        b.knock(&[(Door::All, signal.clone())]).await?;
        // All, the sender included.
        knocks("`knock` at all doors", A, &mut at_a, &signal).await?;
        knocks("`knock` at all doors", B, &mut at_b, &signal).await?;
    }
    // Nothing of another's came, and a door where nobody is opens to nobody.
    a.knock(&[(Door::Of(C), Knock::Everything)]).await?;
    claim_eq!(probed(&a, A, &mut at_a, 2).await?, [], "for another");
    claim_eq!(probed(&b, B, &mut at_b, 2).await?, [], "for another");
    Ok(())
}

pub(crate) async fn the_step_that_writes_wakes(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let (mut at_a, mut at_b) = (bell(&a, A).await?, bell(&b, B).await?);
    let session = stream(&a).await?;
    let stream = Knock::Wake(session, Target::Stream(name("s")?));
    hold(&b, session, B, Hold::Take).await?;
    let entry = Append {
        wake: Some(B),
        ..owned(session, at(1, 1), "1")?
    };
    stored(&a, &entry).await?;
    knocks("`append`, which names it in `wake`,", B, &mut at_b, &stream).await?;
    let asked = request(session, 1);
    put(&a, &asked).await?;
    let answered = answer(session, 1, "x");
    settle(&b, &answered).await?;
    let step = "`settle`, of a request that it owns,";
    match knock(step, &mut at_a).await? {
        Knock::Outcome {
            session: of,
            id,
            token,
            kind,
            payload,
        } => {
            claim_eq!(
                (of, &id, token),
                (session, &asked.id, asked.token),
                "{step}"
            );
            claim_eq!(
                (kind, payload),
                (answered.outcome, answered.payload),
                "{step}"
            );
        }
        found => {
            let wake = Knock::Wake(session, Target::Request(asked.id.clone()));
            claim_eq!(found, wake, "the knock of {step}");
        }
    }
    b.mark_cancel(&session, &RpcId::Number(1)).await?;
    let step = "`mark_cancel`, of a stream that it owns,";
    knocks(step, A, &mut at_a, &stream).await?;
    beat(&a, A, 1).await?;
    let dead = Dead {
        instance: A,
        beat: Some(1),
    };
    let claim = Claim {
        session,
        stream: name("s")?,
        dead,
        finished_ttl: LONG,
    };
    b.claim(&[claim]).await?;
    let step = "`claim`, of a stream that it holds,";
    knocks(step, B, &mut at_b, &stream).await?;
    a.enter(&session, &ME, Some(&open("t")?)).await?;
    b.hold(&session, &name("t")?, B, Hold::Take).await?;
    let (_, running) = page(&a, &cursor(session, "t")?).await?;
    claim_eq!(running.end, None, "a new stream");
    for _ in 0..100 {
        b.sweep(100, &[dead], LONG).await?;
        let (_, state) = page(&a, &cursor(session, "t")?).await?;
        if state.end.is_some() {
            break;
        }
    }
    let swept = Knock::Wake(session, Target::Stream(name("t")?));
    let step = "`sweep`, of a dead owner's stream that it holds,";
    knocks(step, B, &mut at_b, &swept).await?;
    // A handle that is opened again replaces the former link.
    drop(at_b);
    let mut again = bell(&b, B).await?;
    b.knock(&[(Door::Of(B), Knock::Everything)]).await?;
    let step = "`knock` after it opened its doorbell again";
    knocks(step, B, &mut again, &Knock::Everything).await?;
    Ok(())
}

pub(crate) async fn a_doorbell_that_lags_says_so(store: Store) -> Verdict {
    const KNOCKS: i64 = 10_000;
    let [a, b] = store.handles().await?;
    let mut bell = bell(&a, A).await?;
    let session = key();
    let numbers: Vec<_> = (0..KNOCKS).collect();
    // Nobody takes them meanwhile.
    for some in numbers.chunks(500) {
        let wake = |n: &i64| {
            let target = Target::Request(RpcId::Number(*n));
            (Door::Of(A), Knock::Wake(session, target))
        };
        let knocks: Vec<_> = some.iter().map(wake).collect();
        b.knock(&knocks).await?;
    }
    let mut missing: BTreeSet<_> = numbers.into_iter().collect();
    while !missing.is_empty() {
        let Ok(next) = tokio::time::timeout(PATIENCE, bell.next()).await else {
            return Err(Failure::new(format!(
                "of {KNOCKS} knocks that nobody took, {} do not come, and the doorbell neither \
                 says `Everything` in their place nor ends",
                missing.len()
            )));
        };
        match next {
            Some(Ok(Knock::Wake(_, Target::Request(RpcId::Number(n))))) => {
                missing.remove(&n);
            }
            // It says that some are lost.
            Some(Ok(Knock::Everything) | Err(_)) | None => return Ok(()),
            Some(Ok(_)) => {}
        }
    }
    Ok(())
}
