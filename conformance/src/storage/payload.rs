//! What goes in comes out.

use bytes::Bytes;
use mcp_adapter_core::{
    OutcomeKind, RpcId,
    storage::{
        Append, Entered, NewEvent, PutRequest, RequestKey, RequestState, Settle, Storage, StreamEnd,
    },
};

use super::{Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq};

fn payloads() -> Vec<Bytes> {
    let large = (0..1_u32 << 20).map(|n| n.to_le_bytes()[n as usize % 3]);
    vec![
        (0..=255).collect(),
        Bytes::new(),
        Bytes::from_static(b"\0\xff\xfe\n'\"\\ "),
        large.collect(),
    ]
}

pub(crate) async fn bytes_come_back_as_they_went_in(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    for (n, payload) in (1..).zip(payloads()) {
        let session = stream(&a).await?;
        let event = Some(NewEvent {
            prev: None,
            data: payload.clone(),
        });
        let entry = Append {
            event,
            keep_bytes: 1 << 22,
            ..owned(session, at(1, 1), "")?
        };
        stored(&a, &entry).await?;
        let mut asked = cursor(session, "s")?;
        asked.max_bytes = 1 << 22;
        let (events, _) = page(&b, &asked).await?;
        let found = events.into_iter().next().and_then(|event| event.data);
        let bytes = found.as_ref().map(Bytes::len);
        claim!(
            found == Some(payload.clone()),
            "event {n} of {} bytes, read after `append` as {bytes:?} bytes",
            payload.len()
        );
        put(&a, &request(session, 1)).await?;
        let answered = Settle {
            payload: payload.clone(),
            ..answer(session, 1, "")
        };
        settle(&b, &answered).await?;
        let ended = RequestState::Ended(OutcomeKind::Answered, payload.clone());
        claim!(
            request_state(&a, session, 1, None).await? == ended,
            "answer {n} of {} bytes, read after `settle`",
            payload.len()
        );
        // Records are shorter, and opaque as well.
        let record = payload.slice(..payload.len().min(60_000));
        a.update(&update(session, 1, record.clone())).await?;
        match b.enter(&session, &ME, None).await? {
            Entered::Session { record: found, .. } => {
                let (found, kept) = (found.len(), found == record);
                claim!(
                    kept,
                    "record {n} of {} bytes, read after `update` as {found} bytes",
                    record.len()
                );
            }
            other => return Err(Failure::new(format!("{other:?}"))),
        }
    }
    Ok(())
}

pub(crate) async fn numbers_and_strings_differ(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = session(&a).await?;
    let text = |text: &str| RpcId::String(text.into());
    let ids = [
        RpcId::Number(1),
        text("1"),
        text("\"1\""),
        RpcId::Number(i64::MIN),
        text(&i64::MIN.to_string()),
        text(""),
        text("n1"),
        text(&"x".repeat(RpcId::MAX_BYTES)),
    ];
    let with = |id: &RpcId| PutRequest {
        id: id.clone(),
        ..request(session, 0)
    };
    a.put_requests(&ids.each_ref().map(with)).await?;
    let settle = |(n, id): (usize, &RpcId)| Settle {
        id: id.clone(),
        ..answer(session, 0, &n.to_string())
    };
    let settles: Vec<_> = ids.iter().enumerate().map(settle).collect();
    a.settle(&settles).await?;
    let key = |id: &RpcId| RequestKey {
        session,
        id: id.clone(),
        token: None,
    };
    let states = a.requests(&ids.each_ref().map(key)).await?;
    for (n, state) in states.iter().enumerate() {
        let ended = RequestState::Ended(OutcomeKind::Answered, Bytes::from(n.to_string()));
        claim_eq!(*state, ended, "{:?}", ids[n]);
    }
    claim_eq!(states.len(), ids.len());
    Ok(())
}

pub(crate) async fn the_event_and_the_finish_are_seen_at_once(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    for _ in 0..20 {
        let session = stream(&a).await?;
        let last = Append {
            finish: Some(LONG),
            ..owned(session, at(1, 1), "last")?
        };
        let asked = cursor(session, "s")?;
        let look = async {
            loop {
                let (events, state) = page(&b, &asked).await?;
                if !events.is_empty() || state.end.is_some() {
                    return Ok::<_, Failure>((events.len(), state.end));
                }
                tokio::task::yield_now().await;
            }
        };
        let (seen, written) = futures::join!(look, stored(&a, &last));
        written?;
        claim_eq!(seen?, (1, Some(StreamEnd::Finished)));
    }
    Ok(())
}
