//! A session's record: what is in it, and changes, by compare and set.

use std::{sync::Arc, time::Duration};

use mcp_adapter_core::{
    ErrorKind, Principal, Result, Session as Stored, SessionId, SessionRecord, StreamId,
};
use rmcp::model::ServerJsonRpcMessage;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    config::{Backends, Settings},
    exchange::Exchange,
    sse::Reader,
};

/// The first version whose clients read an event without data (SEP-1699).
const PRIMING_SINCE: &str = "2025-11-25";
/// Where a session's record says that its server sends log messages.
const LOGS: &str = "mcp-adapter-transport/logs";

/// For how long an edit is tried again; each race that it loses means that
/// another one has won.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many entries each list of a record has; more than can be of use at once.
pub(crate) const REMEMBERED: usize = 64;
/// Where a record lists the calls that its client has cancelled.
const GIVEN_UP: &str = "mcp-adapter-transport/given_up";

/// The record of a session that has just been initialized.
pub(crate) fn of_new_session(
    exchange: &Exchange,
    answer: &ServerJsonRpcMessage,
) -> Option<SessionRecord> {
    // From the bytes, since they may hold more than rmcp knows.
    let request: Value = serde_json::from_slice(&exchange.inbound.body).ok()?;
    let answer = serde_json::to_value(answer).ok()?;
    let mut record = SessionRecord {
        protocol: answer["result"]["protocolVersion"].as_str()?.to_owned(),
        client: request["params"]["clientInfo"].clone(),
        capabilities: request["params"]["capabilities"].clone(),
        principal: exchange.principal.clone(),
        ..SessionRecord::default()
    };
    if answer["result"]["capabilities"]["logging"].is_object() {
        record.extra.insert(LOGS.to_owned(), Value::Bool(true));
    }
    Some(record)
}

/// How the session's client reads a stream.
pub(crate) fn reader(record: &SessionRecord, settings: &Settings, resumes: bool) -> Reader {
    // Before the client sets a level the server decides.
    let level = record.log_level.as_deref().unwrap_or("warning");
    Reader {
        primed: record.protocol.as_str() >= PRIMING_SINCE,
        warned: record.extra.get(LOGS) == Some(&Value::Bool(true))
            && matches!(level, "debug" | "info" | "notice" | "warning"),
        resumes,
        keep_alive: settings.keep_alive,
        retry: settings.retry,
    }
}

/// Adds an entry to a list of the record and drops the oldest ones past the
/// bound. `false`: it is there already.
pub(crate) fn remember(record: &mut SessionRecord, list: &str, entry: &str) -> bool {
    let entries = record.extra.entry(list).or_insert_with(|| json!([]));
    let Value::Array(entries) = entries else {
        return false;
    };
    if entries.iter().any(|known| known == entry) {
        return false;
    }
    if entries.len() >= REMEMBERED {
        entries.drain(..=entries.len() - REMEMBERED);
    }
    entries.push(json!(entry));
    true
}

/// Notes that the client has cancelled the call of this stream.
pub(crate) fn give_up(record: &mut SessionRecord, stream: &StreamId) -> bool {
    remember(record, GIVEN_UP, nonce(stream))
}

/// Whether the client has cancelled the call of this stream; as far as the
/// newest 64 are concerned.
pub(crate) fn is_given_up(record: &SessionRecord, stream: &StreamId) -> bool {
    let list = record.extra.get(GIVEN_UP).and_then(Value::as_array);
    list.is_some_and(|list| list.iter().any(|known| known == nonce(stream)))
}

/// What tells the streams of calls of one session apart: 64 random bits.
fn nonce(stream: &StreamId) -> &str {
    let name = stream.as_str();
    name.split_once('.').map_or(name, |(nonce, _)| nonce)
}

/// Applies `edit` to the record, which starts out as `stored` and is read
/// again wherever somebody else was faster. `edit` returns whether it wants
/// the record stored; the answer is whether it was.
pub(crate) async fn edit(
    backends: &Backends,
    session: &SessionId,
    principal: Option<&Principal>,
    stored: Stored,
    mut edit: impl FnMut(&mut SessionRecord) -> bool + Send,
) -> Result<bool> {
    try_edit(backends, session, principal, stored, |record| {
        Ok(edit(record))
    })
    .await
}

/// [`edit`], by what may fail; then nothing is stored.
pub(crate) async fn try_edit(
    backends: &Backends,
    session: &SessionId,
    principal: Option<&Principal>,
    mut stored: Stored,
    mut edit: impl FnMut(&mut SessionRecord) -> Result<bool> + Send,
) -> Result<bool> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut record = Arc::unwrap_or_clone(stored.record);
        if !edit(&mut record)? {
            return Ok(false);
        }
        match backends
            .sessions
            .update(session, stored.revision, record)
            .await
        {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Conflict && Instant::now() < until => {
                // Whoever has won may go on first: a store in this process does
                // not wait for anything.
                tokio::task::yield_now().await;
                stored = read(backends, session, principal).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

pub(crate) async fn read(
    backends: &Backends,
    session: &SessionId,
    principal: Option<&Principal>,
) -> Result<Stored> {
    let entered = backends.sessions.enter(session, principal, None).await?;
    Ok(entered.session)
}

#[cfg(test)]
mod tests {
    use mcp_adapter_core::RpcId;

    use super::*;

    #[test]
    fn a_list_of_a_record_is_bounded_and_has_no_entry_twice() {
        let mut record = SessionRecord::default();
        for id in 0..2 * REMEMBERED {
            assert!(remember(&mut record, "list", &id.to_string()));
            assert!(!remember(&mut record, "list", &id.to_string()));
        }
        assert_eq!(record.extra["list"].as_array().unwrap().len(), REMEMBERED);
    }

    #[test]
    fn a_call_that_was_given_up_is_known_by_its_stream() {
        let mut record = SessionRecord::default();
        let [one, other] = [1, 1].map(|id| StreamId::for_request(&RpcId::Number(id)));
        assert!(give_up(&mut record, &one));
        assert!(!give_up(&mut record, &one));
        assert!(is_given_up(&record, &one));
        assert!(!is_given_up(&record, &other));
    }
}
