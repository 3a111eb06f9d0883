//! The store's clock: monotonic, and the runtime's where that is paused.

use std::time::Duration;

use tokio::time::Instant;

/// Nanoseconds since the store was made. Eight bytes, for there is one in every
/// session of a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(u64);

/// A duration in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(u64);

impl Time {
    pub(crate) const NEVER: Self = Self(u64::MAX);

    pub(crate) fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        let nanos = u64::from(duration.subsec_nanos());
        let seconds = duration.as_secs().saturating_mul(1_000_000_000);
        Self(seconds.saturating_add(nanos))
    }
}

#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(&self) -> Time {
        Time(Span::from(self.0.elapsed()).0)
    }
}
