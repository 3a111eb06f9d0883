//! Bounded waits, and what a case reports when it fails.

use std::{fmt, panic::Location, time::Duration};

use mcp_adapter_core::Error;

/// Why a case failed, and which line of it says so.
pub(crate) struct Failure {
    why: String,
    at: &'static Location<'static>,
}

impl Failure {
    #[track_caller]
    pub(crate) fn new(why: impl fmt::Display) -> Self {
        Self {
            why: why.to_string(),
            at: Location::caller(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nat {}:{}", self.why, self.at.file(), self.at.line())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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

/// The body of a helper: what fails in it is reported as of the line that calls
/// the helper, which must be `#[track_caller]` and no `async fn`.
#[track_caller]
pub(crate) fn helper<T>(
    body: impl Future<Output = Result<T, Failure>>,
) -> impl Future<Output = Result<T, Failure>> {
    let at = Location::caller();
    async move { body.await.map_err(|failure| Failure { at, ..failure }) }
}

/// The code of a claim on one line.
pub(crate) fn on_one_line(code: &str) -> String {
    let words: Vec<_> = code.split_whitespace().collect();
    words.join(" ").replace(" .await", ".await")
}

/// Fails the case unless the claim holds.
macro_rules! claim {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::wait::Failure::new(format!(
                "{}: `{}` does not hold",
                format_args!($($message)+),
                $crate::wait::on_one_line(stringify!($condition)),
            )));
        }
    };
}

/// Fails the case unless both are equal.
macro_rules! claim_eq {
    ($left:expr, $right:expr $(, $($message:tt)+)?) => {
        match (&$left, &$right) {
            (left, right) => if *left != *right {
                #[allow(unused_mut, unused_assignments, reason = "there may be no message")]
                let mut claim = String::new();
                $(claim = format!("{}: ", format_args!($($message)+));)?
                let code = $crate::wait::on_one_line(stringify!($left));
                return Err($crate::wait::Failure::new(format!(
                    "{claim}`{code}`: found {left:?}, expected {right:?}"
                )));
            },
        }
    };
}

pub(crate) use {claim, claim_eq};

/// Waits until `probe` finds something; the wait is long, and ends at once.
#[track_caller]
pub(crate) fn eventually<T, F>(
    what: &str,
    patience: Duration,
    mut probe: impl FnMut() -> F,
) -> impl Future<Output = Result<T, Failure>>
where
    F: Future<Output = Result<Option<T>, Failure>>,
{
    let at = Location::caller();
    async move {
        let until = tokio::time::Instant::now() + patience;
        let mut pause = Duration::from_millis(2);
        loop {
            if let Some(found) = probe().await? {
                return Ok(found);
            }
            if tokio::time::Instant::now() >= until {
                let why = format!("not within {patience:?}: {what}");
                return Err(Failure { why, at });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// Waits for something that must come.
#[track_caller]
pub(crate) fn within<T>(
    what: &str,
    patience: Duration,
    event: impl Future<Output = T>,
) -> impl Future<Output = Result<T, Failure>> {
    let at = Location::caller();
    async move {
        let event = tokio::time::timeout(patience, event).await;
        event.map_err(|_| Failure {
            why: format!("not within {patience:?}: {what}"),
            at,
        })
    }
}

/// Waits for something that must not come. Only where absence is the claim:
/// it always takes the whole time, which should be short.
#[track_caller]
pub(crate) fn never_within<T: fmt::Debug>(
    what: &str,
    time: Duration,
    event: impl Future<Output = T>,
) -> impl Future<Output = Verdict> {
    let at = Location::caller();
    async move {
        match tokio::time::timeout(time, event).await {
            Ok(event) => Err(Failure {
                why: format!("{what}: {event:?}"),
                at,
            }),
            Err(_) => Ok(()),
        }
    }
}

/// An error with what caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |&error| error.source());
    sources.fold(error.to_string(), |text, source| {
        let source = source.to_string();
        // Some repeat their source's text in their own.
        if text.contains(&source) {
            text
        } else {
            format!("{text}: {source}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused() -> impl Future<Output = Verdict> {
        helper(async { Err(Failure::new("no")) })
    }

    #[test]
    fn a_failure_names_the_line_that_calls_the_helper() {
        let here = format!("at {}:{}", file!(), line!() + 1);
        let failure = futures::FutureExt::now_or_never(refused())
            .unwrap()
            .unwrap_err();
        assert_eq!(failure.to_string(), format!("no\n{here}"));
    }

    #[test]
    fn a_claim_shows_its_code() {
        let check = || {
            let found = 1;
            claim!(found == 2, "two");
            Ok(())
        };
        let failure = check().unwrap_err().to_string();
        assert!(
            failure.starts_with("two: `found == 2` does not hold\nat "),
            "{failure}"
        );
        let check = || {
            claim_eq!(b"a"[..], b"b"[..], "bytes");
            Ok(())
        };
        let failure = check().unwrap_err().to_string();
        assert!(
            failure.starts_with("bytes: `b\"a\"[..]`: found ["),
            "{failure}"
        );
    }
}
