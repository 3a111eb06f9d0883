//! Steps in short.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use mcp_adapter_core::{
    InstanceId, OutcomeKind, Position, PrincipalKey, RpcId, SessionId, SessionKey, SessionRecord,
    StreamId, WaiterToken,
    storage::{
        Append, Appended, Beat, Cursor, Entered, Held, Hold, Knock, NewEvent, NewSession,
        OpenStream, Place, Put, PutRequest, Read, RequestKey, RequestState, Settle, Settled,
        Storage, StoredEvent, StreamEnd, StreamState, UpdateSession,
    },
};

use super::AnyStorage;
use crate::wait::{Failure, helper, within};

// Spread over all bits, as real ones are: so they can be told apart in messages,
// which show the first ones, and by a backend that stores them in pieces.
pub(crate) const A: InstanceId = InstanceId(0xaaaa_aaaa_0000_0000_0000_0000_0000_000a);
pub(crate) const B: InstanceId = InstanceId(0xbbbb_bbbb_0000_0000_0000_0000_0000_000b);
pub(crate) const C: InstanceId = InstanceId(0xcccc_cccc_0000_0000_0000_0000_0000_000c);
pub(crate) const ME: PrincipalKey = PrincipalKey([7; 32]);
pub(crate) const OTHER: PrincipalKey = PrincipalKey([8; 32]);
pub(crate) const LONG: Duration = Duration::from_secs(600);
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

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
#[track_caller]
pub(crate) fn session(store: &AnyStorage) -> impl Future<Output = Step<SessionKey>> {
    helper(async move {
        let new = new_session(key())?;
        if store.create(&new).await? {
            return Ok(new.session);
        }
        Err(Failure::new("a new session was not created"))
    })
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
#[track_caller]
pub(crate) fn stream(store: &AnyStorage) -> impl Future<Output = Step<SessionKey>> {
    helper(async move {
        let session = session(store).await?;
        match store.enter(&session, &ME, Some(&open("s")?)).await? {
            Entered::Session { .. } => Ok(session),
            other => Err(Failure::new(format!("a stream was not opened: {other:?}"))),
        }
    })
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
#[track_caller]
pub(crate) fn append(store: &AnyStorage, append: &Append) -> impl Future<Output = Step<Appended>> {
    helper(async move { one(store.append(std::slice::from_ref(append)).await?) })
}

/// Where it was stored.
#[track_caller]
pub(crate) fn stored(store: &AnyStorage, entry: &Append) -> impl Future<Output = Step<Position>> {
    helper(async move {
        match append(store, entry).await? {
            Appended::Stored { position, .. } => Ok(position),
            other => Err(Failure::new(format!(
                "`append` of {:?} answered {other:?}, not `Stored`",
                entry.place
            ))),
        }
    })
}

/// Each entry of a batch gets one answer.
pub(crate) fn one<T>(mut answers: Vec<T>) -> Step<T> {
    match (answers.pop(), answers.len()) {
        (Some(answer), 0) => Ok(answer),
        (None, _) => Err(Failure::new("no answer to a batch of one")),
        (Some(_), more) => Err(Failure::new(format!(
            "{} answers to a batch of one",
            more + 1
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

#[track_caller]
pub(crate) fn read(store: &AnyStorage, cursor: &Cursor) -> impl Future<Output = Step<Read>> {
    helper(async move { one(store.read(std::slice::from_ref(cursor)).await?) })
}

#[track_caller]
pub(crate) fn page(
    store: &AnyStorage,
    cursor: &Cursor,
) -> impl Future<Output = Step<(Vec<StoredEvent>, StreamState)>> {
    helper(async move {
        match read(store, cursor).await? {
            Read::Page { events, state } => Ok((events, state)),
            other => Err(Failure::new(format!(
                "`read` of {:?} answered {other:?}, not `Page`",
                cursor.stream
            ))),
        }
    })
}

#[track_caller]
pub(crate) fn state(
    store: &AnyStorage,
    session: SessionKey,
) -> impl Future<Output = Step<StreamState>> {
    helper(async move { Ok(page(store, &cursor(session, "s")?).await?.1) })
}

/// The payloads of a stream.
#[track_caller]
pub(crate) fn texts(
    store: &AnyStorage,
    session: SessionKey,
    stream: &str,
) -> impl Future<Output = Step<Vec<String>>> {
    helper(async move {
        let (events, _) = page(store, &cursor(session, stream)?).await?;
        let text = |event: StoredEvent| {
            event.data.map_or_else(
                || "?".into(),
                |data| String::from_utf8_lossy(&data).into_owned(),
            )
        };
        Ok(events.into_iter().map(text).collect())
    })
}

/// Number, former holder and cursor.
#[track_caller]
pub(crate) fn hold(
    store: &AnyStorage,
    session: SessionKey,
    me: InstanceId,
    hold: Hold,
) -> impl Future<Output = Step<(u64, Option<InstanceId>, Position)>> {
    helper(async move {
        let change = hold;
        match store.hold(&session, &name("s")?, me, change).await? {
            Held::Done {
                number,
                former,
                cursor,
                ..
            } => Ok((number, former, cursor)),
            other => Err(Failure::new(format!(
                "`hold` with {change:?} by {me:?} answered {other:?}, not `Done`"
            ))),
        }
    })
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

#[track_caller]
pub(crate) fn put(store: &AnyStorage, request: &PutRequest) -> impl Future<Output = Step<Put>> {
    helper(async move { one(store.put_requests(std::slice::from_ref(request)).await?) })
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

#[track_caller]
pub(crate) fn settle(store: &AnyStorage, settle: &Settle) -> impl Future<Output = Step<Settled>> {
    helper(async move { one(store.settle(std::slice::from_ref(settle)).await?) })
}

#[track_caller]
pub(crate) fn request_state(
    store: &AnyStorage,
    session: SessionKey,
    id: i64,
    token: Option<WaiterToken>,
) -> impl Future<Output = Step<RequestState>> {
    helper(async move {
        let key = RequestKey {
            session,
            id: RpcId::Number(id),
            token,
        };
        one(store.requests(&[key]).await?)
    })
}

/// Sessions, streams, events, bytes, pending requests.
#[track_caller]
pub(crate) fn counts(store: &AnyStorage) -> impl Future<Output = Step<[u64; 5]>> {
    helper(async move {
        let stats = store.stats().await?;
        let counts = [
            stats.sessions,
            stats.streams,
            stats.events,
            stats.bytes,
            stats.pending_requests,
        ];
        Ok(counts.map(mcp_adapter_core::Count::value))
    })
}

#[track_caller]
pub(crate) fn is_there(
    store: &AnyStorage,
    session: SessionKey,
) -> impl Future<Output = Step<bool>> {
    helper(async move {
        let cursor = cursor(session, "never-opened")?;
        Ok(!matches!(read(store, &cursor).await?, Read::NoSession))
    })
}

#[track_caller]
pub(crate) fn beat(
    store: &AnyStorage,
    instance: InstanceId,
    count: u64,
) -> impl Future<Output = Step<Vec<Beat>>> {
    helper(async move {
        let mut beats = store.heartbeat(Beat { instance, count }, LONG).await?;
        beats.sort_by_key(|beat| beat.instance);
        Ok(beats)
    })
}

/// The next knock, which `what` must cause.
#[track_caller]
pub(crate) fn knock(
    what: &str,
    knocks: &mut BoxStream<'static, mcp_adapter_core::Result<Knock>>,
) -> impl Future<Output = Step<Knock>> {
    helper(async move {
        match within(what, PATIENCE, knocks.next()).await? {
            Some(knock) => Ok(knock?),
            None => Err(Failure::new(format!("the doorbell ended before {what}"))),
        }
    })
}

/// An update, of a new name.
pub(crate) fn update(session: SessionKey, revision: u64, record: Bytes) -> UpdateSession {
    UpdateSession {
        session,
        principal: ME,
        revision,
        record,
        attempt: WaiterToken::generate(),
    }
}
