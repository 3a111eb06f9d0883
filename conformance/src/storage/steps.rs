//! Steps in short.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use mcp_adapter_core::{
    InstanceId, OutcomeKind, Position, PrincipalKey, RpcId, SessionId, SessionKey, SessionRecord,
    StreamId, WaiterToken,
    storage::{
        Append, Appended, Beat, Cursor, Entered, Held, Hold, NewEvent, NewSession, OpenStream,
        Place, Put, PutRequest, Read, RequestKey, RequestState, Settle, Settled, Storage,
        StoredEvent, StreamEnd, StreamState,
    },
};

use super::AnyStorage;
use crate::wait::Failure;

pub(crate) const A: InstanceId = InstanceId(0xa);
pub(crate) const B: InstanceId = InstanceId(0xb);
pub(crate) const C: InstanceId = InstanceId(0xc);
pub(crate) const ME: PrincipalKey = PrincipalKey([7; 32]);
pub(crate) const OTHER: PrincipalKey = PrincipalKey([8; 32]);
pub(crate) const LONG: Duration = Duration::from_secs(600);

pub(crate) type Step<T> = Result<T, Failure>;

pub(crate) fn at(epoch: u32, seq: u64) -> Position {
    Position::new(epoch, seq)
}

pub(crate) fn name(name: &str) -> Step<StreamId> {
    Ok(name.parse()?)
}

/// A key that nobody has used before.
pub(crate) fn key() -> SessionKey {
    SessionId::generate().key()
}

pub(crate) fn new_session(session: SessionKey) -> Step<NewSession> {
    Ok(NewSession {
        session,
        principal: ME,
        record: SessionRecord::default().encode()?,
        idle_ttl: LONG,
        absolute_ttl: None,
        creator: WaiterToken::generate(),
    })
}

/// A session that is there.
pub(crate) async fn session(store: &AnyStorage) -> Step<SessionKey> {
    let new = new_session(key())?;
    if store.create(&new).await? {
        return Ok(new.session);
    }
    Err(Failure::new("a new session was not created"))
}

pub(crate) fn open(stream: &str) -> Step<OpenStream> {
    Ok(OpenStream {
        stream: name(stream)?,
        owner: A,
        request: RpcId::Number(1),
        max_open: 128,
        max_principal_bytes: u64::MAX,
    })
}

/// A session with the open stream `s`, owned by `A`.
pub(crate) async fn stream(store: &AnyStorage) -> Step<SessionKey> {
    let session = session(store).await?;
    match store.enter(&session, &ME, Some(&open("s")?)).await? {
        Entered::Session { .. } => Ok(session),
        other => Err(Failure::new(format!("a stream was not opened: {other:?}"))),
    }
}

pub(crate) fn owned(session: SessionKey, position: Position, data: &str) -> Step<Append> {
    Ok(Append {
        session,
        stream: name("s")?,
        place: Place::Owned { owner: A, position },
        event: Some(NewEvent {
            prev: None,
            data: Bytes::copy_from_slice(data.as_bytes()),
        }),
        finish: None,
        end: StreamEnd::Finished,
        keep_events: 1000,
        keep_bytes: 1 << 20,
        trim: None,
        wake: None,
    })
}

pub(crate) fn shared(
    session: SessionKey,
    writer: InstanceId,
    tag: u64,
    data: &str,
) -> Step<Append> {
    Ok(Append {
        stream: StreamId::standalone(),
        place: Place::Shared { writer, tag },
        ..owned(session, Position::START, data)?
    })
}

/// The answer to one append.
pub(crate) async fn append(store: &AnyStorage, append: &Append) -> Step<Appended> {
    one(store.append(std::slice::from_ref(append)).await?)
}

/// Where it was stored.
pub(crate) async fn stored(store: &AnyStorage, entry: &Append) -> Step<Position> {
    match append(store, entry).await? {
        Appended::Stored { position, .. } => Ok(position),
        other => Err(Failure::new(format!("not stored: {other:?}"))),
    }
}

/// Each entry of a batch gets one answer.
pub(crate) fn one<T>(mut answers: Vec<T>) -> Step<T> {
    match (answers.pop(), answers.len()) {
        (Some(answer), 0) => Ok(answer),
        (_, more) => Err(Failure::new(format!(
            "{more} answers too many to a batch of one"
        ))),
    }
}

pub(crate) fn cursor(session: SessionKey, stream: &str) -> Step<Cursor> {
    Ok(Cursor {
        session,
        stream: name(stream)?,
        after: Position::START,
        max_events: 1000,
        max_bytes: 1 << 20,
        touch: false,
    })
}

pub(crate) async fn read(store: &AnyStorage, cursor: &Cursor) -> Step<Read> {
    one(store.read(std::slice::from_ref(cursor)).await?)
}

pub(crate) async fn page(
    store: &AnyStorage,
    cursor: &Cursor,
) -> Step<(Vec<StoredEvent>, StreamState)> {
    match read(store, cursor).await? {
        Read::Page { events, state } => Ok((events, state)),
        other => Err(Failure::new(format!("no page: {other:?}"))),
    }
}

pub(crate) async fn state(store: &AnyStorage, session: SessionKey) -> Step<StreamState> {
    Ok(page(store, &cursor(session, "s")?).await?.1)
}

/// The payloads of a stream.
pub(crate) async fn texts(
    store: &AnyStorage,
    session: SessionKey,
    stream: &str,
) -> Step<Vec<String>> {
    let (events, _) = page(store, &cursor(session, stream)?).await?;
    let text = |event: StoredEvent| {
        event.data.map_or_else(
            || "?".into(),
            |data| String::from_utf8_lossy(&data).into_owned(),
        )
    };
    Ok(events.into_iter().map(text).collect())
}

/// Number, former holder and cursor.
pub(crate) async fn hold(
    store: &AnyStorage,
    session: SessionKey,
    me: InstanceId,
    hold: Hold,
) -> Step<(u64, Option<InstanceId>, Position)> {
    match store.hold(&session, &name("s")?, me, hold).await? {
        Held::Done {
            number,
            former,
            cursor,
            ..
        } => Ok((number, former, cursor)),
        other => Err(Failure::new(format!("not held: {other:?}"))),
    }
}

pub(crate) fn request(session: SessionKey, id: i64) -> PutRequest {
    PutRequest {
        session,
        id: RpcId::Number(id),
        token: WaiterToken::generate(),
        owner: A,
        timeout: LONG,
        result_ttl: LONG,
        max_pending: 128,
    }
}

pub(crate) async fn put(store: &AnyStorage, request: &PutRequest) -> Step<Put> {
    one(store.put_requests(std::slice::from_ref(request)).await?)
}

pub(crate) fn answer(session: SessionKey, id: i64, payload: &str) -> Settle {
    Settle {
        session,
        id: RpcId::Number(id),
        token: None,
        outcome: OutcomeKind::Answered,
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        dead: None,
        attempt: WaiterToken::generate(),
    }
}

pub(crate) async fn settle(store: &AnyStorage, settle: &Settle) -> Step<Settled> {
    one(store.settle(std::slice::from_ref(settle)).await?)
}

pub(crate) async fn request_state(
    store: &AnyStorage,
    session: SessionKey,
    id: i64,
    token: Option<WaiterToken>,
) -> Step<RequestState> {
    let key = RequestKey {
        session,
        id: RpcId::Number(id),
        token,
    };
    one(store.requests(&[key]).await?)
}

/// Sessions, streams, events, bytes, pending requests.
pub(crate) async fn counts(store: &AnyStorage) -> Step<[u64; 5]> {
    let stats = store.stats().await?;
    let counts = [
        stats.sessions,
        stats.streams,
        stats.events,
        stats.bytes,
        stats.pending_requests,
    ];
    Ok(counts.map(mcp_adapter_core::Count::value))
}

pub(crate) async fn is_there(store: &AnyStorage, session: SessionKey) -> Step<bool> {
    let cursor = cursor(session, "never-opened")?;
    Ok(!matches!(read(store, &cursor).await?, Read::NoSession))
}

pub(crate) async fn beat(store: &AnyStorage, instance: InstanceId, count: u64) -> Step<Vec<Beat>> {
    let mut beats = store.heartbeat(Beat { instance, count }, LONG).await?;
    beats.sort_by_key(|beat| beat.instance);
    Ok(beats)
}

/// The next knock that is not a probe.
pub(crate) async fn knock(
    knocks: &mut futures::stream::BoxStream<
        'static,
        mcp_adapter_core::Result<mcp_adapter_core::storage::Knock>,
    >,
) -> Step<mcp_adapter_core::storage::Knock> {
    let next = crate::wait::within("a knock", Duration::from_secs(10), knocks.next());
    match next.await? {
        Some(knock) => Ok(knock?),
        None => Err(Failure::new("the doorbell ended")),
    }
}
