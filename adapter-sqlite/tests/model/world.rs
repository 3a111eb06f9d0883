//! What is driven, and what of it is compared.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, Position, PrincipalKey, SessionKey, StreamId, WaiterToken,
    storage::{
        Append, Cursor, Hold, PutRequest, Read, Settle, Storage, StreamState, UpdateSession,
    },
};
use mcp_adapter_memory::MemoryStorage;
use mcp_adapter_sqlite::SqliteStorage;

pub(crate) const LONG: Duration = Duration::from_secs(600);
pub(crate) const ME: PrincipalKey = PrincipalKey([7; 32]);
pub(crate) const SESSIONS: u8 = 3;
pub(crate) const STREAMS: [&str; 4] = ["a", "b", "c", "standalone"];
pub(crate) const INSTANCES: [InstanceId; 3] = [InstanceId(1), InstanceId(2), InstanceId(3)];

pub(crate) struct World {
    pub(crate) random: fastrand::Rng,
    pub(crate) model: MemoryStorage,
    pub(crate) handles: Vec<SqliteStorage>,
    /// How far epochs of shared streams in the file are above those of the model.
    pub(crate) ahead: u32,
    pub(crate) step: u64,
    /// Streams that were ended, or tried to be.
    pub(crate) ends: u64,
    pub(crate) tags: [u64; 3],
    pub(crate) beats: [Option<u64>; 3],
    pub(crate) tokens: u128,
    pub(crate) updates: Vec<UpdateSession>,
    pub(crate) holds: Vec<(SessionKey, StreamId, InstanceId, Hold)>,
    pub(crate) puts: Vec<PutRequest>,
    pub(crate) settles: Vec<Settle>,
    pub(crate) shared: Vec<Append>,
    /// For so many steps one handle does all that is done to one stream: the
    /// others do not see everything that comes and goes meanwhile.
    pub(crate) burst: u8,
    pub(crate) last: (usize, SessionKey, StreamId),
    /// What came about, see [`ALL`].
    pub(crate) seen: BTreeSet<&'static str>,
}

impl World {
    pub(crate) fn session(&mut self) -> SessionKey {
        if self.burst > 0 {
            return self.last.1;
        }
        SessionKey([self.random.u8(..SESSIONS); 32])
    }

    pub(crate) fn stream(&mut self) -> StreamId {
        if self.burst > 0 {
            return self.last.2.clone();
        }
        let name = STREAMS[self.random.usize(..STREAMS.len())];
        name.parse().unwrap()
    }

    pub(crate) fn instance(&mut self) -> (usize, InstanceId) {
        let index = self.random.usize(..INSTANCES.len());
        (index, INSTANCES[index])
    }

    pub(crate) fn handle(&mut self) -> SqliteStorage {
        let index = if self.burst > 0 {
            self.last.0
        } else {
            self.random.usize(..self.handles.len())
        };
        self.handles[index].clone()
    }

    /// How long an ended stream is kept: no two expire at once, and those that end
    /// first expire first.
    pub(crate) fn kept(&mut self) -> Duration {
        self.ends += 1;
        LONG + Duration::from_millis(self.ends)
    }

    pub(crate) fn token(&mut self) -> WaiterToken {
        self.tokens += 1;
        WaiterToken(self.tokens)
    }

    pub(crate) fn data(&mut self) -> Bytes {
        let length = self.random.usize(..40);
        Bytes::from(vec![b'0' + (self.step % 10) as u8; length])
    }

    /// What a shared stream answers, in the words of the model.
    pub(crate) fn plain(&self, answer: &impl std::fmt::Debug) -> String {
        const EPOCH: &str = "epoch: ";
        let text = format!("{answer:?}");
        let mut parts = text.split(EPOCH);
        let mut plain = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(',').unwrap();
            let epoch: u32 = part[..end].parse().unwrap();
            let epoch = epoch.checked_sub(self.ahead).unwrap_or(epoch);
            plain += &format!("{EPOCH}{epoch}{}", &part[end..]);
        }
        plain
    }

    pub(crate) fn to_file(&self, position: Position, stream: &StreamId) -> Position {
        if stream.is_standalone() && position.epoch > 0 {
            Position::new(position.epoch + self.ahead, position.seq)
        } else {
            position
        }
    }

    /// One of the last that came.
    pub(crate) fn late<'a, T>(&self, all: &'a [T]) -> Option<&'a T> {
        let last = all.len().checked_sub(1)?;
        all.get(last.saturating_sub(self.random.clone().usize(..12)))
    }

    pub(crate) async fn model_state(
        &self,
        session: SessionKey,
        stream: &StreamId,
    ) -> Option<StreamState> {
        let cursor = Cursor::state_of(session, stream.clone());
        match self.model.read(&[cursor]).await.unwrap().pop() {
            Some(Read::Page { state, .. }) => Some(state),
            _ => None,
        }
    }

    pub(crate) async fn open_streams_of(&self, owner: InstanceId) -> Vec<(SessionKey, StreamId)> {
        let mut open = Vec::new();
        for session in (0..SESSIONS).map(|session| SessionKey([session; 32])) {
            for stream in STREAMS.map(|name| name.parse::<StreamId>().unwrap()) {
                let state = self.model_state(session, &stream).await;
                if state.is_some_and(|state| state.end.is_none() && state.owner == Some(owner)) {
                    open.push((session, stream));
                }
            }
        }
        open
    }
}
