//! What the three roles have in common, and the umbrella over them.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use crate::{
    error::Result, id::InstanceId, request::ClientRequestAdapter, session::SessionAdapter,
    signal::SignalAdapter,
};

/// What an adapter can do beyond the contract; the conformance suite selects
/// its cases by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Capabilities {
    /// Instances may be processes of their own.
    pub shared: bool,
    /// What was acknowledged survives the end of all instances.
    pub durable: bool,
    /// Wake-ups are pushed; otherwise everything is seen within `catch_up`.
    pub push: bool,
    /// The granularity of deadlines.
    pub time_precision: Duration,
}

impl Capabilities {
    /// The capabilities of a store within one process.
    #[must_use]
    pub const fn in_process() -> Self {
        Self {
            shared: false,
            durable: false,
            push: true,
            time_precision: Duration::from_millis(1),
        }
    }

    /// The capabilities of a server that many processes share.
    #[must_use]
    pub const fn server(time_precision: Duration) -> Self {
        Self {
            shared: true,
            durable: true,
            push: true,
            time_precision,
        }
    }
}

/// How an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// The backend answers and wake-ups arrive.
    Ok,
    /// Requests are served, but wake-ups do not arrive or tails lag behind.
    Degraded {
        /// For how long.
        since: Duration,
    },
    /// The backend does not answer.
    Down {
        /// For how long.
        since: Duration,
    },
}

/// What an adapter tells of its instance in each of its roles: they may be given
/// apart.
pub trait Role: fmt::Debug + Send + Sync + 'static {
    /// How it is doing, from what it saw last; costs nothing.
    fn health(&self) -> Health;
}

/// All roles of one instance.
#[async_trait]
pub trait Adapter: SessionAdapter + ClientRequestAdapter + SignalAdapter {
    /// The backend's name, for logs and metrics.
    fn name(&self) -> &'static str;

    /// What it can do beyond the contract.
    fn capabilities(&self) -> Capabilities;

    /// This instance.
    fn id(&self) -> InstanceId;

    /// Ends all tails and waits of this instance and stops its tasks. Later
    /// calls fail with [`Closed`](crate::ErrorKind::Closed). The store and the
    /// other instances go on.
    ///
    /// # Errors
    /// Where the backend could not be told; the instance is closed all the
    /// same, and others find it dead after a lease.
    async fn close(&self) -> Result<()>;
}
