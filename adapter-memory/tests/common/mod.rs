//! Steps in short.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use mcp_adapter_core::{
    InstanceId, OutcomeKind, Position, PrincipalKey, Result, RpcId, SessionKey, StreamId,
    WaiterToken,
    storage::{
        Append, Appended, Cursor, Entered, Held, Hold, NewEvent, NewSession, OpenStream, Place,
        Put, PutRequest, Read, RequestKey, RequestState, Settle, Settled, Storage as _,
        StoredEvent, StreamEnd, StreamState, UpdateSession,
    },
};
pub(crate) use mcp_adapter_memory::MemoryStorage;

pub(crate) const A: InstanceId = InstanceId(1);
pub(crate) const B: InstanceId = InstanceId(2);
pub(crate) const ME: PrincipalKey = PrincipalKey([7; 32]);
pub(crate) const IDLE: Duration = Duration::from_secs(100);
pub(crate) const KEPT: Duration = Duration::from_secs(10);

/// The answer of a step, which is there at the first poll.
pub(crate) fn now<T>(step: impl Future<Output = Result<T>>) -> T {
    step.now_or_never()
        .expect("the first poll completes it")
        .unwrap()
}

pub(crate) fn key(number: u64) -> SessionKey {
    format!("session-{number}")
        .parse::<mcp_adapter_core::SessionId>()
        .unwrap()
        .key()
}

pub(crate) fn name(name: &str) -> StreamId {
    name.parse().unwrap()
}

pub(crate) fn at(epoch: u32, seq: u64) -> Position {
    Position::new(epoch, seq)
}

pub(crate) fn new_session(session: SessionKey) -> NewSession {
    NewSession {
        session,
        principal: ME,
        record: Bytes::from_static(b"record"),
        idle_ttl: IDLE,
        absolute_ttl: None,
        creator: WaiterToken(1),
    }
}

/// A store with the session `key(1)`.
pub(crate) fn store() -> (MemoryStorage, SessionKey) {
    let store = MemoryStorage::new();
    assert!(now(store.create(&new_session(key(1)))));
    (store, key(1))
}

pub(crate) fn open(stream: &str) -> OpenStream {
    OpenStream {
        stream: name(stream),
        owner: A,
        request: RpcId::Number(1),
        max_open: 128,
        max_principal_bytes: u64::MAX,
    }
}

pub(crate) fn enter(
    store: &MemoryStorage,
    session: SessionKey,
    open: Option<&OpenStream>,
) -> Entered {
    now(store.enter(&session, &ME, open))
}

pub(crate) fn is_there(store: &MemoryStorage, session: SessionKey) -> bool {
    matches!(
        read(store, session, "nothing", Position::START),
        Read::NoStream
    )
}

/// A store with a session and its stream "s", owned by `A`.
pub(crate) fn stream() -> (MemoryStorage, SessionKey) {
    let (store, session) = store();
    let entered = enter(&store, session, Some(&open("s")));
    assert!(matches!(entered, Entered::Session { .. }));
    (store, session)
}

pub(crate) fn owned(session: SessionKey, stream: &str, position: Position, data: &str) -> Append {
    Append {
        session,
        stream: name(stream),
        place: Place::Owned { owner: A, position },
        event: Some(NewEvent {
            prev: None,
            data: Bytes::copy_from_slice(data.as_bytes()),
        }),
        finish: None,
        end: StreamEnd::Finished,
        keep_events: usize::MAX,
        keep_bytes: usize::MAX,
        trim: None,
        wake: None,
    }
}

pub(crate) fn shared(session: SessionKey, writer: InstanceId, tag: u64, data: &str) -> Append {
    Append {
        stream: StreamId::standalone(),
        place: Place::Shared { writer, tag },
        ..owned(session, "standalone", Position::START, data)
    }
}

pub(crate) fn append(store: &MemoryStorage, append: &Append) -> Appended {
    now(store.append(std::slice::from_ref(append)))[0]
}

pub(crate) fn stored_at(appended: Appended) -> Position {
    match appended {
        Appended::Stored { position, .. } => position,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn cursor(session: SessionKey, stream: &str, after: Position) -> Cursor {
    Cursor {
        session,
        stream: name(stream),
        after,
        max_events: usize::MAX,
        max_bytes: usize::MAX,
        touch: false,
    }
}

pub(crate) fn read(
    store: &MemoryStorage,
    session: SessionKey,
    stream: &str,
    after: Position,
) -> Read {
    now(store.read(&[cursor(session, stream, after)])).remove(0)
}

pub(crate) fn page(store: &MemoryStorage, cursor: &Cursor) -> (Vec<StoredEvent>, StreamState) {
    match now(store.read(std::slice::from_ref(cursor))).remove(0) {
        Read::Page { events, state } => (events, state),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn state(store: &MemoryStorage, session: SessionKey, stream: &str) -> StreamState {
    page(store, &cursor(session, stream, Position::START)).1
}

/// Positions and payloads of all events.
pub(crate) fn events(
    store: &MemoryStorage,
    session: SessionKey,
    stream: &str,
) -> Vec<(Position, String)> {
    page(store, &cursor(session, stream, Position::START))
        .0
        .into_iter()
        .map(|event| {
            let data = event.data.unwrap().to_vec();
            (event.position, String::from_utf8(data).unwrap())
        })
        .collect()
}

pub(crate) fn hold(
    store: &MemoryStorage,
    session: SessionKey,
    stream: &str,
    me: InstanceId,
    hold: Hold,
) -> Held {
    now(store.hold(&session, &name(stream), me, hold))
}

/// Number, former holder and cursor.
pub(crate) fn held(held: &Held) -> (u64, Option<InstanceId>, Position) {
    match held {
        Held::Done {
            number,
            former,
            cursor,
            ..
        } => (*number, *former, *cursor),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn request(session: SessionKey, id: i64, token: u128) -> PutRequest {
    PutRequest {
        session,
        id: RpcId::Number(id),
        token: WaiterToken(token),
        owner: A,
        timeout: Duration::from_secs(20),
        result_ttl: KEPT,
        max_pending: 128,
    }
}

pub(crate) fn put(store: &MemoryStorage, request: &PutRequest) -> Put {
    now(store.put_requests(std::slice::from_ref(request)))[0]
}

pub(crate) fn answer(session: SessionKey, id: i64, attempt: u128) -> Settle {
    Settle {
        session,
        id: RpcId::Number(id),
        token: None,
        outcome: OutcomeKind::Answered,
        payload: Bytes::from(format!("answer {attempt}")),
        dead: None,
        attempt: WaiterToken(attempt),
    }
}

pub(crate) fn settle(store: &MemoryStorage, settle: &Settle) -> Settled {
    now(store.settle(std::slice::from_ref(settle)))[0]
}

pub(crate) fn outcome(
    store: &MemoryStorage,
    session: SessionKey,
    id: i64,
    token: Option<u128>,
) -> RequestState {
    let key = RequestKey {
        session,
        id: RpcId::Number(id),
        token: token.map(WaiterToken),
    };
    now(store.requests(&[key])).remove(0)
}

/// Sessions, streams, events, bytes, pending requests.
pub(crate) fn stats(store: &MemoryStorage) -> [u64; 5] {
    let stats = now(store.stats());
    [
        stats.sessions,
        stats.streams,
        stats.events,
        stats.bytes,
        stats.pending_requests,
    ]
    .map(|count| {
        assert!(matches!(count, mcp_adapter_core::Count::Exact(_)));
        count.value()
    })
}

/// An update, of a new name.
pub(crate) fn update(session: SessionKey, revision: u64, record: &[u8]) -> UpdateSession {
    UpdateSession {
        session,
        principal: ME,
        revision,
        record: Bytes::copy_from_slice(record),
        attempt: WaiterToken::generate(),
    }
}
