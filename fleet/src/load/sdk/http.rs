//! The HTTP side of the SDK's client: reqwest, with the patience of a real client
//! for messages that may be sent twice, and an eye on what the SDK hides.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use futures::stream::BoxStream;
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use rmcp::{
    model::{ClientJsonRpcMessage, ClientRequest},
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
        StreamableHttpResponseLimits,
    },
};

use crate::load::world::{Backoff, World};

type Headers = HashMap<HeaderName, HeaderValue>;
type Failed = StreamableHttpError<reqwest::Error>;

/// Stream of events as the SDK wants it.
type Sse = BoxStream<'static, Result<sse_stream::Sse, SseError>>;

/// What the client does on the wire.
#[derive(Debug, Default)]
pub(super) struct Wire {
    session: Mutex<Option<Arc<str>>>,
    deleted: AtomicBool,
}

impl Wire {
    /// The session id, once one was given.
    pub(super) fn session(&self) -> Option<Arc<str>> {
        self.session.lock().clone()
    }

    /// Whether the server accepted the DELETE.
    pub(super) fn deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }
}

/// reqwest under the SDK's client.
#[derive(Debug, Clone)]
pub(super) struct Patient {
    client: reqwest::Client,
    world: Arc<World>,
    wire: Arc<Wire>,
}

impl Patient {
    pub(super) fn new(world: Arc<World>, wire: Arc<Wire>) -> Self {
        Self {
            client: world.endpoint.client(),
            world,
            wire,
        }
    }

    /// Repeats while a killed instance explains the failure.
    async fn insist<T, F>(&self, send: impl Fn() -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let mut backoff = Backoff::new();
        let began = Instant::now();
        loop {
            let since = Instant::now();
            match send().await {
                Err(error)
                    if unreachable(&error)
                        && self.world.outages.excuse(None, since)
                        && began.elapsed() < self.world.patience =>
                {
                    self.world.tally.count(|counts| counts.expected_errors += 1);
                    backoff.pause().await;
                }
                done => return done,
            }
        }
    }
}

/// The connection died or nobody was there.
fn unreachable(error: &Failed) -> bool {
    match error {
        StreamableHttpError::Client(error) => error.status().is_none(),
        StreamableHttpError::HttpStatus(status) => matches!(status.status, 502 | 503),
        _ => false,
    }
}

/// Calls do their work twice when they are sent twice: the caller decides on those.
fn repeatable(message: &ClientJsonRpcMessage) -> bool {
    match message {
        ClientJsonRpcMessage::Request(request) => {
            !matches!(request.request, ClientRequest::CallToolRequest(_))
        }
        _ => true,
    }
}

impl StreamableHttpClient for Patient {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(
            uri,
            message,
            session_id,
            auth_header,
            custom_headers,
            limits,
        )
        .await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        if let Some(id) = &session_id {
            *self.wire.session.lock() = Some(Arc::clone(id));
        }
        let post = || {
            self.client.post_message_with_response_limits(
                Arc::clone(&uri),
                message.clone(),
                session_id.clone(),
                auth_header.clone(),
                custom_headers.clone(),
                limits,
            )
        };
        if repeatable(&message) {
            self.insist(post).await
        } else {
            post().await
        }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<(), Failed> {
        if self.world.leaves {
            return Ok(());
        }
        let delete = || {
            self.client.delete_session(
                Arc::clone(&uri),
                Arc::clone(&session_id),
                auth_header.clone(),
                custom_headers.clone(),
            )
        };
        self.insist(delete).await?;
        self.wire.deleted.store(true, Ordering::Release);
        Ok(())
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<Sse, Failed> {
        let limit = StreamableHttpResponseLimits::default().max_sse_event_size;
        self.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            custom_headers,
            limit,
        )
        .await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
        max_sse_event_size: usize,
    ) -> Result<Sse, Failed> {
        let get = || {
            self.client.get_stream_with_max_sse_event_size(
                Arc::clone(&uri),
                session_id.clone(),
                last_event_id.clone(),
                auth_header.clone(),
                custom_headers.clone(),
                max_sse_event_size,
            )
        };
        let stream = self.insist(get).await?;
        if last_event_id.is_some() {
            self.world.tally.count(|counts| counts.resumes += 1);
        }
        Ok(stream)
    }
}
