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
            /// out of range.
            pub fn build(self) -> Result<Limits> {
                $({
                    let check: fn(&Limits, $type) -> bool = $check;
                    if !check(&self.0, self.0.$name) {
                        return Err(Error::new(ErrorKind::InvalidArgument, "limits")
                            .with_message(concat!(stringify!($name), " is out of range")));
                    }
                })+
                Ok(self.0)
            }
        }
    };
}

const fn positive(_: &Limits, value: Duration) -> bool {
    // Far beyond any use, and far from the edge of every backend's clock.
    const TEN_YEARS: u64 = 10 * 366 * 24 * 3600;
    value.as_millis() > 0 && value.as_secs() < TEN_YEARS
}

limits! {
    /// A session that is not used for so long expires (S3). Default 30 minutes.
    idle_ttl: Duration = Duration::from_secs(30 * 60), positive;
    /// A session expires at this age, used or not (S3). Default: no such limit.
    absolute_ttl: Option<Duration> = None, |limits, ttl| ttl.is_none_or(|ttl| positive(limits, ttl));
    /// Events kept per stream; the oldest go first (E4). Default 1024.
    stream_events: usize = 1024, |_, count| count > 0;
    /// Bytes of events kept per stream; the oldest go first (E4). At least
    /// [`event_bytes`](Self::event_bytes). Default 8 MiB.
    stream_bytes: usize = 8 << 20, |limits, bytes| bytes >= limits.event_bytes;
    /// The largest event, in bytes; a larger one is
    /// [`TooLarge`](ErrorKind::TooLarge) (E4). Default 4 MiB.
    event_bytes: usize = 4 << 20, |_, bytes| bytes > 0;
    /// Bytes of events kept per session, over all its streams: the oldest
    /// finished streams go first, then the oldest events (E4). At least
    /// [`stream_bytes`](Self::stream_bytes). Default 16 MiB.
    session_bytes: usize = 16 << 20, |limits, bytes| bytes >= limits.stream_bytes;
    /// Bytes of events kept per principal. Above it no stream is opened:
    /// [`QuotaExceeded`](ErrorKind::QuotaExceeded) (E4). Default 256 MiB.
    principal_bytes: u64 = 256 << 20, |limits, bytes| bytes >= limits.session_bytes as u64;
    /// Streams of running calls per session; one more is
    /// [`Overloaded`](ErrorKind::Overloaded) (E4). Finished streams do not
    /// count. Default 128.
    open_streams: usize = 128, |_, count| count > 0;
    /// How long a finished stream can be replayed (E4). Default 60 seconds.
    finished_ttl: Duration = Duration::from_secs(60), positive;
    /// Pending client requests per session; one more is
    /// [`Overloaded`](ErrorKind::Overloaded). Default 128.
    pending_requests: usize = 128, |_, count| count > 0;
    /// The largest answer to a client request, in bytes (C6). Default 4 MiB.
    answer_bytes: usize = 4 << 20, |_, bytes| bytes > 0;
    /// Deadline of a client request for which none is given, and the longest
    /// one that may be given (C4). Default 1 hour.
    request_timeout: Duration = Duration::from_secs(3600), positive;
    /// How long the outcome of a client request is remembered (C2). Default
    /// 60 seconds.
    result_ttl: Duration = Duration::from_secs(60), positive;
    /// Silent GET streams per session that wait behind the first (E9).
    /// Default 32.
    waiting_streams: usize = 32, |_, _| true;
    /// How late, at most, anything is seen whose wake-up was lost (C5).
    /// Default 1 second.
    catch_up: Duration = Duration::from_secs(1), positive;
    /// How often an instance raises its heartbeat counter. Default 2 seconds.
    heartbeat: Duration = Duration::from_secs(2), |limits, interval| positive(limits, interval) && interval * 3 <= limits.lease;
    /// An instance whose counter stood still for so long, on the observer's
    /// own clock, is dead (F3). At least three heartbeats. Default 10 seconds.
    lease: Duration = Duration::from_secs(10), positive;
    /// Silence on the wake-up link after which it is probed (F2). Default 5
    /// seconds.
    probe_after: Duration = Duration::from_secs(5), positive;
    /// How long the probe may take before the link is replaced (F2). Default 2
    /// seconds.
    probe_timeout: Duration = Duration::from_secs(2), positive;
    /// Deadline of one call to the backend (F1). Default 5 seconds.
    operation_timeout: Duration = Duration::from_secs(5), positive;
    /// How long tails, waits and unstored results ride out a backend that is
    /// gone (F1). Default 60 seconds.
    max_outage: Duration = Duration::from_secs(60), positive;
    /// Appends queued per instance; one more is
    /// [`Overloaded`](ErrorKind::Overloaded) (F4). Default 65536.
    queued_events: usize = 65_536, |_, count| count > 0;
    /// Bytes of appends queued per instance (F4). Default 64 MiB.
    queued_bytes: usize = 64 << 20, |limits, bytes| bytes >= limits.event_bytes;
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
