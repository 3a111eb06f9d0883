//! What the writer of a process remembers of sessions and streams that it
//! appends to. It is right as long as nobody else changes them in another way
//! than by an append: who does says so in `mcp_change`.

use std::collections::{HashMap, VecDeque};

use mcp_adapter_core::{InstanceId, Position, SessionKey, StreamId};

use crate::{
    record::Entry,
    rows::{Session, Stream},
};

/// Sessions that are remembered.
const SESSIONS: usize = 1 << 17;
/// Events whose places are remembered, over all streams.
const KEPT: usize = 1 << 19;

/// An event that a stream keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) id: i64,
    pub(crate) position: Position,
    pub(crate) size: u64,
    pub(crate) tag: Option<(InstanceId, u64)>,
}

impl Kept {
    pub(crate) fn new(entry: &Entry) -> Self {
        Self {
            id: entry.head.last,
            position: entry.head.top,
            size: entry.size,
            tag: entry.tag,
        }
    }
}

#[derive(Debug)]
pub(crate) struct KnownStream {
    pub(crate) name: StreamId,
    pub(crate) row: Stream,
    /// All that it keeps, the oldest first: known where some had to go.
    pub(crate) kept: Option<VecDeque<Kept>>,
    /// Of a shared stream: the highest number of the writer that wrote last.
    pub(crate) last: Option<(InstanceId, u64)>,
}

#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) row: Session,
    /// [`Cache::round`] in which its bytes were counted.
    pub(crate) round: u64,
    /// Those that are open.
    pub(crate) streams: Vec<KnownStream>,
}

#[derive(Debug, Default)]
pub(crate) struct Cache {
    sessions: HashMap<SessionKey, Known>,
    keys: HashMap<i64, SessionKey>,
    kept: usize,
    /// Raised where others have counted what was not seen here.
    round: u64,
}

impl Cache {
    pub(crate) fn clear(&mut self) {
        *self = Self {
            round: self.round,
            ..Self::default()
        };
    }

    pub(crate) fn recount(&mut self) {
        self.round += 1;
    }

    pub(crate) fn get(&mut self, key: &SessionKey) -> Option<&mut Known> {
        self.sessions.get_mut(key)
    }

    /// A session whose bytes are right.
    pub(crate) fn counted(&mut self, key: &SessionKey) -> Option<&mut Known> {
        let round = self.round;
        self.sessions
            .get_mut(key)
            .filter(|known| known.round == round)
    }

    pub(crate) fn insert(&mut self, key: SessionKey, row: Session) {
        if let Some(known) = self.sessions.get_mut(&key)
            && known.row.id == row.id
        {
            known.row = row;
            if known.round != self.round {
                known.round = self.round;
                // Of what was not seen, some may be kept and some may be gone.
                for stream in &mut known.streams {
                    stream.kept = None;
                    stream.last = None;
                }
            }
            return;
        }
        if self.sessions.len() >= SESSIONS {
            self.clear();
        }
        self.remove(&key);
        self.keys.insert(row.id, key);
        let known = Known {
            row,
            round: self.round,
            streams: Vec::new(),
        };
        self.sessions.insert(key, known);
    }

    pub(crate) fn remove(&mut self, key: &SessionKey) {
        if let Some(known) = self.sessions.remove(key) {
            self.keys.remove(&known.row.id);
        }
    }

    /// Somebody has changed it.
    pub(crate) fn evict(&mut self, session: i64) {
        if let Some(key) = self.keys.remove(&session) {
            self.sessions.remove(&key);
        }
    }

    /// Somebody else has appended to a stream.
    pub(crate) fn saw(&mut self, entry: &Entry) {
        let Some(key) = self.keys.get(&entry.session) else {
            return;
        };
        let Some(known) = self.sessions.get_mut(key) else {
            return;
        };
        known.appended(entry);
        let stream = known.streams.iter_mut();
        if let Some(stream) = { stream }.find(|stream| stream.row.id == entry.stream) {
            if let Some(kept) = &mut stream.kept {
                let cut = usize::try_from(entry.cut.0).unwrap_or(usize::MAX);
                kept.drain(..cut.min(kept.len()));
            }
            stream.appended(entry);
        }
    }

    /// So many more events are remembered; over the bound all are forgotten.
    pub(crate) fn keep(&mut self, more: usize) {
        self.kept += more;
        if self.kept > KEPT {
            self.kept = 0;
            let streams = self.sessions.values_mut();
            for stream in streams.flat_map(|known| &mut known.streams) {
                stream.kept = None;
            }
        }
    }
}

impl Known {
    pub(crate) fn appended(&mut self, entry: &Entry) {
        self.row.at = self.row.at.max(entry.at);
        self.row.bytes += entry.grew();
    }

    pub(crate) fn stream(&mut self, name: &StreamId) -> Option<&mut KnownStream> {
        self.streams.iter_mut().find(|stream| stream.name == *name)
    }
}

impl KnownStream {
    pub(crate) fn appended(&mut self, entry: &Entry) {
        self.row.head = entry.head;
        if let Some((writer, tag)) = entry.tag {
            let former = self.last.filter(|last| last.0 == writer);
            let last = former.map_or(tag, |last| last.1.max(tag));
            self.last = Some((writer, last));
        }
        if let Some(kept) = &mut self.kept {
            kept.push_back(Kept::new(entry));
        }
    }
}
