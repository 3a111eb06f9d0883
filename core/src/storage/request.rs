//! Steps on client requests.

use std::time::Duration;

use bytes::Bytes;

use super::Dead;
use crate::{
    id::{InstanceId, RpcId, SessionKey, WaiterToken},
    request::OutcomeKind,
};

/// A client request to be stored.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PutRequest {
    /// The session.
    pub session: SessionKey,
    /// The request's id.
    pub id: RpcId,
    /// The waiter: a repeat has the same. The repeat of a waiter that was
    /// replaced changes nothing, either, and the answer is [`Put::Done`]: keep the
    /// last [`REMEMBERED`](super::REMEMBERED) waiters that the id has had.
    pub token: WaiterToken,
    /// Where it waits.
    pub owner: InstanceId,
    /// When it can no longer be answered, from now.
    pub timeout: Duration,
    /// How long its outcome is kept after its end.
    pub result_ttl: Duration,
    /// Pending requests that the session may have, this one included and one
    /// that it replaces not.
    pub max_pending: usize,
}

/// The answer to one [`PutRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Put {
    /// Stored, now or by an earlier try, replaced since or not.
    Done,
    /// Stored in place of one that waits there: its owner, at which the engine
    /// knocks. A repeat may say `Done`. In place of one that has ended the answer
    /// is `Done`.
    Replaced(InstanceId),
    /// Too many pending.
    TooMany,
    /// No such session.
    NoSession,
}

/// The end of a client request: sets the outcome if it is pending and before
/// its deadline, and wakes its owner in the same step.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Settle {
    /// The session.
    pub session: SessionKey,
    /// The request's id.
    pub id: RpcId,
    /// Only if this is the waiter.
    pub token: Option<WaiterToken>,
    /// The outcome.
    pub outcome: OutcomeKind,
    /// The client's answer; empty for other outcomes.
    pub payload: Bytes,
    /// Only if the owner is this and still dead.
    pub dead: Option<Dead>,
    /// Names the try: a repeat has the same, and is won and changes nothing
    /// although the id was created again meanwhile. Keep the last
    /// [`REMEMBERED`](super::REMEMBERED) tries that won, those of the requests
    /// that had the id before included.
    pub attempt: WaiterToken,
}

/// The answer to one [`Settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Settled {
    /// This one won, now or by an earlier try.
    Won,
    /// It had ended so; [`OutcomeKind::TimedOut`] past the deadline;
    /// [`OutcomeKind::Replaced`] where the token is not that of the request that
    /// is there now, whatever became of the one that had it.
    Already(OutcomeKind),
    /// It is pending, and the condition on the owner does not hold.
    Alive,
    /// Unknown in this session.
    Unknown,
}

/// The state of a client request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RequestState {
    /// It waits.
    Pending {
        /// Where.
        owner: InstanceId,
    },
    /// It ended; past the deadline as [`OutcomeKind::TimedOut`]. As
    /// [`OutcomeKind::Replaced`], with no payload, where the token asked for is
    /// not that of the request that is there now: an id holds one request, and
    /// the outcome of the one before is gone with it.
    Ended(OutcomeKind, Bytes),
    /// Not stored.
    Missing,
    /// No such session.
    NoSession,
}

/// A client request to be read.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RequestKey {
    /// The session.
    pub session: SessionKey,
    /// The request's id.
    pub id: RpcId,
    /// The waiter that asks, if it is one.
    pub token: Option<WaiterToken>,
}
