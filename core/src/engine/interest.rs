//! What this instance has of each session: streams that it writes, streams
//! that it follows, client requests that wait here. A knock is looked up here.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{
    id::{InstanceId, Position, PrincipalKey, RpcId, SessionKey, StreamId, WaiterToken},
    session::{EndReason, Revocation},
    storage::Target,
};

/// A stream that this instance writes.
pub(super) struct Owned {
    pub(super) session: SessionKey,
    pub(super) principal: PrincipalKey,
    pub(super) stream: StreamId,
    pub(super) request: RpcId,
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
    pub(super) sizes: VecDeque<usize>,
    pub(super) bytes: usize,
    /// Who holds the stream elsewhere, as far as known.
    pub(super) remote: Option<InstanceId>,
    /// The tail of this instance that holds it.
    pub(super) local: Option<Arc<Follow>>,
    pub(super) finishing: bool,
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
    ) -> Arc<Self> {
        Arc::new(Self {
            session,
            principal,
            stream,
            request,
            state: Mutex::new(OwnedState {
                last: Position::new(1, 0),
                prev: None,
                sizes: VecDeque::new(),
                bytes: 0,
                remote: None,
                local: None,
                finishing: false,
                revoked: None,
                orphaned: None,
            }),
            revocation: Notify::new(),
        })
    }

    /// The first reason stays.
    pub(super) fn revoke(&self, why: Revocation) {
        let end = match why {
            Revocation::Cancelled => None,
            Revocation::SessionEnded => Some(EndReason::SessionEnded),
            Revocation::Fenced => Some(EndReason::OwnerLost),
        };
        let mut state = self.state.lock();
        if state.revoked.is_some() {
            return;
        }
        state.revoked = Some(why);
        let ended = end.and_then(|end| Some((state.local.take()?, end)));
        drop(state);
        self.revocation.notify_waiters();
        if let Some((local, end)) = ended {
            local.end(end);
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
        self.sizes.push_back(size);
        self.bytes += size;
        while self.sizes.len() > keep_events || self.bytes > keep_bytes {
            self.bytes -= self.sizes.pop_front().unwrap_or(0);
        }
        let kept = self.sizes.len() as u64;
        (kept < self.last.seq).then(|| Position::new(self.last.epoch, self.last.seq - kept))
    }

    /// Takes the last position back: its append was not queued.
    pub(super) fn undo(&mut self, prev: Option<Position>) {
        self.last.seq -= 1;
        self.prev = prev;
        self.bytes -= self.sizes.pop_back().unwrap_or(0);
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

/// An event that came to a follower without a read.
#[derive(Debug, Clone)]
pub(super) struct Passed {
    pub(super) position: Position,
    pub(super) prev: Option<Position>,
    pub(super) data: Bytes,
}

/// A stream that this instance follows, for one client.
pub(super) struct Follow {
    pub(super) session: SessionKey,
    pub(super) stream: StreamId,
    /// Whether there was a change since the follower looked; set under the lock.
    news: AtomicBool,
    inner: Mutex<FollowInner>,
}

struct FollowInner {
    queue: VecDeque<Passed>,
    bytes: usize,
    unstored: Option<(Position, Bytes)>,
    dirty: bool,
    /// The stream is finished with what is queued.
    finish: Option<EndReason>,
    /// The tail is over, whatever is queued.
    end: Option<EndReason>,
    /// Up to where the follower knows the stream.
    seen: Position,
    number: u64,
    /// When the stream's owner was asked last whether it still writes it.
    asked: Instant,
    /// Set where the follower has nothing more to do; every change takes it.
    waker: Option<Waker>,
}

/// A follower's own side of its [`Follow`]: as long as there is no news, its
/// waker is in place, and it need not look.
#[derive(Default)]
pub(super) struct Ear {
    waker: Option<Waker>,
    in_place: bool,
}

/// What a follower does next.
pub(super) enum Step {
    Passed(Passed),
    Unstored(Position, Bytes),
    Read,
    End(EndReason),
}

/// What a follower may have queued before it has to read instead.
const PASSED_EVENTS: usize = 256;
const PASSED_BYTES: usize = 1 << 20;

impl FollowInner {
    /// Events that were passed may not be stored yet; so a finish that was
    /// passed does not count any more either: the log says it again.
    fn read_instead(&mut self) {
        self.queue.clear();
        self.bytes = 0;
        self.finish = None;
        self.dirty = true;
    }

    #[inline]
    fn push(&mut self, event: Passed) {
        if self.dirty {
            return;
        }
        if self.queue.len() >= PASSED_EVENTS || self.bytes + event.data.len() > PASSED_BYTES {
            self.read_instead();
        } else {
            self.bytes += event.data.len();
            self.queue.push_back(event);
        }
    }

    /// The last position that the follower knows or has queued.
    #[inline]
    fn known(&self) -> Position {
        self.queue.back().map_or(self.seen, |last| last.position)
    }

    #[inline]
    fn is_idle(&self) -> bool {
        let Self {
            queue,
            unstored,
            dirty,
            finish,
            end,
            ..
        } = self;
        queue.is_empty() && !dirty && unstored.is_none() && finish.is_none() && end.is_none()
    }

    #[inline]
    fn take(&mut self) -> Option<Step> {
        if let Some(why) = self.end {
            return Some(Step::End(why));
        }
        if let Some(event) = self.queue.pop_front() {
            self.bytes -= event.data.len();
            if self.queue.is_empty() {
                // The next one has the same place in memory.
                self.queue.clear();
            }
            // Where it does not continue the stream, the follower reads.
            self.seen = self.seen.max(event.position);
            return Some(Step::Passed(event));
        }
        if let Some((position, data)) = self.unstored.take() {
            return Some(Step::Unstored(position, data));
        }
        // Cleared before the read: a knock that comes during the read asks for
        // another one.
        if std::mem::take(&mut self.dirty) {
            return Some(Step::Read);
        }
        self.finish.take().map(Step::End)
    }
}

/// Wakes a follower when it is dropped, which must be after all locks are
/// released: a waker is foreign code.
#[must_use = "the follower is woken when this is dropped"]
pub(super) struct Wakes(Option<Waker>);

impl Drop for Wakes {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

impl Follow {
    pub(super) fn new(
        session: SessionKey,
        stream: StreamId,
        number: u64,
        dirty: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            session,
            stream,
            news: AtomicBool::new(true),
            inner: Mutex::new(FollowInner {
                queue: VecDeque::new(),
                bytes: 0,
                unstored: None,
                dirty,
                finish: None,
                end: None,
                seen: Position::START,
                number,
                asked: Instant::now(),
                waker: None,
            }),
        })
    }

    #[inline]
    fn change(&self, change: impl FnOnce(&mut FollowInner)) -> Wakes {
        let mut inner = self.inner.lock();
        change(&mut inner);
        self.news.store(true, Ordering::Release);
        Wakes(inner.waker.take())
    }

    /// Hands over what is stored up to `position`, or will be: an event, the end
    /// of the stream, or both. A follower that is slow loses the queue, not the
    /// event: it reads (clause F4).
    #[inline]
    pub(super) fn pass(
        &self,
        position: Position,
        event: Option<Passed>,
        end: Option<EndReason>,
    ) -> Wakes {
        self.change(|inner| {
            match event {
                Some(event) => inner.push(event),
                // An end must not overtake an event that was not passed.
                None => inner.dirty |= position > inner.known(),
            }
            if end.is_some() && !inner.dirty {
                inner.finish = end;
            }
        })
    }

    /// Hands the result over that ends the stream, and is to be stored at
    /// `position`, if at all.
    pub(super) fn pass_unstored(&self, position: Position, data: Bytes) -> Wakes {
        self.change(|inner| {
            inner.unstored = Some((position, data));
            if !inner.dirty {
                inner.finish = Some(EndReason::Finished);
            }
        })
    }

    /// There may be something to read.
    pub(super) fn wake(&self) {
        drop(self.dirty());
    }

    /// [`wake`](Self::wake), for callers that have a lock.
    pub(super) fn dirty(&self) -> Wakes {
        self.change(|inner| inner.dirty = true)
    }

    /// Ends the tail; what it was not given yet is not lost, it is in the log.
    pub(super) fn end(&self, why: EndReason) {
        drop(self.change(|inner| {
            inner.end.get_or_insert(why);
        }));
    }

    pub(super) fn number(&self) -> u64 {
        self.inner.lock().number
    }

    /// Whether the owner is to be asked again.
    pub(super) fn asks(&self, every: std::time::Duration) -> bool {
        let mut inner = self.inner.lock();
        let due = inner.asked.elapsed() >= every;
        if due {
            inner.asked = Instant::now();
        }
        due
    }

    pub(super) fn set_number(&self, number: u64) {
        self.inner.lock().number = number;
    }

    pub(super) fn saw(&self, position: Position) {
        self.inner.lock().seen = position;
    }

    /// Whether a stream whose top is `top` has something new.
    pub(super) fn is_behind(&self, top: Position) -> bool {
        top > self.inner.lock().known()
    }

    /// What is to be done next.
    #[inline]
    pub(super) fn poll_take(&self, ear: &mut Ear, context: &Context<'_>) -> Poll<Step> {
        let waker = match &mut ear.waker {
            Some(waker) if waker.will_wake(context.waker()) => waker,
            other => {
                ear.in_place = false;
                other.insert(context.waker().clone())
            }
        };
        if ear.in_place && !self.news.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        let mut inner = self.inner.lock();
        self.news.store(false, Ordering::Release);
        let step = inner.take();
        ear.in_place = inner.is_idle();
        if ear.in_place {
            inner.waker = Some(waker.clone());
        }
        step.map_or(Poll::Pending, Poll::Ready)
    }

    /// The queue does not continue what was yielded.
    pub(super) fn drop_queue(&self) {
        drop(self.change(FollowInner::read_instead));
    }

    /// The event at `position` is stored: if it was passed and dropped since,
    /// it can be read now.
    pub(super) fn stored(&self, position: Position) -> Wakes {
        if self.is_behind(position) {
            self.dirty()
        } else {
            Wakes(None)
        }
    }
}

/// A client request that waits here.
pub(super) struct Wait {
    pub(super) session: SessionKey,
    pub(super) id: RpcId,
    pub(super) token: WaiterToken,
    pub(super) stream: Option<StreamId>,
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
            dirty: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    pub(super) fn wake(&self) {
        self.dirty.store(true, Ordering::Release);
        self.changed.notify_one();
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
