//! Errors of the client and of the server as errors of the contract.

use mcp_adapter_core::{Applied, Error, ErrorKind};
use redis::{RedisError, ServerError};

/// An error of the link. What was sent may have been executed, or may be later.
pub(crate) fn link(operation: &'static str, error: RedisError) -> Error {
    if error.is_timeout() {
        return Error::new(ErrorKind::Timeout, operation)
            .with_applied(Applied::Unknown)
            .with_source(error);
    }
    if error.is_connection_refusal() {
        return Error::unavailable(operation, Applied::No).with_source(error);
    }
    Error::unavailable(operation, Applied::Unknown).with_source(error)
}

/// What a refusal of the server asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The script is not there.
    NoScript,
    /// The key is at another node for good.
    Moved,
    /// This server does not serve writes any more.
    NotMaster,
    /// The position is not above the top.
    Position,
    /// Anything else.
    Other,
}

pub(crate) fn refusal(error: &ServerError) -> Refusal {
    match error.code() {
        "NOSCRIPT" => Refusal::NoScript,
        "MOVED" => Refusal::Moved,
        "READONLY" | "MASTERDOWN" => Refusal::NotMaster,
        "ERR" if error.details().is_some_and(is_position) => Refusal::Position,
        _ => Refusal::Other,
    }
}

fn is_position(details: &str) -> bool {
    details.contains("equal or smaller") || details.contains("exhausted the last possible ID")
}

/// The server has refused a command, or a script of ours has failed.
pub(crate) fn server(operation: &'static str, error: &ServerError) -> Error {
    let code = error.code();
    let details = error.details().unwrap_or_default();
    let kind = match code {
        // Back as soon as there is room.
        "OOM" => ErrorKind::Overloaded,
        "MCPFORMAT" => ErrorKind::UnsupportedFormat,
        "NOPERM" | "NOAUTH" | "WRONGPASS" | "READONLY" | "LOADING" | "MASTERDOWN"
        | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "BUSY" | "NOREPLICAS" | "MISCONF"
        | "NOSCRIPT" | "UNKILLABLE" => ErrorKind::Unavailable,
        _ if details.contains("max number of clients") => ErrorKind::Unavailable,
        // Within a script the code is part of the text.
        _ if details.contains("MCPFORMAT") => ErrorKind::UnsupportedFormat,
        _ if details.contains("OOM command not allowed") => ErrorKind::Overloaded,
        _ => ErrorKind::Corrupt,
    };
    let applied = if kind == ErrorKind::Corrupt {
        // A script is not undone where it fails.
        Applied::Unknown
    } else {
        Applied::No
    };
    Error::new(kind, operation)
        .with_applied(applied)
        .with_message(format!("the server answered {code}"))
        .with_source(RedisError::from(error.clone()))
}

/// An answer that our scripts do not give.
pub(crate) fn odd(operation: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, operation)
        .with_applied(Applied::Unknown)
        .with_message("the server gave another answer than the script")
}

/// The server or its set-up cannot be used: a retry changes nothing.
pub(crate) fn unusable(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArgument, "connect").with_message(message)
}
