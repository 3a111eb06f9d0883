//! What a client's message is, read off its bytes: what kind, and under which
//! id. rmcp reads the rest.

use std::{borrow::Cow, fmt, sync::Arc};

use bytes::Bytes;
use mcp_adapter_core::RpcId;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::verdict::Verdict;

#[derive(Debug, PartialEq)]
pub(crate) enum Kind {
    Request {
        id: RpcId,
        /// `initialize`, which makes a session and needs none.
        initialize: bool,
    },
    Notification,
    /// An answer to a client request; `None`: it names no request.
    Answer(Option<(RpcId, Payload)>),
    Get,
    Delete,
    /// Nothing that JSON-RPC knows, or something that two parsers might read
    /// in two ways, or that cannot be served: no session is opened for it.
    Invalid,
    /// A method of HTTP that we do not serve.
    Other,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Payload {
    Result(Bytes),
    Error(Bytes),
}

/// An id in the client's own spelling. JSON has many for one number, and rmcp
/// knows one: `1.0` reaches it as `1` and must leave as it came.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Spelling(Arc<str>);

impl fmt::Debug for Spelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Spelling {
    /// The same message under this id. `None`: it is no response.
    pub(crate) fn restore(&self, message: &[u8]) -> Option<Bytes> {
        #[derive(Deserialize)]
        struct Response<'a> {
            #[serde(borrow)]
            id: &'a RawValue,
            #[serde(borrow, default)]
            result: Option<&'a RawValue>,
            #[serde(borrow, default)]
            error: Option<&'a RawValue>,
            #[serde(borrow, default)]
            method: Option<&'a RawValue>,
        }
        let response: Response<'_> = serde_json::from_slice(message).ok()?;
        let outcome = response.result.or(response.error);
        if outcome.is_none() || response.method.is_some() {
            return None;
        }
        let id = response.id.get();
        let at = id.as_ptr().addr() - message.as_ptr().addr();
        Some(splice(message, at, id.len(), &self.0))
    }
}

fn splice(message: &[u8], at: usize, length: usize, instead: &str) -> Bytes {
    [&message[..at], instead.as_bytes(), &message[at + length..]]
        .concat()
        .into()
}

/// A message of a client.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// Its bytes, as rmcp is to see them.
    pub(crate) body: Bytes,
    pub(crate) kind: Kind,
    /// The id as the client spelt it, where that matters.
    pub(crate) spelling: Option<Spelling>,
    /// The same for an error that refuses it; any JSON.
    pub(crate) id: Option<Arc<str>>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

/// `null` is there, too.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

impl Inbound {
    /// Looks at method and id and skips the rest.
    pub(crate) fn of(body: Bytes) -> Self {
        let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(&body) else {
            return Self::without_id(Kind::Invalid, body);
        };
        let id = envelope.id.map(RawValue::get);
        let read = id.map(rpc_id);
        let slice = |raw: &RawValue| body.slice_ref(raw.get().as_bytes());
        let kind = match (&envelope.method, read, envelope.result, envelope.error) {
            (Some(method), Some(Some(id)), None, None) => Kind::Request {
                initialize: method == "initialize",
                id,
            },
            (Some(_), None, None, None) => Kind::Notification,
            (None, Some(Some(id)), Some(result), None) => {
                Kind::Answer(Some((id, Payload::Result(slice(result)))))
            }
            (None, Some(Some(id)), None, Some(error)) => {
                Kind::Answer(Some((id, Payload::Error(slice(error)))))
            }
            // An error of a message that could not be read has no id.
            (None, None, None, Some(_)) => Kind::Answer(None),
            (None, Some(None), None, Some(_)) if id == Some("null") => Kind::Answer(None),
            _ => Kind::Invalid,
        };
        // A string or a number, or else it is none.
        let plain = |id: &&str| {
            id.len() <= MAX_REPEATED_BYTES
                && id.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit())
        };
        let named = id.filter(|_| matches!(kind, Kind::Request { .. } | Kind::Invalid));
        let named: Option<Arc<str>> = named.filter(plain).map(Into::into);

        let mut edits = Vec::new();
        let mut spelling = None;
        if let (Some(id), Kind::Request { .. } | Kind::Answer(Some(_))) = (id, &kind)
            && let Some(plain) = respelt(id)
        {
            edits.push((id, plain));
            if matches!(kind, Kind::Request { .. }) {
                spelling = Some(Spelling(id.into()));
            }
        }
        // Where else a client puts the id of a request of its own.
        let method = envelope.method.as_deref();
        if (method == Some("notifications/cancelled") || !edits.is_empty())
            && let Some(params) = envelope.params
            && let Ok(params) = serde_json::from_str::<Params<'_>>(params.get())
        {
            let token = params.meta.and_then(|meta| meta.progress_token);
            for id in [params.request_id, token].into_iter().flatten() {
                edits.extend(respelt(id.get()).map(|plain| (id.get(), plain)));
            }
        }
        let body = respell(&body, &mut edits).unwrap_or_else(|| body.clone());
        Self {
            body,
            kind,
            spelling,
            id: named,
        }
    }

    pub(crate) fn without_id(kind: Kind, body: Bytes) -> Self {
        Self {
            body,
            kind,
            spelling: None,
            id: None,
        }
    }

    /// Why there is no message in it that can be served.
    pub(crate) fn refusal(&self) -> Verdict {
        // A strict look, since rmcp's and the first one skip what they do not
        // need.
        match serde_json::from_slice::<serde_json::Value>(&self.body) {
            Ok(_) => Verdict::invalid_request("Invalid Request", self.id.as_deref()),
            Err(_) => Verdict::parse_error(),
        }
    }
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow, default, rename = "requestId")]
    request_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<Meta<'a>>,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "progressToken")]
    progress_token: Option<&'a RawValue>,
}

/// The message with other spellings of numbers in it.
fn respell(message: &Bytes, edits: &mut [(&str, String)]) -> Option<Bytes> {
    if edits.is_empty() {
        return None;
    }
    let place = |text: &str| text.as_ptr().addr() - message.as_ptr().addr();
    // From the end, so that places before it stay what they are.
    edits.sort_by_key(|(text, _)| std::cmp::Reverse(place(text)));
    let mut edited = message.clone();
    for (text, instead) in edits {
        edited = splice(&edited, place(text), text.len(), instead);
    }
    Some(edited)
}

/// The integer that a JSON number is, where rmcp does not know it by this
/// spelling.
fn respelt(id: &str) -> Option<String> {
    if serde_json::from_str::<i64>(id).is_ok() {
        return None;
    }
    integer(id).map(|number| number.to_string())
}

/// MCP's ids are strings and integers; ours have 64 bits and 256 bytes.
fn rpc_id(raw: &str) -> Option<RpcId> {
    let id = match integer(raw) {
        Some(number) => RpcId::Number(number),
        None => RpcId::String(serde_json::from_str::<String>(raw).ok()?.into()),
    };
    id.check().is_ok().then_some(id)
}

/// The longest spelling of a number, and the longest id that an error repeats.
const MAX_NUMBER_BYTES: usize = 64;
const MAX_REPEATED_BYTES: usize = RpcId::MAX_BYTES + 2;

/// The value of a JSON number, if it is an integer of 64 bits, however it is
/// written: `1`, `1.0`, `10e-1`.
fn integer(raw: &str) -> Option<i64> {
    if raw.len() > MAX_NUMBER_BYTES {
        return None;
    }
    let (sign, number) = match raw.strip_prefix('-') {
        Some(number) => ("-", number),
        None => ("", raw),
    };
    if !number.starts_with(|digit: char| digit.is_ascii_digit()) {
        return None;
    }
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = format!("{whole}{fraction}");
    if digits.bytes().all(|digit| digit == b'0') {
        return Some(0);
    }
    // More digits than 64 bits have are no such integer, and cost nothing.
    let shift = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    if shift >= 0 {
        let zeros = usize::try_from(shift).ok().filter(|zeros| *zeros < 20)?;
        digits.extend(std::iter::repeat_n('0', zeros));
    } else {
        let dropped = usize::try_from(shift.unsigned_abs()).ok()?;
        let kept = digits.len().checked_sub(dropped)?;
        if digits[kept..].bytes().any(|digit| digit != b'0') {
            return None;
        }
        digits.truncate(kept);
    }
    format!("{sign}{digits}").parse().ok()
}

#[cfg(test)]
mod tests;
