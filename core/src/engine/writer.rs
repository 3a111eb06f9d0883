//! Appends: those of a call's only writer and those to the standalone stream.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::MutexGuard;
use tokio::time::Instant;

use super::{
    Shared,
    follow::{Follow, Passed, Wakes},
    inline,
    interest::{Owned, OwnedState},
    retry::within,
    tail::{self, Turn},
};
use crate::{
    error::{Applied, Error, ErrorKind, Result},
    id::{EventId, InstanceId, Position, SessionKey, StreamId},
    session::{Ack, EndReason, Revocation, StreamWriter, Tail},
    storage::{
        Append, Appended, Door, Held, Hold, Knock, NewEvent, Place, Storage, StreamEnd, Target,
    },
};

/// An append on its way to the backend, and what its answer is for.
pub(super) type Pending = (Append, Waiting);

/// Who waits for an append, and for how long.
pub(super) struct Waiting {
    pub(super) owned: Option<Arc<Owned>>,
    /// Until when it is repeated.
    pub(super) deadline: Instant,
    /// Its follower has it already.
    pub(super) passed: bool,
    /// A try of it may have taken effect.
    pub(super) unsure: bool,
}

pub(super) struct Writer<S: Storage> {
    pub(super) shared: Arc<Shared<S>>,
    pub(super) owned: Arc<Owned>,
}

impl<S: Storage> std::fmt::Debug for Writer<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("stream", &self.owned.stream)
            .finish()
    }
}

fn failed(error: Error) -> Ack<EventId> {
    Ack::ready(Err(error))
}

#[async_trait]
impl<S: Storage> StreamWriter for Writer<S> {
    fn stream(&self) -> &StreamId {
        &self.owned.stream
    }

    fn append(&self, event: Bytes) -> Ack<EventId> {
        self.shared.write(&self.owned, Some(event), None)
    }

    fn finish(&self, event: Option<Bytes>) -> Ack<Option<EventId>> {
        let is_event = event.is_some();
        let end = Some(StreamEnd::Finished);
        let ack = self.shared.write(&self.owned, event, end);
        ack.map(move |id| is_event.then_some(id))
    }

    fn attach(&self) -> Tail {
        let owned = &self.owned;
        let mut state = owned.state.lock();
        let fresh = state.last == Position::new(1, 0) && !state.finishing;
        let follow = Follow::new(owned.session, owned.stream.clone(), 1, !fresh);
        state.local = Some(Arc::clone(&follow));
        drop(state);
        self.shared.interests.add_follow(&follow);
        tail::start(&self.shared, follow, Position::START, Turn::Holds)
    }

    fn detach(&self) {
        let (local, remote) = {
            let mut state = self.owned.state.lock();
            (state.local.take(), state.remote)
        };
        if let Some(local) = local {
            local.end(EndReason::Superseded);
        }
        if remote.is_some() {
            let shared = Arc::clone(&self.shared);
            let owned = Arc::clone(&self.owned);
            Shared::<S>::spawn(async move { shared.displace(&owned).await });
        }
    }

    async fn revoked(&self) -> Revocation {
        self.owned.revoked().await
    }
}

impl<S: Storage> Drop for Writer<S> {
    fn drop(&mut self) {
        let (revoked, finishing) = {
            let state = self.owned.state.lock();
            (state.revoked, state.finishing)
        };
        match revoked {
            // Others have ended it, and nobody here looks at it any more.
            Some(Revocation::Fenced | Revocation::SessionEnded) => {
                self.shared.interests.remove_owned(&self.owned);
                return;
            }
            Some(Revocation::Cancelled) | None => {}
        }
        if !finishing {
            let end = Some(StreamEnd::OwnerLost);
            // The queue has it when this returns; nobody waits for the answer.
            drop(self.shared.write(&self.owned, None, end));
        }
    }
}

impl<S: Storage> Shared<S> {
    /// Fixes the place of an event and sends it on its way.
    pub(super) fn write(
        self: &Arc<Self>,
        owned: &Arc<Owned>,
        event: Option<Bytes>,
        end: Option<StreamEnd>,
    ) -> Ack<EventId> {
        let operation = if end.is_some() { "finish" } else { "append" };
        let size = event.as_ref().map_or(0, Bytes::len);
        if size > self.limits.event_bytes() {
            return failed(Error::new(ErrorKind::TooLarge, operation));
        }
        if self.is_killed() {
            return Ack::wait(futures::future::pending().boxed());
        }
        let mut state = owned.state.lock();
        if state.finishing {
            return failed(Error::new(ErrorKind::Finished, operation));
        }
        match state.revoked {
            Some(Revocation::Fenced) => {
                return failed(Error::new(ErrorKind::Fenced, operation));
            }
            Some(Revocation::SessionEnded) => {
                return failed(Error::new(ErrorKind::SessionNotFound, operation));
            }
            Some(Revocation::Cancelled) | None => {}
        }
        let undo = state.prev;
        // What the backend has lost shows by the next event, and there is none:
        // it must not look like a whole stream.
        let lost = end.is_some() && event.is_none() && state.prev.is_some();
        let end = if lost {
            Some(StreamEnd::OwnerLost)
        } else {
            end
        };
        let (keep_events, keep_bytes) = (self.limits.stream_events(), self.limits.stream_bytes());
        let is_event = event.is_some();
        let (position, prev) = if is_event {
            state.next()
        } else {
            (state.last, None)
        };
        let trim = if is_event && !self.profile.inline {
            state.trim(size, keep_events, keep_bytes)
        } else {
            None
        };
        if self.profile.repair {
            if let Some(data) = &event {
                state.recent.push(position, prev, data);
            }
            if let Some(end) = end {
                state.recent.end(end, is_event);
            }
        }
        let mut append = Append {
            session: owned.session,
            stream: owned.stream.clone(),
            place: Place::Owned {
                owner: self.me,
                position,
            },
            event: event.map(|data| NewEvent { prev, data }),
            finish: end.map(|_| self.limits.finished_ttl()),
            end: end.unwrap_or(StreamEnd::Finished),
            keep_events,
            keep_bytes,
            trim,
            wake: state.remote,
        };
        state.finishing = end.is_some();
        if self.profile.inline {
            // The lock is held over the step: positions reach the backend in
            // the order in which they were given out.
            let result = self
                .storage
                .append_inline(&append)
                .and_then(|answer| self.appended(&mut append, Some((owned, state)), answer, false));
            return Ack::ready(result.map(|position| EventId::new(append.stream, position)));
        }
        let patience = if end.is_some() {
            self.limits.max_outage()
        } else {
            self.limits.operation_timeout()
        };
        let deadline = Instant::now() + patience;
        let passing = (state.local.is_some() && self.is_surely_alive()).then(|| append.clone());
        let stream = append.stream.clone();
        let waiting = Waiting {
            owned: Some(Arc::clone(owned)),
            deadline,
            passed: passing.is_some(),
            unsure: false,
        };
        let lane = self.append_lane(&owned.session, &owned.stream);
        match lane.push(operation, (append, waiting), size) {
            Ok(answer) => {
                let wakes = match (passing, &state.local) {
                    (Some(mut append), Some(local)) => {
                        Some(pass(local, &mut append, position, state.is_cancelled()))
                    }
                    _ => None,
                };
                drop(state);
                drop(wakes);
                answered(operation, stream, answer, deadline)
            }
            Err(error) => {
                if is_event {
                    state.undo(undo);
                }
                if self.profile.repair {
                    state.recent.undo(is_event);
                }
                state.finishing = false;
                // A stream that cannot even be given up stays on the list.
                state.orphaned = (end == Some(StreamEnd::OwnerLost)).then(|| self.watched_until());
                failed(error)
            }
        }
    }

    /// Appends to the standalone stream.
    pub(super) fn write_shared(self: &Arc<Self>, session: SessionKey, data: Bytes) -> Ack<EventId> {
        const OPERATION: &str = "append";
        let size = data.len();
        if size > self.limits.event_bytes() {
            return failed(Error::new(ErrorKind::TooLarge, OPERATION));
        }
        if self.is_killed() {
            return Ack::wait(futures::future::pending().boxed());
        }
        let mut tag = self.tag_shard(&session).lock();
        *tag += 1;
        let mut append = Append {
            session,
            stream: StreamId::standalone(),
            place: Place::Shared {
                writer: self.me,
                tag: *tag,
            },
            event: Some(NewEvent { prev: None, data }),
            finish: None,
            end: StreamEnd::Finished,
            keep_events: self.limits.stream_events(),
            keep_bytes: self.limits.stream_bytes(),
            trim: None,
            wake: None,
        };
        if self.profile.inline {
            // Held until here: a follower is passed events in their order.
            let result = self
                .storage
                .append_inline(&append)
                .and_then(|answer| self.appended(&mut append, None, answer, false));
            drop(tag);
            return Ack::ready(result.map(|position| EventId::new(append.stream, position)));
        }
        let deadline = self.deadline();
        let stream = append.stream.clone();
        let lane = self.append_lane(&session, &stream);
        let waiting = Waiting {
            owned: None,
            deadline,
            passed: false,
            unsure: false,
        };
        match lane.push(OPERATION, (append, waiting), size) {
            Ok(answer) => answered(OPERATION, stream, answer, deadline),
            Err(error) => failed(error),
        }
    }

    /// What an answer of the backend means for the stream, its followers and
    /// its writer. A stored event is handed on, not copied.
    pub(super) fn appended(
        self: &Arc<Self>,
        append: &mut Append,
        writer: Option<(&Arc<Owned>, MutexGuard<'_, OwnedState>)>,
        answer: Appended,
        passed: bool,
    ) -> Result<Position> {
        let operation = if append.finish.is_some() {
            "finish"
        } else {
            "append"
        };
        let finished = append.finish.is_some();
        let error = match answer {
            Appended::Stored {
                position,
                holder,
                usage,
                repeat,
            } => {
                let remote = holder.filter(|holder| *holder != self.me);
                match writer {
                    Some((owned, mut state)) => {
                        state.remote = remote;
                        // Under the lock: a follower is passed events in their
                        // order.
                        let wakes = state.local.as_ref().map(|local| match (passed, finished) {
                            _ if repeat => local.dirty(),
                            (false, _) => pass(local, append, position, state.is_cancelled()),
                            (true, false) => local.stored(position),
                            (true, true) => local.dirty(),
                        });
                        drop(state);
                        drop(wakes);
                        if finished {
                            self.interests.remove_owned(owned);
                            self.keep_finished(owned);
                        }
                    }
                    None => {
                        let mut follows = self.interests.follows(&append.session, &append.stream);
                        // The others wait silently for the stream.
                        follows.retain(|follow| follow.number() > 0);
                        let last = follows.iter().map(|follow| follow.number()).max();
                        let moving = last.is_some()
                            && !self.profile.inline
                            && self.holds.is_moving(&append.session);
                        for follow in follows {
                            let holds =
                                remote.is_none() && Some(follow.number()) == last && !moving;
                            // What a new epoch follows is known to the backend, and so
                            // is what stands where a repeat was stored.
                            if !holds || repeat || position.seq == 1 {
                                follow.wake();
                            } else {
                                drop(pass(&follow, &mut append.clone(), position, false));
                            }
                        }
                    }
                }
                if let Some(holder) = remote.filter(|_| remote != append.wake) {
                    self.wake(
                        holder,
                        append.session,
                        Target::Stream(append.stream.clone()),
                    );
                }
                if usage.session_bytes > self.limits.session_bytes() as u64 {
                    self.shrink(append.session);
                }
                return Ok(position);
            }
            Appended::Finished if append.event.is_none() => {
                if let Some((owned, state)) = writer {
                    let last = state.last;
                    drop(state);
                    self.interests.remove_owned(owned);
                    return Ok(last);
                }
                ErrorKind::Finished
            }
            Appended::Finished => ErrorKind::Finished,
            Appended::Fenced => ErrorKind::Fenced,
            Appended::NoStream => ErrorKind::StreamGone,
            Appended::NoSession => ErrorKind::SessionNotFound,
        };
        if let Some((owned, mut state)) = writer {
            if error == ErrorKind::StreamGone && append.event.is_none() {
                // Its `enter` may still be under way.
                state.orphaned = Some(self.watched_until());
                return Err(Error::new(error, operation));
            }
            drop(state);
            match error {
                ErrorKind::SessionNotFound => owned.revoke(Revocation::SessionEnded),
                // Only others finish a stream that its writer has not: it was
                // taken for dead.
                _ => owned.revoke(Revocation::Fenced),
            }
            self.interests.remove_owned(owned);
            metrics::counter!("mcp_adapter_writers_revoked_total").increment(1);
        }
        Err(Error::new(error, operation))
    }

    /// Brings a session under its bytes (clause E4).
    fn shrink(self: &Arc<Self>, session: SessionKey) {
        let max = self.limits.session_bytes() as u64;
        if self.profile.inline {
            let shrunk = inline("shrink", self.storage.shrink(&session, max));
            self.note(&shrunk);
        } else {
            let shared = Arc::clone(self);
            Self::spawn(async move {
                let shrunk = shared
                    .step("shrink", |storage| storage.shrink(&session, max))
                    .await;
                if let Err(error) = shrunk {
                    tracing::warn!(%error, ?session, "a session over its bytes could not be trimmed");
                }
            });
        }
    }

    /// Knocks at one door; a lost knock is made up for by the catch-up.
    pub(super) fn wake(self: &Arc<Self>, at: InstanceId, session: SessionKey, target: Target) {
        let knock = [(Door::Of(at), Knock::Wake(session, target))];
        if self.profile.inline {
            let _ = inline("knock", self.storage.knock(&knock));
        } else {
            let shared = Arc::clone(self);
            Self::spawn(async move {
                let deadline = shared.deadline();
                let _ = within("knock", deadline, shared.storage.knock(&knock)).await;
            });
        }
    }

    /// Takes the stream from whoever holds it elsewhere and lets go of it.
    async fn displace(self: &Arc<Self>, owned: &Owned) {
        let (session, stream) = (owned.session, &owned.stream);
        if let Ok(Held::Done {
            number,
            former,
            state,
            ..
        }) = self.hold(&session, stream, Hold::Take).await
        {
            if let Some(former) = former {
                self.wake(former, session, Target::Stream(stream.clone()));
            }
            let release = Hold::Release {
                number,
                cursor: state.top,
            };
            // Lost, it costs little: whoever wants the stream takes it.
            let _ = self.hold(&session, stream, release).await;
        }
    }
}

/// Hands the event of `append` over, and its end.
#[inline]
fn pass(follow: &Follow, append: &mut Append, position: Position, cancelled: bool) -> Wakes {
    let event = append.event.take().map(|event| Passed {
        position,
        prev: event.prev,
        data: event.data,
    });
    let end = append
        .finish
        .map(|_| tail::end_reason(append.end, cancelled));
    follow.pass(position, event, end)
}

fn answered(
    operation: &'static str,
    stream: StreamId,
    answer: tokio::sync::oneshot::Receiver<Result<Appended>>,
    deadline: Instant,
) -> Ack<EventId> {
    let answer = async move {
        let answer = within(operation, deadline, async {
            answer.await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Closed, operation).with_applied(Applied::Unknown))
            })
        })
        .await?;
        let position = match answer {
            Appended::Stored { position, .. } => position,
            // Finished without an event, twice.
            _ => Position::START,
        };
        Ok(EventId::new(stream, position))
    };
    Ack::wait(answer.boxed())
}
