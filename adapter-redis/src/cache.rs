//! What this instance knows of the streams that it writes: enough to add events
//! with one native command.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use mcp_adapter_core::{InstanceId, Position, SessionKey, StreamId};
use parking_lot::Mutex;
use tokio::time::Instant;

const SHARDS: usize = 16;
/// What nobody has used for so long is forgotten; the next event asks a script.
const KEPT: Duration = Duration::from_secs(60);

/// The server's clock, as one of its answers told it: the same for all writers, which
/// those of their machines are not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerClock {
    millis: u64,
    read: Instant,
}

impl ServerClock {
    pub(crate) fn new(millis: u64, read: Instant) -> Self {
        Self { millis, read }
    }

    /// Milliseconds of the server at this moment, within a round trip.
    pub(crate) fn at(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.read).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.millis.saturating_add(since)
    }
}

/// An open stream to which events can be added natively.
#[derive(Debug, Clone)]
pub(crate) struct Native {
    pub(crate) owner: InstanceId,
    /// The top: an entry whose first event is not above it has what is stored already.
    pub(crate) last: Position,
    /// Events and bytes since the stream began.
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) holder: Option<InstanceId>,
    /// The version of the holds as of which the holder is this.
    pub(crate) holds: u64,
    /// The key of its events, and the knock that wakes its holder.
    pub(crate) key: Arc<str>,
    pub(crate) knock: Bytes,
    /// Tells which of two streams has the older events.
    pub(crate) clock: ServerClock,
}

/// Keys are hashes already.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not the first bytes: those have placed the key in its shard.
        if let Some(middle) = bytes.get(8..16) {
            self.0 = middle
                .iter()
                .fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

/// A map by session.
pub(crate) type BySession<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

#[derive(Debug)]
struct Of {
    /// Until when the session's expiry need not be slid.
    fresh: Instant,
    /// Bytes that were added natively since a script counted.
    added: u64,
    used: Instant,
    streams: Vec<(StreamId, Native)>,
    /// Streams that were added to natively since a script counted.
    uncounted: Vec<StreamId>,
}

/// Streams that this instance writes, by session.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: Vec<Mutex<BySession<SessionKey, Of>>>,
    /// Bytes of a session after which a script counts again.
    allowance: u64,
}

impl Cache {
    pub(crate) fn new(allowance: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            allowance,
        }
    }

    fn shard(&self, session: &SessionKey) -> &Mutex<BySession<SessionKey, Of>> {
        &self.shards[usize::from(session.0[1]) % SHARDS]
    }

    /// The stream, if so many bytes can be added to it natively now.
    pub(crate) fn native(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        bytes: u64,
        now: Instant,
    ) -> Option<Native> {
        let shard = self.shard(session).lock();
        let of = shard.get(session)?;
        if of.fresh <= now || of.added + bytes > self.allowance {
            return None;
        }
        let (_, native) = of.streams.iter().find(|(name, _)| name == stream)?;
        Some(native.clone())
    }

    /// Events were added natively.
    pub(crate) fn added(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        native: Native,
        bytes: u64,
    ) {
        let mut shard = self.shard(session).lock();
        let Some(of) = shard.get_mut(session) else {
            return;
        };
        of.added += bytes;
        of.used = Instant::now();
        if !of.uncounted.contains(stream) {
            of.uncounted.push(stream.clone());
        }
        if let Some((_, known)) = of.streams.iter_mut().find(|(name, _)| name == stream) {
            let last = known.last.max(native.last);
            *known = Native { last, ..native };
        }
    }

    /// A script has told the state of a stream; `None` where nothing can be
    /// added natively.
    pub(crate) fn told(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        native: Option<Native>,
        fresh: Instant,
    ) {
        let now = Instant::now();
        let mut shard = self.shard(session).lock();
        if native.is_none() && !shard.contains_key(session) {
            return;
        }
        let of = shard.entry(*session).or_insert_with(|| Of {
            fresh,
            added: 0,
            used: now,
            streams: Vec::new(),
            uncounted: Vec::new(),
        });
        of.used = now;
        of.fresh = of.fresh.max(fresh);
        of.streams.retain(|(name, _)| name != stream);
        of.uncounted.retain(|name| name != stream);
        if of.uncounted.is_empty() {
            of.added = 0;
        }
        if let Some(native) = native {
            of.streams.push((stream.clone(), native));
        }
        if of.streams.is_empty() && of.uncounted.is_empty() {
            shard.remove(session);
        }
    }

    /// What is known of the stream is in doubt.
    pub(crate) fn forget(&self, session: &SessionKey, stream: &StreamId) {
        let mut shard = self.shard(session).lock();
        if let Some(of) = shard.get_mut(session) {
            of.streams.retain(|(name, _)| name != stream);
        }
    }

    /// All is in doubt.
    pub(crate) fn forget_all(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }

    /// Streams that a script is to count, up to `max` sessions; they are taken
    /// for counted. Drops what is no longer used.
    pub(crate) fn take_uncounted(&self, max: usize) -> Vec<(SessionKey, Vec<StreamId>)> {
        let now = Instant::now();
        let mut taken = Vec::new();
        for shard in &self.shards {
            shard.lock().retain(|session, of| {
                if !of.uncounted.is_empty() && taken.len() < max {
                    of.added = 0;
                    taken.push((*session, std::mem::take(&mut of.uncounted)));
                }
                !of.uncounted.is_empty() || now.duration_since(of.used) < KEPT
            });
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn native() -> Native {
        Native {
            owner: InstanceId(1),
            last: Position::new(1, 1),
            events: 1,
            bytes: 10,
            holder: None,
            holds: 0,
            key: "key".into(),
            knock: Bytes::new(),
            clock: ServerClock::new(0, Instant::now()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn natively_only_while_fresh_and_within_the_allowance() {
        let cache = Cache::new(100);
        let (session, stream) = (SessionKey([1; 32]), StreamId::standalone());
        let now = Instant::now();
        let fresh = now + Duration::from_secs(10);
        assert!(cache.native(&session, &stream, 1, now).is_none());
        cache.told(&session, &stream, Some(native()), fresh);
        assert!(cache.native(&session, &stream, 100, now).is_some());
        assert!(cache.native(&session, &stream, 101, now).is_none());
        assert!(cache.native(&session, &stream, 1, fresh).is_none());
        cache.added(&session, &stream, native(), 60);
        assert!(cache.native(&session, &stream, 41, now).is_none());
        let taken = cache.take_uncounted(10);
        assert_eq!(taken, [(session, vec![stream.clone()])]);
        assert!(cache.take_uncounted(10).is_empty());
        assert!(cache.native(&session, &stream, 41, now).is_some());
        cache.forget(&session, &stream);
        assert!(cache.native(&session, &stream, 1, now).is_none());
        tokio::time::advance(KEPT).await;
        cache.take_uncounted(10);
        assert!(cache.shard(&session).lock().is_empty());
    }
}
