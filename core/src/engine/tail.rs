//! Following a stream: register, read, follow.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{FutureExt, Stream, future::BoxFuture};
use tokio::time::Instant;

use super::{
    Shared,
    follow::{Ear, Follow, Passed, Step},
    retry::Backoff,
};
use crate::{
    error::{Error, ErrorKind, Result},
    id::{EventId, Position, SessionKey, StreamId},
    session::{EndReason, Replay, Tail, TailEvent, TailFrom},
    storage::{
        Claim, Cursor, Held, Hold, Holder, Read, Storage, StoredEvent, StreamEnd, StreamState,
        Target,
    },
};

/// Events and bytes of one page.
const PAGE_EVENTS: usize = 256;
const PAGE_BYTES: usize = 1 << 20;

pub(super) fn end_reason(end: StreamEnd) -> EndReason {
    match end {
        StreamEnd::Finished => EndReason::Finished,
        StreamEnd::OwnerLost => EndReason::OwnerLost,
    }
}

/// Puts what was read in order and shows every hole (clause E5).
#[derive(Debug)]
struct Sequence {
    stream: StreamId,
    cursor: Position,
    out: VecDeque<TailEvent>,
}

impl Sequence {
    fn new(stream: StreamId, cursor: Position) -> Self {
        Self {
            stream,
            cursor,
            out: VecDeque::new(),
        }
    }

    /// Begins to hold the stream at `cursor`.
    fn begin(&mut self, cursor: Position) {
        self.cursor = cursor;
        self.out.push_back(TailEvent::Begins {
            after: EventId::new(self.stream.clone(), cursor),
        });
    }

    fn gap(&mut self, oldest: Option<Position>) {
        // One gap says all: two in a row have nothing between them.
        if !matches!(self.out.back(), Some(TailEvent::Gap { .. })) {
            metrics::counter!("mcp_adapter_gaps_total").increment(1);
        } else {
            self.out.pop_back();
        }
        self.out.push_back(TailEvent::Gap {
            oldest: oldest.map(|position| EventId::new(self.stream.clone(), position)),
        });
    }

    fn event(&mut self, event: StoredEvent) {
        if event.position <= self.cursor {
            return;
        }
        let next = event.position.follows(event.prev, self.cursor);
        self.cursor = event.position;
        match event.data {
            Some(data) => {
                if !next {
                    self.gap(Some(event.position));
                }
                self.out.push_back(TailEvent::Event {
                    id: EventId::new(self.stream.clone(), event.position),
                    data,
                });
            }
            None => {
                metrics::counter!("mcp_adapter_undecodable_total").increment(1);
                self.gap(None);
            }
        }
    }

    /// A page that holds all there is after the cursor, and the state of the
    /// same instant.
    fn page(&mut self, events: Vec<StoredEvent>, state: &StreamState) {
        let complete = events.is_empty();
        for event in events {
            self.event(event);
        }
        // Nothing is left of what was stored after the cursor. A top with
        // sequence 0 is an epoch without an event: nothing is missing.
        if complete && state.top.seq > 0 && state.top > self.cursor {
            self.gap(None);
            self.cursor = state.top;
        }
    }

    /// An event that came without a read, where it is the very next one and
    /// nothing is in `out`.
    #[inline]
    fn passed(&mut self, event: Passed) -> Option<TailEvent> {
        if !event.position.follows(event.prev, self.cursor) {
            return None;
        }
        self.cursor = event.position;
        Some(TailEvent::Event {
            id: EventId::new(self.stream.clone(), event.position),
            data: event.data,
        })
    }
}

/// A tail that holds its stream with the follow's number, or waits silently
/// until it is free.
pub(super) fn start<S: Storage>(
    shared: &Arc<Shared<S>>,
    follow: Arc<Follow>,
    cursor: Position,
    holding: bool,
) -> Tail {
    follow.saw(cursor);
    let follower = Follower {
        shared: Arc::clone(shared),
        sequence: Sequence::new(follow.stream.clone(), cursor),
        follow,
        ear: Ear::default(),
        yielded: cursor,
        holding,
        ended: false,
        after: None,
    };
    Tail::new(Box::pin(Tailer::Idle(follower)))
}

/// A follower, and what it does when there is more to do than to hand on what
/// was passed to it.
enum Tailer<S: Storage> {
    Idle(Follower<S>),
    Busy(BoxFuture<'static, Follower<S>>),
    Over,
}

impl<S: Storage> Stream for Tailer<S> {
    type Item = TailEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match this {
                Self::Idle(follower) => match ready!(follower.poll_next(context)) {
                    Some(Next::Event(event)) => return Poll::Ready(Some(event)),
                    Some(Next::Look) => {
                        if let Self::Idle(follower) = std::mem::replace(this, Self::Over) {
                            *this = Self::Busy(follower.look().boxed());
                        }
                    }
                    None => return Poll::Ready(None),
                },
                Self::Busy(look) => *this = Self::Idle(ready!(look.as_mut().poll(context))),
                Self::Over => return Poll::Ready(None),
            }
        }
    }
}

enum Next {
    Event(TailEvent),
    /// The backend is to be asked.
    Look,
}

struct Follower<S: Storage> {
    shared: Arc<Shared<S>>,
    follow: Arc<Follow>,
    ear: Ear,
    sequence: Sequence,
    /// What was yielded last of what was read.
    yielded: Position,
    /// Whether this tail holds the stream, or waits silently until it is free.
    holding: bool,
    /// What comes after the events that were read.
    after: Option<EndReason>,
    ended: bool,
}

impl<S: Storage> Follower<S> {
    /// `None` after the end.
    fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Next>> {
        while !self.ended {
            if let Some(event) = self.sequence.out.pop_front() {
                if let TailEvent::Event { id, .. } = &event {
                    self.yielded = id.position;
                }
                return Poll::Ready(Some(Next::Event(event)));
            }
            if let Some(why) = self.after {
                self.ended = true;
                return Poll::Ready(Some(Next::Event(TailEvent::End(why))));
            }
            match ready!(self.follow.poll_take(&mut self.ear, context)) {
                Step::End(why) => self.after = Some(why),
                // It was stored after all, and was read.
                Step::Unstored(position, _) if position <= self.sequence.cursor => {
                    self.follow.wake();
                }
                Step::Unstored(_, data) => {
                    self.after = Some(EndReason::Finished);
                    let unstored = TailEvent::Unstored { data };
                    return Poll::Ready(Some(Next::Event(unstored)));
                }
                _ if !self.holding => return Poll::Ready(Some(Next::Look)),
                Step::Passed(event) if event.position <= self.sequence.cursor => {}
                Step::Passed(event) => match self.sequence.passed(event) {
                    Some(event) => return Poll::Ready(Some(Next::Event(event))),
                    None => self.follow.drop_queue(),
                },
                Step::Read => return Poll::Ready(Some(Next::Look)),
            }
        }
        Poll::Ready(None)
    }

    async fn look(mut self) -> Self {
        if self.holding {
            self.read().await;
        } else {
            self.promote().await;
        }
        self
    }

    async fn read(&mut self) {
        let cursor = Cursor {
            session: self.follow.session,
            stream: self.follow.stream.clone(),
            after: self.sequence.cursor,
            max_events: PAGE_EVENTS,
            max_bytes: PAGE_BYTES,
            touch: false,
        };
        let read = self
            .ride_out(|shared| {
                let cursor = cursor.clone();
                async move { shared.read_one("tail", cursor).await }
            })
            .await;
        match read {
            Some(Read::Page { events, state }) => {
                let number = state.holder.map(|holder| holder.number);
                if number != Some(self.follow.number()) {
                    self.after = Some(EndReason::Superseded);
                    return;
                }
                let last = events.is_empty();
                self.yielded = self.sequence.cursor;
                self.sequence.page(events, &state);
                self.follow.saw(self.sequence.cursor);
                if !last {
                    // There may be more, and the end is told by an empty page.
                    self.follow.wake();
                } else if let Some(end) = state.end {
                    self.after = Some(end_reason(end));
                } else if self
                    .shared
                    .claim_if_dead(&self.follow.session, &self.follow.stream, &state)
                    .await
                {
                    self.follow.wake();
                }
            }
            Some(Read::NoStream) => self.after = Some(EndReason::StreamGone),
            Some(Read::NoSession) => self.after = Some(EndReason::SessionEnded),
            None => {}
        }
    }

    /// A silent tail takes the stream when it is free, or when its holder is
    /// dead (clause E9).
    async fn promote(&mut self) {
        let mut from: Option<Holder> = None;
        loop {
            let held = self
                .ride_out(|shared| {
                    let follow = Arc::clone(&self.follow);
                    async move {
                        shared
                            .hold(&follow.session, &follow.stream, Hold::TakeFrom(from))
                            .await
                    }
                })
                .await;
            match held {
                Some(Held::Done { number, cursor, .. }) => {
                    if self.shared.interests.adopt(&self.follow, number) {
                        self.sequence.begin(cursor);
                        self.yielded = cursor;
                        self.follow.saw(cursor);
                        self.holding = true;
                        self.follow.drop_queue();
                    }
                }
                Some(Held::Busy(holder))
                    if from != Some(holder)
                        && self.shared.observer.lock().dead(holder.instance).is_some() =>
                {
                    from = Some(holder);
                    continue;
                }
                Some(Held::Busy(_) | Held::Past) | None => {}
                Some(Held::NoStream) => self.after = Some(EndReason::StreamGone),
                Some(Held::NoSession) => self.after = Some(EndReason::SessionEnded),
            }
            return;
        }
    }

    /// Repeats `step` while the backend is away, for `max_outage` (clause F1).
    /// `None`: the tail has ended.
    async fn ride_out<T, F: Future<Output = Result<T>>>(
        &self,
        step: impl Fn(Arc<Shared<S>>) -> F,
    ) -> Option<T> {
        let mut backoff = Backoff::new(self.shared.limits.catch_up());
        let until = Instant::now() + self.shared.limits.max_outage();
        loop {
            match step(Arc::clone(&self.shared)).await {
                Ok(value) => return Some(value),
                Err(error) if error.is_retryable() && Instant::now() < until => {
                    tracing::debug!(%error, "a tail waits for the backend");
                    backoff.wait().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "a tail gave up waiting for the backend");
                    self.follow.end(EndReason::Outage);
                    return None;
                }
            }
        }
    }
}

impl<S: Storage> Drop for Follower<S> {
    fn drop(&mut self) {
        // Of a stream that is over, or that is somebody else's by now, nothing is
        // kept for a next holder.
        let over = matches!(
            self.after,
            Some(
                EndReason::Finished
                    | EndReason::OwnerLost
                    | EndReason::SessionEnded
                    | EndReason::StreamGone
                    | EndReason::Superseded
            )
        );
        if !self.holding || (self.ended && over) {
            self.shared.interests.remove_follow(&self.follow);
            return;
        }
        // What was read and not yielded is for the next holder.
        let cursor = if self.sequence.out.is_empty() {
            self.sequence.cursor
        } else {
            self.yielded
        };
        let release = Hold::Release {
            number: self.follow.number(),
            cursor,
        };
        let Follow {
            session, stream, ..
        } = &*self.follow;
        if self.shared.profile.inline {
            let step = self.shared.hold(session, stream, release);
            let _ = step.now_or_never();
            self.shared.interests.remove_follow(&self.follow);
            self.shared.wake_waiting(session, stream);
        } else {
            let (shared, follow) = (Arc::clone(&self.shared), Arc::clone(&self.follow));
            Shared::<S>::spawn(async move {
                // Lost, it costs little: whoever wants the stream takes it.
                let _ = shared.hold(&follow.session, &follow.stream, release).await;
                // Only now: who waits here must not adopt a hold that is being
                // released.
                shared.interests.remove_follow(&follow);
                shared.wake_waiting(&follow.session, &follow.stream);
            });
        }
    }
}

impl<S: Storage> Shared<S> {
    /// Those that wait here for a stream look whether it is free.
    fn wake_waiting(&self, session: &SessionKey, stream: &StreamId) {
        for follow in self.interests.follows(session, stream) {
            follow.wake();
        }
    }

    pub(super) async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        hold: Hold,
    ) -> Result<Held> {
        self.step("hold", |storage| {
            storage.hold(session, stream, self.me, hold)
        })
        .await
    }

    pub(super) async fn read_one(&self, operation: &'static str, cursor: Cursor) -> Result<Read> {
        let cursors = [cursor];
        let answers = self
            .step(operation, |storage| storage.read(&cursors))
            .await?;
        super::only(operation, answers)
    }

    /// Ends the stream if its owner is dead; whether it did.
    pub(super) async fn claim_if_dead(
        self: &Arc<Self>,
        session: &SessionKey,
        stream: &StreamId,
        state: &StreamState,
    ) -> bool {
        let (None, Some(owner)) = (state.end, state.owner) else {
            return false;
        };
        let Some(dead) = self.observer.lock().dead(owner) else {
            return false;
        };
        let claim = [Claim {
            session: *session,
            stream: stream.clone(),
            dead,
            finished_ttl: self.limits.finished_ttl(),
        }];
        match self.step("claim", |storage| storage.claim(&claim)).await {
            Ok(ended) => {
                metrics::counter!("mcp_adapter_owners_lost_total").increment(ended as u64);
                ended > 0
            }
            Err(error) => {
                tracing::warn!(%error, "the stream of a dead owner could not be ended");
                false
            }
        }
    }

    pub(super) async fn tail(
        self: &Arc<Self>,
        session: SessionKey,
        from: TailFrom,
    ) -> Result<Tail> {
        self.ready("tail").await?;
        match from {
            TailFrom::After(id) => self.take_over(session, id).await,
            TailFrom::Standalone => {
                let stream = StreamId::standalone();
                let waiting = self.interests.follows(&session, &stream).len();
                if waiting > self.limits.waiting_streams() {
                    return Err(Error::new(ErrorKind::Overloaded, "tail"));
                }
                // Its existence is decided here, its turn is decided later.
                let cursor = Cursor {
                    touch: true,
                    ..Cursor::state_of(session, stream.clone())
                };
                if matches!(self.read_one("tail", cursor).await?, Read::NoSession) {
                    return Err(Error::new(ErrorKind::SessionNotFound, "tail"));
                }
                let follow = Follow::new(session, stream, 0, true);
                self.interests.add_follow(&follow);
                Ok(start(self, follow, Position::START, false))
            }
        }
    }

    async fn take_over(self: &Arc<Self>, session: SessionKey, id: EventId) -> Result<Tail> {
        let EventId { stream, position } = id;
        // Registered before the hold: what is written after it knocks here.
        let follow = Follow::new(session, stream.clone(), 0, true);
        self.interests.add_follow(&follow);
        let taken = match self.hold(&session, &stream, Hold::Take).await {
            // It may be about to be opened by another instance.
            Ok(Held::NoStream) if !self.profile.inline => {
                tokio::time::sleep(self.limits.catch_up()).await;
                self.hold(&session, &stream, Hold::Take).await
            }
            taken => taken,
        };
        let error = match taken {
            Ok(Held::Done { number, former, .. }) => {
                follow.set_number(number);
                self.supersede(&follow);
                if let Some(former) = former.filter(|former| *former != self.me) {
                    self.wake(former, session, Target::Stream(stream));
                }
                return Ok(start(self, follow, position, true));
            }
            Ok(Held::NoSession) => Error::new(ErrorKind::SessionNotFound, "tail"),
            Ok(Held::NoStream | Held::Busy(_) | Held::Past) => {
                Error::new(ErrorKind::StreamGone, "tail")
            }
            Err(error) => error,
        };
        self.interests.remove_follow(&follow);
        Err(error)
    }

    /// Former tails of this instance end; the writer, if it is here, passes
    /// events to the new one.
    fn supersede(&self, follow: &Arc<Follow>) {
        for other in self.interests.follows(&follow.session, &follow.stream) {
            if !Arc::ptr_eq(&other, follow) && (1..follow.number()).contains(&other.number()) {
                other.end(EndReason::Superseded);
            }
        }
        if let Some(owned) = self.interests.owned(&follow.session, &follow.stream) {
            let mut state = owned.state.lock();
            let newer = |local: &Arc<Follow>| local.number() > follow.number();
            if !state.local.as_ref().is_some_and(newer) {
                state.local = Some(Arc::clone(follow));
                state.remote = None;
            }
        }
    }

    pub(super) async fn replay(
        self: &Arc<Self>,
        session: SessionKey,
        after: &EventId,
        max: usize,
    ) -> Result<Replay> {
        self.ready("replay").await?;
        let cursor = Cursor {
            session,
            stream: after.stream.clone(),
            after: after.position,
            max_events: max,
            max_bytes: self.limits.stream_bytes(),
            touch: true,
        };
        match self.read_one("replay", cursor).await? {
            Read::Page { events, state } => {
                let asked = max > 0;
                let last = events.last().map_or(after.position, |event| event.position);
                let more = if events.is_empty() {
                    !asked && state.top > after.position
                } else {
                    last < state.top && state.top.seq > 0
                };
                let mut sequence = Sequence::new(after.stream.clone(), after.position);
                if asked {
                    sequence.page(events, &state);
                }
                let end = state.end.filter(|_| !more).map(end_reason);
                Ok(Replay::new(sequence.out.into(), more, end))
            }
            Read::NoStream => Err(Error::new(ErrorKind::StreamGone, "replay")),
            Read::NoSession => Err(Error::new(ErrorKind::SessionNotFound, "replay")),
        }
    }
}
