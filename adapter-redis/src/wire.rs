//! What is stored and sent as bytes: entries of streams, and knocks.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mcp_adapter_core::{
    OutcomeKind, Position, RpcId, SessionKey, StreamId, WaiterToken,
    storage::{Knock, SignalChannel, StoredEvent, Target},
};

use crate::{
    keys::{instance_of, request_name, request_of, session_of},
    request::{outcome_code, outcome_of},
};

const VERSION: u8 = 1;
const HAS_PREV: u8 = 1;
const SHARED: u8 = 2;
const HEAD: usize = 50;
const WRITER: usize = 32;
const KEY: usize = 32;
const NAME: usize = 43;
const TOKEN: usize = 16;

/// An entry to be written: events of one epoch, in a row.
pub(crate) struct Entry<'a> {
    pub(crate) first: u64,
    /// Events and bytes of the stream since it began, this entry included.
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    /// Milliseconds of the server's clock: only tells which of two streams has the
    /// older events.
    pub(crate) at: u64,
    /// What is at or before it is evicted.
    pub(crate) floor: Position,
    pub(crate) prev: Option<Position>,
    pub(crate) payloads: &'a [&'a Bytes],
}

impl Entry<'_> {
    /// Bytes of the record.
    pub(crate) fn size(&self) -> usize {
        let size: usize = self.payloads.iter().map(|payload| payload.len() + 4).sum();
        HEAD + 12 + size
    }

    pub(crate) fn write(&self, out: &mut impl BufMut) {
        out.put_u8(VERSION);
        out.put_u8(if self.prev.is_some() { HAS_PREV } else { 0 });
        out.put_u32(u32::try_from(self.payloads.len()).unwrap_or(u32::MAX));
        out.put_u64(self.first);
        out.put_u64(self.events);
        out.put_u64(self.bytes);
        out.put_u64(self.at);
        put_position(out, self.floor);
        if let Some(prev) = self.prev {
            put_position(out, prev);
        }
        for payload in self.payloads {
            out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        }
        for payload in self.payloads {
            out.put_slice(payload);
        }
    }
}

fn put_position(out: &mut impl BufMut, position: Position) {
    out.put_u32(position.epoch);
    out.put_u64(position.seq);
}

fn get_position(from: &mut Bytes) -> Option<Position> {
    Some(Position::new(
        from.try_get_u32().ok()?,
        from.try_get_u64().ok()?,
    ))
}

/// The events of an entry whose last event stands at `last`. One that cannot be
/// decoded is an event without a payload.
pub(crate) fn events_of(last: Position, record: Bytes) -> Vec<StoredEvent> {
    decode(last, record).unwrap_or_else(|| {
        vec![StoredEvent {
            position: last,
            prev: None,
            data: None,
        }]
    })
}

fn decode(last: Position, mut record: Bytes) -> Option<Vec<StoredEvent>> {
    if record.try_get_u8().ok()? != VERSION {
        return None;
    }
    let flags = record.try_get_u8().ok()?;
    let count = record.try_get_u32().ok()?;
    let first = record.try_get_u64().ok()?;
    // Counts, time and floor concern those who evict.
    let rest = HEAD - 14;
    if record.len() < rest || first.checked_add(count.into())? != last.seq.checked_add(1)? {
        return None;
    }
    record.advance(rest);
    let prev = if flags & HAS_PREV == 0 {
        None
    } else {
        Some(get_position(&mut record)?)
    };
    let shared = flags & SHARED != 0;
    if shared {
        if record.len() < WRITER {
            return None;
        }
        record.advance(WRITER);
    }
    let count = usize::try_from(count).ok()?;
    if record.len() / 4 < count {
        return None;
    }
    let mut lengths = Vec::with_capacity(count);
    for _ in 0..count {
        lengths.push(usize::try_from(record.try_get_u32().ok()?).ok()?);
        if shared {
            record.try_get_u64().ok()?;
        }
    }
    let mut events = Vec::with_capacity(count);
    for (seq, length) in (first..).zip(lengths) {
        if record.len() < length {
            return None;
        }
        events.push(StoredEvent {
            position: Position::new(last.epoch, seq),
            prev: prev.filter(|_| seq == first),
            data: Some(record.split_to(length)),
        });
    }
    Some(events)
}

/// A knock that wakes, up to the name of the stream.
pub(crate) fn wake_stream(session: &SessionKey) -> Vec<u8> {
    let mut knock = Vec::with_capacity(160);
    knock.push(b'W');
    knock.extend_from_slice(&session.0);
    knock.push(b's');
    knock
}

/// A knock that brings an outcome, up to the token, which `settle.lua` knows.
pub(crate) fn outcome(
    session: &SessionKey,
    id: &RpcId,
    kind: OutcomeKind,
    payload: &[u8],
) -> Vec<u8> {
    let name = request_name(id);
    let mut knock = Vec::with_capacity(KEY + name.len() + payload.len() + 32);
    knock.put_u8(b'O');
    knock.put_slice(&session.0);
    knock.put_slice(outcome_code(kind).as_bytes());
    knock.put_u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
    knock.put_slice(name.as_bytes());
    knock.put_slice(payload);
    knock
}

pub(crate) fn encode(knock: &Knock) -> Bytes {
    let mut out = BytesMut::new();
    match knock {
        Knock::Wake(session, target) => {
            out.put_u8(b'W');
            out.put_slice(&session.0);
            match target {
                Target::Stream(stream) => {
                    out.put_u8(b's');
                    out.put_slice(stream.as_str().as_bytes());
                }
                Target::Request(id) => {
                    out.put_u8(b'r');
                    out.put_slice(request_name(id).as_bytes());
                }
                Target::Session => out.put_u8(b'a'),
            }
        }
        Knock::Outcome {
            session,
            id,
            token,
            kind,
            payload,
        } => {
            out.put_slice(&outcome(session, id, *kind, payload));
            out.put_u128(token.0);
        }
        Knock::Everything => out.put_u8(b'E'),
        Knock::Probe(number) => {
            out.put_u8(b'P');
            out.put_u64(*number);
        }
        Knock::Signal {
            from,
            channel,
            payload,
        } => {
            out.put_u8(b'S');
            out.put_slice(from.to_string().as_bytes());
            let (kind, name) = match channel {
                SignalChannel::Session(session) => (b's', &session.0[..]),
                SignalChannel::Topic(topic) => (b't', topic.as_bytes()),
            };
            out.put_u8(kind);
            out.put_u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
            out.put_slice(name);
            out.put_slice(payload);
        }
    }
    out.freeze()
}

/// Many knocks in one message.
pub(crate) fn encode_all(knocks: &[Bytes]) -> Bytes {
    if let [knock] = knocks {
        return knock.clone();
    }
    let mut out = BytesMut::new();
    out.put_u8(b'M');
    for knock in knocks {
        out.put_u32(u32::try_from(knock.len()).unwrap_or(u32::MAX));
        out.put_slice(knock);
    }
    out.freeze()
}

/// The knocks of a message; what cannot be decoded is one at everything, for a
/// newer version may have said something that matters.
pub(crate) fn decode_all(message: Bytes) -> Vec<Knock> {
    let decoded = if message.first() == Some(&b'M') {
        let mut rest = message.slice(1..);
        let mut knocks = Some(Vec::new());
        while let (Some(all), true) = (&mut knocks, rest.has_remaining()) {
            let one = rest
                .try_get_u32()
                .ok()
                .and_then(|length| usize::try_from(length).ok())
                .filter(|length| *length <= rest.len())
                .and_then(|length| decode_one(rest.split_to(length)));
            match one {
                Some(knock) => all.push(knock),
                None => knocks = None,
            }
        }
        knocks
    } else {
        decode_one(message).map(|knock| vec![knock])
    };
    decoded.unwrap_or_else(|| vec![Knock::Everything])
}

fn session_key(bytes: &[u8]) -> Option<SessionKey> {
    bytes.try_into().ok().map(SessionKey)
}

fn decode_one(mut message: Bytes) -> Option<Knock> {
    let split = |message: &mut Bytes, length: usize| {
        (message.len() >= length).then(|| message.split_to(length))
    };
    match message.try_get_u8().ok()? {
        // A script knows sessions by their names.
        first @ (b'W' | b'w') => {
            let session = match first {
                b'W' => session_key(&split(&mut message, KEY)?)?,
                _ => session_of(&split(&mut message, NAME)?)?,
            };
            let kind = message.try_get_u8().ok()?;
            let name = std::str::from_utf8(&message).ok()?;
            let target = match kind {
                b's' => Target::Stream(name.parse::<StreamId>().ok()?),
                b'r' => Target::Request(request_of(name)?),
                b'a' => Target::Session,
                _ => return None,
            };
            Some(Knock::Wake(session, target))
        }
        b'O' => {
            let session = session_key(&split(&mut message, KEY)?)?;
            let kind = split(&mut message, 1)?;
            let kind = outcome_of(std::str::from_utf8(&kind).ok()?)?;
            let length = usize::try_from(message.try_get_u32().ok()?).ok()?;
            let name = split(&mut message, length)?;
            let id = request_of(std::str::from_utf8(&name).ok()?)?;
            let payload = message.len().checked_sub(TOKEN)?;
            let payload = split(&mut message, payload)?;
            Some(Knock::Outcome {
                session,
                id,
                token: WaiterToken(message.try_get_u128().ok()?),
                kind,
                payload,
            })
        }
        b'E' => Some(Knock::Everything),
        b'P' => message.try_get_u64().ok().map(Knock::Probe),
        b'S' => {
            let from = split(&mut message, WRITER)?;
            let from = instance_of(std::str::from_utf8(&from).ok()?)?;
            let kind = message.try_get_u8().ok()?;
            let length = usize::try_from(message.try_get_u32().ok()?).ok()?;
            let name = split(&mut message, length)?;
            let channel = match kind {
                b's' => SignalChannel::Session(session_key(&name)?),
                b't' => SignalChannel::Topic(std::str::from_utf8(&name).ok()?.into()),
                _ => return None,
            };
            Some(Knock::Signal {
                from,
                channel,
                payload: message,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::session_name;

    #[test]
    fn entries_round_trip_and_damage_is_one_unreadable_event() {
        let payloads = [
            Bytes::from_static(b"one"),
            Bytes::new(),
            Bytes::from_static(b"three"),
        ];
        let entry = Entry {
            first: 7,
            events: 9,
            bytes: 100,
            at: 1,
            floor: Position::new(1, 2),
            prev: Some(Position::new(1, u64::MAX)),
            payloads: &payloads.each_ref(),
        };
        let mut record = BytesMut::new();
        entry.write(&mut record);
        let record = record.freeze();
        assert!(record.len() <= entry.size());
        let last = Position::new(2, 9);
        let events = events_of(last, record.clone());
        let found: Vec<_> = events.iter().map(|event| event.data.clone()).collect();
        assert_eq!(found, payloads.clone().map(Some));
        assert_eq!(events[0].position, Position::new(2, 7));
        assert_eq!(events[0].prev, Some(Position::new(1, u64::MAX)));
        assert_eq!((events[2].position, events[2].prev), (last, None));
        for cut in 0..record.len() {
            let events = events_of(last, record.slice(..cut));
            assert_eq!(events.len(), 1, "{cut}");
            assert_eq!((events[0].position, &events[0].data), (last, &None));
        }
    }

    #[test]
    fn knocks_round_trip_and_what_is_not_known_is_everything() {
        let session = SessionKey([9; 32]);
        let knocks = [
            Knock::Wake(session, Target::Session),
            Knock::Wake(session, Target::Request(RpcId::Number(-1))),
            Knock::Probe(u64::MAX),
            Knock::Outcome {
                session,
                id: RpcId::String("1".into()),
                token: WaiterToken(u128::MAX - 1),
                kind: OutcomeKind::Rejected,
                payload: Bytes::from_static(b"no"),
            },
            Knock::Everything,
        ];
        let encoded: Vec<_> = knocks.iter().map(encode).collect();
        assert_eq!(decode_all(encode_all(&encoded)), knocks);
        assert_eq!(decode_all(encoded[1].clone()), knocks[1..2]);
        let by_script = format!("w{}sstandalone", session_name(&session));
        let target = Target::Stream(StreamId::standalone());
        let wake = Knock::Wake(session, target);
        assert_eq!(decode_all(by_script.into()), [wake]);
        for odd in [
            &b""[..],
            b"?",
            b"W",
            b"M\0\0\0\x09E",
            &encoded[3][..KEY + 20],
        ] {
            assert_eq!(decode_all(Bytes::copy_from_slice(odd)), [Knock::Everything]);
        }
    }
}
