//! Ids: checked once, at the edge, and redacted in every log.

use std::{cell::RefCell, fmt, str::FromStr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smol_str::{SmolStr, format_smolstr};

use crate::error::{Error, ErrorKind, Result};

/// Random bytes from the operating system.
///
/// # Panics
/// Where the operating system has no source of randomness: ids must not be
/// guessable, so there is nothing to fall back to.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::expect_used, reason = "no randomness, no service")]
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Unique among the streams of a session, at all instances: not a secret, for the
/// session and its principal are what gives access.
fn nonce() -> u64 {
    thread_local! {
        static SOURCE: RefCell<fastrand::Rng> =
            RefCell::new(fastrand::Rng::with_seed(u64::from_ne_bytes(random())));
    }
    SOURCE.with_borrow_mut(|source| source.u64(..))
}

fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn invalid(operation: &'static str, message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidArgument, operation).with_message(message)
}

/// The id of a session, as clients send it: 1 to 128 bytes of visible ASCII
/// (clause S1).
///
/// It is a capability, so neither `Debug` nor any log of ours shows it: they
/// show the first bytes of its hash.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// The longest accepted id, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// A new id with 160 random bits.
    #[must_use]
    pub fn generate() -> Self {
        Self(BASE64.encode(random::<20>()).into())
    }

    /// The id as text. Do not log it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What backends see in place of the id.
    #[must_use]
    pub fn key(&self) -> SessionKey {
        SessionKey(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl FromStr for SessionId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > Self::MAX_BYTES {
            return Err(invalid("session id", "must have 1 to 128 bytes"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid("session id", "must be visible ASCII"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.key(), f)
    }
}

/// SHA-256 of a [`SessionId`]: a copy of the database gives nobody a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SessionKey(pub [u8; 32]);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("session#")?;
        hex(f, &self.0[..4])
    }
}

/// Who a session belongs to, as the application's authentication names it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Principal(Arc<str>);

impl Principal {
    /// A principal by its name, for example a token's issuer and subject.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&PrincipalKey::of(Some(self)), f)
    }
}

/// A hash of the principal: what backends compare and count bytes by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PrincipalKey(pub [u8; 32]);

impl PrincipalKey {
    /// The key of sessions without a principal.
    pub const ANONYMOUS: Self = Self([0; 32]);

    /// The key of `principal`.
    #[must_use]
    pub fn of(principal: Option<&Principal>) -> Self {
        principal.map_or(Self::ANONYMOUS, |principal| {
            Self(Sha256::digest(principal.0.as_bytes()).into())
        })
    }
}

impl fmt::Debug for PrincipalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("principal#")?;
        hex(f, &self.0[..4])
    }
}

/// One adapter handle, normally one server process: 128 random bits, new at
/// every start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InstanceId(pub u128);

impl InstanceId {
    /// A new id.
    #[must_use]
    pub fn generate() -> Self {
        Self(u128::from_be_bytes(random()))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance#{:08x}", self.0 >> 96)
    }
}

/// The token of one waiter for a client request: tells a repeated `create`
/// from a second one (clause C7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WaiterToken(pub u128);

impl WaiterToken {
    /// A new token.
    #[must_use]
    pub fn generate() -> Self {
        Self(u128::from_be_bytes(random()))
    }
}

/// A JSON-RPC id: the number 1 and the string "1" differ (clause C3).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RpcId {
    /// An integer.
    Number(i64),
    /// A string.
    String(Arc<str>),
}

impl RpcId {
    /// The longest string id that an adapter stores, in bytes.
    pub const MAX_BYTES: usize = 256;

    /// Checks the length of a string id.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where it is longer than
    /// [`MAX_BYTES`](Self::MAX_BYTES).
    pub fn check(&self) -> Result<()> {
        match self {
            Self::String(text) if text.len() > Self::MAX_BYTES => {
                Err(invalid("JSON-RPC id", "must have at most 256 bytes"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for RpcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::String(text) => write!(f, "{text:?}"),
        }
    }
}

/// The name of one stream of a session: 1 to 100 bytes of `[A-Za-z0-9._-]`.
///
/// Names of up to 23 bytes, as those of calls with a number for an id are, are
/// copied and not shared: every event carries one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(SmolStr);

impl StreamId {
    /// The longest accepted name, in bytes.
    pub const MAX_BYTES: usize = 100;
    /// JSON-RPC string ids up to this many bytes are carried in the stream's
    /// name, so that a call can be ended although nothing is stored of it.
    pub const MAX_CARRIED_ID: usize = 64;

    const STANDALONE: &'static str = "standalone";

    /// The stream of messages that belong to no request: the GET stream.
    #[must_use]
    pub fn standalone() -> Self {
        Self(SmolStr::new_static(Self::STANDALONE))
    }

    /// Whether this is the standalone stream, which any instance may write.
    #[must_use]
    pub fn is_standalone(&self) -> bool {
        self.0 == Self::STANDALONE
    }

    /// A new, unique stream for the request `id`, which it carries where the
    /// id is a number or has at most
    /// [`MAX_CARRIED_ID`](Self::MAX_CARRIED_ID) bytes.
    #[must_use]
    pub fn for_request(id: &RpcId) -> Self {
        let nonce = BASE64.encode(nonce().to_ne_bytes());
        Self(match id {
            RpcId::Number(number) => format_smolstr!("{nonce}.n{number}"),
            RpcId::String(text) if text.len() <= Self::MAX_CARRIED_ID => {
                format_smolstr!("{nonce}.s{}", BASE64.encode(text.as_bytes()))
            }
            RpcId::String(_) => format_smolstr!("{nonce}.x"),
        })
    }

    /// The id of the request that this stream was opened for, as far as the
    /// name carries it.
    #[must_use]
    pub fn request_id(&self) -> Option<RpcId> {
        let (_, carried) = self.0.split_once('.')?;
        match carried.split_at_checked(1)? {
            ("n", number) => number.parse().ok().map(RpcId::Number),
            ("s", text) => {
                let bytes = BASE64.decode(text).ok()?;
                Some(RpcId::String(String::from_utf8(bytes).ok()?.into()))
            }
            _ => None,
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StreamId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > Self::MAX_BYTES {
            return Err(invalid("stream id", "must have 1 to 100 bytes"));
        }
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        {
            return Err(invalid("stream id", "must be of [A-Za-z0-9._-]"));
        }
        Ok(if text == Self::STANDALONE {
            Self::standalone()
        } else {
            Self(text.into())
        })
    }
}

#[cfg(feature = "serde")]
impl Serialize for StreamId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Names are checked on this way in, too.
#[cfg(feature = "serde")]
impl<'de> Deserialize<'de> for StreamId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream:{}", self.0)
    }
}

/// Where an event stands in its stream. Within an epoch sequence numbers are
/// contiguous from 1; a new epoch begins where the writer changed or where the
/// backend may have lost something (clause E1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Position {
    /// The epoch, from 1.
    pub epoch: u32,
    /// The sequence number, from 1.
    pub seq: u64,
}

impl Position {
    /// Before the first event.
    pub const START: Self = Self { epoch: 0, seq: 0 };

    /// A position.
    #[must_use]
    pub const fn new(epoch: u32, seq: u64) -> Self {
        Self { epoch, seq }
    }

    /// Whether an event here, whose record says that it follows `prev`, is the
    /// very next one for a reader that has all up to `cursor`. A cursor past
    /// what the backend still has is continued by the next epoch (E2).
    #[must_use]
    pub fn follows(self, prev: Option<Self>, cursor: Self) -> bool {
        if self.epoch == cursor.epoch {
            self.seq == cursor.seq + 1
        } else {
            self.epoch > cursor.epoch && self.seq == 1 && prev.unwrap_or(Self::START) <= cursor
        }
    }
}

/// The id of an event as clients see it: `<stream>.<epoch>.<seq>`, at most 128
/// bytes of `[A-Za-z0-9._-]`. It is no capability: session and principal are
/// checked beside it (clause E3).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EventId {
    /// The stream that the event belongs to.
    pub stream: StreamId,
    /// Its place there.
    pub position: Position,
}

impl EventId {
    /// The longest id, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// The event at `position` of `stream`.
    #[must_use]
    pub fn new(stream: StreamId, position: Position) -> Self {
        Self { stream, position }
    }
}

impl FromStr for EventId {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::StreamGone`]: a malformed id and one of a stream that is
    /// not there are the same to clients (clause E3).
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            if text.len() > Self::MAX_BYTES {
                return None;
            }
            // From the right: the stream's name may contain dots itself.
            let (rest, seq) = text.rsplit_once('.')?;
            let (stream, epoch) = rest.rsplit_once('.')?;
            Some(Self {
                stream: stream.parse().ok()?,
                position: Position {
                    epoch: u32::try_from(from_base36(epoch)?).ok()?,
                    seq: from_base36(seq)?,
                },
            })
        };
        parse().ok_or_else(|| Error::new(ErrorKind::StreamGone, "event id"))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.stream.0)?;
        base36(f, u64::from(self.position.epoch))?;
        f.write_str(".")?;
        base36(f, self.position.seq)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn base36(f: &mut fmt::Formatter<'_>, mut number: u64) -> fmt::Result {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = [0_u8; 13];
    let mut at = text.len();
    loop {
        at -= 1;
        let digit = (number % 36) as usize;
        text[at] = DIGITS[digit];
        number /= 36;
        if number == 0 {
            break;
        }
    }
    f.write_str(std::str::from_utf8(&text[at..]).map_err(|_| fmt::Error)?)
}

/// Only the one spelling that [`base36`] writes: no sign, no upper case, no
/// leading zero, so that two ids never name one event.
fn from_base36(text: &str) -> Option<u64> {
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    let padded = text.len() > 1 && text.starts_with('0');
    (plain && !padded)
        .then(|| u64::from_str_radix(text, 36).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ids_are_checked_and_redacted() {
        for bad in ["", "a b", "tab\t", "h\u{e9}", &"x".repeat(129), "nul\0"] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?}");
        }
        let id = SessionId::generate();
        assert_eq!(id.as_str().parse::<SessionId>().unwrap(), id);
        assert!(!format!("{id:?}").contains(id.as_str()));
        assert_ne!(SessionId::generate(), id);
    }

    #[test]
    fn event_ids_round_trip_at_their_longest() {
        let longest = RpcId::String("\u{7f}".repeat(StreamId::MAX_CARRIED_ID).into());
        for id in [
            RpcId::Number(1),
            RpcId::Number(i64::MIN),
            RpcId::String("a.b-c".into()),
            RpcId::String("".into()),
            longest,
        ] {
            let stream = StreamId::for_request(&id);
            assert_eq!(stream.request_id(), Some(id));
            let event = EventId::new(stream, Position::new(u32::MAX, u64::MAX));
            let text = event.to_string();
            assert!(text.len() <= EventId::MAX_BYTES, "{}", text.len());
            assert_eq!(text.parse::<EventId>().unwrap(), event);
        }
        let long = StreamId::for_request(&RpcId::String("x".repeat(65).into()));
        assert_eq!(long.request_id(), None);
    }

    #[test]
    fn forged_event_ids_are_one_error() {
        for bad in [
            "",
            "0",
            "a",
            "a.1",
            ".1.1",
            "a..1",
            "a.1.",
            "a.1.+1",
            "a.01.1",
            "a.1.A",
            "a b.1.1",
            "a.zzzzzzzzz.1",
            "a.1.zzzzzzzzzzzzzzz",
            &"a".repeat(200),
        ] {
            let error = bad.parse::<EventId>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StreamGone, "{bad:?}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn stream_ids_are_checked_when_they_are_deserialised() {
        for name in [
            StreamId::standalone(),
            StreamId::for_request(&RpcId::Number(7)),
        ] {
            let text = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<StreamId>(&text).unwrap(), name);
        }
        for bad in ["\"\"", "\"a b\"", "1"] {
            assert!(serde_json::from_str::<StreamId>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn positions_show_holes() {
        let at = Position::new;
        assert!(at(1, 1).follows(None, Position::START));
        assert!(at(1, 5).follows(None, at(1, 4)));
        assert!(!at(1, 6).follows(None, at(1, 4)));
        // The writer opened epoch 2 after its event 9: a reader at 9 lost nothing,
        // one at 6 lost three.
        assert!(at(2, 1).follows(Some(at(1, 9)), at(1, 9)));
        assert!(!at(2, 1).follows(Some(at(1, 9)), at(1, 6)));
        // The owner died with 9 delivered and 6 stored.
        assert!(at(2, 1).follows(Some(at(1, 6)), at(1, 9)));
        assert!(!at(2, 2).follows(Some(at(1, 6)), at(1, 9)));
    }
}
