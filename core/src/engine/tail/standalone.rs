//! The standalone stream: several clients may listen, one of them at a time (clause
//! E9).

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Follower, Listed, PAGE_EVENTS, Turn, start};
use crate::{
    engine::{Shared, follow::Follow},
    error::{Error, ErrorKind, Result},
    id::{Position, SessionKey, StreamId},
    session::{EndReason, Tail},
    storage::{Cursor, Held, Hold, HoldStart, Holder, Read, Storage, StreamState, Target},
};

/// How long a tail that was displaced leaves the stream to clients that come back:
/// its own is most likely one of them, on another connection.
const LEFT_TO_RETURNING: Duration = Duration::from_secs(5);
/// Displaced tails of one stream that an instance keeps.
const DISPLACED: usize = 4;
/// How often a client that comes back is placed anew because others moved.
const PLACINGS: usize = 8;

/// Where a client that comes back belongs.
#[derive(Debug, PartialEq, Eq)]
enum Placing {
    /// It goes on with the last hold.
    GoesOn(HoldStart),
    /// Another hold began since: up to there the events are still its own, if any
    /// are left.
    Owed(Option<Position>),
}

/// Whose hold a client has read `after` in, see [`TailFrom::Returning`].
fn place(state: &StreamState, after: Position, hold: Option<u64>) -> Placing {
    let holds = &state.holds;
    // Numbers up to an entry's are of that hold.
    let by_number = |number| {
        let index = holds.iter().position(|known| known.number >= number)?;
        // Before the oldest one there were others, which are forgotten.
        (index > 0 || holds[index].began <= after).then_some(index)
    };
    // Before the first event there is no hold that could have ended.
    let starts = |began| began == after && after == Position::START;
    let by_position = || {
        let began = |known: &HoldStart| known.began < after || starts(known.began);
        holds.iter().rposition(began)
    };
    let own = match hold.filter(|number| holds.last().is_some_and(|last| *number <= last.number)) {
        Some(number) => by_number(number),
        None => by_position(),
    };
    let next = own.map_or(0, |own| own + 1);
    match (holds.get(next), own) {
        (Some(next), _) => Placing::Owed(Some(next.began).filter(|until| *until > after)),
        (None, Some(own)) => Placing::GoesOn(holds[own]),
        (None, None) => Placing::Owed(None),
    }
}

impl<S: Storage> Follower<S> {
    /// Somebody else holds the stream. Of a call's stream that is the end. Of the
    /// standalone one this client may be alive all the same, as where its instance
    /// stood still: it gets what was its own, and waits.
    pub(super) fn step_back(&mut self, state: &StreamState) {
        let Follow {
            session, stream, ..
        } = &*self.follow;
        let follows = self.shared.interests.follows(session, stream);
        let displaced = follows.iter().filter(|follow| follow.is_displaced());
        if !stream.is_standalone() || displaced.count() >= DISPLACED {
            self.after = Some(EndReason::Superseded);
            return;
        }
        let number = self.follow.number();
        self.turn = match place(state, self.sequence.cursor, Some(number)) {
            Placing::Owed(Some(until)) => Turn::IsOwed(until),
            Placing::Owed(None) | Placing::GoesOn(_) => Turn::Displaced(None),
        };
        self.follow.set_displaced(true);
        self.follow.set_number(0);
        self.follow.wake();
    }

    /// What is left of a former hold that this client had.
    pub(super) async fn read_owed(&mut self, until: Position) {
        if let Some((events, _)) = self.page(PAGE_EVENTS).await {
            self.yielded = self.sequence.cursor;
            if self.sequence.owed(events, until) {
                self.turn = if self.follow.is_displaced() {
                    Turn::Displaced(None)
                } else {
                    Turn::Waits
                };
            }
            self.follow.wake();
        }
    }

    /// Takes a stream that nobody has come back for. While it is free, each round of
    /// catching up wakes the tails that wait for it.
    pub(super) async fn wait_for_others(&mut self, free: Option<Instant>) {
        let Some((_, state)) = self.page(0).await else {
            return;
        };
        let is_dead = |holder: Holder| self.shared.observer.lock().dead(holder.instance).is_some();
        let is_free = state.holder.is_none_or(is_dead);
        let free = is_free.then(|| free.unwrap_or_else(Instant::now));
        self.turn = Turn::Displaced(free);
        if free.is_some_and(|since| since.elapsed() >= LEFT_TO_RETURNING) {
            self.promote().await;
        }
    }

    /// A silent tail takes the stream when it is free, or when its holder is
    /// dead (clause E9).
    pub(super) async fn promote(&mut self) {
        let mut from: Option<Holder> = None;
        loop {
            let held = self
                .ride_out(|shared| {
                    let follow = Arc::clone(&self.follow);
                    async move { shared.take_free(&follow, from).await }
                })
                .await;
            match held {
                Some(Held::Done { number, cursor, .. }) => {
                    // What this client has read it does not get again.
                    let cursor = cursor.max(self.sequence.cursor);
                    self.sequence.begin(cursor, number);
                    self.yielded = cursor;
                    self.follow.saw(cursor);
                    self.follow.set_displaced(false);
                    self.turn = Turn::Holds;
                    self.follow.drop_queue();
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
}

impl<S: Storage> Shared<S> {
    /// The state of the standalone stream, if it is there.
    pub(super) async fn standalone(&self, session: SessionKey) -> Result<Option<StreamState>> {
        let cursor = Cursor {
            touch: true,
            ..Cursor::state_of(session, StreamId::standalone())
        };
        match self.read_one("tail", cursor).await? {
            Read::Page { state, .. } => Ok(Some(state)),
            Read::NoStream => Ok(None),
            Read::NoSession => Err(Error::new(ErrorKind::SessionNotFound, "tail")),
        }
    }

    /// Takes a free stream, or that of a holder that is dead, for a tail that waits.
    ///
    /// Nobody polls a tail whose client reads nothing, and others wait for the turn:
    /// so it is taken by a task of its own.
    async fn take_free(
        self: &Arc<Self>,
        follow: &Arc<Follow>,
        from: Option<Holder>,
    ) -> Result<Held> {
        if self.profile.inline {
            return self.take_in_turn(follow, from).await;
        }
        let (shared, follow) = (Arc::clone(self), Arc::clone(follow));
        let taking = tokio::spawn(async move { shared.take_in_turn(&follow, from).await });
        taking
            .await
            .unwrap_or_else(|error| Err(Error::new(ErrorKind::Closed, "tail").with_source(error)))
    }

    async fn take_in_turn(&self, follow: &Arc<Follow>, from: Option<Holder>) -> Result<Held> {
        let Follow {
            session, stream, ..
        } = &**follow;
        let holds = self.holds.of(session);
        let _turn = holds.turn().await;
        loop {
            let held = self.hold(session, stream, Hold::TakeFrom(from)).await?;
            let Held::Done { number, cursor, .. } = held else {
                return Ok(held);
            };
            if let Some(cursor) = holds.lapsed(number, cursor) {
                // Another client has read in this hold, and was cut off.
                self.let_go(&holds, *session, number, cursor).await?;
            } else if self.interests.adopt(follow, number) {
                let follows = self.interests.follows(session, stream);
                if !follows.iter().any(|other| Arc::ptr_eq(other, follow)) {
                    // Its client went away meanwhile.
                    self.let_go(&holds, *session, number, cursor).await?;
                }
                return Ok(held);
            } else {
                let instance = self.me;
                return Ok(Held::Busy(Holder { instance, number }));
            }
        }
    }

    /// A tail that is silent until its turn, of a follow that is listed.
    pub(super) fn wait_in_line(
        self: &Arc<Self>,
        follow: Arc<Follow>,
        listed: Listed<'_, S>,
        cursor: Position,
        turn: Turn,
    ) -> Result<Tail> {
        let line = self.interests.follows(&follow.session, &follow.stream);
        let ahead = line.iter().filter(|other| !Arc::ptr_eq(other, &follow));
        if ahead.count() > self.limits.waiting_streams() {
            return Err(Error::new(ErrorKind::Overloaded, "tail"));
        }
        listed.stays();
        Ok(start(self, follow, cursor, turn))
    }

    /// See [`TailFrom::Returning`].
    pub(super) async fn come_back(
        self: &Arc<Self>,
        session: SessionKey,
        after: Position,
        hold: Option<u64>,
    ) -> Result<Tail> {
        let stream = StreamId::standalone();
        // Registered before the hold: what is written after it knocks here.
        let follow = Follow::new(session, stream.clone(), 0, true);
        let listed = Listed::new(self, &follow);
        let mut turn = Turn::Waits;
        let holds = self.holds.of(&session);
        let Ok(_turn) = timeout_at(self.deadline(), holds.turn()).await else {
            return Err(Error::new(ErrorKind::Timeout, "tail"));
        };
        for _ in 0..PLACINGS {
            let state = self.standalone(session).await?;
            let placed = state.map_or(Placing::Owed(None), |state| place(&state, after, hold));
            let last = match placed {
                Placing::GoesOn(last) => last,
                Placing::Owed(until) => {
                    turn = until.map_or(Turn::Waits, Turn::IsOwed);
                    break;
                }
            };
            let HoldStart { number, began } = last;
            let next = number + 1;
            // Where the answer does not come the hold may be this client's all the same.
            holds.lapse(next, Some(began), after);
            let held = self.hold(&session, &stream, Hold::Continue { number });
            match held.await? {
                Held::Done {
                    number,
                    former,
                    cursor,
                    ..
                } if (number, cursor) == (next, began) && self.interests.adopt(&follow, number) => {
                    holds.settle(next);
                    self.supersede(&follow);
                    if let Some(former) = former.filter(|former| *former != self.me) {
                        self.wake(former, session, Target::Stream(stream));
                    }
                    listed.stays();
                    return Ok(start(self, follow, after, Turn::Holds));
                }
                // Others moved meanwhile.
                _ => holds.settle(next),
            }
        }
        self.wait_in_line(follow, listed, after, turn)
    }
}
