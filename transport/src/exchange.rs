//! One HTTP request: what the service found in it, and what the session
//! manager left behind for the answer.

use std::sync::Arc;

use mcp_adapter_core::{Entered, Principal, SessionId};
use parking_lot::Mutex;

use crate::{inbound::Inbound, sse::EventBody, verdict::Verdict, worker::NewWorker};

tokio::task_local! {
    /// Set by the service around rmcp's. `close_session` tells by it whether a
    /// client deletes its session or a worker has merely ended (P17).
    pub(crate) static EXCHANGE: Arc<Exchange>;
}

/// The exchange of the HTTP request that this task serves.
pub(crate) fn current() -> Option<Arc<Exchange>> {
    EXCHANGE.try_with(Arc::clone).ok()
}

#[derive(Debug)]
pub(crate) struct Exchange {
    /// `None` where the request has none or a malformed one.
    pub(crate) session: Option<SessionId>,
    pub(crate) principal: Option<Principal>,
    pub(crate) inbound: Inbound,
    /// Whether it is one message of a batch.
    pub(crate) batched: bool,
    pub(crate) stash: Mutex<Stash>,
}

/// What is left behind. Dropping it with the exchange abandons the stream that
/// was opened for a request which was refused afterwards.
#[derive(Debug, Default)]
pub(crate) struct Stash {
    pub(crate) verdict: Option<Verdict>,
    pub(crate) entered: Option<Entered>,
    pub(crate) body: Option<EventBody>,
    pub(crate) created: Option<NewWorker>,
}

impl Exchange {
    pub(crate) fn refuse(&self, verdict: Verdict) {
        self.stash.lock().verdict = Some(verdict);
    }
}
