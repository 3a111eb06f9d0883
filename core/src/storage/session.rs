//! Steps on sessions.

use std::time::Duration;

use bytes::Bytes;

use crate::id::{InstanceId, PrincipalKey, RpcId, SessionKey, StreamId, WaiterToken};

/// A session to be created.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NewSession {
    /// Its key.
    pub session: SessionKey,
    /// Whom it belongs to.
    pub principal: PrincipalKey,
    /// Its record, opaque.
    pub record: Bytes,
    /// Slides with use.
    pub idle_ttl: Duration,
    /// Does not.
    pub absolute_ttl: Option<Duration>,
    /// Who creates it: a repeat by the same creator is the same create.
    pub creator: WaiterToken,
}

/// A stream to be opened by [`Storage::enter`](super::Storage::enter).
///
/// A stream of this name that is there, open or finished, whoever owns it, is
/// its repeat: nothing is opened or changed, and the answer is
/// [`Entered::Session`]. This is looked at before both bounds, and `max_open`
/// before `max_principal_bytes`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct OpenStream {
    /// Its name, unique in the session.
    pub stream: StreamId,
    /// Its only writer; holder number 1 as well.
    pub owner: InstanceId,
    /// The JSON-RPC id that a cancel names.
    pub request: RpcId,
    /// Open streams of calls that the session may have, this one included.
    pub max_open: usize,
    /// A principal that stores more than this opens nothing; with just as much it
    /// does.
    pub max_principal_bytes: u64,
}

/// The answer of [`Storage::enter`](super::Storage::enter).
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Entered {
    /// The session; the stream, if any was asked for, is open.
    Session {
        /// Its record.
        record: Bytes,
        /// Its revision: 1 until it is updated.
        revision: u64,
    },
    /// No such session for this principal.
    NoSession,
    /// Too many open streams; nothing was changed, nor its expiry slid.
    TooManyStreams,
    /// The principal stores too much; nothing was changed, nor its expiry slid.
    PrincipalQuota,
}

/// A session's record to be replaced, see [`Storage::update`](super::Storage::update).
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct UpdateSession {
    /// The session.
    pub session: SessionKey,
    /// Whom it must belong to.
    pub principal: PrincipalKey,
    /// The revision that it must have, below 2^53.
    pub revision: u64,
    /// The new record, opaque.
    pub record: Bytes,
    /// Names this update: a repeat has the same name. What it writes tells
    /// nothing, for two writers may write the same.
    pub attempt: WaiterToken,
}

/// The answer of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Updated {
    /// Done, now or by an earlier try of the same name; the revision that it made.
    Done(u64),
    /// Another revision is stored.
    Conflict,
    /// No such session for this principal.
    NoSession,
}
