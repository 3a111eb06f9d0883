//! Steps in short.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_core::{
    Error, InstanceId, Position, PrincipalKey, SessionId, SessionKey, StreamId, WaiterToken,
    storage::{Append, Appended, Cursor, NewEvent, NewSession, Place, Read, Storage, StreamEnd},
};
use mcp_adapter_sqlite::{SqliteError, SqliteStorage};

pub(crate) const LONG: Duration = Duration::from_secs(600);
pub(crate) const ME: PrincipalKey = PrincipalKey([7; 32]);

/// What an error says of the file.
pub(crate) fn cause(error: &Error) -> SqliteError {
    let source = std::error::Error::source(error).expect("an error of the file has a source");
    source
        .downcast_ref::<SqliteError>()
        .expect("the source is a SqliteError")
        .clone()
}

pub(crate) fn new_session() -> NewSession {
    NewSession {
        session: SessionId::generate().key(),
        principal: ME,
        record: Bytes::from_static(b"{}"),
        idle_ttl: LONG,
        absolute_ttl: None,
        creator: WaiterToken::generate(),
    }
}

pub(crate) async fn session(store: &SqliteStorage) -> SessionKey {
    let new = new_session();
    assert!(store.create(&new).await.unwrap());
    new.session
}

pub(crate) fn shared(session: SessionKey, writer: u128, tag: u64, data: &[u8]) -> Append {
    Append {
        session,
        stream: StreamId::standalone(),
        place: Place::Shared {
            writer: InstanceId(writer),
            tag,
        },
        event: Some(NewEvent {
            prev: None,
            data: Bytes::copy_from_slice(data),
        }),
        finish: None,
        end: StreamEnd::Finished,
        keep_events: 1 << 20,
        keep_bytes: 1 << 30,
        trim: None,
        wake: None,
    }
}

pub(crate) async fn store(store: &SqliteStorage, append: &Append) -> Result<Position, Error> {
    match store.append(std::slice::from_ref(append)).await?[..] {
        [Appended::Stored { position, .. }] => Ok(position),
        ref other => panic!("{other:?}"),
    }
}

/// The payloads of the standalone stream.
pub(crate) async fn texts(store: &SqliteStorage, session: SessionKey) -> Vec<String> {
    let cursor = Cursor {
        session,
        stream: StreamId::standalone(),
        after: Position::START,
        max_events: usize::MAX,
        max_bytes: usize::MAX,
        touch: false,
    };
    match store.read(&[cursor]).await.unwrap().pop() {
        Some(Read::Page { events, .. }) => events
            .into_iter()
            .map(|event| String::from_utf8_lossy(&event.data.unwrap()).into_owned())
            .collect(),
        other => panic!("{other:?}"),
    }
}
