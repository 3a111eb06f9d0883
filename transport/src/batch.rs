//! Batches: several messages in one POST, which clients of 2025-03-26 may send.
//!
//! Each message is served as if it came alone. What the requests among them say
//! comes in one body, without ids: an id names a place in one stream.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::value::RawValue;

use crate::{
    inbound::{Inbound, Kind},
    message,
    service::ResponseBody,
    verdict::{Verdict, WholeBatch},
    wire,
};

/// Messages in one batch.
const MAX_MESSAGES: usize = 64;

/// Whether a body is one, if it is JSON.
pub(crate) fn is_batch(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"[")
}

/// The messages of a batch.
pub(crate) fn split(body: &Bytes) -> Result<Vec<Inbound>, Verdict> {
    let Ok(messages) = serde_json::from_slice::<Vec<&RawValue>>(body) else {
        return Err(Verdict::parse_error());
    };
    if messages.is_empty() {
        return Err(Verdict::invalid_request(
            "Invalid Request: an empty batch",
            None,
        ));
    }
    if messages.len() > MAX_MESSAGES {
        let text = "Invalid Request: more than 64 messages in a batch";
        return Err(Verdict::invalid_request(text, None));
    }
    let messages = messages.into_iter();
    let messages: Vec<_> = messages
        .map(|message| Inbound::of(body.slice_ref(message.get().as_bytes())))
        .collect();
    let initializes = |message: &Inbound| {
        matches!(
            message.kind,
            Kind::Request {
                initialize: true,
                ..
            }
        )
    };
    if messages.iter().any(initializes) {
        let text = "Invalid Request: initialize cannot be part of a batch";
        return Err(Verdict::invalid_request(text, None));
    }
    Ok(messages)
}

/// What the messages of a batch are answered with.
#[derive(Default)]
pub(crate) struct Answers {
    streams: Vec<ResponseBody>,
    /// Events that are there already.
    events: BytesMut,
    served: bool,
    refused: Option<Response<ResponseBody>>,
}

impl Answers {
    /// Takes the answer to one message, which has `id` if it is a request.
    ///
    /// The error is the answer to the whole batch: what is wrong is not this
    /// message.
    pub(crate) async fn add(
        &mut self,
        id: Option<&str>,
        response: Response<ResponseBody>,
    ) -> Result<(), Response<ResponseBody>> {
        if response.extensions().get::<WholeBatch>().is_some() {
            return Err(response);
        }
        let status = response.status();
        let kind = response.headers().get(header::CONTENT_TYPE).cloned();
        match status {
            StatusCode::ACCEPTED => self.served = true,
            _ if kind.as_ref() == Some(&EVENTS) => {
                self.served = true;
                self.streams.push(response.into_body());
            }
            _ if kind.as_ref().is_some_and(|kind| kind == "application/json") => {
                self.served = true;
                let Ok(message) = response.into_body().collect().await;
                wire::write_event(&mut self.events, None, &message.to_bytes());
            }
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::SERVICE_UNAVAILABLE => {
                if let Some(id) = id {
                    let text = status.canonical_reason().unwrap_or_default();
                    let error = message::refusal(message::ENDED, text, Some(id));
                    wire::write_event(&mut self.events, None, &error);
                }
                self.refused.get_or_insert(response);
            }
            _ => return Err(response),
        }
        Ok(())
    }

    pub(crate) fn into_response(self) -> Response<ResponseBody> {
        match self.refused {
            // Not a single one was served.
            Some(refused) if !self.served => return refused,
            _ => {}
        }
        if self.streams.is_empty() && self.events.is_empty() {
            let mut response = Response::new(ResponseBody::default());
            *response.status_mut() = StatusCode::ACCEPTED;
            return response;
        }
        let events = stream::iter([Ok::<_, Infallible>(self.events.freeze())]);
        let streams = self.streams.into_iter().map(BodyExt::into_data_stream);
        let frames = events.chain(stream::select_all(streams));
        let body = StreamBody::new(frames.map(|frame| frame.map(Frame::data)));
        let mut response = Response::new(body.boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, EVENTS);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }
}

const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
