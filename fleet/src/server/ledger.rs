//! What became of tagged `slow_count` calls at this instance.
//!
//! A cancelled call has no answer, so that its handler really stopped can only
//! be seen from outside: the load generator asks `call_status`. Other instances
//! find the end of a call in the state of its session.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use rmcp::model::LoggingLevel;

/// Tags remembered per instance; the oldest go first. Far more than calls run at
/// a time, and soon reached: a soak must not take them for a leak.
const MAX_TAGS: usize = 8_192;

/// State of a tagged call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallState {
    /// The handler runs.
    Running,
    /// The handler saw the cancel and returned.
    Cancelled,
    /// The handler counted to the end.
    Finished,
    /// The handler was dropped before it could return.
    Dropped,
}

impl CallState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Cancelled => "cancelled",
            Self::Finished => "finished",
            Self::Dropped => "dropped",
        }
    }
}

#[derive(Debug, Default)]
struct Entries {
    by_tag: HashMap<String, (CallState, u32)>,
    order: VecDeque<String>,
}

/// Bounded map from tag to state and count.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Entries>);

impl Ledger {
    /// Records that a call with this tag runs now.
    pub(super) fn begin(&self, tag: Option<String>) -> Running<'_> {
        if let Some(tag) = &tag {
            let mut entries = self.0.lock();
            if entries
                .by_tag
                .insert(tag.clone(), (CallState::Running, 0))
                .is_none()
            {
                entries.order.push_back(tag.clone());
            }
            while entries.order.len() > MAX_TAGS {
                if let Some(oldest) = entries.order.pop_front() {
                    entries.by_tag.remove(&oldest);
                }
            }
        }
        Running {
            ledger: self,
            tag,
            counted: 0,
            state: CallState::Dropped,
        }
    }

    /// State and count of the call with this tag, if this instance ran it.
    pub(super) fn get(&self, tag: &str) -> Option<(CallState, u32)> {
        self.0.lock().by_tag.get(tag).copied()
    }
}

/// Guard of a running call: records its end however the handler ends.
#[derive(Debug)]
pub(super) struct Running<'a> {
    ledger: &'a Ledger,
    tag: Option<String>,
    counted: u32,
    state: CallState,
}

impl Running<'_> {
    pub(super) fn counted(&mut self, n: u32) {
        self.counted = n;
    }

    pub(super) fn end(mut self, state: CallState) {
        self.state = state;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(tag) = self.tag.take() {
            let mut entries = self.ledger.0.lock();
            if let Some(entry) = entries.by_tag.get_mut(&tag) {
                *entry = (self.state, self.counted);
            }
        }
    }
}

/// Order of the log levels, least severe first.
pub(super) fn severity(level: LoggingLevel) -> u8 {
    match level {
        LoggingLevel::Debug => 0,
        LoggingLevel::Info => 1,
        LoggingLevel::Notice => 2,
        LoggingLevel::Warning => 3,
        LoggingLevel::Error => 4,
        LoggingLevel::Critical => 5,
        LoggingLevel::Alert => 6,
        LoggingLevel::Emergency => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_of_a_call_is_recorded() {
        let ledger = Ledger::default();
        let mut run = ledger.begin(Some("a".into()));
        assert_eq!(ledger.get("a"), Some((CallState::Running, 0)));
        run.counted(3);
        run.end(CallState::Cancelled);
        assert_eq!(ledger.get("a"), Some((CallState::Cancelled, 3)));
        drop(ledger.begin(Some("b".into())));
        assert_eq!(ledger.get("b"), Some((CallState::Dropped, 0)));
        drop(ledger.begin(None));
        assert_eq!(ledger.get("c"), None);
    }

    #[test]
    fn the_oldest_tags_are_forgotten() {
        let ledger = Ledger::default();
        for n in 0..=MAX_TAGS {
            ledger.begin(Some(n.to_string())).end(CallState::Finished);
        }
        assert_eq!(ledger.get("0"), None);
        assert!(ledger.get(&MAX_TAGS.to_string()).is_some());
    }
}
