//! How ids and wake-ups are written. The database writes wake-ups of streams and
//! requests in the same form.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, OutcomeKind, RpcId, SessionKey, StreamId, WaiterToken,
    storage::{Knock, SignalChannel, Target},
};

/// A JSON-RPC id as bytes: numbers and strings differ (clause C3).
pub(crate) fn id_bytes(id: &RpcId) -> Vec<u8> {
    match id {
        RpcId::Number(number) => format!("n{number}").into_bytes(),
        RpcId::String(text) => [b"s", text.as_bytes()].concat(),
    }
}

fn id_of(bytes: &[u8]) -> Option<RpcId> {
    let (kind, text) = bytes.split_first()?;
    let text = std::str::from_utf8(text).ok()?;
    match kind {
        b'n' => text.parse().ok().map(RpcId::Number),
        b's' => Some(RpcId::String(text.into())),
        _ => None,
    }
}

pub(crate) fn instance(bytes: &[u8]) -> Option<InstanceId> {
    let bytes = bytes.try_into().ok()?;
    Some(InstanceId(u128::from_be_bytes(bytes)))
}

/// The numbers of outcomes in the database; the functions there know 3, 5 and 7.
const OUTCOMES: [(OutcomeKind, i16); 8] = [
    (OutcomeKind::Answered, 1),
    (OutcomeKind::Rejected, 2),
    (OutcomeKind::TimedOut, 3),
    (OutcomeKind::Cancelled, 4),
    (OutcomeKind::OwnerLost, 5),
    (OutcomeKind::SessionEnded, 6),
    (OutcomeKind::Replaced, 7),
    (OutcomeKind::Lost, 8),
];

pub(crate) fn outcome_number(kind: OutcomeKind) -> i16 {
    let mut all = OUTCOMES.iter();
    all.find(|(known, _)| *known == kind)
        .map_or(8, |(_, number)| *number)
}

pub(crate) fn outcome_of(number: i16) -> Option<OutcomeKind> {
    let mut all = OUTCOMES.iter();
    all.find(|(_, known)| *known == number)
        .map(|(kind, _)| *kind)
}

/// The line that brings an outcome, but for the waiter's token, which the database
/// writes behind it.
pub(crate) fn outcome(
    session: &SessionKey,
    id: &RpcId,
    kind: OutcomeKind,
    payload: &[u8],
) -> String {
    let (key, id) = (BASE64.encode(session.0), BASE64.encode(id_bytes(id)));
    let (kind, payload) = (outcome_number(kind), BASE64.encode(payload));
    format!("o{key}{kind} {id} {payload} ")
}

/// One line of a payload.
pub(crate) fn line(knock: &Knock) -> String {
    match knock {
        Knock::Wake(session, target) => {
            let key = BASE64.encode(session.0);
            match target {
                Target::Stream(stream) => format!("w{key}{}", stream.as_str()),
                Target::Request(id) => format!("r{key}{}", BASE64.encode(id_bytes(id))),
                Target::Session => format!("x{key}"),
            }
        }
        Knock::Outcome {
            session,
            id,
            token,
            kind,
            payload,
        } => format!("{}{:032x}", outcome(session, id, *kind, payload), token.0),
        Knock::Everything => "e".into(),
        Knock::Probe(number) => format!("p{number}"),
        Knock::Signal {
            from,
            channel,
            payload,
        } => {
            let channel = match channel {
                SignalChannel::Session(session) => format!("k{}", BASE64.encode(session.0)),
                SignalChannel::Topic(topic) => format!("t{}", BASE64.encode(topic.as_bytes())),
            };
            format!("g{from} {channel} {}", BASE64.encode(payload))
        }
    }
}

/// The line that one instance sends itself to see whether it can listen.
pub(crate) fn self_test(token: u64) -> String {
    format!("q{token}")
}

fn session(text: &str) -> Option<SessionKey> {
    Some(SessionKey(BASE64.decode(text).ok()?.try_into().ok()?))
}

/// The knock of a line; `None` for one that a later version may understand.
pub(crate) fn knock(line: &str) -> Option<Knock> {
    /// Characters of a session's key.
    const KEY: usize = 43;
    let (kind, rest) = line.split_at_checked(1)?;
    let target = |rest: &str| {
        let (key, name) = rest.split_at_checked(KEY)?;
        Some((session(key)?, name.to_owned()))
    };
    match kind {
        "w" => {
            let (session, name) = target(rest)?;
            let stream: StreamId = name.parse().ok()?;
            Some(Knock::Wake(session, Target::Stream(stream)))
        }
        "r" => {
            let (session, id) = target(rest)?;
            let id = id_of(&BASE64.decode(id).ok()?)?;
            Some(Knock::Wake(session, Target::Request(id)))
        }
        "o" => {
            let (key, rest) = rest.split_at_checked(KEY)?;
            let parts: Vec<_> = rest.split(' ').collect();
            let &[kind, id, payload, token] = &parts[..] else {
                return None;
            };
            Some(Knock::Outcome {
                session: session(key)?,
                id: id_of(&BASE64.decode(id).ok()?)?,
                token: WaiterToken(u128::from_str_radix(token, 16).ok()?),
                kind: outcome_of(kind.parse().ok()?)?,
                payload: BASE64.decode(payload).ok()?.into(),
            })
        }
        "x" => Some(Knock::Wake(session(rest)?, Target::Session)),
        "e" => Some(Knock::Everything),
        "p" => rest.parse().ok().map(Knock::Probe),
        "g" => {
            let mut parts = rest.split(' ');
            let from = u128::from_str_radix(parts.next()?, 16).ok()?;
            let (kind, channel) = parts.next()?.split_at_checked(1)?;
            let channel = match kind {
                "k" => SignalChannel::Session(session(channel)?),
                "t" => {
                    let topic = String::from_utf8(BASE64.decode(channel).ok()?).ok()?;
                    SignalChannel::Topic(topic.into())
                }
                _ => return None,
            };
            Some(Knock::Signal {
                from: InstanceId(from),
                channel,
                payload: Bytes::from(BASE64.decode(parts.next()?).ok()?),
            })
        }
        _ => None,
    }
}

/// Joins lines to payloads below the 8000 bytes that one notification may have.
pub(crate) fn payloads(lines: impl IntoIterator<Item = String>) -> Vec<String> {
    const MOST: usize = 7800;
    let mut payloads: Vec<String> = Vec::new();
    for line in lines {
        match payloads.last_mut() {
            Some(last) if last.len() + 1 + line.len() <= MOST => {
                last.push('\n');
                last.push_str(&line);
            }
            _ => payloads.push(line),
        }
    }
    payloads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let key = SessionKey([0xfb; 32]);
        let wake = |target| Knock::Wake(key, target);
        for written in [
            wake(Target::Session),
            wake(Target::Stream("a.b-c_9".parse().unwrap())),
            wake(Target::Request(RpcId::Number(i64::MIN))),
            wake(Target::Request(RpcId::String("\0 \n\u{e4}".into()))),
            Knock::Outcome {
                session: key,
                id: RpcId::String(" \n".into()),
                token: WaiterToken(1),
                kind: OutcomeKind::Rejected,
                payload: Bytes::new(),
            },
            Knock::Outcome {
                session: key,
                id: RpcId::Number(-1),
                token: WaiterToken(u128::MAX),
                kind: OutcomeKind::Answered,
                payload: Bytes::from_static(b"\0 \xff\n"),
            },
            Knock::Everything,
            Knock::Probe(u64::MAX),
            Knock::Signal {
                from: InstanceId(1),
                channel: SignalChannel::Topic("t \n".into()),
                payload: Bytes::from_static(b"\0\xff\n"),
            },
            Knock::Signal {
                from: InstanceId(u128::MAX),
                channel: SignalChannel::Session(key),
                payload: Bytes::new(),
            },
        ] {
            let line = line(&written);
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(knock(&line), Some(written));
        }
    }

    #[test]
    fn what_is_not_understood_is_nothing() {
        for odd in [
            "", "z", "w", "wAAAA", "pX", "g1", "g1 k", "\u{e4}", "q7", "o", "o1 ",
        ] {
            assert_eq!(knock(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn the_largest_signal_fits_and_payloads_are_bounded() {
        let largest = line(&Knock::Signal {
            from: InstanceId(u128::MAX),
            channel: SignalChannel::Topic("\u{e4}".repeat(50).into()),
            payload: Bytes::from(vec![0; mcp_adapter_core::MAX_SIGNAL_BYTES]),
        });
        assert!(largest.len() < 7800, "{}", largest.len());
        let lines = (0..1000).map(|n| format!("p{n}"));
        let all = payloads(lines.chain([largest.clone(), largest]));
        assert!(all.iter().all(|payload| payload.len() <= 7800));
        assert_eq!(
            all.iter().map(|p| p.split('\n').count()).sum::<usize>(),
            1002
        );
    }
}
