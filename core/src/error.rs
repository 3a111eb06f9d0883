//! The one error type of the contract.

use std::{borrow::Cow, error::Error as StdError, fmt};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for programs to act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum ErrorKind {
    /// The session does not exist, has expired, was deleted, or belongs to
    /// another principal. The four are told apart nowhere, so that a guess
    /// reveals nothing (clauses S3, S4, E6).
    SessionNotFound,
    /// A live session has this id already (S1).
    AlreadyExists,
    /// The stream is not there: it never was, it expired, or the id is forged
    /// (E3, E5).
    StreamGone,
    /// The stream is finished; nothing was changed (E8).
    Finished,
    /// Another instance has taken the stream over; this writer may not write
    /// any more (E1, F3).
    Fenced,
    /// An event, answer, state or signal is larger than its limit; nothing was
    /// changed (E4).
    TooLarge,
    /// A bound on queued or open things is reached in the whole instance or
    /// session; try again later (F4).
    Overloaded,
    /// The principal has used up its share; try again later (E4).
    QuotaExceeded,
    /// The stored revision is another one than the caller read (S2).
    Conflict,
    /// The argument is malformed.
    InvalidArgument,
    /// The backend cannot be reached or answered with a failure (F1).
    Unavailable,
    /// The operation did not end within its deadline (F1).
    Timeout,
    /// A record was written by a newer version than this one. It is left
    /// alone and is not absent (F5).
    UnsupportedFormat,
    /// A record cannot be decoded.
    Corrupt,
    /// This instance has been closed.
    Closed,
}

impl ErrorKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::SessionNotFound => "session not found",
            Self::AlreadyExists => "session already exists",
            Self::StreamGone => "stream is gone",
            Self::Finished => "stream is finished",
            Self::Fenced => "another instance took the stream over",
            Self::TooLarge => "larger than its limit",
            Self::Overloaded => "overloaded",
            Self::QuotaExceeded => "the principal's share is used up",
            Self::Conflict => "the record was changed by somebody else",
            Self::InvalidArgument => "invalid argument",
            Self::Unavailable => "backend unavailable",
            Self::Timeout => "deadline exceeded",
            Self::UnsupportedFormat => "written by a newer version",
            Self::Corrupt => "corrupt record",
            Self::Closed => "instance is closed",
        }
    }
}

/// Whether a failed write took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Applied {
    /// Nothing was changed.
    No,
    /// The write may or may not have taken effect, now or later. Repeating the
    /// same step is safe.
    Unknown,
}

/// An error of an adapter: its kind, whether a retry can help, whether a write
/// took effect, the operation, and the cause.
///
/// `Display` is one line for logs of the server. It may carry the text of a
/// database driver, so it must not be sent to clients.
pub struct Error {
    kind: ErrorKind,
    applied: Applied,
    operation: &'static str,
    message: Option<Cow<'static, str>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `operation` that changed nothing.
    #[must_use]
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self {
            kind,
            applied: Applied::No,
            operation,
            message: None,
            source: None,
        }
    }

    /// The backend failed, and whether a write took effect is `applied`.
    #[must_use]
    pub fn unavailable(operation: &'static str, applied: Applied) -> Self {
        Self {
            applied,
            ..Self::new(ErrorKind::Unavailable, operation)
        }
    }

    /// Adds a sentence for people. It must not contain ids or secrets.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// States whether a write took effect.
    #[must_use]
    pub fn with_applied(mut self, applied: Applied) -> Self {
        self.applied = applied;
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the write took effect.
    #[must_use]
    pub fn applied(&self) -> Applied {
        self.applied
    }

    /// The operation that failed.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// Whether the same call can succeed later with nothing else changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Overloaded
                | ErrorKind::QuotaExceeded
                | ErrorKind::Unavailable
                | ErrorKind::Timeout
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.kind.as_str())?;
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        if self.applied == Applied::Unknown {
            f.write_str(" (it is unknown whether the write took effect)")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("applied", &self.applied)
            .field("operation", &self.operation)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_ref()
            .map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}
