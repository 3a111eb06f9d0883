//! What crosses between the two processes: a length of four bytes, then as many
//! bytes of `MessagePack`.

use std::{io, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    Applied, Capabilities, Error, ErrorKind, InstanceId,
    storage::{Knock, Profile},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::wait::chain;

/// The largest frame, in bytes; a batch of the engine is far below.
const MAX_FRAME: usize = 256 << 20;
/// The bytes of a length.
pub(super) const LENGTH: usize = 4;

/// To the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// A step, with its arguments.
    Call {
        id: u64,
        step: String,
        arguments: Bytes,
        /// How long it may take.
        patience: Duration,
    },
    /// Opens the doorbell.
    Open {
        id: u64,
        me: InstanceId,
        patience: Duration,
    },
    /// Nobody listens any more at the doorbell that was opened by `id`.
    HangUp { id: u64 },
}

/// From the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The first frame.
    Hello(Hello),
    /// Of the call, or the doorbell, `id`.
    Answer {
        id: u64,
        outcome: Result<Bytes, Failure>,
    },
    /// Through the doorbell `id`; `None` is its end.
    Knock {
        id: u64,
        knock: Option<Result<Knock, Failure>>,
    },
}

/// How the child's storage wants to be driven.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Hello {
    capabilities: Capabilities,
    batch_events: usize,
    batch_bytes: usize,
    lanes: usize,
    shards: usize,
    repair: bool,
}

impl Hello {
    pub(super) fn of(profile: &Profile) -> Self {
        // One that is driven inline has no batches of its own.
        let remote = Profile::remote(profile.name, profile.capabilities, profile.lanes);
        let batches = if profile.inline { &remote } else { profile };
        Self {
            capabilities: profile.capabilities,
            batch_events: batches.batch_events,
            batch_bytes: batches.batch_bytes,
            lanes: profile.lanes,
            shards: profile.shards,
            repair: profile.repair,
        }
    }

    pub(super) fn profile(self, name: &'static str) -> Profile {
        let mut profile =
            Profile::remote(name, self.capabilities, self.lanes).with_shards(self.shards);
        profile.batch_events = self.batch_events;
        profile.batch_bytes = self.batch_bytes;
        profile.repair = self.repair;
        profile
    }
}

/// An [`Error`] on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    kind: ErrorKind,
    applied: Applied,
    /// Its text, with that of its causes.
    text: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind(),
            applied: error.applied(),
            text: chain(&error),
        }
    }
}

impl Failure {
    pub(super) fn into_error(self, operation: &'static str) -> Error {
        Error::new(self.kind, operation)
            .with_applied(self.applied)
            .with_source(self.text)
    }
}

/// What does not fit, or is not what the other side sends.
pub(super) fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

pub(super) fn encode(value: &impl Serialize) -> io::Result<Bytes> {
    rmp_serde::to_vec(value).map(Into::into).map_err(invalid)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    rmp_serde::from_slice(bytes).map_err(invalid)
}

/// A whole frame.
pub(super) fn frame(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; LENGTH];
    rmp_serde::encode::write(&mut frame, value).map_err(invalid)?;
    let length = frame.len() - LENGTH;
    let prefix = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_FRAME)
        .ok_or_else(|| invalid("a frame is too large"))?;
    frame[..LENGTH].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame)
}

/// The length of the body that follows.
pub(super) fn length(prefix: [u8; LENGTH]) -> io::Result<usize> {
    usize::try_from(u32::from_be_bytes(prefix))
        .ok()
        .filter(|length| *length <= MAX_FRAME)
        .ok_or_else(|| invalid("a frame is too large, or no frame"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_profile_crosses_with_all_its_fields() {
        let capabilities = Capabilities::server(Duration::from_millis(7));
        let mut profile = Profile::remote("acme", capabilities, 3)
            .with_repair()
            .with_shards(5);
        profile.batch_events = 11;
        profile.batch_bytes = 13;
        let crossed: Hello = decode(&encode(&Hello::of(&profile)).unwrap()).unwrap();
        // Its text has every field, also one that this crate does not know of.
        let text = format!("{profile:?}");
        assert_eq!(format!("{:?}", crossed.profile("acme")), text);
    }
}
