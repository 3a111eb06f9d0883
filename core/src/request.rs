//! Client requests: what a server asks its client (elicitation, sampling,
//! roots).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;

use crate::{
    adapter::Role,
    error::Result,
    id::{RpcId, SessionId, StreamId, WaiterToken},
};

/// How a client request ended; exactly one per request (clause C2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum OutcomeKind {
    /// The client answered with a result.
    Answered,
    /// The client answered with an error.
    Rejected,
    /// The deadline passed first.
    TimedOut,
    /// The asking call ended or withdrew it.
    Cancelled,
    /// The session was deleted or has expired.
    SessionEnded,
    /// The instance that asked is dead.
    OwnerLost,
    /// The same id was created again.
    Replaced,
    /// The backend has lost it.
    Lost,
}

impl OutcomeKind {
    /// Whether the client has answered, with a result or an error.
    #[must_use]
    pub const fn is_answer(self) -> bool {
        matches!(self, Self::Answered | Self::Rejected)
    }

    /// Its name in labels of metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Rejected => "rejected",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::SessionEnded => "session_ended",
            Self::OwnerLost => "owner_lost",
            Self::Replaced => "replaced",
            Self::Lost => "lost",
        }
    }
}

/// The outcome of a client request, with the client's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub kind: OutcomeKind,
    /// What the client sent, for [`OutcomeKind::Answered`] and
    /// [`OutcomeKind::Rejected`]; empty otherwise.
    pub payload: Bytes,
}

/// A client's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A result.
    Result(Bytes),
    /// An error.
    Error(Bytes),
}

/// What became of an answer (clause C2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// It is stored, and the waiter gets it. Exactly one of all answers.
    Delivered,
    /// The request had ended in this way.
    AlreadyEnded(OutcomeKind),
    /// Nobody asked in this session, or it was longer ago than `result_ttl`.
    Unknown,
}

/// A client request to be created.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NewClientRequest {
    /// Unique per JSON-RPC id and session; string ids of the fleet's own
    /// making never repeat (clause C3).
    pub id: RpcId,
    /// The deadline, from now; `None` and longer ones are `request_timeout`.
    pub timeout: Option<Duration>,
    /// The stream of the call that asks.
    pub stream: Option<StreamId>,
    /// Creating again with the same token is the same create (clause C7).
    pub token: WaiterToken,
}

impl NewClientRequest {
    /// A request with a fresh token and the default deadline.
    #[must_use]
    pub fn new(id: RpcId) -> Self {
        Self {
            id,
            timeout: None,
            stream: None,
            token: WaiterToken::generate(),
        }
    }

    /// Sets the deadline.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Names the stream of the call that asks.
    #[must_use]
    pub fn with_stream(mut self, stream: StreamId) -> Self {
        self.stream = Some(stream);
        self
    }
}

/// The wait for the one [`Outcome`]. Dropping it withdraws the request.
#[must_use = "dropping it withdraws the request"]
pub struct PendingRequest(BoxFuture<'static, Outcome>);

impl PendingRequest {
    /// Wraps a wait.
    pub fn new(wait: BoxFuture<'static, Outcome>) -> Self {
        Self(wait)
    }
}

impl Future for PendingRequest {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        self.0.as_mut().poll(context)
    }
}

impl fmt::Debug for PendingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingRequest")
    }
}

/// Pending client requests.
///
/// Every method may fail with
/// [`Unavailable`](crate::ErrorKind::Unavailable),
/// [`Timeout`](crate::ErrorKind::Timeout) (F1) or
/// [`Closed`](crate::ErrorKind::Closed).
#[async_trait]
pub trait ClientRequestAdapter: Role {
    /// Stores the request and listens for its answer; only after this returns
    /// may the request go to the client (C1). The wait has exactly one outcome
    /// (C2), at its deadline at the latest (C4). An earlier request of the same
    /// id ends as [`Replaced`](OutcomeKind::Replaced), wherever it waits (C7).
    ///
    /// # Errors
    /// [`SessionNotFound`](crate::ErrorKind::SessionNotFound);
    /// [`Overloaded`](crate::ErrorKind::Overloaded) with too many pending;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for an id that is
    /// too long.
    async fn create(
        &self,
        session: &SessionId,
        request: NewClientRequest,
    ) -> Result<PendingRequest>;

    /// Answers a request, at any instance (C2, C3, C5, C6).
    ///
    /// # Errors
    /// [`TooLarge`](crate::ErrorKind::TooLarge) for an answer over its limit:
    /// the request stays pending.
    async fn answer(&self, session: &SessionId, id: &RpcId, answer: Answer) -> Result<Delivery>;

    /// Withdraws a request: it ends as [`Cancelled`](OutcomeKind::Cancelled)
    /// unless it has ended. Returns how it ended, `None` if unknown.
    ///
    /// # Errors
    /// Only those named at the trait.
    async fn cancel(&self, session: &SessionId, id: &RpcId) -> Result<Option<OutcomeKind>>;

    /// Withdraws all requests that wait at this instance for the call whose
    /// stream this is (C4).
    ///
    /// # Errors
    /// Only those named at the trait.
    async fn withdraw(&self, session: &SessionId, stream: &StreamId) -> Result<()>;
}
