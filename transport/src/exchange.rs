//! One HTTP request: what the service found in it, and what the session
//! manager left behind for the answer.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use mcp_adapter_core::{Entered, Principal, RpcId, SessionId};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{sse::EventBody, verdict::Verdict, worker::NewWorker};

tokio::task_local! {
    /// Set by the service around rmcp's. `close_session` tells by it whether a
    /// client deletes its session or a worker has merely ended (P17).
    pub(crate) static EXCHANGE: Arc<Exchange>;
}

/// The exchange of the HTTP request that this task serves.
pub(crate) fn current() -> Option<Arc<Exchange>> {
    EXCHANGE.try_with(Arc::clone).ok()
}

#[derive(Debug)]
pub(crate) struct Exchange {
    /// `None` where the request has none or a malformed one.
    pub(crate) session: Option<SessionId>,
    pub(crate) principal: Option<Principal>,
    pub(crate) kind: Kind,
    /// The body as it came.
    pub(crate) body: Bytes,
    pub(crate) stash: Mutex<Stash>,
}

/// What is left behind. Dropping it with the exchange abandons the stream that
/// was opened for a request which was refused afterwards.
#[derive(Debug, Default)]
pub(crate) struct Stash {
    pub(crate) verdict: Option<Verdict>,
    pub(crate) entered: Option<Entered>,
    pub(crate) body: Option<EventBody>,
    pub(crate) created: Option<NewWorker>,
}

impl Exchange {
    pub(crate) fn refuse(&self, verdict: Verdict) {
        self.stash.lock().verdict = Some(verdict);
    }
}

#[derive(Debug, PartialEq)]
pub(crate) enum Kind {
    Request {
        id: RpcId,
    },
    Notification,
    /// An answer to a client request; `None`: it names no request.
    Answer(Option<(RpcId, Payload)>),
    Get,
    Delete,
    /// Nothing that JSON-RPC knows, or something that two parsers might read
    /// in two ways: no session is opened for it.
    Unknown,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Payload {
    Result(Bytes),
    Error(Bytes),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

impl Kind {
    /// Looks at method and id and skips the rest.
    pub(crate) fn peek(body: &Bytes) -> Self {
        let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(body) else {
            return Self::Unknown;
        };
        let id = envelope
            .id
            .map(|id| serde_json::from_str::<RpcId>(id.get()));
        let slice = |raw: &RawValue| body.slice_ref(raw.get().as_bytes());
        match (envelope.method, id, envelope.result, envelope.error) {
            (Some(_), Some(Ok(id)), None, None) => Self::Request { id },
            (Some(_), None, None, None) => Self::Notification,
            (None, Some(Ok(id)), Some(result), None) => {
                Self::Answer(Some((id, Payload::Result(slice(result)))))
            }
            (None, Some(Ok(id)), None, Some(error)) => {
                Self::Answer(Some((id, Payload::Error(slice(error)))))
            }
            (None, None, None, Some(_)) => Self::Answer(None),
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peek(text: &'static str) -> Kind {
        Kind::peek(&Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn kinds_are_told_by_method_and_id() {
        let one = RpcId::Number(1);
        assert_eq!(
            peek(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#),
            Kind::Request { id: one.clone() }
        );
        assert_eq!(
            peek(r#"{"method":"tools/call","params":{"id":7},"id":"1"}"#),
            Kind::Request {
                id: RpcId::String("1".into())
            }
        );
        assert_eq!(peek(r#"{"method":"notifications/x"}"#), Kind::Notification);
        assert_eq!(
            peek(r#"{"id":1, "result": {"a": 1.0} }"#),
            Kind::Answer(Some((one, Payload::Result(r#"{"a": 1.0}"#.into()))))
        );
        assert_eq!(peek(r#"{"id":null,"error":{}}"#), Kind::Answer(None));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_unknown() {
        for text in [
            "",
            "[]",
            "{}",
            "null",
            r#"{"id":1.5,"method":"ping"}"#,
            r#"{"id":1,"id":2,"method":"ping"}"#,
            r#"{"id":1,"method":"ping","method":"tools/call"}"#,
            r#"{"id":1,"method":"ping","result":{}}"#,
            r#"[{"id":1,"method":"ping"}]"#,
        ] {
            assert_eq!(peek(text), Kind::Unknown, "{text}");
        }
    }
}
