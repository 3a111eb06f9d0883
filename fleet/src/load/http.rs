//! The HTTP side of the raw clients.

use std::{collections::VecDeque, time::Duration};

use serde_json::Value;

use super::sse::{SseEvent, SseParser};
use crate::proxy::INSTANCE_HEADER;

const SESSION_HEADER: &str = "mcp-session-id";
const VERSION_HEADER: &str = "mcp-protocol-version";
const LAST_EVENT_ID: &str = "last-event-id";
/// Newest revision that has sessions.
pub(super) const PROTOCOL_VERSION: &str = "2025-11-25";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The server, or the proxy before it.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    client: reqwest::Client,
    url: String,
}

/// An answer whose head has arrived.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// The upstream that a fleet's proxy chose.
    pub(super) instance: Option<String>,
    pub(super) session: Option<String>,
    response: reqwest::Response,
}

/// The connection died before an answer, or nobody listens.
#[derive(Debug)]
pub(super) struct NoReply {
    pub(super) instance: Option<String>,
    pub(super) reason: String,
}

impl Endpoint {
    /// Clients of `url`.
    pub(crate) fn new(url: &str) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .build()?;
        Ok(Self {
            client,
            url: url.to_owned(),
        })
    }

    pub(super) fn client(&self) -> reqwest::Client {
        self.client.clone()
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) async fn post(
        &self,
        session: Option<&str>,
        message: &Value,
    ) -> Result<Reply, NoReply> {
        let request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(message.to_string());
        send(request, session).await
    }

    pub(super) async fn get(
        &self,
        session: &str,
        last_event_id: Option<&str>,
    ) -> Result<Reply, NoReply> {
        let mut request = self
            .client
            .get(&self.url)
            .header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header(LAST_EVENT_ID, id);
        }
        send(request, Some(session)).await
    }

    pub(super) async fn delete(&self, session: &str) -> Result<Reply, NoReply> {
        send(self.client.delete(&self.url), Some(session)).await
    }
}

async fn send(request: reqwest::RequestBuilder, session: Option<&str>) -> Result<Reply, NoReply> {
    let request = match session {
        Some(session) => request
            .header(SESSION_HEADER, session)
            .header(VERSION_HEADER, PROTOCOL_VERSION),
        None => request,
    };
    let response = request.send().await.map_err(|error| NoReply {
        instance: None,
        reason: chain(&error),
    })?;
    let header = |name: &str| {
        let value = response.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let instance = header(INSTANCE_HEADER);
    let status = response.status().as_u16();
    // The proxy's words for an upstream that died, and for none that lives.
    if status == 502 || status == 503 {
        return Err(NoReply {
            instance,
            reason: format!("status {status}"),
        });
    }
    Ok(Reply {
        status,
        session: header(SESSION_HEADER),
        instance,
        response,
    })
}

/// The error with its causes: reqwest's own text hides them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

impl Reply {
    pub(super) fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Start of the body, for a complaint.
    pub(super) async fn text(self) -> String {
        const SHOWN: usize = 200;
        let text = self.response.text().await.unwrap_or_default();
        text.chars().take(SHOWN).collect()
    }

    /// The body as events.
    pub(super) fn events(self) -> Events {
        let json = self
            .response
            .headers()
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with("application/json"));
        Events {
            response: self.response,
            json: json.then(Vec::new),
            parser: SseParser::default(),
            ready: VecDeque::new(),
        }
    }
}

/// The next thing on a stream.
#[derive(Debug)]
pub(super) enum Next {
    Event(SseEvent),
    /// The server ended the stream.
    End,
    /// The connection broke.
    Broken(String),
}

/// Events of a response; a JSON body is one event without an id.
#[derive(Debug)]
pub(super) struct Events {
    response: reqwest::Response,
    json: Option<Vec<u8>>,
    parser: SseParser,
    ready: VecDeque<SseEvent>,
}

impl Events {
    /// Cancel-safe: what was read stays for the next call.
    pub(super) async fn next(&mut self) -> Next {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Next::Event(event);
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => match &mut self.json {
                    Some(body) => body.extend_from_slice(&bytes),
                    None => {
                        let mut events = Vec::new();
                        if let Err(error) = self.parser.feed(&bytes, &mut events) {
                            return Next::Broken(error.to_string());
                        }
                        self.ready.extend(events);
                    }
                },
                Ok(None) => match self.json.as_mut().map(std::mem::take) {
                    Some(body) if !body.is_empty() => {
                        return Next::Event(SseEvent {
                            data: String::from_utf8_lossy(&body).into_owned(),
                            ..SseEvent::default()
                        });
                    }
                    _ => return Next::End,
                },
                Err(error) => return Next::Broken(chain(&error)),
            }
        }
    }
}
