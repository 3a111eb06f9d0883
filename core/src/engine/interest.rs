//! What this instance has of each session: streams that it writes, streams
//! that it follows, client requests that wait here. A knock is looked up here.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{follow::Follow, repair::Recent};
use crate::{
    id::{InstanceId, Position, PrincipalKey, RpcId, SessionKey, StreamId, WaiterToken},
    request::Outcome,
    session::{EndReason, Revocation},
    storage::Target,
};

/// A stream that this instance writes.
pub(super) struct Owned {
    pub(super) session: SessionKey,
    pub(super) principal: PrincipalKey,
    pub(super) stream: StreamId,
    pub(super) request: RpcId,
    pub(super) opened: Instant,
    pub(super) state: Mutex<OwnedState>,
    revocation: Notify,
}

pub(super) struct OwnedState {
    /// The last position given out.
    pub(super) last: Position,
    /// Set when an epoch was opened: what its first event follows.
    pub(super) prev: Option<Position>,
    /// Sizes of the events of this epoch that may still be stored, to tell the
    /// backend what it may trim.
    pub(super) sizes: VecDeque<u32>,
    pub(super) bytes: usize,
    /// Who holds the stream elsewhere, as far as known.
    pub(super) remote: Option<InstanceId>,
    /// The tail of this instance that holds it.
    pub(super) local: Option<Arc<Follow>>,
    pub(super) finishing: bool,
    /// What may have to be written again; empty unless the profile asks for it.
    pub(super) recent: Recent,
    /// Why the writer must stop.
    pub(super) revoked: Option<Revocation>,
    /// Nobody here writes the stream any more, and it is not known whether the
    /// backend has it open. Until then it is watched, and ended if it appears:
    /// a late `enter` or a lost finish must not leave it open for ever.
    pub(super) orphaned: Option<Instant>,
}

impl Owned {
    pub(super) fn new(
        session: SessionKey,
        principal: PrincipalKey,
        stream: StreamId,
        request: RpcId,
        recent: Recent,
    ) -> Arc<Self> {
        Arc::new(Self {
            session,
            principal,
            stream,
            request,
            opened: Instant::now(),
            state: Mutex::new(OwnedState {
                last: Position::new(1, 0),
                prev: None,
                sizes: VecDeque::new(),
                bytes: 0,
                remote: None,
                local: None,
                finishing: false,
                recent,
                revoked: None,
                orphaned: None,
            }),
            revocation: Notify::new(),
        })
    }

    /// The first reason stays.
    pub(super) fn revoke(&self, why: Revocation) {
        let mut state = self.state.lock();
        if state.revoked.is_some() {
            return;
        }
        state.revoked = Some(why);
        let local = match why {
            Revocation::Cancelled => None,
            Revocation::SessionEnded | Revocation::Fenced => state.local.take(),
        };
        drop(state);
        self.revocation.notify_waiters();
        match (local, why) {
            (Some(local), Revocation::SessionEnded) => local.end(EndReason::SessionEnded),
            // It reads how the stream ended. Others may have taken it over: then it
            // says nothing of that (clause E9).
            (Some(local), _) => local.wake(),
            (None, _) => {}
        }
    }

    /// Completes when the writer must stop.
    pub(super) async fn revoked(&self) -> Revocation {
        loop {
            // It counts from here on, and not from its first poll.
            let changed = self.revocation.notified();
            if let Some(why) = self.state.lock().revoked {
                return why;
            }
            changed.await;
        }
    }
}

impl OwnedState {
    /// The next position, and what it follows if it opens an epoch.
    #[inline]
    pub(super) fn next(&mut self) -> (Position, Option<Position>) {
        self.last.seq += 1;
        (self.last, self.prev.take())
    }

    /// The point up to which the backend may trim once it has the event of this
    /// size at the last position.
    pub(super) fn trim(
        &mut self,
        size: usize,
        keep_events: usize,
        keep_bytes: usize,
    ) -> Option<Position> {
        // Half the memory of a `usize`; larger ones are trimmed at once all the same.
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        self.sizes.push_back(size);
        self.bytes += size as usize;
        while self.sizes.len() > keep_events || self.bytes > keep_bytes {
            self.bytes -= self.sizes.pop_front().map_or(0, |size| size as usize);
        }
        let kept = self.sizes.len() as u64;
        (kept < self.last.seq).then(|| Position::new(self.last.epoch, self.last.seq - kept))
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.revoked == Some(Revocation::Cancelled)
    }

    /// Takes the last position back: its append was not queued.
    pub(super) fn undo(&mut self, prev: Option<Position>) {
        self.last.seq -= 1;
        self.prev = prev;
        self.bytes -= self.sizes.pop_back().map_or(0, |size| size as usize);
    }

    /// The backend may have lost what it acknowledged (clause E1).
    pub(super) fn open_epoch(&mut self) {
        // An epoch that has no event yet keeps its own predecessor.
        if self.last.seq > 0 {
            self.prev = Some(self.last);
            self.sizes.clear();
            self.bytes = 0;
        }
        self.last = Position::new(self.last.epoch.saturating_add(1), 0);
    }
}

/// A client request that waits here.
pub(super) struct Wait {
    pub(super) session: SessionKey,
    pub(super) id: RpcId,
    pub(super) token: WaiterToken,
    pub(super) stream: Option<StreamId>,
    /// The outcome, where a knock has brought it.
    told: Mutex<Option<Outcome>>,
    dirty: AtomicBool,
    changed: Notify,
}

impl Wait {
    pub(super) fn new(
        session: SessionKey,
        id: RpcId,
        token: WaiterToken,
        stream: Option<StreamId>,
    ) -> Arc<Self> {
        Arc::new(Self {
            session,
            id,
            token,
            stream,
            told: Mutex::new(None),
            dirty: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    pub(super) fn wake(&self) {
        self.dirty.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// What a knock has brought.
    pub(super) fn told(&self) -> Option<Outcome> {
        self.told.lock().take()
    }

    /// Completes once for all wakes since the last time.
    pub(super) async fn woken(&self) {
        while !self.dirty.swap(false, Ordering::AcqRel) {
            self.changed.notified().await;
        }
    }
}

#[derive(Default)]
struct OfSession {
    owned: Vec<Arc<Owned>>,
    follows: Vec<Arc<Follow>>,
    waits: Vec<Arc<Wait>>,
    /// When its expiry was slid last for what runs and is held here.
    touched: Option<Instant>,
}

impl OfSession {
    fn is_empty(&self) -> bool {
        self.owned.is_empty() && self.follows.is_empty() && self.waits.is_empty()
    }
}

const SHARDS: usize = 32;

/// All interests of this instance.
pub(super) struct Interests {
    shards: Vec<Mutex<HashMap<SessionKey, OfSession>>>,
}

impl fmt::Debug for Interests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interests")
    }
}

/// A copy of all interests, for one round of catching up.
#[derive(Default)]
pub(super) struct Snapshot {
    pub(super) owned: Vec<Arc<Owned>>,
    pub(super) follows: Vec<Arc<Follow>>,
    pub(super) waits: Vec<Arc<Wait>>,
    pub(super) touch: std::collections::HashSet<SessionKey>,
}

impl Interests {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, session: &SessionKey) -> &Mutex<HashMap<SessionKey, OfSession>> {
        &self.shards[usize::from(session.0[0]) % SHARDS]
    }

    fn add(&self, session: &SessionKey, add: impl FnOnce(&mut OfSession)) {
        let mut shard = self.shard(session).lock();
        let of = shard.entry(*session).or_default();
        // The session was entered just now.
        of.touched.get_or_insert_with(Instant::now);
        add(of);
    }

    fn remove(&self, session: &SessionKey, remove: impl FnOnce(&mut OfSession)) {
        let mut shard = self.shard(session).lock();
        if let Some(of) = shard.get_mut(session) {
            remove(of);
            if of.is_empty() {
                shard.remove(session);
            }
        }
    }

    pub(super) fn add_owned(&self, owned: &Arc<Owned>) {
        self.add(&owned.session, |of| of.owned.push(Arc::clone(owned)));
    }

    pub(super) fn remove_owned(&self, owned: &Arc<Owned>) {
        self.remove(&owned.session, |of| {
            of.owned.retain(|other| !Arc::ptr_eq(other, owned));
        });
    }

    pub(super) fn add_follow(&self, follow: &Arc<Follow>) {
        self.add(&follow.session, |of| of.follows.push(Arc::clone(follow)));
    }

    pub(super) fn remove_follow(&self, follow: &Arc<Follow>) {
        self.remove(&follow.session, |of| {
            of.follows.retain(|other| !Arc::ptr_eq(other, follow));
            for owned in &of.owned {
                let mut state = owned.state.lock();
                if state
                    .local
                    .as_ref()
                    .is_some_and(|local| Arc::ptr_eq(local, follow))
                {
                    state.local = None;
                }
            }
        });
    }

    /// Gives a waiting follower the hold with this number, unless another of
    /// this instance has it: the backend knows instances, not followers.
    pub(super) fn adopt(&self, follow: &Arc<Follow>, number: u64) -> bool {
        let shard = self.shard(&follow.session).lock();
        let of_stream = |other: &&Arc<Follow>| other.stream == follow.stream;
        let taken = shard.get(&follow.session).is_some_and(|of| {
            let mut others = of.follows.iter().filter(of_stream);
            others.any(|other| !Arc::ptr_eq(other, follow) && other.number() == number)
        });
        if !taken {
            follow.set_number(number);
        }
        !taken
    }

    pub(super) fn add_wait(&self, wait: &Arc<Wait>) {
        self.add(&wait.session, |of| of.waits.push(Arc::clone(wait)));
    }

    pub(super) fn remove_wait(&self, wait: &Arc<Wait>) {
        self.remove(&wait.session, |of| {
            of.waits.retain(|other| !Arc::ptr_eq(other, wait));
        });
    }

    pub(super) fn owned(&self, session: &SessionKey, stream: &StreamId) -> Option<Arc<Owned>> {
        let shard = self.shard(session).lock();
        let of = shard.get(session)?;
        of.owned
            .iter()
            .find(|owned| owned.stream == *stream)
            .cloned()
    }

    pub(super) fn follows(&self, session: &SessionKey, stream: &StreamId) -> Vec<Arc<Follow>> {
        let shard = self.shard(session).lock();
        shard.get(session).map_or_else(Vec::new, |of| {
            let of_stream = |follow: &&Arc<Follow>| follow.stream == *stream;
            of.follows.iter().filter(of_stream).cloned().collect()
        })
    }

    pub(super) fn waits(&self, session: &SessionKey) -> Vec<Arc<Wait>> {
        let shard = self.shard(session).lock();
        shard
            .get(session)
            .map_or_else(Vec::new, |of| of.waits.clone())
    }

    /// Hands an outcome to the waiter with this token: another one of the id has
    /// another outcome.
    pub(super) fn tell(
        &self,
        session: &SessionKey,
        id: &RpcId,
        token: WaiterToken,
        outcome: &Outcome,
    ) {
        let shard = self.shard(session).lock();
        let waits = shard.get(session).map_or(&[][..], |of| &of.waits);
        for wait in waits {
            if wait.token == token && wait.id == *id {
                *wait.told.lock() = Some(outcome.clone());
                wait.wake();
            }
        }
    }

    /// Wakes followers and waiters, and returns the writers that are to look
    /// for a cancel mark or a new holder.
    pub(super) fn wake(&self, session: &SessionKey, target: &Target) -> Vec<Arc<Owned>> {
        let shard = self.shard(session).lock();
        let Some(of) = shard.get(session) else {
            return Vec::new();
        };
        match target {
            Target::Stream(stream) => {
                of.follows
                    .iter()
                    .filter(|follow| follow.stream == *stream)
                    .for_each(|follow| follow.wake());
                let of_stream = |owned: &&Arc<Owned>| owned.stream == *stream;
                of.owned.iter().filter(of_stream).cloned().collect()
            }
            Target::Request(id) => {
                of.waits
                    .iter()
                    .filter(|wait| wait.id == *id)
                    .for_each(|wait| wait.wake());
                Vec::new()
            }
            Target::Session => {
                of.follows.iter().for_each(|follow| follow.wake());
                of.waits.iter().for_each(|wait| wait.wake());
                of.owned.clone()
            }
        }
    }

    /// All interests, and the sessions whose expiry is to be slid because the
    /// last time is longer ago than `every`.
    pub(super) fn snapshot(&self, every: std::time::Duration) -> Snapshot {
        let now = Instant::now();
        let mut all = Snapshot::default();
        for shard in &self.shards {
            for (session, of) in shard.lock().iter_mut() {
                all.owned.extend(of.owned.iter().cloned());
                all.follows.extend(of.follows.iter().cloned());
                all.waits.extend(of.waits.iter().cloned());
                // A wait alone is not use: its call is.
                let used = !(of.owned.is_empty() && of.follows.is_empty());
                if used && of.touched.is_none_or(|last| now - last >= every) {
                    of.touched = Some(now);
                    all.touch.insert(*session);
                }
            }
        }
        all
    }
}
