//! Between instances: heartbeats, knocks and signals.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{
    id::{InstanceId, RpcId, SessionKey, StreamId, WaiterToken},
    request::OutcomeKind,
};

/// Proof that an instance is dead: its heartbeat counter stood still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Dead {
    /// The instance.
    pub instance: InstanceId,
    /// The counter at which it stood, `None` if there was none. The step does
    /// nothing where it is another one by now.
    pub beat: Option<u64>,
}

/// An instance's heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Beat {
    /// The instance.
    pub instance: InstanceId,
    /// Its counter, below 2^53; 0 is one like any other.
    pub count: u64,
}

/// What an instance should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Target {
    /// A stream: events, end, holder or cancel mark.
    Stream(StreamId),
    /// A client request.
    Request(RpcId),
    /// All that it has of the session.
    Session,
}

/// What comes through the doorbell.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Knock {
    /// Something was written.
    Wake(SessionKey, Target),
    /// A client request has ended, and how: in place of the wake at a
    /// [`Target::Request`], from a backend that sends small outcomes along, so that
    /// they need not be read. It is the stored outcome, and never comes before it is
    /// stored. One that does not send it may turn it into the wake.
    Outcome {
        /// Whose request.
        session: SessionKey,
        /// Its id.
        id: RpcId,
        /// Which of those that had the id one after another.
        token: WaiterToken,
        /// How it ended.
        kind: OutcomeKind,
        /// What the client sent.
        payload: Bytes,
    },
    /// Anything may have been written: knocks were dropped. One stands for any
    /// number of them.
    Everything,
    /// The instance's own question whether the link works.
    Probe(u64),
    /// A signal to whoever listens.
    Signal {
        /// Who sent it.
        from: InstanceId,
        /// The channel: a session, or else a topic.
        channel: SignalChannel,
        /// What it says.
        payload: Bytes,
    },
}

impl Knock {
    /// Whether the engine finds out by itself what this tells, where it is lost
    /// (C5, E1, F2): true of all but probes and signals.
    #[must_use]
    pub const fn is_hint(&self) -> bool {
        match self {
            Self::Wake(..) | Self::Outcome { .. } | Self::Everything => true,
            Self::Probe(_) | Self::Signal { .. } => false,
        }
    }
}

impl fmt::Debug for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wake(session, target) => write!(f, "Wake({session:?}, {target:?})"),
            Self::Outcome {
                session, id, kind, ..
            } => write!(f, "Outcome({session:?}, {id:?}, {kind:?})"),
            Self::Everything => f.write_str("Everything"),
            Self::Probe(number) => write!(f, "Probe({number})"),
            Self::Signal { from, channel, .. } => write!(f, "Signal({from:?}, {channel:?})"),
        }
    }
}

/// The channel of a signal, as backends see it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SignalChannel {
    /// A session.
    Session(SessionKey),
    /// A topic.
    Topic(Arc<str>),
}

/// Who is knocked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Door {
    /// One instance.
    Of(InstanceId),
    /// All instances, the sender included.
    All,
}
