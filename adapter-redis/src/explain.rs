//! What went wrong at the start, in words for whoever configures it: a refusal for
//! good is told apart from an outage, and says what to change.

use std::error::Error as StdError;

use mcp_adapter_core::{Applied, Error, ErrorKind};
use redis::RedisError;

use crate::error::unusable;

/// The operation of errors of Sentinels.
pub(crate) const SENTINEL: &str = "sentinel";

/// As an error of the start; `tls` is whether the URL asks for it.
pub(crate) fn explain(error: Error, tls: bool) -> Error {
    if error.kind() == ErrorKind::InvalidArgument {
        return error;
    }
    if let Some(message) = for_good(&error) {
        return unusable(message)
            .with_applied(Applied::No)
            .with_source(error);
    }
    let driver = chain(&error).find_map(|error| error.downcast_ref::<RedisError>());
    let hung_up = driver
        .is_some_and(|driver| driver.is_connection_dropped() && !driver.is_connection_refusal());
    if !hung_up {
        return error;
    }
    // It may be an outage as well.
    Error::new(error.kind(), error.operation())
        .with_applied(error.applied())
        .with_message(if tls {
            "the server hung up in the greeting: it may ask for a certificate of the client, \
             see `with_client_certificate`"
        } else {
            "the server hung up in the greeting: its port may speak TLS, `rediss` in place of \
             `redis`"
        })
        .with_source(error)
}

/// What to change where a retry changes nothing.
fn for_good(error: &Error) -> Option<String> {
    let texts: Vec<_> = chain(error).map(ToString::to_string).collect();
    // The innermost, which says most.
    let any = |parts: &[&str]| {
        let told = |text: &&String| parts.iter().any(|part| text.contains(part));
        texts.iter().rev().find(told)
    };
    let (who, login) = if error.operation() == SENTINEL {
        (
            "the Sentinel",
            "what `with_sentinel_auth` says, or the URL's `user:password@` is the master's",
        )
    } else {
        ("the server", "`user:password@` of the URL")
    };
    if let Some(cause) = any(&["invalid peer certificate"]) {
        return Some(format!(
            "the certificate of {who} is not trusted: {cause}. `with_ca_file` names the \
             authority that has signed it"
        ));
    }
    if let Some(cause) = any(&["fatal alert"]) {
        return Some(format!(
            "{who} does not take this client: {cause}. `with_client_certificate` names the \
             certificate that it shows"
        ));
    }
    if any(&["WRONGPASS", "AuthenticationFailed", "authentication failed"]).is_some() {
        return Some(format!(
            "{who} does not take this login: there is no such user, it is off, or its \
             password is another one. Look at {login}"
        ));
    }
    if any(&["NOAUTH"]).is_some() {
        return Some(format!(
            "{who} asks for a user or a password. Look at {login}"
        ));
    }
    if let Some(cause) = any(&["refused to switch database"]) {
        return Some(format!("{who} does not have this database: {cause}"));
    }
    if let Some(cause) = any(&["NOPERM", "NoPerm", "No permissions", "no permissions"]) {
        return Some(format!("the user lacks a right that is needed: {cause}"));
    }
    let driver = chain(error).find_map(|error| error.downcast_ref::<RedisError>());
    if let Some(driver) = driver
        && driver.kind() == redis::ErrorKind::InvalidClientConfig
    {
        return Some(driver.to_string());
    }
    // A script that fails where a command is denied to it.
    let refused = error.kind() == ErrorKind::Corrupt;
    refused.then(|| {
        let cause = texts.last().map_or("", String::as_str);
        format!("the user lacks a right that is needed: {cause}")
    })
}

fn chain(error: &Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first = Some(error as &(dyn StdError + 'static));
    std::iter::successors(first, |&error| error.source())
}
