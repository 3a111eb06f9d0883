//! Wake-ups.

use bytes::Bytes;
use futures::stream::BoxStream;
use mcp_adapter_core::{
    InstanceId, Result, RpcId, SessionKey,
    storage::{Append, Claim, Dead, Door, Hold, Knock, SignalChannel, Storage, Target},
};

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim_eq};

type Bell = BoxStream<'static, Result<Knock>>;

/// A doorbell through which knocks come by now.
async fn bell(store: &AnyStorage, me: InstanceId) -> std::result::Result<Bell, Failure> {
    store.attach(me).await?;
    let mut bell = store.doorbell(me).await?;
    probed(store, me, &mut bell, 1).await?;
    Ok(bell)
}

/// All that came before a probe.
async fn probed(
    store: &AnyStorage,
    me: InstanceId,
    bell: &mut Bell,
    number: u64,
) -> std::result::Result<Vec<Knock>, Failure> {
    store.knock(&[(Door::Of(me), Knock::Probe(number))]).await?;
    let mut before = Vec::new();
    loop {
        let next = knock(bell).await?;
        if next == Knock::Probe(number) {
            return Ok(before);
        }
        before.push(next);
    }
}

pub(crate) async fn knocks_go_to_their_door(store: Store) -> Verdict {
    let (a, b) = (store.open().await?, store.open().await?);
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
        claim_eq!(knock(&mut at_b).await?, wake);
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
        for bell in [&mut at_a, &mut at_b] {
            claim_eq!(knock(bell).await?, signal, "all, the sender included");
        }
    }
    // Nothing of another's came, and a door where nobody is opens to nobody.
    a.knock(&[(Door::Of(C), Knock::Everything)]).await?;
    claim_eq!(probed(&a, A, &mut at_a, 2).await?, []);
    claim_eq!(probed(&b, B, &mut at_b, 2).await?, []);
    Ok(())
}

pub(crate) async fn the_step_that_writes_wakes(store: Store) -> Verdict {
    let (a, b) = (store.open().await?, store.open().await?);
    let (mut at_a, mut at_b) = (bell(&a, A).await?, bell(&b, B).await?);
    let session = stream(&a).await?;
    let stream = Knock::Wake(session, Target::Stream(name("s")?));
    hold(&b, session, B, Hold::Take).await?;
    let entry = Append {
        wake: Some(B),
        ..owned(session, at(1, 1), "1")?
    };
    stored(&a, &entry).await?;
    claim_eq!(
        knock(&mut at_b).await?,
        stream,
        "the holder that the writer named"
    );
    put(&a, &request(session, 1)).await?;
    settle(&b, &answer(session, 1, "x")).await?;
    let asked = Knock::Wake(session, Target::Request(RpcId::Number(1)));
    claim_eq!(knock(&mut at_a).await?, asked, "the owner of the request");
    b.mark_cancel(&session, &RpcId::Number(1)).await?;
    claim_eq!(knock(&mut at_a).await?, stream, "the owner of the call");
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
    claim_eq!(
        knock(&mut at_b).await?,
        stream,
        "the holder of a dead owner's stream"
    );
    // A handle that is opened again replaces the former link.
    drop(at_b);
    let mut again = bell(&b, B).await?;
    b.knock(&[(Door::Of(B), Knock::Everything)]).await?;
    claim_eq!(knock(&mut again).await?, Knock::Everything);
    Ok(())
}
