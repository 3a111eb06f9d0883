//! What a follower of a stream is told without a read: a bounded queue, and
//! whether it has to look.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    id::{Position, SessionKey, StreamId},
    session::EndReason,
};

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
    /// Whether another tail went on with its hold.
    displaced: AtomicBool,
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
    /// The event, and whether it is the stream's last.
    Passed(Passed, bool),
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
            let last =
                self.queue.is_empty() && self.finish == Some(EndReason::Finished) && !self.dirty;
            return Some(Step::Passed(event, last));
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
            displaced: AtomicBool::new(false),
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

    pub(super) fn is_displaced(&self) -> bool {
        self.displaced.load(Ordering::Relaxed)
    }

    pub(super) fn set_displaced(&self, displaced: bool) {
        self.displaced.store(displaced, Ordering::Relaxed);
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
