//! Which servers the engine has attached to.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::server::Identity;

/// The servers, by their runs, whose history the engine knows.
#[derive(Default)]
pub(crate) struct Attached {
    runs: RwLock<Vec<Arc<str>>>,
    /// Raised where an append was about to go to another one.
    strangers: watch::Sender<u64>,
}

impl Attached {
    /// Whether appends may go there. Where not, the wake-up link ends, and the
    /// engine attaches anew: what a former run has lost is written again first, and
    /// new events after it.
    pub(crate) fn knows(&self, identity: &Identity) -> bool {
        let runs = self.runs.read();
        let known = runs.is_empty() || runs.contains(&identity.run);
        if !known {
            self.strangers.send_modify(|count| *count += 1);
        }
        known
    }

    /// Changes with each stranger.
    pub(crate) fn strangers(&self) -> watch::Receiver<u64> {
        self.strangers.subscribe()
    }

    /// Whether there were others until now.
    pub(crate) fn are_others(&self, runs: &[Arc<str>]) -> bool {
        let former = self.runs.read();
        !former.is_empty() && *former != runs
    }

    pub(crate) fn set(&self, runs: Vec<Arc<str>>) {
        *self.runs.write() = runs;
    }
}
