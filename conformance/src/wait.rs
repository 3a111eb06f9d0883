//! Bounded waits, and what a case reports when it fails.

use std::{fmt, panic::Location, time::Duration};

use mcp_adapter_core::Error;

/// Why a case failed.
pub(crate) struct Failure(String);

impl Failure {
    #[track_caller]
    pub(crate) fn new(why: impl fmt::Display) -> Self {
        let at = Location::caller();
        Self(format!("{why}\nat {}:{}", at.file(), at.line()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    #[track_caller]
    fn from(error: Error) -> Self {
        let mut text = format!("an unexpected error: {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        Self::new(text)
    }
}

/// What a case returns.
pub(crate) type Verdict = Result<(), Failure>;

/// Fails the case unless the claim holds.
macro_rules! claim {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::wait::Failure::new(format!($($message)+)));
        }
    };
}

/// Fails the case unless both are equal.
macro_rules! claim_eq {
    ($left:expr, $right:expr $(, $($message:tt)+)?) => {
        match (&$left, &$right) {
            (left, right) => if *left != *right {
                #[allow(unused_mut, unused_assignments, reason = "there may be no message")]
                let mut claim = String::from(stringify!($left));
                $(claim = format!($($message)+);)?
                return Err($crate::wait::Failure::new(format!(
                    "{claim}: found {left:?}, expected {right:?}"
                )));
            },
        }
    };
}

pub(crate) use {claim, claim_eq};

/// Waits until `probe` finds something; the wait is long, and ends at once.
pub(crate) async fn eventually<T, F>(
    what: &str,
    patience: Duration,
    mut probe: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<Option<T>, Failure>>,
{
    let until = tokio::time::Instant::now() + patience;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        if tokio::time::Instant::now() >= until {
            return Err(Failure::new(format!("not within {patience:?}: {what}")));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Waits for something that must come.
pub(crate) async fn within<T>(
    what: &str,
    patience: Duration,
    event: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::time::timeout(patience, event)
        .await
        .map_err(|_| Failure::new(format!("not within {patience:?}: {what}")))
}

/// Waits for something that must not come. Only where absence is the claim:
/// it always takes the whole time, which should be short.
pub(crate) async fn never_within<T: fmt::Debug>(
    what: &str,
    time: Duration,
    event: impl Future<Output = T>,
) -> Verdict {
    match tokio::time::timeout(time, event).await {
        Ok(event) => Err(Failure::new(format!("{what}: {event:?}"))),
        Err(_) => Ok(()),
    }
}
