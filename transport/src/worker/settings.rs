//! What a client sets for its session with requests to one worker, and what
//! all its workers must know: log level and resource subscriptions (T17).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::request::Parts;
use mcp_adapter_core::{Session as Stored, SessionRecord};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, GetExtensions};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Item, State, Worker};
use crate::{handle::Session, message, record};

/// Subscriptions of one session, and their bytes; its record must stay small.
const MAX_SUBSCRIPTIONS: usize = 1024;
const MAX_SUBSCRIPTION_BYTES: usize = 64 * 1024;

/// How long a handler may take for what is replayed to it, before requests of
/// its client no longer wait for it.
const REPLAY_PATIENCE: Duration = Duration::from_secs(5);

/// What a worker's handler has been told.
#[derive(Debug, Default)]
pub(super) struct Applied {
    revision: u64,
    log_level: Option<String>,
    subscriptions: BTreeSet<String>,
}

/// A request that changes the session's record once the handler agrees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    LogLevel(String),
    Subscribe(String),
    Unsubscribe(String),
}

impl Change {
    #[expect(deprecated, reason = "log levels go in 2026-07-28, not before")]
    pub(super) fn of(request: &ClientRequest) -> Option<Self> {
        match request {
            ClientRequest::SetLevelRequest(request) => {
                match serde_json::to_value(request.params.level) {
                    Ok(Value::String(level)) => Some(Self::LogLevel(level)),
                    _ => None,
                }
            }
            ClientRequest::SubscribeRequest(request) => {
                Some(Self::Subscribe(request.params.uri.to_string()))
            }
            ClientRequest::UnsubscribeRequest(request) => {
                Some(Self::Unsubscribe(request.params.uri.to_string()))
            }
            _ => None,
        }
    }

    /// Whether it changed anything.
    fn apply(&self, log_level: &mut Option<String>, uris: &mut BTreeSet<String>) -> bool {
        match self {
            Self::LogLevel(level) => log_level.replace(level.clone()).as_ref() != Some(level),
            Self::Subscribe(uri) => uris.insert(uri.clone()),
            Self::Unsubscribe(uri) => uris.remove(uri),
        }
    }
}

impl Worker {
    /// Stores what the handler has agreed to and tells the other workers.
    ///
    /// The error is for the client.
    pub(super) async fn store_change(
        self: &Arc<Self>,
        change: Change,
        stored: Stored,
    ) -> Result<(), &'static str> {
        let uris = &stored.record.subscriptions;
        if let Change::Subscribe(uri) = &change
            && !uris.contains(uri)
            && (uris.len() >= MAX_SUBSCRIPTIONS
                || uris.iter().map(String::len).sum::<usize>() + uri.len() > MAX_SUBSCRIPTION_BYTES)
        {
            return Err("too many subscriptions in this session");
        }
        {
            let applied = &mut self.state.lock().applied;
            change.apply(&mut applied.log_level, &mut applied.subscriptions);
        }
        let edit = |record: &mut SessionRecord| {
            change.apply(&mut record.log_level, &mut record.subscriptions)
        };
        match record::edit(
            &self.backends,
            &self.session,
            self.principal.as_ref(),
            stored,
            edit,
        )
        .await
        {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.backends.signal_sync(&self.session).await;
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "a setting of a session was not stored");
                Err("the change could not be stored, try again later")
            }
        }
    }

    /// Tells the handler what was set at other workers, before what follows.
    /// Signals do the same sooner, but may be lost; this cannot.
    pub(super) fn sync(
        self: &Arc<Self>,
        state: &mut State,
        stored: &Stored,
        parts: Option<&Parts>,
    ) {
        if stored.revision <= state.applied.revision {
            return;
        }
        state.applied.revision = stored.revision;
        let SessionRecord {
            log_level,
            subscriptions,
            ..
        } = &*stored.record;
        let mut requests = Vec::new();
        if log_level.is_some() && *log_level != state.applied.log_level {
            requests.push(("logging/setLevel", json!({"level": log_level})));
            state.applied.log_level.clone_from(log_level);
        }
        if *subscriptions != state.applied.subscriptions {
            let was = std::mem::replace(&mut state.applied.subscriptions, subscriptions.clone());
            let uri = |uri: &String| json!({"uri": uri});
            requests.extend(
                (subscriptions.difference(&was)).map(|new| ("resources/subscribe", uri(new))),
            );
            requests.extend(
                (was.difference(subscriptions)).map(|old| ("resources/unsubscribe", uri(old))),
            );
        }
        if requests.is_empty() {
            return;
        }
        for (method, params) in requests {
            self.inject(state, method, &params, parts);
        }
        if state.open {
            let until = Instant::now() + REPLAY_PATIENCE;
            state.inbox.push_back(Item::Barrier(until));
            self.arrived.notify_one();
        }
    }

    /// [`sync`](Self::sync), for signals and new workers.
    pub(crate) fn sync_now(self: &Arc<Self>, stored: &Stored, parts: Option<&Parts>) {
        self.sync(&mut self.state.lock(), stored, parts);
    }

    /// A request that no client has sent; its answer goes nowhere.
    fn inject(
        self: &Arc<Self>,
        state: &mut State,
        method: &str,
        params: &Value,
        parts: Option<&Parts>,
    ) {
        let key = self.mint(state);
        let Some(mut message) = message::request(&key, method, params) else {
            return;
        };
        if let ClientJsonRpcMessage::Request(request) = &mut message {
            let extensions = request.request.extensions_mut();
            extensions.insert(Session::new(Arc::clone(self), None));
            extensions.insert(crate::Replayed::new());
            if let Some(parts) = parts {
                extensions.insert(parts.clone());
            }
        }
        state.replaying.insert(key);
        self.push(state, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_change_the_record_are_known() {
        let of = |method, params| {
            let message = message::request("k", method, &params).unwrap();
            Change::of(&message.into_request().unwrap().0)
        };
        assert_eq!(
            of("logging/setLevel", json!({"level": "warning"})),
            Some(Change::LogLevel("warning".into()))
        );
        assert_eq!(
            of("resources/subscribe", json!({"uri": "a://b"})),
            Some(Change::Subscribe("a://b".into()))
        );
        assert_eq!(
            of("resources/unsubscribe", json!({"uri": "a://b"})),
            Some(Change::Unsubscribe("a://b".into()))
        );
        assert_eq!(of("ping", json!({})), None);
    }
}
