//! Deadlines and repeats of storage steps.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Applied, Error, ErrorKind, Result};

/// Waits between repeats: doubling, with jitter so that instances that lost
/// the backend together do not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(super) fn new(max: Duration) -> Self {
        Self {
            next: Duration::from_millis(20).min(max),
            max,
        }
    }

    pub(super) async fn wait(&mut self) {
        let jittered = self.next.mul_f64(0.5 + random_fraction());
        sleep(jittered.min(self.max)).await;
        self.next = (self.next * 2).min(self.max);
    }
}

fn random_fraction() -> f64 {
    let mut byte = [0_u8];
    // Without randomness there is no jitter, and nothing worse.
    let _ = getrandom::fill(&mut byte);
    f64::from(byte[0]) / 256.0
}

/// One try of a step, no later than `deadline`. A step that did not answer may
/// still take effect.
pub(super) async fn within<T>(
    operation: &'static str,
    deadline: Instant,
    step: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout_at(deadline, step).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, operation).with_applied(Applied::Unknown))
    })
}

/// Repeats a step, which is safe by the seam's rules, until it succeeds, fails
/// for good or `deadline` has passed. An error says `Unknown` if any try may
/// have taken effect.
pub(super) async fn repeat<T, F: Future<Output = Result<T>>>(
    operation: &'static str,
    deadline: Instant,
    mut step: impl FnMut() -> F,
) -> Result<T> {
    let mut backoff = Backoff::new(Duration::from_millis(500));
    let mut applied = Applied::No;
    loop {
        let error = match within(operation, deadline, step()).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.applied() == Applied::Unknown {
            applied = Applied::Unknown;
        }
        if !error.is_retryable() || Instant::now() >= deadline {
            return Err(error.with_applied(applied));
        }
        backoff.wait().await;
    }
}
