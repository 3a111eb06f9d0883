//! Names of keys and channels, see `scripts/common.lua`.

use std::{fmt::Write as _, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use mcp_adapter_core::{InstanceId, Position, RpcId, SessionKey, StreamId};

/// Partitions of a store: each has one hash tag, so that all keys of a session
/// and the lists that it is in are in one slot. Part of the format.
pub(crate) const PARTITIONS: u16 = 64;

/// What a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Partition {
    /// Sessions.
    Number(u16),
    /// The heartbeats of all instances.
    Beats,
    /// Where rights are tried out at the start.
    Check,
}

impl Partition {
    pub(crate) fn of(session: &SessionKey) -> Self {
        Self::Number(u16::from(session.0[0]) % PARTITIONS)
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self::Number)
    }
}

/// Names with the prefix of this store.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    prefix: Arc<str>,
    /// In Cluster channels are sharded, and nothing is read across partitions.
    pub(crate) cluster: bool,
}

impl Names {
    pub(crate) fn new(prefix: &str, cluster: bool) -> Self {
        Self {
            prefix: prefix.into(),
            cluster,
        }
    }

    /// The hash tag of a partition.
    pub(crate) fn tag(&self, partition: Partition) -> String {
        match partition {
            Partition::Number(number) => format!("{{{}:{number:02}}}", self.prefix),
            Partition::Beats => format!("{{{}:beats}}", self.prefix),
            Partition::Check => format!("{{{}:check}}", self.prefix),
        }
    }

    pub(crate) fn of(&self, partition: Partition, part: &str) -> String {
        format!("{}:{part}", self.tag(partition))
    }

    pub(crate) fn root(&self, session: &SessionKey) -> String {
        let mut root = self.tag(Partition::of(session));
        root.push(':');
        BASE64.encode_string(session.0, &mut root);
        root
    }

    /// `life` is what `append.lua` tells of the session.
    pub(crate) fn events(&self, session: &SessionKey, life: &str, stream: &StreamId) -> String {
        format!("{}:e:{life}{}", self.root(session), stream.as_str())
    }

    /// The version of all holds that writers in this partition go by.
    pub(crate) fn holds(&self, partition: Partition) -> String {
        if self.cluster {
            self.of(partition, "v")
        } else {
            format!("{}:holds", self.prefix)
        }
    }

    /// The channel of one instance.
    pub(crate) fn door(&self, partition: Partition, instance: InstanceId) -> String {
        if self.cluster {
            format!("{}:door:{instance}", self.tag(partition))
        } else {
            format!("{}:door:{instance}", self.prefix)
        }
    }

    /// The channel of all instances.
    pub(crate) fn all_doors(&self) -> String {
        if self.cluster {
            format!("{}:doors", self.tag(Partition::Number(0)))
        } else {
            format!("{}:doors", self.prefix)
        }
    }
}

/// The name of a session in keys, and in the knocks of scripts.
pub(crate) fn session_name(session: &SessionKey) -> String {
    BASE64.encode(session.0)
}

pub(crate) fn session_of(name: &[u8]) -> Option<SessionKey> {
    let bytes = BASE64.decode(name).ok()?;
    Some(SessionKey(bytes.try_into().ok()?))
}

/// The number 1 and the string "1" differ.
pub(crate) fn request_name(id: &RpcId) -> String {
    match id {
        RpcId::Number(number) => format!("n{number}"),
        RpcId::String(text) => format!("t{text}"),
    }
}

pub(crate) fn request_of(name: &str) -> Option<RpcId> {
    match name.split_at_checked(1)? {
        ("n", number) => number.parse().ok().map(RpcId::Number),
        ("t", text) => Some(RpcId::String(text.into())),
        _ => None,
    }
}

pub(crate) fn instance_of(name: &str) -> Option<InstanceId> {
    u128::from_str_radix(name, 16).ok().map(InstanceId)
}

/// A position as an id of Redis.
pub(crate) fn place(position: Position) -> String {
    let mut text = String::with_capacity(24);
    // Writing to a string cannot fail.
    let _ = write!(text, "{}-{}", position.epoch, position.seq);
    text
}

pub(crate) fn position_of(text: &str) -> Option<Position> {
    let (epoch, seq) = text.split_once('-')?;
    Some(Position::new(epoch.parse().ok()?, seq.parse().ok()?))
}

/// The slot of a hash tag in Cluster: CRC-16/XMODEM of what is in the braces.
pub(crate) fn slot(tag: &str) -> u16 {
    let inner = tag.trim_start_matches('{').trim_end_matches('}');
    let crc = inner.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            }
        })
    });
    crc % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_server() {
        // CLUSTER KEYSLOT of the documentation and of a server.
        assert_eq!(slot("123456789"), 0x31c3);
        assert_eq!(slot("{foo}"), 12182);
    }

    #[test]
    fn names_round_trip() {
        let key = SessionKey([0xfe; 32]);
        assert_eq!(session_of(session_name(&key).as_bytes()), Some(key));
        for id in [
            RpcId::Number(i64::MIN),
            RpcId::String("n1".into()),
            RpcId::String("".into()),
        ] {
            assert_eq!(request_of(&request_name(&id)), Some(id));
        }
        let last = Position::new(u32::MAX, u64::MAX);
        assert_eq!(position_of(&place(last)), Some(last));
        assert_eq!(instance_of(&InstanceId(7).to_string()), Some(InstanceId(7)));
    }
}
