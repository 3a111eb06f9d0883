//! Limits and intervals: one set for a whole fleet, checked when it is built.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// The largest shared state of a session, in bytes of its JSON (clause S2).
pub const MAX_STATE_BYTES: usize = 64 * 1024;
/// The largest signal, in bytes.
pub const MAX_SIGNAL_BYTES: usize = 4 * 1024;

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr, $check:expr;)+) => {
        /// Limits and intervals of an adapter. All instances of a fleet should
        /// use the same.
        ///
        /// Each time is at least 1 millisecond and less than 10 years. Each count
        /// and each number of bytes is at least 1, but for
        /// [`waiting_streams`](Self::waiting_streams). What else bounds a value is
        /// said with it; [`LimitsBuilder::build`] checks all of it.
        ///
        /// ```
        /// use std::time::Duration;
        /// use mcp_adapter_core::Limits;
        ///
        /// let limits = Limits::builder()
        ///     .idle_ttl(Duration::from_secs(600))
        ///     .stream_events(256)
        ///     .build()?;
        /// assert_eq!(limits.stream_events(), 256);
        /// assert!(Limits::builder().stream_events(0).build().is_err());
        /// # Ok::<(), mcp_adapter_core::Error>(())
        /// ```
        #[derive(Debug, Clone, PartialEq)]
        pub struct Limits { $($name: $type,)+ }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl Limits {
            $($(#[doc = $doc])+ #[must_use] pub fn $name(&self) -> $type { self.$name })+
        }

        /// Builds [`Limits`]; what is not named keeps its default.
        #[derive(Debug, Clone)]
        #[must_use]
        pub struct LimitsBuilder(Limits);

        impl LimitsBuilder {
            $($(#[doc = $doc])+ pub fn $name(mut self, value: $type) -> Self { self.0.$name = value; self })+

            /// Checks the values.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidArgument`], naming the first value that is
            /// out of range, and the bound that it breaks.
            pub fn build(self) -> Result<Limits> {
                $({
                    let check: fn(&Limits, $type) -> Checked = $check;
                    if let Err(broken) = check(&self.0, self.0.$name) {
                        let message = format!("{} is {broken}", stringify!($name));
                        return Err(Error::new(ErrorKind::InvalidArgument, "limits")
                            .with_message(message));
                    }
                })+
                Ok(self.0)
            }
        }
    };
}

/// Far beyond any use, and far from the edge of every backend's clock.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// Of a value that is out of range: what it is, and what it must be.
type Checked = std::result::Result<(), String>;

fn span(_: &Limits, value: Duration) -> Checked {
    if value < Duration::from_millis(1) {
        return Err(format!("{value:?}, but must be at least 1ms"));
    }
    if value >= LONGEST {
        return Err(format!("{value:?}, but must be less than {LONGEST:?}"));
    }
    Ok(())
}

fn positive(_: &Limits, value: usize) -> Checked {
    if value == 0 {
        return Err("0, but must be at least 1".to_owned());
    }
    Ok(())
}

/// `least` is the value of the limit that is called `name`.
fn at_least(value: u64, name: &str, least: usize) -> Checked {
    if value < least as u64 {
        return Err(format!(
            "{value}, but must be at least {name}, which is {least}"
        ));
    }
    Ok(())
}

fn heartbeat(limits: &Limits, interval: Duration) -> Checked {
    span(limits, interval)?;
    if interval * 3 > limits.lease {
        return Err(format!(
            "{interval:?}, but must be at most a third of lease, which is {:?}",
            limits.lease
        ));
    }
    Ok(())
}

limits! {
    /// A session that is not used for so long expires (S3). Default 30 minutes.
    idle_ttl: Duration = Duration::from_secs(30 * 60), span;
    /// A session expires at this age, used or not (S3). Default: no such limit.
    absolute_ttl: Option<Duration> = None, |limits, ttl| ttl.map_or(Ok(()), |ttl| span(limits, ttl));
    /// Events kept per stream; the oldest go first (E4). Default 1024.
    stream_events: usize = 1024, positive;
    /// Bytes of events kept per stream; the oldest go first (E4). At least
    /// [`event_bytes`](Self::event_bytes). Default 8 MiB.
    stream_bytes: usize = 8 << 20, |limits, bytes| at_least(bytes as u64, "event_bytes", limits.event_bytes);
    /// The largest event, in bytes; a larger one is
    /// [`TooLarge`](ErrorKind::TooLarge) (E4). Default 4 MiB.
    event_bytes: usize = 4 << 20, positive;
    /// Bytes of events kept per session, over all its streams: the oldest
    /// finished streams go first, then the oldest events (E4). At least
    /// [`stream_bytes`](Self::stream_bytes). Default 16 MiB.
    session_bytes: usize = 16 << 20, |limits, bytes| at_least(bytes as u64, "stream_bytes", limits.stream_bytes);
    /// Bytes of events kept per principal. Above it no stream is opened:
    /// [`QuotaExceeded`](ErrorKind::QuotaExceeded) (E4). At least
    /// [`session_bytes`](Self::session_bytes). Default 256 MiB.
    principal_bytes: u64 = 256 << 20, |limits, bytes| at_least(bytes, "session_bytes", limits.session_bytes);
    /// Streams of running calls per session; one more is
    /// [`Overloaded`](ErrorKind::Overloaded) (E4). Finished streams do not
    /// count. Default 128.
    open_streams: usize = 128, positive;
    /// How long a finished stream can be replayed (E4). Default 60 seconds.
    finished_ttl: Duration = Duration::from_secs(60), span;
    /// Pending client requests per session; one more is
    /// [`Overloaded`](ErrorKind::Overloaded). Default 128.
    pending_requests: usize = 128, positive;
    /// The largest answer to a client request, in bytes (C6). Default 4 MiB.
    answer_bytes: usize = 4 << 20, positive;
    /// Deadline of a client request for which none is given, and the longest
    /// one that may be given (C4). Default 1 hour.
    request_timeout: Duration = Duration::from_secs(3600), span;
    /// How long the outcome of a client request is remembered (C2). Default
    /// 60 seconds.
    result_ttl: Duration = Duration::from_secs(60), span;
    /// Silent GET streams per session that wait behind the first (E9); with 0
    /// none waits. Default 32.
    waiting_streams: usize = 32, |_, _| Ok(());
    /// How late, at most, anything is seen whose wake-up was lost (C5).
    /// Default 1 second.
    catch_up: Duration = Duration::from_secs(1), span;
    /// How often an instance raises its heartbeat counter. At most a third of
    /// [`lease`](Self::lease). Default 2 seconds.
    heartbeat: Duration = Duration::from_secs(2), heartbeat;
    /// An instance whose counter stood still for so long, on the observer's
    /// own clock, is dead (F3). At least three heartbeats. Default 10 seconds.
    lease: Duration = Duration::from_secs(10), span;
    /// Silence on the wake-up link after which it is probed (F2). Default 5
    /// seconds.
    probe_after: Duration = Duration::from_secs(5), span;
    /// How long the probe may take before the link is replaced (F2). Default 2
    /// seconds.
    probe_timeout: Duration = Duration::from_secs(2), span;
    /// Deadline of one call to the backend (F1). Default 5 seconds.
    operation_timeout: Duration = Duration::from_secs(5), span;
    /// How long tails, waits and unstored results ride out a backend that is
    /// gone (F1). Default 60 seconds.
    max_outage: Duration = Duration::from_secs(60), span;
    /// Appends queued per instance; one more is
    /// [`Overloaded`](ErrorKind::Overloaded) (F4). Default 65536.
    queued_events: usize = 65_536, positive;
    /// Bytes of appends queued per instance (F4). At least
    /// [`event_bytes`](Self::event_bytes). Default 64 MiB.
    queued_bytes: usize = 64 << 20, |limits, bytes| at_least(bytes as u64, "event_bytes", limits.event_bytes);
}

impl Limits {
    /// Starts from the defaults.
    pub fn builder() -> LimitsBuilder {
        LimitsBuilder(Self::default())
    }

    /// Starts from these limits.
    pub fn to_builder(&self) -> LimitsBuilder {
        LimitsBuilder(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Set = fn(LimitsBuilder) -> LimitsBuilder;

    #[test]
    fn what_is_out_of_range_is_named_with_its_bound() {
        const MS: Duration = Duration::from_millis(1);
        let cases: [(Set, &str); 12] = [
            (
                |limits| limits.session_bytes(4096),
                "session_bytes is 4096, but must be at least stream_bytes, which is 8388608",
            ),
            (
                |limits| limits.principal_bytes(4096),
                "principal_bytes is 4096, but must be at least session_bytes, which is 16777216",
            ),
            (
                |limits| limits.stream_bytes(4096),
                "stream_bytes is 4096, but must be at least event_bytes, which is 4194304",
            ),
            (
                |limits| limits.event_bytes(9 << 20),
                "stream_bytes is 8388608, but must be at least event_bytes, which is 9437184",
            ),
            (
                |limits| limits.queued_bytes(1),
                "queued_bytes is 1, but must be at least event_bytes, which is 4194304",
            ),
            (
                |limits| limits.event_bytes(0),
                "event_bytes is 0, but must be at least 1",
            ),
            (
                |limits| limits.open_streams(0),
                "open_streams is 0, but must be at least 1",
            ),
            (
                |limits| limits.heartbeat(4000 * MS),
                "heartbeat is 4s, but must be at most a third of lease, which is 10s",
            ),
            (
                |limits| limits.lease(5000 * MS),
                "heartbeat is 2s, but must be at most a third of lease, which is 5s",
            ),
            (
                |limits| limits.catch_up(MS / 2),
                "catch_up is 500µs, but must be at least 1ms",
            ),
            (
                |limits| limits.idle_ttl(LONGEST),
                "idle_ttl is 316224000s, but must be less than 316224000s",
            ),
            (
                |limits| limits.absolute_ttl(Some(Duration::ZERO)),
                "absolute_ttl is 0ns, but must be at least 1ms",
            ),
        ];
        for (set, message) in cases {
            let error = set(Limits::builder()).build().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert_eq!(
                error.to_string(),
                format!("limits: invalid argument: {message}")
            );
        }
    }

    #[test]
    fn every_limit_has_a_range() {
        let refused = |limits: LimitsBuilder| limits.build().unwrap_err().to_string();
        let zero = Duration::ZERO;
        macro_rules! zero {
            ($($name:ident: $value:expr),+ $(,)?) => {$(
                let said = refused(Limits::builder().$name($value));
                assert!(said.contains(concat!(stringify!($name), " is 0")), "{said}");
            )+};
        }
        zero! {
            idle_ttl: zero, absolute_ttl: Some(zero), stream_events: 0, stream_bytes: 0,
            event_bytes: 0, session_bytes: 0, principal_bytes: 0, open_streams: 0,
            finished_ttl: zero, pending_requests: 0, answer_bytes: 0, request_timeout: zero,
            result_ttl: zero, catch_up: zero, heartbeat: zero, probe_after: zero,
            probe_timeout: zero, operation_timeout: zero, max_outage: zero,
            queued_events: 0, queued_bytes: 0,
        }
        // Its heartbeat is named first: it must be shorter.
        let said = refused(
            Limits::builder()
                .heartbeat(Duration::from_millis(1))
                .lease(zero),
        );
        assert!(said.contains("lease, which is 0ns"), "{said}");
        // None need wait.
        assert!(Limits::builder().waiting_streams(0).build().is_ok());
        assert!(Limits::builder().build().is_ok());
    }
}
