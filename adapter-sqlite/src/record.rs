//! How records are written: a version, then numbers of variable length.
//!
//! What a log of many events repeats for each must be short, and one value is
//! bound faster than fifteen.

use std::sync::Arc;

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, Position, RpcId, SessionKey, StreamId, WaiterToken,
    storage::{HoldStart, Knock, Names, REMEMBERED, SignalChannel, Target},
};

use crate::clock::Time;

const VERSION: u8 = 1;

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    fn position(&mut self, position: Position) {
        self.number(position.epoch.into());
        self.number(position.seq);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn id(&mut self) -> Option<i64> {
        i64::try_from(self.number()?).ok()
    }

    fn position(&mut self) -> Option<Position> {
        let epoch = u32::try_from(self.number()?).ok()?;
        Some(Position::new(epoch, self.number()?))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

/// What grows with each append to a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// See [`StreamState::top`](mcp_adapter_core::storage::StreamState::top).
    pub(crate) top: Position,
    /// The log's id of the newest event, or 0. It may be gone.
    pub(crate) last: i64,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) oldest: Option<Position>,
}

impl Head {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Out(vec![VERSION]);
        out.position(self.top);
        out.number(self.last.cast_unsigned());
        out.number(self.count);
        out.number(self.bytes);
        out.position(self.oldest.unwrap_or(Position::START));
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = In(bytes);
        (input.byte()? == VERSION).then_some(())?;
        Some(Self {
            top: input.position()?,
            last: input.id()?,
            count: input.number()?,
            bytes: input.number()?,
            oldest: Some(input.position()?).filter(|oldest| *oldest != Position::START),
        })
    }
}

/// What the log says of an event beside its payload: with it the stream's
/// [`Head`], so that nothing else has to be written with an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) session: i64,
    pub(crate) principal: i64,
    pub(crate) stream: i64,
    /// The log's id of the stream's event before it, or 0. It may be gone.
    pub(crate) prev: i64,
    pub(crate) at: Time,
    /// Bytes of its payload.
    pub(crate) size: u64,
    /// Events and bytes that were dropped for it.
    pub(crate) cut: (u64, u64),
    /// The stream with this event; its `last` is the event itself.
    pub(crate) head: Head,
    /// See [`StoredEvent::prev`](mcp_adapter_core::storage::StoredEvent::prev).
    pub(crate) follows: Option<Position>,
    /// Of a shared stream: who wrote it, under which number.
    pub(crate) tag: Option<(InstanceId, u64)>,
}

impl Entry {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Out(Vec::with_capacity(48));
        out.0.push(VERSION);
        let flags = u8::from(self.follows.is_some()) | u8::from(self.tag.is_some()) << 1;
        out.0.push(flags);
        for id in [self.session, self.principal, self.stream, self.prev] {
            out.number(id.cast_unsigned());
        }
        out.number(self.at.cast_unsigned());
        out.number(self.size);
        out.number(self.cut.0);
        out.number(self.cut.1);
        out.position(self.head.top);
        out.number(self.head.count);
        out.number(self.head.bytes);
        out.position(self.head.oldest.unwrap_or(Position::START));
        if let Some(follows) = self.follows {
            out.position(follows);
        }
        if let Some((writer, tag)) = self.tag {
            out.0.extend_from_slice(&writer.0.to_be_bytes());
            out.number(tag);
        }
        out.0
    }

    pub(crate) fn decode(id: i64, bytes: &[u8]) -> Option<Self> {
        let mut input = In(bytes);
        (input.byte()? == VERSION).then_some(())?;
        let flags = input.byte()?;
        let [session, principal, stream, prev] =
            [input.id()?, input.id()?, input.id()?, input.id()?];
        let at = input.id()?;
        let size = input.number()?;
        let cut = (input.number()?, input.number()?);
        let head = Head {
            top: input.position()?,
            last: id,
            count: input.number()?,
            bytes: input.number()?,
            oldest: Some(input.position()?).filter(|oldest| *oldest != Position::START),
        };
        let follows = match flags & 1 {
            0 => None,
            _ => Some(input.position()?),
        };
        let tag = match flags & 2 {
            0 => None,
            _ => Some((
                InstanceId(u128::from_be_bytes(input.array()?)),
                input.number()?,
            )),
        };
        Some(Self {
            session,
            principal,
            stream,
            prev,
            at,
            size,
            cut,
            head,
            follows,
            tag,
        })
    }

    /// By how much the bytes of its stream grew.
    pub(crate) fn grew(&self) -> i64 {
        self.size.cast_signed() - self.cut.1.cast_signed()
    }

    /// By how much the events of its stream grew.
    pub(crate) fn more(&self) -> i64 {
        1 - self.cut.0.cast_signed()
    }
}

pub(crate) fn position(position: Position) -> Vec<u8> {
    let mut out = Out::default();
    out.position(position);
    out.0
}

pub(crate) fn read_position(bytes: &[u8]) -> Option<Position> {
    In(bytes).position()
}

pub(crate) fn instance(bytes: &[u8]) -> Option<InstanceId> {
    let bytes = bytes.try_into().ok()?;
    Some(InstanceId(u128::from_be_bytes(bytes)))
}

/// A number and a string never look alike.
pub(crate) fn rpc_id(id: &RpcId) -> Vec<u8> {
    match id {
        RpcId::Number(number) => [b"n", &number.to_be_bytes()[..]].concat(),
        RpcId::String(text) => [b"s", text.as_bytes()].concat(),
    }
}

fn read_rpc_id(bytes: &[u8]) -> Option<RpcId> {
    match bytes.split_first()? {
        (b'n', number) => Some(RpcId::Number(i64::from_be_bytes(number.try_into().ok()?))),
        (b's', text) => Some(RpcId::String(std::str::from_utf8(text).ok()?.into())),
        _ => None,
    }
}

/// The names that a column keeps, the latest last; a former version kept more.
pub(crate) fn names(bytes: &[u8]) -> Option<Names> {
    let kept = REMEMBERED * size_of::<WaiterToken>();
    Names::from_bytes(&bytes[bytes.len().saturating_sub(kept)..])
}

/// Where holds began.
pub(crate) fn holds(holds: &[HoldStart]) -> Vec<u8> {
    let mut out = Out::default();
    for hold in holds {
        out.number(hold.number);
        out.position(hold.began);
    }
    out.0
}

pub(crate) fn read_holds(bytes: &[u8]) -> Option<Vec<HoldStart>> {
    let mut input = In(bytes);
    let mut holds = Vec::new();
    while !input.0.is_empty() {
        holds.push(HoldStart {
            number: input.number()?,
            began: input.position()?,
        });
    }
    Some(holds)
}

pub(crate) fn token(bytes: &[u8]) -> Option<WaiterToken> {
    let bytes = bytes.try_into().ok()?;
    Some(WaiterToken(u128::from_be_bytes(bytes)))
}

const WAKE: u8 = 1;
const EVERYTHING: u8 = 2;
const PROBE: u8 = 3;
const SIGNAL: u8 = 4;

/// What lies at one door.
pub(crate) fn knocks(knocks: &[Knock]) -> Vec<u8> {
    let mut out = Out(vec![VERSION]);
    for knock in knocks {
        one_knock(&mut out, knock);
    }
    out.0
}

fn one_knock(out: &mut Out, knock: &Knock) {
    match knock {
        // This backend wakes: the outcome is read.
        Knock::Outcome { session, id, .. } => {
            one_knock(out, &Knock::Wake(*session, Target::Request(id.clone())));
        }
        Knock::Wake(session, target) => {
            out.0.push(WAKE);
            out.0.extend_from_slice(&session.0);
            match target {
                Target::Stream(stream) => {
                    out.0.push(0);
                    out.bytes(stream.as_str().as_bytes());
                }
                Target::Request(id) => {
                    out.0.push(1);
                    out.bytes(&rpc_id(id));
                }
                Target::Session => out.0.push(2),
            }
        }
        Knock::Everything => out.0.push(EVERYTHING),
        Knock::Probe(number) => {
            out.0.push(PROBE);
            out.number(*number);
        }
        Knock::Signal {
            from,
            channel,
            payload,
        } => {
            out.0.push(SIGNAL);
            out.0.extend_from_slice(&from.0.to_be_bytes());
            match channel {
                SignalChannel::Session(session) => {
                    out.0.push(0);
                    out.0.extend_from_slice(&session.0);
                }
                SignalChannel::Topic(topic) => {
                    out.0.push(1);
                    out.bytes(topic.as_bytes());
                }
            }
            out.bytes(payload);
        }
    }
}

fn read_knock(input: &mut In<'_>) -> Option<Knock> {
    Some(match input.byte()? {
        WAKE => {
            let session = SessionKey(input.array()?);
            let target = match input.byte()? {
                0 => Target::Stream(input.text()?.parse::<StreamId>().ok()?),
                1 => Target::Request(read_rpc_id(input.bytes()?)?),
                2 => Target::Session,
                _ => return None,
            };
            Knock::Wake(session, target)
        }
        EVERYTHING => Knock::Everything,
        PROBE => Knock::Probe(input.number()?),
        SIGNAL => Knock::Signal {
            from: InstanceId(u128::from_be_bytes(input.array()?)),
            channel: match input.byte()? {
                0 => SignalChannel::Session(SessionKey(input.array()?)),
                1 => SignalChannel::Topic(Arc::from(input.text()?)),
                _ => return None,
            },
            payload: Bytes::copy_from_slice(input.bytes()?),
        },
        _ => return None,
    })
}

/// What cannot be read stands for anything.
pub(crate) fn read_knocks(bytes: &[u8]) -> Vec<Knock> {
    let mut input = In(bytes);
    if input.byte() != Some(VERSION) {
        return vec![Knock::Everything];
    }
    let mut knocks = Vec::new();
    while !input.0.is_empty() {
        match read_knock(&mut input) {
            Some(knock) => knocks.push(knock),
            None => return vec![Knock::Everything],
        }
    }
    knocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_heads_round_trip() {
        let head = Head {
            top: Position::new(u32::MAX, u64::MAX),
            last: 77,
            count: 3,
            bytes: u64::from(u32::MAX) * 9,
            oldest: Some(Position::new(1, 1)),
        };
        assert_eq!(Head::decode(&head.encode()), Some(head));
        assert_eq!(
            Head::decode(&Head::default().encode()),
            Some(Head::default())
        );
        let entry = Entry {
            session: i64::MAX,
            principal: 1,
            stream: 2,
            prev: 0,
            at: 1_763_000_000_000,
            size: 5,
            cut: (2, 1000),
            head,
            follows: Some(Position::new(7, u64::MAX)),
            tag: Some((InstanceId(u128::MAX), 9)),
        };
        assert_eq!(Entry::decode(77, &entry.encode()), Some(entry.clone()));
        assert_eq!((entry.grew(), entry.more()), (-995, -1));
        let plain = Entry {
            follows: None,
            tag: None,
            ..entry
        };
        let bytes = plain.encode();
        assert_eq!(Entry::decode(77, &bytes), Some(plain));
        // Cut short or of another version, it is nothing.
        assert_eq!(Entry::decode(77, &bytes[..bytes.len() - 1]), None);
        let newer = [&[VERSION + 1], &bytes[1..]].concat();
        assert_eq!(Entry::decode(77, &newer), None);
    }

    #[test]
    fn of_names_that_a_former_version_kept_the_last_are_read() {
        let mut bytes = Vec::new();
        for name in 0..16_u128 {
            bytes.extend_from_slice(&name.to_be_bytes());
        }
        let read = names(&bytes).unwrap();
        let kept: Vec<_> = (0..16)
            .filter(|name| read.contains(WaiterToken(*name)))
            .collect();
        assert_eq!(kept, (8..16).collect::<Vec<_>>());
        assert_eq!(names(&read.to_bytes()), Some(read));
        assert_eq!(names(&[]), Some(Names::default()));
        assert_eq!(names(&bytes[1..]), names(&bytes), "only the last are read");
        assert_eq!(names(&bytes[..15]), None);
    }

    #[test]
    fn holds_round_trip() {
        let all = [(1, Position::START), (300, Position::new(7, u64::MAX))]
            .map(|(number, began)| HoldStart { number, began });
        assert_eq!(read_holds(&holds(&all)).as_deref(), Some(&all[..]));
        assert_eq!(read_holds(&[]), Some(Vec::new()));
        assert_eq!(read_holds(&holds(&all)[1..]), None);
    }

    #[test]
    fn knocks_that_cannot_be_read_stand_for_everything() {
        let all = [Knock::Probe(300), Knock::Everything];
        let bytes = knocks(&all);
        assert_eq!(read_knocks(&bytes), all);
        assert_eq!(read_knocks(&bytes[..2]), [Knock::Everything]);
        assert_eq!(read_knocks(&[9, 9]), [Knock::Everything]);
        assert_eq!(read_knocks(&[]), [Knock::Everything]);
    }
}
