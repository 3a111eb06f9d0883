//! What all sessions of a run share, and how they ride out a killed instance.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    http::{Endpoint, NoReply, Reply},
    outage::Outages,
    tally::Tally,
};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Server, counters and patience.
#[derive(Debug)]
pub(super) struct World {
    pub(super) endpoint: Endpoint,
    pub(super) tally: Arc<Tally>,
    pub(super) outages: Arc<Outages>,
    /// Deadline of every wait.
    pub(super) patience: Duration,
    /// Clients go away without a word: no DELETE.
    pub(super) leaves: bool,
}

/// Why a wait ended without what was waited for.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The deadline passed.
    Hung,
    /// A connection died, and no kill excuses it or nothing was left to try.
    NoReply(NoReply),
    /// The server said no.
    Refused {
        instance: Option<String>,
        text: String,
    },
}

impl Trouble {
    /// `reply` as a refusal of `what`.
    pub(super) async fn refused(what: &str, reply: Reply) -> Self {
        let (status, instance) = (reply.status, reply.instance.clone());
        let body = reply.text().await;
        Self::Refused {
            instance,
            text: format!("{what}: status {status} {body}"),
        }
    }

    /// The instance that failed, as far as it is known.
    pub(super) fn instance(&self) -> Option<&str> {
        match self {
            Self::Hung => None,
            Self::NoReply(none) => none.instance.as_deref(),
            Self::Refused { instance, .. } => instance.as_deref(),
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hung => f.write_str("no end within the deadline"),
            Self::NoReply(none) => write!(f, "no reply: {}", none.reason),
            Self::Refused { text, .. } => f.write_str(text),
        }
    }
}

/// Growing pauses between attempts.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

impl World {
    /// `work` with the deadline of a wait.
    pub(super) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        tokio::time::timeout(self.patience, work)
            .await
            .unwrap_or(Err(Trouble::Hung))
    }

    /// Repeats a message that may be sent twice until it gets a reply. Attempts that
    /// a kill excuses count as expected errors.
    pub(super) async fn insist<F>(&self, send: impl Fn() -> F) -> Result<Reply, Trouble>
    where
        F: Future<Output = Result<Reply, NoReply>>,
    {
        let mut backoff = Backoff::new();
        loop {
            let since = Instant::now();
            match send().await {
                Ok(reply) => return Ok(reply),
                Err(none) if self.outages.excuse(none.instance.as_deref(), since) => {
                    self.tally.count(|counts| counts.expected_errors += 1);
                    backoff.pause().await;
                }
                Err(none) => return Err(Trouble::NoReply(none)),
            }
        }
    }

    /// Counts trouble: hung, expected or an error.
    pub(super) fn count(&self, trouble: &Trouble, what: &str, owner: Option<&str>, since: Instant) {
        match trouble {
            Trouble::Hung => self.tally.hung(what),
            _ if self.outages.excuse(trouble.instance().or(owner), since)
                || (owner.is_some() && self.outages.excuse(owner, since)) =>
            {
                self.tally.count(|counts| counts.expected_errors += 1);
            }
            _ => self.tally.error(format_args!("{what}: {trouble}")),
        }
    }
}
