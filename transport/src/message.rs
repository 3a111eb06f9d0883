//! JSON-RPC messages of our own making, and ids between the two worlds.

use std::sync::Arc;

use bytes::Bytes;
use mcp_adapter_core::{Outcome, OutcomeKind, RpcId};
use rmcp::model::{
    ClientJsonRpcMessage, ClientResult, ErrorCode, ErrorData, NumberOrString, RequestId,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// The code of errors that stand for a call or client request that ended
/// without the other side's answer.
pub(crate) const ENDED: ErrorCode = ErrorCode(-32000);
/// The same for one whose deadline has passed.
const TIMED_OUT: ErrorCode = ErrorCode(-32001);

pub(crate) fn rpc_id(id: &RequestId) -> RpcId {
    match id {
        NumberOrString::Number(number) => RpcId::Number(*number),
        NumberOrString::String(text) => RpcId::String(Arc::clone(text)),
    }
}

/// The bytes of a message as they are stored and sent.
pub(crate) fn encode(message: &impl Serialize) -> Option<Bytes> {
    match serde_json::to_vec(message) {
        Ok(bytes) => Some(bytes.into()),
        Err(error) => {
            tracing::error!(%error, "a message cannot be written as JSON");
            None
        }
    }
}

fn value(value: &Value) -> Bytes {
    value.to_string().into()
}

/// The error that ends the call `id`.
pub(crate) fn error(id: &RpcId, text: &str) -> Bytes {
    value(&json!({
        "jsonrpc": "2.0",
        "id": id,
        "error": {"code": ENDED.0, "message": text},
    }))
}

/// The error of a handler that broke.
pub(crate) fn internal_error(id: &RpcId, text: &str) -> Bytes {
    value(&json!({
        "jsonrpc": "2.0",
        "id": id,
        "error": {"code": ErrorCode::INTERNAL_ERROR.0, "message": text},
    }))
}

/// The error of what is no message, or none that can be served; `id` is JSON.
pub(crate) fn refusal(code: ErrorCode, text: &'static str, id: Option<&str>) -> Bytes {
    let id = id.unwrap_or("null");
    let error = json!({"code": code.0, "message": text});
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#).into()
}

/// Tells a client that a stream lacks something. It belongs to no place in the
/// stream, so it moves no cursor.
pub(crate) fn gap() -> Bytes {
    notification(
        "notifications/message",
        Some(json!({
            "level": "warning",
            "logger": "mcp-adapter-transport",
            "data": "messages before this one are missing: they were dropped before they could be sent",
        })),
    )
}

pub(crate) fn notification(method: &str, params: Option<Value>) -> Bytes {
    let mut message = json!({"jsonrpc": "2.0", "method": method});
    if let Some(params) = params {
        message["params"] = params;
    }
    value(&message)
}

/// What tells a client that a request to it is void.
pub(crate) fn void(wire_id: &str, reason: &str) -> Bytes {
    let params = json!({"requestId": wire_id, "reason": reason});
    notification("notifications/cancelled", Some(params))
}

/// A message for a worker, built from JSON since rmcp's own types can be built
/// in no other way that holds across its versions.
fn parse<T: DeserializeOwned>(message: Value) -> Option<T> {
    serde_json::from_value(message)
        .inspect_err(|error| tracing::error!(%error, "a message of ours is not one of rmcp's"))
        .ok()
}

pub(crate) fn cancelled(key: &str, reason: &str) -> Option<ClientJsonRpcMessage> {
    parse(json!({
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": key, "reason": reason},
    }))
}

pub(crate) fn request(key: &str, method: &str, params: &Value) -> Option<ClientJsonRpcMessage> {
    parse(json!({"jsonrpc": "2.0", "id": key, "method": method, "params": params}))
}

/// The error that a handler's own request ends with.
pub(crate) fn refused(id: RequestId, code: ErrorCode, text: &'static str) -> ClientJsonRpcMessage {
    ClientJsonRpcMessage::error(ErrorData::new(code, text, None), Some(id))
}

/// What the worker that asked is told about its client request.
pub(crate) fn answer(id: RequestId, outcome: &Outcome) -> ClientJsonRpcMessage {
    match outcome.kind {
        OutcomeKind::Answered => match serde_json::from_slice::<ClientResult>(&outcome.payload) {
            Ok(result) => ClientJsonRpcMessage::response(result, id),
            Err(_) => refused(
                id,
                ErrorCode::PARSE_ERROR,
                "the client's result is malformed",
            ),
        },
        OutcomeKind::Rejected => match serde_json::from_slice::<ErrorData>(&outcome.payload) {
            Ok(error) => ClientJsonRpcMessage::error(error, Some(id)),
            Err(_) => refused(
                id,
                ErrorCode::PARSE_ERROR,
                "the client's error is malformed",
            ),
        },
        OutcomeKind::TimedOut => refused(id, TIMED_OUT, "the client did not answer in time"),
        OutcomeKind::Cancelled => refused(id, ENDED, "the request was withdrawn"),
        OutcomeKind::SessionEnded => refused(id, ENDED, "the session has ended"),
        OutcomeKind::Replaced => refused(id, ENDED, "the request was replaced"),
        OutcomeKind::OwnerLost | OutcomeKind::Lost => refused(id, ENDED, "the request was lost"),
    }
}

/// The error of client requests that end because this instance does.
pub(crate) fn shutting_down(id: RequestId) -> ClientJsonRpcMessage {
    refused(id, ENDED, "the server is shutting down")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_messages_are_rmcps() {
        assert!(cancelled("k", "r").is_some());
        let level = request("k", "logging/setLevel", &json!({"level": "info"})).unwrap();
        assert_eq!(level.into_request().unwrap().0.method(), "logging/setLevel");
        let uri = request("k", "resources/subscribe", &json!({"uri": "x://y"})).unwrap();
        assert_eq!(
            uri.into_request().unwrap().0.method(),
            "resources/subscribe"
        );
    }

    #[test]
    fn an_answer_keeps_its_unknown_fields() {
        let outcome = Outcome {
            kind: OutcomeKind::Answered,
            payload: Bytes::from_static(br#"{"action":"accept","content":{"a":1}}"#),
        };
        let id = RequestId::Number(3);
        let (result, got) = answer(id.clone(), &outcome).into_response().unwrap();
        assert_eq!(got, id);
        assert_eq!(
            serde_json::to_value(result).unwrap()["content"],
            json!({"a": 1})
        );
    }
}
