//! What a client is told. No text of a backend is among it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use mcp_adapter_core::{Error, ErrorKind};

use crate::service::ResponseBody;

const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The answer that replaces rmcp's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No such session for this principal.
    NotFound,
    BadRequest(&'static str),
    Timeout,
    TooLarge,
    /// The principal's share is used up.
    Quota,
    Unavailable,
    Internal,
    /// A JSON-RPC message in place of a stream.
    Message(Bytes),
}

impl From<&Error> for Verdict {
    fn from(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::SessionNotFound => Self::NotFound,
            ErrorKind::InvalidArgument => Self::BadRequest("Bad Request: malformed argument"),
            ErrorKind::TooLarge => Self::TooLarge,
            ErrorKind::QuotaExceeded => Self::Quota,
            // What is left passes with time: a backend that is away, a record
            // of a newer version during a rolling deploy. None of it may look
            // as if the session were gone, or clients give it up.
            _ => Self::Unavailable,
        }
    }
}

impl Verdict {
    /// Keeps the error for the server's own log and gives what may leave.
    pub(crate) fn of(error: &Error) -> Self {
        let verdict = Self::from(error);
        if verdict == Self::NotFound {
            tracing::debug!(%error, "request refused");
        } else {
            tracing::warn!(%error, "request refused");
        }
        verdict
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Quota => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Message(_) => StatusCode::OK,
        }
    }

    pub(crate) fn into_response(self) -> Response<ResponseBody> {
        let status = self.status();
        let (kind, body) = match self {
            Self::NotFound => (TEXT, Bytes::from_static(b"Not Found: Session not found")),
            Self::BadRequest(text) => (TEXT, Bytes::from_static(text.as_bytes())),
            Self::Timeout => (TEXT, Bytes::from_static(b"Request Timeout")),
            Self::TooLarge => (TEXT, Bytes::from_static(b"Payload Too Large")),
            Self::Quota => (TEXT, Bytes::from_static(b"Too Many Requests")),
            Self::Unavailable => (TEXT, Bytes::from_static(b"Service Unavailable")),
            Self::Internal => (TEXT, Bytes::from_static(b"Internal Server Error")),
            Self::Message(message) => (JSON, message),
        };
        let mut response = Response::new(Full::new(body).boxed_unsync());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, kind);
        if matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What rmcp may know of a failure: it logs it, and would send it to clients.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("refused")]
pub(crate) struct Refused;

/// Why a message of a handler did not go out. Handlers tend to put such texts
/// into their own answers, so it names no backend and has no source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the session has ended")]
    SessionEnded,
    #[error("the call has ended")]
    CallEnded,
    #[error("the message is too large")]
    TooLarge,
    #[error("overloaded, try again later")]
    Overloaded,
    #[error("this server cannot ask its clients")]
    Unsupported,
    #[error("the message could not be stored")]
    NotStored,
}

impl From<&Error> for SendError {
    fn from(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::SessionNotFound => Self::SessionEnded,
            ErrorKind::Finished | ErrorKind::Fenced | ErrorKind::StreamGone => Self::CallEnded,
            ErrorKind::TooLarge => Self::TooLarge,
            ErrorKind::Overloaded | ErrorKind::QuotaExceeded => Self::Overloaded,
            _ => Self::NotStored,
        }
    }
}

/// Bounds of waits that no client and no backend bounds.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
