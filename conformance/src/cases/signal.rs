//! Signals and cancels: SG.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use mcp_adapter_core::{Cancelled, Channel, ErrorKind, MAX_SIGNAL_BYTES, Revocation};

use super::{NOT_FOUND, kind, number, string};
use crate::{
    fleet::Fleet,
    wait::{Failure, Verdict, claim, claim_eq, never_within, within},
};

/// What is on its way as a link is given up is lost, and a busy machine must not look
/// like a dead link.
fn with_a_steady_link(fleet: &Fleet) -> Result<Fleet, Failure> {
    fleet.with(|limits| {
        limits
            .probe_after(fleet.ticks(500))
            .probe_timeout(fleet.ticks(1000))
            .operation_timeout(fleet.ticks(1000))
    })
}

pub(crate) async fn every_listener_hears_in_order(fleet: Fleet) -> Verdict {
    const SIGNALS: u8 = 60;
    let fleet = with_a_steady_link(&fleet)?;
    let [a, b, c] = fleet.instances().await?;
    let channel = Channel::Session(a.session().await?);
    let listeners = [
        a.listen(&channel).await?,
        b.listen(&channel).await?,
        b.listen(&channel).await?,
        c.listen(&channel).await?,
    ];
    let send = |instance| {
        let channel = &channel;
        let instance: &crate::instance::Instance = instance;
        async move {
            for n in 0..SIGNALS {
                instance
                    .signal(channel, Bytes::copy_from_slice(&[n]))
                    .await?;
            }
            Ok::<_, Failure>(())
        }
    };
    for sent in join_all([&a, &b].map(send)).await {
        sent?;
    }
    for mut listener in listeners {
        let mut next: HashMap<_, u8> = [(a.id(), 0), (b.id(), 0)].into();
        for _ in 0..2 * u16::from(SIGNALS) {
            let signal = within("a signal", fleet.patience(), listener.next()).await?;
            let signal = signal.ok_or_else(|| Failure::new("the listener ended"))?;
            let Some(expected) = next.get_mut(&signal.from) else {
                return Err(Failure::new("a signal of nobody"));
            };
            claim_eq!(
                &signal.payload[..],
                [*expected],
                "in the order of its sender"
            );
            *expected += 1;
        }
        never_within("a signal twice", fleet.ticks(2), listener.next()).await?;
    }
    Ok(())
}

pub(crate) async fn only_its_channel_is_heard(fleet: Fleet) -> Verdict {
    let fleet = with_a_steady_link(&fleet)?;
    let [a, b] = fleet.instances().await?;
    let (one, two) = (a.session().await?, a.session().await?);
    let channels = [
        Channel::Session(one.clone()),
        Channel::Session(two),
        Channel::Topic("tools".into()),
        Channel::Topic("tool*".into()),
        Channel::Topic("Tools".into()),
        Channel::Topic(one.as_str().into()),
        Channel::Topic("t".repeat(100).into()),
    ];
    // What is on its way may be heard, so the last one has to arrive.
    let passed = Channel::Topic("passed".into());
    let mut last = b.listen(&passed).await?;
    for channel in &channels {
        a.signal(channel, "before anybody listens").await?;
    }
    a.signal(&passed, "").await?;
    within("a signal", fleet.patience(), last.next()).await?;
    let mut listeners = Vec::new();
    for channel in &channels {
        listeners.push(b.listen(channel).await?);
    }
    for (n, channel) in channels.iter().enumerate() {
        a.signal(channel, n.to_string()).await?;
    }
    for (n, listener) in listeners.iter_mut().enumerate() {
        let heard = within("a signal", fleet.patience(), listener.next()).await?;
        let heard = heard.map(|signal| signal.payload);
        claim_eq!(heard, Some(Bytes::from(n.to_string())), "{:?}", channels[n]);
    }
    let more = join_all(listeners.iter_mut().map(StreamExt::next));
    never_within("signals of all channels at each", fleet.ticks(5), more).await
}

pub(crate) async fn sizes_are_bounded(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let channel = Channel::Topic("sizes".into());
    let mut heard = b.listen(&channel).await?;
    for bytes in [0, MAX_SIGNAL_BYTES] {
        let payload: Bytes = (0..bytes).map(|n| n.to_le_bytes()[0]).collect();
        a.signal(&channel, payload.clone()).await?;
        let signal = within("a signal", fleet.patience(), heard.next()).await?;
        claim!(
            signal.is_some_and(|signal| signal.payload == payload),
            "{bytes} bytes"
        );
    }
    let large = Bytes::from(vec![0; MAX_SIGNAL_BYTES + 1]);
    claim_eq!(
        kind(a.signal(&channel, large).await),
        Some(ErrorKind::TooLarge)
    );
    let long = Channel::Topic("t".repeat(101).into());
    claim_eq!(
        kind(a.signal(&long, "x").await),
        Some(ErrorKind::InvalidArgument)
    );
    claim_eq!(
        kind(b.listen(&long).await),
        Some(ErrorKind::InvalidArgument)
    );
    Ok(())
}

pub(crate) async fn a_cancel_reaches_the_call_wherever_it_runs(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let patience = fleet.patience();
    let id = a.session().await?;
    for (n, at) in [&a, &b].into_iter().enumerate() {
        let call = string(&format!("call {n}"));
        let writer = a.open(&id, None, &call).await?;
        let marked = Cancelled::Marked(writer.stream().clone());
        claim_eq!(at.cancel_call(&id, &call).await?, marked);
        let why = within("the writer is told", patience, writer.revoked()).await?;
        claim_eq!(why, Revocation::Cancelled);
        // It may still say how far it came.
        writer.finish(Some("cancelled")).await?;
        claim_eq!(at.cancel_call(&id, &call).await?, Cancelled::NotRunning);
    }
    // The mark is durable: it is found by an instance that did not hear of it.
    let writer = a.call(&id, 1).await?;
    let frozen = a.freeze().await;
    let marked = Cancelled::Marked(writer.stream().clone());
    claim_eq!(b.cancel_call(&id, &number(1)).await?, marked);
    drop(frozen);
    let why = within("the writer is told", patience, writer.revoked()).await?;
    claim_eq!(why, Revocation::Cancelled);
    Ok(())
}

pub(crate) async fn a_cancel_hits_one_call_or_none(fleet: Fleet) -> Verdict {
    let [a, b] = fleet.instances().await?;
    let (id, other) = (a.session().await?, a.session().await?);
    let text = a.open(&id, None, &string("1")).await?;
    let foreign = a.call(&other, 1).await?;
    claim_eq!(b.cancel_call(&id, &number(1)).await?, Cancelled::NotRunning);
    let (one, two) = (a.call(&id, 1).await?, b.call(&id, 1).await?);
    claim_eq!(b.cancel_call(&id, &number(1)).await?, Cancelled::Ambiguous);
    let told = futures::future::select_all(
        [&text, &foreign, &one, &two].map(|writer| Box::pin(writer.revoked())),
    );
    never_within("a cancel at another call", fleet.ticks(25), async {
        told.await.0
    })
    .await?;
    two.finish(None).await?;
    let marked = Cancelled::Marked(one.stream().clone());
    claim_eq!(b.cancel_call(&id, &number(1)).await?, marked);
    let why = within("the writer is told", fleet.patience(), one.revoked()).await?;
    claim_eq!(why, Revocation::Cancelled);
    let missing = mcp_adapter_core::SessionId::generate();
    claim_eq!(kind(a.cancel_call(&missing, &number(1)).await), NOT_FOUND);
    Ok(())
}
