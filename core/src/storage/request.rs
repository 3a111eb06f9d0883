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
pub struct PutRequest {
    /// The session.
    pub session: SessionKey,
    /// The request's id.
    pub id: RpcId,
    /// The waiter: a repeat has the same.
    pub token: WaiterToken,
    /// Where it waits.
    pub owner: InstanceId,
    /// When it can no longer be answered, from now.
    pub timeout: Duration,
    /// How long its outcome is kept after its end.
    pub result_ttl: Duration,
    /// Pending requests that the session may have, this one included.
    pub max_pending: usize,
}

/// The answer to one [`PutRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Stored, now or by an earlier try, replaced since or not.
    Done,
    /// Stored in place of one that waits there, to be woken.
    Replaced(InstanceId),
    /// Too many pending.
    TooMany,
    /// No such session.
    NoSession,
}

/// The end of a client request: sets the outcome if it is pending and before
/// its deadline, and wakes its owner in the same step.
#[derive(Debug, Clone)]
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
    /// although the id was created again meanwhile.
    pub attempt: WaiterToken,
}

/// The answer to one [`Settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// This one won, now or by an earlier try.
    Won,
    /// It had ended so; [`OutcomeKind::TimedOut`] past the deadline,
    /// [`OutcomeKind::Replaced`] for another token.
    Already(OutcomeKind),
    /// It is pending, and the condition on the owner does not hold.
    Alive,
    /// Unknown in this session.
    Unknown,
}

/// The state of a client request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestState {
    /// It waits.
    Pending {
        /// Where.
        owner: InstanceId,
    },
    /// It ended; past the deadline as [`OutcomeKind::TimedOut`], for another
    /// token than asked for as [`OutcomeKind::Replaced`].
    Ended(OutcomeKind, Bytes),
    /// Not stored.
    Missing,
    /// No such session.
    NoSession,
}

/// A client request to be read.
#[derive(Debug, Clone)]
pub struct RequestKey {
    /// The session.
    pub session: SessionKey,
    /// The request's id.
    pub id: RpcId,
    /// The waiter that asks, if it is one.
    pub token: Option<WaiterToken>,
}
