//! Sessions and their event streams.

use std::{
    collections::BTreeSet,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    FutureExt as _, Stream, TryFutureExt as _,
    future::{self, BoxFuture, Either, Ready},
    stream::BoxStream,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    adapter::Role,
    error::{Error, ErrorKind, Result},
    id::{EventId, Position, Principal, RpcId, SessionId, StreamId},
};

/// What is known of a session. It round-trips exactly, fields unknown to this
/// version included (clause S2).
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The negotiated protocol version.
    pub protocol: String,
    /// The client's `clientInfo`, as it was sent.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub client: Value,
    /// The client's `capabilities`, as they were sent.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub capabilities: Value,
    /// Who the session belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Principal>,
    /// Whether the client has sent `notifications/initialized`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub initialized: bool,
    /// The level of `logging/setLevel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
    /// URIs of `resources/subscribe`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub subscriptions: BTreeSet<String>,
    /// State of the application, shared by all instances; at most
    /// [`MAX_STATE_BYTES`](crate::MAX_STATE_BYTES) of JSON.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub state: Value,
    /// Fields of other versions and of layers above.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn is_false(value: &bool) -> bool {
    !value
}

impl fmt::Debug for SessionRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionRecord")
            .field("protocol", &self.protocol)
            .field("principal", &self.principal)
            .field("initialized", &self.initialized)
            .finish_non_exhaustive()
    }
}

/// The newest record format that this version reads and writes (clause F5).
const RECORD_FORMAT: u64 = 1;

/// The record is a field of its own: its names are not ours alone to give.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    #[serde(rename = "v")]
    format: u64,
    #[serde(rename = "r")]
    record: T,
}

impl SessionRecord {
    /// The record as backends store it: versioned JSON.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] where the shared state exceeds its limit.
    pub fn encode(&self) -> Result<Bytes> {
        let invalid =
            |error| Error::new(ErrorKind::InvalidArgument, "session record").with_source(error);
        if !self.state.is_null() {
            let bytes = serde_json::to_vec(&self.state).map_err(invalid)?.len();
            if bytes > crate::MAX_STATE_BYTES {
                return Err(Error::new(ErrorKind::TooLarge, "session state"));
            }
        }
        let versioned = Versioned {
            format: RECORD_FORMAT,
            record: self,
        };
        Ok(serde_json::to_vec(&versioned).map_err(invalid)?.into())
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`ErrorKind::UnsupportedFormat`] for a record of a newer version,
    /// [`ErrorKind::Corrupt`] for anything else that cannot be read.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            #[serde(rename = "v")]
            format: u64,
        }
        let corrupt = |error| Error::new(ErrorKind::Corrupt, "session record").with_source(error);
        let Format { format } = serde_json::from_slice(bytes).map_err(corrupt)?;
        if format > RECORD_FORMAT {
            return Err(Error::new(ErrorKind::UnsupportedFormat, "session record"));
        }
        let versioned: Versioned<Self> = serde_json::from_slice(bytes).map_err(corrupt)?;
        Ok(versioned.record)
    }
}

/// A session as it was read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Session {
    /// Its record.
    pub record: Arc<SessionRecord>,
    /// Raised by every [`update`](SessionAdapter::update).
    pub revision: u64,
}

impl Session {
    /// A session.
    #[must_use]
    pub fn new(record: impl Into<Arc<SessionRecord>>, revision: u64) -> Self {
        Self {
            record: record.into(),
            revision,
        }
    }
}

/// The answer of [`SessionAdapter::enter`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Entered {
    /// The session.
    pub session: Session,
    /// The writer of the stream, where one was to be opened.
    pub writer: Option<Box<dyn StreamWriter>>,
}

impl Entered {
    /// An answer.
    #[must_use]
    pub fn new(session: Session, writer: Option<Box<dyn StreamWriter>>) -> Self {
        Self { session, writer }
    }
}

/// Where a [`tail`](SessionAdapter::tail) begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TailFrom {
    /// Strictly after this event, on its stream. Takes the stream of a call over
    /// from whoever holds it (clause E9). Of the standalone stream it is
    /// [`Returning`](Self::Returning), with no hold.
    After(EventId),
    /// The standalone stream, from where its former holder let go of it; where
    /// that is, [`TailEvent::Begins`] tells. Where it is held, this tail stays
    /// silent until it is free (clause E9).
    Standalone,
    /// The standalone stream, for a client that has read it before and comes back
    /// (clause E9).
    ///
    /// Several clients of one session may listen, one after another: each hold of
    /// the stream has a part of its events, and the hold that an event or a
    /// [`TailEvent::Begins`] belongs to tells who comes back. If no other hold began
    /// since, the client goes on with its own, strictly after `after`, and the tail
    /// that has it now, whose socket must be dead, waits silently. Otherwise it gets
    /// what of its own hold it has not read, and then waits for its turn as
    /// [`Standalone`](Self::Standalone) does: what others have read it does not get.
    ///
    /// Say that clients X and Y listen. X reads events 1 to 5, its connection breaks
    /// while 6 is under way, and Y is told "begins after 6" and reads 7 and 8. X comes
    /// back after 5: it gets 6, which was its own, and waits. When Y goes, X begins
    /// after 8. Had Y not listened, X would have got 6, 7 and 8 at once.
    ///
    /// A client that has read nothing of its hold, not even
    /// [`TailEvent::Begins`], cannot say that it was its own: what was sent to it is
    /// lost.
    Returning {
        /// The last position that it has read.
        after: Position,
        /// [`TailEvent::Begins::hold`], if that was the last that it read: at the
        /// position alone the hold before may have ended.
        hold: Option<u64>,
    },
}

/// Why a tail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndReason {
    /// The stream is finished and all of it was yielded.
    Finished,
    /// The session was deleted or has expired.
    SessionEnded,
    /// Another tail has taken the stream over (clause E9).
    Superseded,
    /// The instance that wrote the stream is dead (clause F3).
    OwnerLost,
    /// As [`OwnerLost`](Self::OwnerLost), after the call was cancelled: its client
    /// expects nothing any more.
    Cancelled,
    /// Nothing is stored of the stream, or its id is forged (clause E5).
    StreamGone,
    /// The backend was away for longer than `max_outage` (clause F1).
    Outage,
    /// This instance is closing.
    Closed,
}

/// What a [`Tail`] yields.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TailEvent {
    /// A tail [of the standalone stream](TailFrom::Standalone) holds it from now
    /// on, and everything after this position follows: who
    /// [comes back](TailFrom::Returning) from it misses nothing. It may come again,
    /// where another tail went on with the hold meanwhile.
    Begins {
        /// The position, in the form of an event's id; there need be no event.
        after: EventId,
        /// The number of the hold.
        hold: u64,
    },
    /// The next event of the stream.
    Event {
        /// Its id.
        id: EventId,
        /// Its bytes, as they went in (clause E7).
        data: Bytes,
        /// Whether the stream is finished with it. `false` tells nothing: the end
        /// may be known only later.
        last: bool,
    },
    /// The result of a call that the backend is too far away to store, for the
    /// socket that is attached at its writer. It has no id (clause F1).
    Unstored {
        /// Its bytes.
        data: Bytes,
    },
    /// Events between the last one and the next were evicted, expired, lost or
    /// cannot be read (clause E5). The tail goes on after it.
    Gap {
        /// The oldest event that is still there.
        oldest: Option<EventId>,
    },
    /// The tail has ended; nothing follows.
    End(EndReason),
}

/// A live stream of events: the stored ones first, then those that are
/// appended anywhere, without a gap or a duplicate at the seam (clause E2). The
/// last item is always [`TailEvent::End`]. Dropping it lets go of the stream.
pub struct Tail(BoxStream<'static, TailEvent>);

impl Tail {
    /// Wraps a stream that keeps the rules above.
    #[must_use]
    pub fn new(stream: BoxStream<'static, TailEvent>) -> Self {
        Self(stream)
    }
}

impl Stream for Tail {
    type Item = TailEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TailEvent>> {
        self.0.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tail")
    }
}

/// The answer of [`SessionAdapter::replay`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replay {
    /// The events and gaps after the cursor; no [`TailEvent::End`].
    pub events: Vec<TailEvent>,
    /// Whether there is more to read than was asked for.
    pub more: bool,
    /// Why nothing will be added any more, if so.
    pub end: Option<EndReason>,
}

impl Replay {
    /// An answer.
    #[must_use]
    pub fn new(events: Vec<TailEvent>, more: bool, end: Option<EndReason>) -> Self {
        Self { events, more, end }
    }
}

/// Why the writer of a stream must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Revocation {
    /// The client cancelled the call, at this or any other instance.
    Cancelled,
    /// The session was deleted or has expired.
    SessionEnded,
    /// Others took this instance for dead and ended the stream (clause F3).
    Fenced,
}

/// The answer to a write, which comes once the write is stored. Dropping it
/// takes nothing back.
#[must_use = "it tells whether the write was stored"]
pub struct Ack<T>(Either<Ready<Result<T>>, BoxFuture<'static, Result<T>>>);

impl<T> Ack<T> {
    /// An answer that is there.
    pub fn ready(answer: Result<T>) -> Self {
        Self(Either::Left(future::ready(answer)))
    }

    /// An answer to wait for.
    pub fn wait(answer: BoxFuture<'static, Result<T>>) -> Self {
        Self(Either::Right(answer))
    }
}

impl<T: Send + 'static> Ack<T> {
    pub(crate) fn map<U>(self, map: impl FnOnce(T) -> U + Send + 'static) -> Ack<U> {
        match self.0 {
            Either::Left(ready) => Ack::ready(ready.into_inner().map(map)),
            Either::Right(wait) => Ack::wait(wait.map_ok(map).boxed()),
        }
    }
}

impl<T> Future for Ack<T> {
    type Output = Result<T>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> fmt::Debug for Ack<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ack")
    }
}

/// The only writer of a call's stream.
///
/// Dropping it abandons the stream: it ends without a terminal event.
#[async_trait]
pub trait StreamWriter: fmt::Debug + Send + Sync {
    /// The stream.
    fn stream(&self) -> &StreamId;

    /// Appends an event. Its place in the stream is fixed when this returns;
    /// the answer is its id.
    ///
    /// # Errors
    /// [`TooLarge`](ErrorKind::TooLarge) and [`Overloaded`](ErrorKind::Overloaded)
    /// change nothing (E4, F4); [`SessionNotFound`](ErrorKind::SessionNotFound)
    /// (E6), [`Finished`](ErrorKind::Finished) (E8) and
    /// [`Fenced`](ErrorKind::Fenced) (E1) are final; the others tell by
    /// [`applied`](Error::applied) whether the event may be there.
    fn append(&self, event: Bytes) -> Ack<EventId>;

    /// Appends the terminal event, if any, and finishes the stream, in one
    /// write (E8). Kept up for `max_outage` while the backend is away (F1).
    ///
    /// # Errors
    /// As [`append`](Self::append).
    fn finish(&self, event: Option<Bytes>) -> Ack<Option<EventId>>;

    /// The stream from its first event, for the socket of the request that
    /// opened it. It costs no call to the backend, and yields events before
    /// they are acknowledged while this instance is surely alive.
    fn attach(&self) -> Tail;

    /// Ends every tail of this stream that a client holds; the stream itself
    /// goes on and can be resumed.
    fn detach(&self);

    /// Completes when the writer must stop.
    async fn revoked(&self) -> Revocation;
}

/// What [`SessionAdapter::cancel`] found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Cancelled {
    /// The running call whose stream this is was marked; its writer sees it
    /// within `catch_up`.
    Marked(StreamId),
    /// No call with this id runs.
    NotRunning,
    /// Several calls with this id run: none was marked, for a wrong cancel
    /// kills somebody else's call.
    Ambiguous,
}

/// A count for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Count {
    /// As of now.
    Exact(u64),
    /// Of a while ago.
    Estimate {
        /// The count.
        value: u64,
        /// How old it is.
        age: Duration,
    },
}

impl Count {
    /// The number.
    #[must_use]
    pub fn value(self) -> u64 {
        match self {
            Self::Exact(value) | Self::Estimate { value, .. } => value,
        }
    }
}

/// What is stored (clause S6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stats {
    /// Live sessions.
    pub sessions: Count,
    /// Streams, finished ones included.
    pub streams: Count,
    /// Stored events.
    pub events: Count,
    /// Their bytes.
    pub bytes: Count,
    /// Pending client requests.
    pub pending_requests: Count,
}

impl Stats {
    /// Counts, in the order of the fields.
    #[must_use]
    pub fn new(counts: [Count; 5]) -> Self {
        let [sessions, streams, events, bytes, pending_requests] = counts;
        Self {
            sessions,
            streams,
            events,
            bytes,
            pending_requests,
        }
    }
}

/// Sessions and their event streams: one trait, because deleting a session
/// takes its events along in one step.
///
/// Every method may fail with [`Unavailable`](ErrorKind::Unavailable) or
/// [`Timeout`](ErrorKind::Timeout) within `operation_timeout` (F1), and with
/// [`Closed`](ErrorKind::Closed) after the instance was closed.
#[async_trait]
pub trait SessionAdapter: Role {
    /// Creates a session that belongs to the record's principal (S1, S2, S3).
    ///
    /// # Errors
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) on a live id;
    /// [`TooLarge`](ErrorKind::TooLarge) for a state over its limit.
    async fn create(&self, id: &SessionId, record: SessionRecord) -> Result<Session>;

    /// Reads a session for a request of `principal`, slides its expiry (S3)
    /// and opens a stream for the call `open`, all in one round trip. A call's
    /// stream has one writer, the one returned (E1).
    ///
    /// # Errors
    /// [`SessionNotFound`](ErrorKind::SessionNotFound), also for another
    /// principal; [`Overloaded`](ErrorKind::Overloaded) with too many open
    /// streams and [`QuotaExceeded`](ErrorKind::QuotaExceeded) over the
    /// principal's bytes (E4);
    /// [`UnsupportedFormat`](ErrorKind::UnsupportedFormat) for a record of a
    /// newer version, which is not absent (F5).
    async fn enter(
        &self,
        id: &SessionId,
        principal: Option<&Principal>,
        open: Option<&RpcId>,
    ) -> Result<Entered>;

    /// Replaces the record if the stored revision is still `revision`; returns
    /// the new one. The principal cannot change (S2): under another one than the
    /// record's the session does not exist.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict): read again and decide again.
    /// [`SessionNotFound`](ErrorKind::SessionNotFound): no update brings a
    /// session back (S4).
    async fn update(&self, id: &SessionId, revision: u64, record: SessionRecord) -> Result<u64>;

    /// Removes the session, its streams and its client requests in one step
    /// (S4). `false`: `principal` has no such session.
    ///
    /// # Errors
    /// Only those named at the trait.
    async fn delete(&self, id: &SessionId, principal: Option<&Principal>) -> Result<bool>;

    /// Appends to the standalone stream, which any instance may write (E1).
    ///
    /// # Errors
    /// As [`StreamWriter::append`].
    async fn append(&self, id: &SessionId, event: Bytes) -> Result<EventId>;

    /// Follows a stream (E2, E5, E9).
    ///
    /// # Errors
    /// [`SessionNotFound`](ErrorKind::SessionNotFound);
    /// [`StreamGone`](ErrorKind::StreamGone) for a stream that is not there,
    /// told only after `catch_up`, since it may be about to be opened;
    /// [`Overloaded`](ErrorKind::Overloaded) with too many silent tails.
    async fn tail(&self, id: &SessionId, from: TailFrom) -> Result<Tail>;

    /// Reads up to `max` events strictly after `after` and does not wait (E2).
    ///
    /// # Errors
    /// As [`tail`](Self::tail).
    async fn replay(&self, id: &SessionId, after: &EventId, max: usize) -> Result<Replay>;

    /// Marks the running call `request` as cancelled, durably.
    ///
    /// # Errors
    /// [`SessionNotFound`](ErrorKind::SessionNotFound).
    async fn cancel(&self, id: &SessionId, request: &RpcId) -> Result<Cancelled>;

    /// What is stored, cheap enough to ask every ten seconds (S6).
    ///
    /// # Errors
    /// Only those named at the trait.
    async fn stats(&self) -> Result<Stats>;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_round_trip_with_unknown_fields() {
        let json = json!({"v": 1, "r": {"protocol": "2025-11-25", "log_level": "debug",
            "client": {"name": "x", "n": null}, "from_the_future": [1, {"a": 1.5}], "v": "mine"}});
        let record = SessionRecord::decode(json.to_string().as_bytes()).unwrap();
        let again: Value = serde_json::from_slice(&record.encode().unwrap()).unwrap();
        assert_eq!(again, json);
    }

    #[test]
    fn a_newer_record_is_not_absent_and_not_corrupt() {
        let kind = |text: &str| SessionRecord::decode(text.as_bytes()).unwrap_err().kind();
        assert_eq!(
            kind(r#"{"v":2,"protocol":7}"#),
            ErrorKind::UnsupportedFormat
        );
        assert_eq!(kind(r#"{"v":1}"#), ErrorKind::Corrupt);
        assert_eq!(kind("\u{1}"), ErrorKind::Corrupt);
    }

    #[test]
    fn a_state_over_the_limit_is_too_large() {
        let record = |bytes| SessionRecord {
            state: Value::String("x".repeat(bytes - 2)),
            ..SessionRecord::default()
        };
        assert!(record(crate::MAX_STATE_BYTES).encode().is_ok());
        let over = record(crate::MAX_STATE_BYTES + 1).encode();
        assert_eq!(over.unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
