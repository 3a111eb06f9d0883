//! Versions and generations.

use bytes::Bytes;
use futures::future::try_join_all;
use mcp_adapter_core::{
    Engine, ErrorKind, Limits, PrincipalKey, SessionAdapter, SessionId, SessionRecord,
    storage::{Entered, NewSession, Storage},
};

use super::{Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq};

pub(crate) async fn a_record_of_a_newer_version_is_not_absent(store: Store) -> Verdict {
    let a = store.open().await?;
    let id = SessionId::generate();
    // To the backend a record is opaque: it keeps what it does not know.
    let newer = Bytes::from_static(b"{\"v\":4000000000,\"what\":[\"we\",\"do not know\"]}");
    let new = NewSession {
        record: newer.clone(),
        principal: PrincipalKey::ANONYMOUS,
        ..new_session(id.key())?
    };
    a.create(&new).await?;
    let engine = Engine::new(a.clone(), Limits::default());
    let entered = engine.enter(&id, None, None).await;
    let kind = entered.err().map(|error| error.kind());
    claim_eq!(kind, Some(ErrorKind::UnsupportedFormat));
    let created = SessionAdapter::create(&engine, &id, SessionRecord::default()).await;
    let kind = created.err().map(|error| error.kind());
    claim_eq!(kind, Some(ErrorKind::AlreadyExists));
    match a.enter(&id.key(), &PrincipalKey::ANONYMOUS, None).await? {
        Entered::Session { record, revision } => claim_eq!((record, revision), (newer, 1)),
        other => return Err(Failure::new(format!("{other:?}"))),
    }
    claim!(engine.delete(&id, None).await?, "it can be deleted");
    Ok(())
}

pub(crate) async fn the_generation_is_told_and_stays(store: Store) -> Verdict {
    let [a, b, c] = store.handles().await?;
    let first = a.attach(A).await?;
    for (handle, me) in [(&a, A), (&b, B), (&c, C)] {
        claim_eq!(
            handle.attach(me).await?,
            first,
            "one history, one generation"
        );
    }
    claim!(!first.0.is_empty(), "it names something");
    Ok(())
}

pub(crate) async fn ten_handles_open_at_once(store: Store) -> Verdict {
    // On a store that nobody has prepared.
    let handles = try_join_all((0..10).map(|_| store.open())).await?;
    let mut sessions = Vec::new();
    for handle in &handles {
        sessions.push(session(handle).await?);
    }
    for session in sessions {
        for handle in &handles {
            claim!(is_there(handle, session).await?, "all are one store");
        }
    }
    Ok(())
}
