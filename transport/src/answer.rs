//! rmcp's answers in the form of ours.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body::Frame;
use http_body_util::BodyExt;
use rmcp::model::ProtocolVersion;

use crate::{
    inbound::{Inbound, Spelling},
    negotiate::{self, SESSION_ID},
    service::ResponseBody,
    verdict::Verdict,
    wire,
};

/// What is needed of a request to put its answer right.
pub(crate) struct Asked {
    method: Method,
    is_json: bool,
    has_session: bool,
    is_known_version: bool,
}

impl Asked {
    pub(crate) fn of(parts: &Parts) -> Self {
        let version = parts.headers.get("mcp-protocol-version");
        let known = |version: &HeaderValue| {
            let mut known = ProtocolVersion::KNOWN_VERSIONS.iter();
            known.any(|known| known.as_str().as_bytes() == version.as_bytes())
        };
        Self {
            method: parts.method.clone(),
            is_json: negotiate::is_json(&parts.headers),
            has_session: parts.headers.contains_key(SESSION_ID),
            is_known_version: version.is_none_or(known),
        }
    }

    /// rmcp's answer as we give it: streams in the form of ours, and errors with
    /// fixed texts and content types.
    pub(crate) fn given(
        &self,
        response: Response<ResponseBody>,
        inbound: &Inbound,
    ) -> Response<ResponseBody> {
        let kind = response.headers().get(header::CONTENT_TYPE);
        let spelling = inbound.spelling.clone();
        if kind.is_some_and(|kind| kind == "text/event-stream") {
            return each_frame(response, move |frame| {
                wire::rewrite(frame, |message| spelling.as_ref()?.restore(message))
            });
        }
        if kind.is_some_and(|kind| kind == "application/json") {
            let Some(spelling) = spelling else {
                return response;
            };
            return restored(response, spelling);
        }
        let verdict = match response.status() {
            StatusCode::BAD_REQUEST if !self.is_known_version => {
                Verdict::BadRequest("Bad Request: unsupported MCP-Protocol-Version")
            }
            StatusCode::BAD_REQUEST if !self.has_session => {
                Verdict::BadRequest("Bad Request: Session ID is required")
            }
            StatusCode::BAD_REQUEST => Verdict::BadRequest("Bad Request"),
            StatusCode::FORBIDDEN => Verdict::Forbidden,
            StatusCode::NOT_FOUND => Verdict::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Verdict::MethodNotAllowed,
            StatusCode::NOT_ACCEPTABLE => negotiate::not_acceptable(&self.method),
            StatusCode::PAYLOAD_TOO_LARGE => Verdict::TooLarge,
            // rmcp says the same of what is not JSON and of what is no message.
            StatusCode::UNSUPPORTED_MEDIA_TYPE if self.is_json => inbound.refusal(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Verdict::NotJson,
            status if status.is_server_error() => Verdict::Internal,
            _ => return response,
        };
        let allow = response.headers().get(header::ALLOW).cloned();
        let mut response = verdict.into_response();
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }
}

fn each_frame(
    response: Response<ResponseBody>,
    mut edit: impl FnMut(Bytes) -> Bytes + Send + 'static,
) -> Response<ResponseBody> {
    response.map(|body| {
        let edited = body.map_frame(move |frame| match frame.into_data() {
            Ok(data) => Frame::data(edit(data)),
            Err(other) => other,
        });
        edited.boxed_unsync()
    })
}

/// A message in JSON, which rmcp writes at once, under the id as it was sent.
pub(crate) fn restored(
    response: Response<ResponseBody>,
    spelling: Spelling,
) -> Response<ResponseBody> {
    let mut response = each_frame(response, move |message| {
        spelling.restore(&message).unwrap_or(message)
    });
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response
}
