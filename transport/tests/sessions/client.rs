//! A client that hides nothing: statuses, event ids, order.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use sse_stream::SseStream;

/// What went wrong, in words that are the same at every run.
pub(crate) type Failure = String;
pub(crate) type Result<T = (), E = Failure> = std::result::Result<T, E>;

#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    pub(crate) session: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) version: Option<&'static str>,
    /// What it declares.
    pub(crate) capabilities: Value,
    pub(crate) patience: Duration,
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) id: Option<String>,
    pub(crate) retry: Option<u64>,
    /// `Null` for an event without data.
    pub(crate) message: Value,
}

pub(crate) struct Events {
    stream: BoxStream<'static, Event>,
    patience: Duration,
    /// The last id, for a resume.
    pub(crate) last: Option<String>,
}

impl Client {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            http: reqwest::Client::builder()
                .no_proxy()
                .tcp_nodelay(true)
                .build()
                .unwrap(),
            session: None,
            user: None,
            version: Some("2025-11-25"),
            capabilities: json!({"elicitation": {}, "roots": {"listChanged": true}}),
            patience,
        }
    }

    pub(crate) fn as_user(&self, user: &str) -> Self {
        Self {
            user: Some(user.to_owned()),
            ..self.clone()
        }
    }

    fn headers(&self, request: RequestBuilder) -> RequestBuilder {
        let mut request = request.header("accept", "application/json, text/event-stream");
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
            if let Some(version) = self.version {
                request = request.header("mcp-protocol-version", version);
            }
        }
        if let Some(user) = &self.user {
            request = request.header("x-user", user);
        }
        request
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        match tokio::time::timeout(self.patience, self.headers(request).send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(format!("no answer: {error}")),
            Err(_) => Err("no answer in time".into()),
        }
    }

    pub(crate) async fn post(&self, url: &str, message: &Value) -> Result<Response> {
        let request = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .body(message.to_string());
        self.send(request).await
    }

    /// Sends a request of 2026-07-28, which knows no sessions.
    pub(crate) async fn modern(&self, url: &str, message: &Value) -> Result<Events> {
        let request = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", message["method"].as_str().unwrap())
            .body(message.to_string());
        let request = match message["params"]["name"].as_str() {
            Some(name) => request.header("mcp-name", name),
            None => request,
        };
        let response = self.send(request).await?;
        self.events(response).await
    }

    pub(crate) async fn get(&self, url: &str, last: Option<&str>) -> Result<Response> {
        let mut request = self.http.get(url);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        self.send(request).await
    }

    pub(crate) async fn delete(&self, url: &str) -> Result<u16> {
        Ok(self.send(self.http.delete(url)).await?.status().as_u16())
    }

    pub(crate) async fn events(&self, response: Response) -> Result<Events> {
        let status = response.status().as_u16();
        if status != 200 {
            return Err(status.to_string());
        }
        let stream = SseStream::from_bytes_stream(response.bytes_stream())
            .take_while(|event| std::future::ready(event.is_ok()))
            .map(|event| {
                let event = event.unwrap();
                let data = event.data.unwrap_or_default();
                Event {
                    id: event.id,
                    retry: event.retry,
                    message: if data.is_empty() {
                        Value::Null
                    } else {
                        serde_json::from_str(&data).unwrap()
                    },
                }
            });
        Ok(Events {
            stream: stream.boxed(),
            patience: self.patience,
            last: None,
        })
    }

    /// Initializes a session, as `name`.
    pub(crate) async fn initialize_as(&mut self, url: &str, name: &str) -> Result {
        let version = self.version.unwrap_or("2025-03-26");
        let message = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": version,
            "capabilities": self.capabilities,
            "clientInfo": {"name": name, "version": "1"},
        }});
        let response = self.post(url, &message).await?;
        let session = response.headers().get("mcp-session-id");
        let session = session.map(|id| id.to_str().unwrap().to_owned());
        let answer = self.events(response).await?.response().await?;
        if answer["result"]["protocolVersion"] != version {
            return Err(format!("initialize: {answer}"));
        }
        self.session = session;
        Ok(())
    }

    pub(crate) async fn initialize(&mut self, url: &str) -> Result {
        self.initialize_as(url, "raw").await?;
        self.tell(url, "notifications/initialized", json!({})).await
    }

    /// Sends a notification.
    pub(crate) async fn tell(&self, url: &str, method: &str, params: Value) -> Result {
        let message = json!({"jsonrpc": "2.0", "method": method, "params": params});
        accepted(&self.post(url, &message).await?)
    }

    /// Sends a request and gives its stream.
    pub(crate) async fn request(
        &self,
        url: &str,
        id: Value,
        method: &str,
        params: Value,
    ) -> Result<Events> {
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let response = self.post(url, &message).await?;
        self.events(response).await
    }

    /// Calls a tool; its progress token is `t`.
    pub(crate) async fn call(
        &self,
        url: &str,
        id: impl Into<Value>,
        tool: &str,
        arguments: Value,
    ) -> Result<Events> {
        let params = json!({"name": tool, "arguments": arguments, "_meta": {"progressToken": "t"}});
        self.request(url, id.into(), "tools/call", params).await
    }

    /// Calls a tool and waits for its text.
    pub(crate) async fn text(&self, url: &str, tool: &str, arguments: Value) -> Result<String> {
        let mut events = self.call(url, 1, tool, arguments).await?;
        text(&events.response().await?)
    }

    /// Answers a client request.
    pub(crate) async fn answer(&self, url: &str, request: &Value, answer: &str) -> Result {
        let result = json!({"action": "accept", "content": {"answer": answer}});
        let message = json!({"jsonrpc": "2.0", "id": request["id"], "result": result});
        accepted(&self.post(url, &message).await?)
    }

    /// Goes on with a stream.
    pub(crate) async fn resume(&self, url: &str, last: Option<&str>) -> Result<Events> {
        let response = self.get(url, last).await?;
        self.events(response).await
    }
}

fn accepted(response: &Response) -> Result {
    match response.status().as_u16() {
        202 => Ok(()),
        status => Err(status.to_string()),
    }
}

/// The text of a tool's result.
pub(crate) fn text(response: &Value) -> Result<String> {
    match response["result"]["content"][0]["text"].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("error: {}", response["error"]["message"])),
    }
}

impl Events {
    /// The next event; `None`: the stream has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>> {
        match tokio::time::timeout(self.patience, self.stream.next()).await {
            Ok(event) => {
                if let Some(id) = event.as_ref().and_then(|event| event.id.clone()) {
                    self.last = Some(id);
                }
                Ok(event)
            }
            Err(_) => Err("hangs".into()),
        }
    }

    /// The next message.
    pub(crate) async fn message(&mut self) -> Result<Value> {
        loop {
            match self.next().await? {
                Some(event) if event.message.is_null() => {}
                Some(event) => return Ok(event.message),
                None => return Err("the stream ends without a response".into()),
            }
        }
    }

    /// The response, past all else.
    pub(crate) async fn response(&mut self) -> Result<Value> {
        loop {
            let message = self.message().await?;
            if message.get("method").is_none() {
                return Ok(message);
            }
        }
    }

    /// The client request that comes next.
    pub(crate) async fn asked(&mut self) -> Result<Value> {
        loop {
            let message = self.message().await?;
            if message.get("id").is_some() && message.get("method").is_some() {
                return Ok(message);
            }
            if message.get("method").is_none() {
                return Err(format!("not asked, but answered: {message}"));
            }
        }
    }

    /// All messages to the end.
    pub(crate) async fn rest(&mut self) -> Result<Vec<Value>> {
        let mut rest = Vec::new();
        while let Some(event) = self.next().await? {
            if !event.message.is_null() {
                rest.push(event.message);
            }
        }
        Ok(rest)
    }

    /// Reads to the end: the progress, and the text of the result.
    pub(crate) async fn counted(&mut self) -> Result<(Vec<u64>, String)> {
        let mut progress = Vec::new();
        loop {
            let message = self.message().await?;
            if message["method"] == "notifications/progress" {
                let value = message["params"]["progress"].as_f64().unwrap();
                assert!(value.fract() == 0.0 && value >= 0.0);
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                progress.push(value as u64);
            } else if message.get("method").is_none() {
                return Ok((progress, text(&message)?));
            }
        }
    }

    /// Whether nothing but the end of the stream is left.
    pub(crate) async fn ends(&mut self) -> Result {
        while let Some(event) = self.next().await? {
            if !event.message.is_null() {
                return Err(format!("not the end, but {}", event.message));
            }
        }
        Ok(())
    }
}
