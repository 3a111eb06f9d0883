//! Existence is decided in the step.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_core::{
    RpcId, SessionKey, StreamId,
    storage::{
        Append, Appended, Entered, Held, Hold, NewSession, Put, Read, RequestState, Settled,
        Storage, UpdateSession, Updated,
    },
};

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Verdict, claim, claim_eq};

/// All writes to a session that is not there.
async fn every_write([a, b]: [&AnyStorage; 2], session: SessionKey) -> Verdict {
    let open = open("s")?;
    for open in [None, Some(&open)] {
        let entered = a.enter(&session, &ME, open).await?;
        claim!(matches!(entered, Entered::NoSession), "enter: {entered:?}");
    }
    let record = Bytes::from_static(b"x");
    for revision in [0, 1, 2] {
        let updated = a.update(&update(session, revision, record.clone())).await?;
        claim_eq!(updated, Updated::NoSession, "update");
    }
    claim_eq!(a.delete(&session, &ME).await?, None, "delete");
    let terminal = Append {
        finish: Some(LONG),
        ..owned(session, at(1, 1), "x")?
    };
    for entry in [
        owned(session, at(1, 1), "x")?,
        owned(session, at(1, 2), "x")?,
        owned(session, at(2, 1), "x")?,
        terminal,
        shared(session, A, 1, "x")?,
    ] {
        claim_eq!(append(a, &entry).await?, Appended::NoSession, "append");
    }
    let other = shared(session, B, 9, "x")?;
    claim_eq!(append(b, &other).await?, Appended::NoSession, "append");
    for stream in [name("s")?, StreamId::standalone()] {
        let release = Hold::Release {
            number: 1,
            cursor: at(1, 1),
        };
        for change in [Hold::Take, Hold::TakeFrom(None), release] {
            let held = a.hold(&session, &stream, A, change).await?;
            claim!(matches!(held, Held::NoSession), "hold: {held:?}");
        }
    }
    a.shrink(&session, 0).await?;
    claim_eq!(
        put(a, &request(session, 1)).await?,
        Put::NoSession,
        "put_requests"
    );
    let settled = settle(a, &answer(session, 1, "x")).await?;
    claim_eq!(settled, Settled::Unknown, "settle");
    claim_eq!(
        a.mark_cancel(&session, &RpcId::Number(1)).await?,
        None,
        "mark_cancel"
    );
    for stream in ["s", "standalone"] {
        let mut cursor = cursor(session, stream)?;
        for touch in [false, true] {
            cursor.touch = touch;
            let found = read(a, &cursor).await?;
            claim!(matches!(found, Read::NoSession), "read: {found:?}");
        }
    }
    let known = request_state(a, session, 1, None).await?;
    claim_eq!(known, RequestState::NoSession, "requests");
    claim!(!is_there(a, session).await?, "it was brought into being");
    Ok(())
}

pub(crate) async fn every_write_to_a_missing_session_changes_nothing(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    every_write([&a, &b], key()).await?;
    // Deleted, by this handle and by another.
    for by in [&a, &b] {
        let session = stream(&a).await?;
        stored(&a, &owned(session, at(1, 1), "1")?).await?;
        put(&a, &request(session, 1)).await?;
        by.delete(&session, &ME).await?;
        every_write([&a, &b], session).await?;
    }
    Ok(())
}

pub(crate) async fn every_write_to_an_expired_session_changes_nothing(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let ttl = store.ticks(&a, 30);
    let new = NewSession {
        idle_ttl: ttl,
        ..new_session(key())?
    };
    a.create(&new).await?;
    a.enter(&new.session, &ME, Some(&open("s")?)).await?;
    stored(&a, &owned(new.session, at(1, 1), "1")?).await?;
    stored(&a, &shared(new.session, A, 1, "1")?).await?;
    put(&a, &request(new.session, 1)).await?;
    tokio::time::sleep(ttl + store.ticks(&a, 10) + Duration::from_millis(5)).await;
    every_write([&a, &b], new.session).await?;
    // The id is free, and nothing is left under it.
    let again = new_session(new.session)?;
    claim!(a.create(&again).await?, "an expired id is free");
    for stream in ["s", "standalone"] {
        let found = read(&a, &cursor(new.session, stream)?).await?;
        let empty = match &found {
            Read::NoStream => true,
            Read::Page { events, .. } => events.is_empty() && stream == "standalone",
            Read::NoSession => false,
        };
        claim!(empty, "{stream}: {found:?}");
    }
    claim_eq!(
        request_state(&a, new.session, 1, None).await?,
        RequestState::Missing
    );
    Ok(())
}

pub(crate) async fn an_append_creates_no_stream_of_a_call(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = session(&a).await?;
    let entry = owned(session, at(1, 1), "x")?;
    claim_eq!(append(&a, &entry).await?, Appended::NoStream);
    let held = a.hold(&session, &name("s")?, A, Hold::Take).await?;
    claim!(matches!(held, Held::NoStream), "{held:?}");
    let found = read(&a, &cursor(session, "s")?).await?;
    claim!(matches!(found, Read::NoStream), "{found:?}");
    // The standalone stream is there when it is needed first.
    let held = a
        .hold(&session, &StreamId::standalone(), A, Hold::Take)
        .await?;
    claim!(matches!(held, Held::Done { .. }), "{held:?}");
    Ok(())
}

pub(crate) async fn another_principal_enters_and_deletes_nothing(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = session(&a).await?;
    let open = open("s")?;
    for open in [None, Some(&open)] {
        let entered = a.enter(&session, &OTHER, open).await?;
        claim!(matches!(entered, Entered::NoSession), "{entered:?}");
    }
    claim_eq!(a.delete(&session, &OTHER).await?, None);
    let theirs = UpdateSession {
        principal: OTHER,
        ..update(session, 1, Bytes::from_static(b"theirs"))
    };
    for _ in 0..2 {
        claim_eq!(a.update(&theirs).await?, Updated::NoSession, "update");
    }
    let found = read(&a, &cursor(session, "s")?).await?;
    claim!(matches!(found, Read::NoStream), "{found:?}");
    let entered = a.enter(&session, &ME, None).await?;
    claim!(matches!(entered, Entered::Session { .. }), "{entered:?}");
    Ok(())
}

pub(crate) async fn a_stream_of_another_session_is_not_there(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let (mine, theirs) = (session(&a).await?, stream(&a).await?);
    stored(&a, &owned(theirs, at(1, 1), "secret")?).await?;
    let found = read(&a, &cursor(mine, "s")?).await?;
    claim!(matches!(found, Read::NoStream), "{found:?}");
    let held = b.hold(&mine, &name("s")?, B, Hold::Take).await?;
    claim!(matches!(held, Held::NoStream), "{held:?}");
    let entry = owned(mine, at(1, 2), "forged")?;
    claim_eq!(append(&a, &entry).await?, Appended::NoStream);
    claim_eq!(texts(&a, theirs, "s").await?, ["secret"]);
    Ok(())
}
