//! The store and its steps.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use mcp_adapter_core::{
    Cancelled, Capabilities, InstanceId, PrincipalKey, Result, RpcId, SessionKey, Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, Target, UpdateSession, Updated,
    },
};
use parking_lot::Mutex;

use crate::{
    beats::Beats,
    clock::Clock,
    doorbell::Doors,
    principal::Principals,
    shard::{Entry, Shard},
    sweep::Search,
};

pub(crate) const SHARDS: usize = 64;

/// A lock of its own cache line, so that neighbours do not wait for each other.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded(Mutex<Shard>);

impl std::ops::Deref for Padded {
    type Target = Mutex<Shard>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Locks are taken in the order `search`, one of `shards`, then `beats` or
/// `principals`; knocks are made under none of them.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) clock: Clock,
    pub(crate) shards: [Padded; SHARDS],
    pub(crate) principals: Principals,
    pub(crate) beats: Beats,
    pub(crate) doors: Arc<Doors>,
    pub(crate) sweeps: AtomicUsize,
    pub(crate) search: Mutex<Search>,
    generation: Generation,
}

/// A store in the memory of this process.
///
/// Clones share it. Every step completes at its first poll, and is atomic: all
/// that belongs to a session is under one lock, and no lock is held across an
/// `await`.
///
/// What has expired is invisible to every step at its deadline (clause S3), and
/// its memory is given back by the next step that meets it or by
/// [`sweep`](Storage::sweep). Time is that of [`tokio::time::Instant`]: monotonic,
/// and paused where the runtime's is.
///
/// Payloads are kept as they were given: a slice of a larger buffer keeps that
/// buffer. Only their own bytes are counted.
#[derive(Clone)]
pub struct MemoryStorage(Arc<Inner>);

impl MemoryStorage {
    /// A new, empty store.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            clock: Clock::start(),
            shards: std::array::from_fn(|_| Padded::default()),
            principals: Principals::default(),
            beats: Beats::default(),
            doors: Arc::default(),
            sweeps: AtomicUsize::new(0),
            search: Mutex::default(),
            // Memory cannot lose anything and go on: one store, one generation.
            generation: Generation(format!("memory-{}", InstanceId::generate()).into()),
        }))
    }

    fn shard(&self, session: &SessionKey) -> &Mutex<Shard> {
        // Another byte than those that place the key within the shard.
        &self.0.shards[usize::from(session.0[0]) % SHARDS]
    }

    /// Does one step on a session that is there, under its lock.
    fn step<T>(&self, session: &SessionKey, step: impl FnOnce(&mut Entry<'_>) -> T) -> Option<T> {
        let now = self.0.clock.now();
        let mut shard = self.shard(session).lock();
        let mut entry = shard.entry(session, now, &self.0.principals)?;
        Some(step(&mut entry))
    }

    fn append_one(&self, append: &Append) -> Appended {
        let appended = self
            .step(&append.session, |entry| entry.append(append))
            .unwrap_or(Appended::NoSession);
        if let (Appended::Stored { .. }, Some(holder)) = (appended, append.wake) {
            let target = Target::Stream(append.stream.clone());
            self.wake(holder, append.session, target);
        }
        appended
    }

    fn wake(&self, instance: InstanceId, session: SessionKey, target: Target) {
        let knock = Knock::Wake(session, target);
        self.0.doors.knock(Door::Of(instance), knock);
    }
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStorage").finish_non_exhaustive()
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    fn profile(&self) -> Profile {
        Profile::inline("memory", Capabilities::in_process())
    }

    async fn attach(&self, _: InstanceId) -> Result<Generation> {
        Ok(self.0.generation.clone())
    }

    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        Ok(self.0.doors.open(me).boxed())
    }

    async fn create(&self, session: &NewSession) -> Result<bool> {
        let now = self.0.clock.now();
        let mut shard = self.shard(&session.session).lock();
        if let Some(entry) = shard.entry(&session.session, now, &self.0.principals) {
            return Ok(entry.session.is_by(session.creator));
        }
        shard.insert(session, now);
        Ok(true)
    }

    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        let entered = self.step(session, |entry| entry.enter(principal, open));
        Ok(entered.unwrap_or(Entered::NoSession))
    }

    async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        let updated = self.step(&update.session, |entry| entry.session.update(update));
        Ok(updated.unwrap_or(Updated::NoSession))
    }

    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        let now = self.0.clock.now();
        // It may be large: dropped after the lock is released.
        let removed = {
            let mut shard = self.shard(session).lock();
            let principals = &self.0.principals;
            let theirs = shard
                .entry(session, now, principals)
                .is_some_and(|entry| entry.session.principal == *principal);
            if theirs {
                shard.remove(session, principals)
            } else {
                None
            }
        };
        Ok(removed.map(|session| session.live.map_or_else(Vec::new, |live| live.parties())))
    }

    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        Ok(batch.iter().map(|append| self.append_one(append)).collect())
    }

    fn append_inline(&self, append: &Append) -> Result<Appended> {
        Ok(self.append_one(append))
    }

    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        let one = |cursor: &Cursor| {
            self.step(&cursor.session, |entry| entry.read(cursor))
                .unwrap_or(Read::NoSession)
        };
        Ok(cursors.iter().map(one).collect())
    }

    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held> {
        let held = self.step(session, |entry| entry.hold(stream, me, hold));
        Ok(held.unwrap_or(Held::NoSession))
    }

    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        let left = self.step(session, |entry| entry.shrink(max_bytes));
        Ok(left.unwrap_or(0))
    }

    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        let one = |put: &PutRequest| {
            self.step(&put.session, |entry| entry.put(put))
                .unwrap_or(Put::NoSession)
        };
        Ok(batch.iter().map(one).collect())
    }

    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        let one = |settle: &Settle| {
            let (settled, owner) = self
                .step(&settle.session, |entry| entry.settle(settle, &self.0.beats))
                .unwrap_or((Settled::Unknown, None));
            if let Some(owner) = owner {
                let target = Target::Request(settle.id.clone());
                self.wake(owner, settle.session, target);
            }
            settled
        };
        Ok(batch.iter().map(one).collect())
    }

    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        let one = |key: &RequestKey| {
            self.step(&key.session, |entry| entry.request(key))
                .unwrap_or(RequestState::NoSession)
        };
        Ok(keys.iter().map(one).collect())
    }

    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>> {
        let Some((cancelled, owner)) = self.step(session, |entry| entry.mark_cancel(id)) else {
            return Ok(None);
        };
        if let Some((stream, owner)) = owner {
            self.wake(owner, *session, Target::Stream(stream));
        }
        Ok(Some(cancelled))
    }

    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        Ok(self.0.beats.beat(me, ttl, self.0.clock.now()))
    }

    async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        let mut claimed = 0;
        for claim in batch {
            let (ended, holder) = self
                .step(&claim.session, |entry| entry.claim(claim, &self.0.beats))
                .unwrap_or((false, None));
            claimed += usize::from(ended);
            if let Some(holder) = holder {
                let target = Target::Stream(claim.stream.clone());
                self.wake(holder, claim.session, target);
            }
        }
        Ok(claimed)
    }

    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept> {
        Ok(self.0.sweep(budget, dead, finished_ttl))
    }

    async fn stats(&self) -> Result<Stats> {
        Ok(self.0.stats())
    }

    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        for (door, knock) in knocks {
            self.0.doors.knock(*door, knock.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use mcp_adapter_core::WaiterToken;

    use super::*;

    fn now<T>(step: impl Future<Output = Result<T>>) -> T {
        step.now_or_never().unwrap().unwrap()
    }

    #[test]
    fn nothing_is_kept_of_principals_and_doors_that_are_gone() {
        let store = MemoryStorage::new();
        for number in 0..200 {
            let session = NewSession {
                session: SessionKey([number; 32]),
                principal: PrincipalKey([number; 32]),
                record: bytes::Bytes::new(),
                idle_ttl: Duration::from_secs(1),
                absolute_ttl: None,
                creator: WaiterToken(1),
            };
            assert!(now(store.create(&session)));
            let open = OpenStream {
                stream: StreamId::standalone(),
                owner: InstanceId(1),
                request: RpcId::Number(1),
                max_open: 1,
                max_principal_bytes: 0,
            };
            now(store.enter(&session.session, &session.principal, Some(&open)));
        }
        assert_eq!(store.0.principals.len(), 200);
        for number in 0..200 {
            now(store.delete(&SessionKey([number; 32]), &PrincipalKey([number; 32]))).unwrap();
        }
        assert_eq!(store.0.principals.len(), 0);

        let bells = [1, 2, 1].map(|me| now(store.doorbell(InstanceId(me))));
        assert_eq!(store.0.doors.len(), 2);
        drop(bells);
        assert_eq!(store.0.doors.len(), 0);
    }
}
