//! Time is the host's wall clock, which all processes on a file share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(crate) type Time = i64;

/// Beyond every deadline.
pub(crate) const NEVER: Time = Time::MAX;

pub(crate) fn now() -> Time {
    #[expect(
        clippy::disallowed_methods,
        reason = "the backend's clock is the host's"
    )]
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, millis)
}

pub(crate) fn millis(span: Duration) -> Time {
    Time::try_from(span.as_millis()).unwrap_or(NEVER)
}

/// Never before its time: what is given in parts of a millisecond is rounded up.
pub(crate) fn after(now: Time, span: Duration) -> Time {
    now.saturating_add(millis(span + Duration::from_nanos(999_999)))
}
