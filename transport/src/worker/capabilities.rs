//! What a client can be asked, by what it declared when it initialized.

use rmcp::model::{ClientCapabilities, ElicitRequestParams, ServerRequest};
use serde_json::{Value, json};

/// What a client request needs of the client.
#[derive(Debug, Clone, Copy)]
enum Need {
    Form,
    Url,
    Sampling,
    SamplingTools,
    Roots,
}

impl Need {
    #[expect(deprecated, reason = "sampling goes in 2026-07-28, not before")]
    fn of(request: &ServerRequest) -> Option<Self> {
        match request {
            ServerRequest::ElicitRequest(request) => Some(match &request.params {
                ElicitRequestParams::UrlElicitationParams { .. } => Self::Url,
                _ => Self::Form,
            }),
            ServerRequest::CreateMessageRequest(request) => Some(
                if request.params.tools.is_some() || request.params.tool_choice.is_some() {
                    Self::SamplingTools
                } else {
                    Self::Sampling
                },
            ),
            ServerRequest::ListRootsRequest(_) => Some(Self::Roots),
            // The same methods in a form that rmcp does not know.
            ServerRequest::CustomRequest(request) => {
                let has = |field| {
                    let params = request.params.as_ref();
                    params.and_then(|params| params.get(field)).is_some()
                };
                match request.method.as_str() {
                    "elicitation/create" if has("url") => Some(Self::Url),
                    "elicitation/create" => Some(Self::Form),
                    "sampling/createMessage" if has("tools") || has("toolChoice") => {
                        Some(Self::SamplingTools)
                    }
                    "sampling/createMessage" => Some(Self::Sampling),
                    "roots/list" => Some(Self::Roots),
                    // What others need only their handlers can know.
                    _ => None,
                }
            }
            // A ping needs nothing.
            _ => None,
        }
    }

    fn is_met(self, client: &ClientCapabilities) -> bool {
        let modes = client.elicitation.as_ref();
        let sampling = client.sampling.as_ref();
        match self {
            // Before there were modes, to declare none was to declare forms.
            Self::Form => modes.is_some_and(|modes| modes.form.is_some() || modes.url.is_none()),
            Self::Url => modes.is_some_and(|modes| modes.url.is_some()),
            Self::Sampling => sampling.is_some(),
            Self::SamplingTools => sampling.is_some_and(|sampling| sampling.tools.is_some()),
            Self::Roots => client.roots.is_some(),
        }
    }

    fn declared(self) -> Value {
        match self {
            Self::Form => json!({"elicitation": {"form": {}}}),
            Self::Url => json!({"elicitation": {"url": {}}}),
            Self::Sampling => json!({"sampling": {}}),
            Self::SamplingTools => json!({"sampling": {"tools": {}}}),
            Self::Roots => json!({"roots": {}}),
        }
    }
}

/// What the client would have to declare for this request and does not. Such a
/// request is answered here: clients that do not know it may never answer.
pub(super) fn missing(
    request: &ServerRequest,
    client: &ClientCapabilities,
) -> Option<ClientCapabilities> {
    let need = Need::of(request).filter(|need| !need.is_met(client))?;
    Some(serde_json::from_value(need.declared()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing_of(request: Value, client: Value) -> Value {
        let request = serde_json::from_value(request).unwrap();
        let client = serde_json::from_value(client).unwrap();
        serde_json::to_value(missing(&request, &client)).unwrap()
    }

    #[test]
    fn what_a_client_must_declare() {
        let schema = json!({"type": "object", "properties": {}});
        let form = json!({"method": "elicitation/create",
            "params": {"message": "?", "requestedSchema": schema}});
        let url = json!({"method": "elicitation/create", "params": {"mode": "url",
            "message": "?", "url": "https://example.com/", "elicitationId": "e"}});
        let sample = json!({"method": "sampling/createMessage",
            "params": {"messages": [], "maxTokens": 1}});
        let tools = json!({"method": "sampling/createMessage",
            "params": {"messages": [], "maxTokens": 1, "tools": []}});
        let choice = json!({"method": "sampling/createMessage",
            "params": {"messages": [], "maxTokens": 1, "toolChoice": {"mode": "none"}}});
        let roots = json!({"method": "roots/list"});
        for (request, required, enough) in [
            (
                &form,
                json!({"elicitation": {"form": {}}}),
                vec![
                    json!({"elicitation": {}}),
                    json!({"elicitation": {"form": {}}}),
                    json!({"elicitation": {"form": {}, "url": {}}}),
                ],
            ),
            (
                &url,
                json!({"elicitation": {"url": {}}}),
                vec![json!({"elicitation": {"url": {}}})],
            ),
            (
                &sample,
                json!({"sampling": {}}),
                vec![json!({"sampling": {}}), json!({"sampling": {"tools": {}}})],
            ),
            (
                &tools,
                json!({"sampling": {"tools": {}}}),
                vec![json!({"sampling": {"tools": {}}})],
            ),
            (
                &choice,
                json!({"sampling": {"tools": {}}}),
                vec![json!({"sampling": {"tools": {}}})],
            ),
            (
                &roots,
                json!({"roots": {}}),
                vec![
                    json!({"roots": {}}),
                    json!({"roots": {"listChanged": true}}),
                ],
            ),
        ] {
            for client in [
                json!({}),
                json!({"elicitation": {"url": {}}}),
                json!({"elicitation": {}}),
                json!({"sampling": {}}),
                json!({"roots": {}}),
            ] {
                let wanted = if enough.contains(&client) {
                    Value::Null
                } else {
                    required.clone()
                };
                assert_eq!(
                    missing_of(request.clone(), client.clone()),
                    wanted,
                    "{request} {client}"
                );
            }
            for client in enough {
                assert_eq!(missing_of(request.clone(), client), Value::Null);
            }
        }
        let custom = json!({"method": "acme/ask", "params": {}});
        assert_eq!(missing_of(custom, json!({})), Value::Null);
        assert_eq!(
            missing_of(json!({"method": "ping"}), json!({})),
            Value::Null
        );
    }
}
