//! Following a stream: register, read, follow.

mod listed;
mod sequence;
mod standalone;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{FutureExt, Stream, future::BoxFuture};
use tokio::time::Instant;

use self::{listed::Listed, sequence::Sequence};
use super::{
    Shared,
    follow::{Ear, Follow, Step},
    retry::Backoff,
};
use crate::{
    error::{Error, ErrorKind, Result},
    id::{EventId, Position, SessionKey, StreamId},
    session::{EndReason, Replay, Tail, TailEvent, TailFrom},
    storage::{
        Claim, Cursor, Held, Hold, Read, Storage, StoredEvent, StreamEnd, StreamState, Target,
    },
};

/// Events and bytes of one page.
const PAGE_EVENTS: usize = 256;
const PAGE_BYTES: usize = 1 << 20;

pub(super) fn end_reason(end: StreamEnd, cancelled: bool) -> EndReason {
    match end {
        StreamEnd::Finished => EndReason::Finished,
        StreamEnd::OwnerLost if cancelled => EndReason::Cancelled,
        StreamEnd::OwnerLost => EndReason::OwnerLost,
    }
}

/// A tail that holds its stream with the follow's number, or waits silently
/// until it is free.
pub(super) fn start<S: Storage>(
    shared: &Arc<Shared<S>>,
    follow: Arc<Follow>,
    cursor: Position,
    turn: Turn,
) -> Tail {
    follow.saw(cursor);
    let follower = Follower {
        shared: Arc::clone(shared),
        sequence: Sequence::new(follow.stream.clone(), cursor),
        follow,
        ear: Ear::default(),
        yielded: cursor,
        turn,
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

/// Whether a tail holds its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Holds,
    /// It waits silently until the stream is free.
    Waits,
    /// The same, after it was told what up to here is its own.
    IsOwed(Position),
    /// It waits, and leaves a stream that is free to clients that come back for a
    /// while: since when it has been free.
    Displaced(Option<Instant>),
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
    turn: Turn,
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
                _ if self.turn != Turn::Holds => return Poll::Ready(Some(Next::Look)),
                Step::Passed(event, _) if event.position <= self.sequence.cursor => {}
                Step::Passed(event, last) => match self.sequence.passed(event, last) {
                    Some(event) => return Poll::Ready(Some(Next::Event(event))),
                    None => self.follow.drop_queue(),
                },
                Step::Read => return Poll::Ready(Some(Next::Look)),
            }
        }
        Poll::Ready(None)
    }

    async fn look(mut self) -> Self {
        match self.turn {
            Turn::Holds => self.read().await,
            Turn::Waits => self.promote().await,
            Turn::IsOwed(until) => self.read_owed(until).await,
            Turn::Displaced(free) => self.wait_for_others(free).await,
        }
        self
    }

    /// A page after the cursor; `None` where the tail has ended.
    async fn page(&mut self, max_events: usize) -> Option<(Vec<StoredEvent>, StreamState)> {
        let cursor = Cursor {
            session: self.follow.session,
            stream: self.follow.stream.clone(),
            after: self.sequence.cursor,
            max_events,
            max_bytes: PAGE_BYTES,
            touch: false,
        };
        let read = self
            .ride_out(|shared| {
                let cursor = cursor.clone();
                async move { shared.read_one("tail", cursor).await }
            })
            .await;
        match read? {
            Read::Page { events, state } => return Some((events, state)),
            Read::NoStream => self.after = Some(EndReason::StreamGone),
            Read::NoSession => self.after = Some(EndReason::SessionEnded),
        }
        None
    }

    async fn read(&mut self) {
        let Some((events, state)) = self.page(PAGE_EVENTS).await else {
            return;
        };
        let number = state.holder.map(|holder| holder.number);
        if number != Some(self.follow.number()) {
            self.step_back(&state);
            return;
        }
        let last = events.is_empty();
        self.yielded = self.sequence.cursor;
        let finished = self.sequence.page(events, &state);
        self.follow.saw(self.sequence.cursor);
        if finished {
            self.after = Some(EndReason::Finished);
        } else if !last {
            // There may be more.
            self.follow.wake();
        } else if let Some(end) = state.end {
            self.after = Some(end_reason(end, state.cancelled));
        } else if self
            .shared
            .claim_if_dead(&self.follow.session, &self.follow.stream, &state)
            .await
        {
            self.follow.wake();
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
                    | EndReason::Cancelled
                    | EndReason::SessionEnded
                    | EndReason::StreamGone
                    | EndReason::Superseded
            )
        );
        if self.turn != Turn::Holds || (self.ended && over) {
            self.shared.interests.remove_follow(&self.follow);
            return;
        }
        // What was read and not yielded is for the next holder.
        let cursor = if self.sequence.out.is_empty() {
            self.sequence.cursor
        } else {
            self.yielded
        };
        let number = self.follow.number();
        let release = Hold::Release { number, cursor };
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
            let holds = stream.is_standalone().then(|| shared.holds.of(session));
            if let Some(holds) = &holds {
                holds.lapse(number, None, cursor);
            }
            Shared::<S>::spawn(async move {
                // Lost, it costs little: whoever wants the stream of a call takes it,
                // and of the standalone one a hold that has lapsed is asked for.
                // Not between the step of another tail and its answer.
                let _turn = match &holds {
                    Some(holds) => Some(holds.turn().await),
                    None => None,
                };
                let released = shared.hold(&follow.session, &follow.stream, release).await;
                if let (Ok(_), Some(holds)) = (released, &holds) {
                    holds.settle(number);
                }
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
    pub(super) fn wake_waiting(&self, session: &SessionKey, stream: &StreamId) {
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
            TailFrom::After(id) if id.stream.is_standalone() => {
                self.come_back(session, id.position, None).await
            }
            TailFrom::After(id) => self.take_over(session, id).await,
            TailFrom::Standalone => {
                // Its existence is decided here, its turn is decided later.
                self.standalone(session).await?;
                let follow = Follow::new(session, StreamId::standalone(), 0, true);
                let listed = Listed::new(self, &follow);
                self.wait_in_line(follow, listed, Position::START, Turn::Waits)
            }
            TailFrom::Returning { after, hold } => self.come_back(session, after, hold).await,
        }
    }

    async fn take_over(self: &Arc<Self>, session: SessionKey, id: EventId) -> Result<Tail> {
        let EventId { stream, position } = id;
        // Registered before the hold: what is written after it knocks here.
        let follow = Follow::new(session, stream.clone(), 0, true);
        let listed = Listed::new(self, &follow);
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
                listed.stays();
                return Ok(start(self, follow, position, Turn::Holds));
            }
            Ok(Held::NoSession) => Error::new(ErrorKind::SessionNotFound, "tail"),
            Ok(Held::NoStream | Held::Busy(_) | Held::Past) => {
                Error::new(ErrorKind::StreamGone, "tail")
            }
            Err(error) => error,
        };
        Err(error)
    }

    /// Former tails of this instance end; the writer, if it is here, passes
    /// events to the new one.
    fn supersede(&self, follow: &Arc<Follow>) {
        for other in self.interests.follows(&follow.session, &follow.stream) {
            if !Arc::ptr_eq(&other, follow) && (1..follow.number()).contains(&other.number()) {
                if follow.stream.is_standalone() {
                    other.wake();
                } else {
                    other.end(EndReason::Superseded);
                }
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
                let end = (state.end.filter(|_| !more)).map(|end| end_reason(end, state.cancelled));
                Ok(Replay::new(sequence.out.into(), more, end))
            }
            Read::NoStream => Err(Error::new(ErrorKind::StreamGone, "replay")),
            Read::NoSession => Err(Error::new(ErrorKind::SessionNotFound, "replay")),
        }
    }
}
