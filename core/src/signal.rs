//! Signals: small messages between the instances of a session or fleet.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{
    adapter::Role,
    error::Result,
    id::{InstanceId, SessionId},
};

/// Where a signal goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Channel {
    /// To all instances that listen to this session.
    Session(SessionId),
    /// To all instances that listen to this topic; at most 100 bytes.
    Topic(Arc<str>),
}

/// A signal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signal {
    /// The instance that sent it; it hears its own signals, too.
    pub from: InstanceId,
    /// At most [`MAX_SIGNAL_BYTES`](crate::MAX_SIGNAL_BYTES).
    pub payload: Bytes,
}

impl Signal {
    /// A signal.
    #[must_use]
    pub fn new(from: InstanceId, payload: Bytes) -> Self {
        Self { from, payload }
    }
}

/// Messages that arrive at most once, those of one sender in the order in
/// which they were sent. What must not be lost is in a row or a stream as well.
#[async_trait]
pub trait SignalAdapter: Role {
    /// Sends `payload` to every instance that listens to `channel`.
    ///
    /// # Errors
    /// [`TooLarge`](crate::ErrorKind::TooLarge);
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a topic of
    /// more than 100 bytes; [`Unavailable`](crate::ErrorKind::Unavailable).
    async fn signal(&self, channel: &Channel, payload: Bytes) -> Result<()>;

    /// Listens. What has arrived before is not heard, what is still on its way may
    /// be; a listener that does not read drops the oldest signals and counts them.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed).
    async fn listen(&self, channel: &Channel) -> Result<BoxStream<'static, Signal>>;
}
