//! Holds of standalone streams that no tail of this instance has (clause E9). The
//! backend knows instances, not tails: which tail a hold belongs to is known here.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Shared;
use crate::{
    error::Result,
    id::{Position, SessionKey, StreamId},
    storage::{Cursor, Hold, REMEMBERED, Read, Storage},
};

/// A hold that a tail had that is gone, or may have been about to get.
#[derive(Debug)]
struct Lapsed {
    number: u64,
    /// Where it began, if that tells it from another one of this number.
    began: Option<Position>,
    /// Where that tail's client is.
    cursor: Position,
    since: Instant,
}

/// The holds of one session.
#[derive(Debug, Default)]
pub(super) struct OfSession {
    /// Taken for each step that takes the stream, until a tail has what was taken:
    /// the answers to two steps at once would not tell whose hold it is.
    turn: tokio::sync::Mutex<()>,
    lapsed: Mutex<Vec<Lapsed>>,
}

impl OfSession {
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// From now on the hold with this number is no tail's.
    pub(super) fn lapse(&self, number: u64, began: Option<Position>, cursor: Position) {
        let mut lapsed = self.lapsed.lock();
        if lapsed.len() == REMEMBERED {
            lapsed.remove(0);
        }
        lapsed.push(Lapsed {
            number,
            began,
            cursor,
            since: Instant::now(),
        });
    }

    /// Where the client is that had this hold, if it has lapsed.
    pub(super) fn lapsed(&self, number: u64, began: Position) -> Option<Position> {
        let is_it =
            |hold: &&Lapsed| hold.number == number && hold.began.is_none_or(|known| known == began);
        let lapsed = self.lapsed.lock();
        lapsed.iter().rfind(is_it).map(|hold| hold.cursor)
    }

    /// The hold is a tail's, or was let go of.
    pub(super) fn settle(&self, number: u64) {
        self.lapsed.lock().retain(|hold| hold.number != number);
    }
}

/// The holds of all sessions; none of most of them.
#[derive(Default)]
pub(super) struct Holds(Mutex<HashMap<SessionKey, Arc<OfSession>>>);

impl fmt::Debug for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Holds")
    }
}

impl Holds {
    pub(super) fn of(&self, session: &SessionKey) -> Arc<OfSession> {
        Arc::clone(self.0.lock().entry(*session).or_default())
    }

    /// Whether a step that takes the stream may be under way: then an answer that names
    /// this instance as the holder does not tell which of its tails that is.
    pub(super) fn is_moving(&self, session: &SessionKey) -> bool {
        let of = self.0.lock().get(session).map(Arc::clone);
        of.is_some_and(|of| of.turn.try_lock().is_err())
    }

    /// Forgets holds that lapsed longer ago than this.
    pub(super) fn forget(&self, age: Duration) {
        self.0.lock().retain(|_, of| {
            let mut lapsed = of.lapsed.lock();
            lapsed.retain(|hold| hold.since.elapsed() <= age);
            !lapsed.is_empty() || Arc::strong_count(of) > 1
        });
    }
}

impl<S: Storage> Shared<S> {
    /// Somebody believes that a tail here holds the standalone stream. Where none
    /// does, it is let go of, for those that wait elsewhere: a step that was taken
    /// for lost may have taken it, or the one that let go of it was lost.
    pub(super) async fn let_go_of_lapsed(self: &Arc<Self>, session: SessionKey) {
        let holds = self.holds.of(&session);
        let _turn = holds.turn().await;
        let stream = StreamId::standalone();
        let cursor = Cursor::state_of(session, stream.clone());
        let Ok(Read::Page { state, .. }) = self.read_one("let go", cursor).await else {
            return;
        };
        let Some(holder) = state.holder.filter(|holder| holder.instance == self.me) else {
            return;
        };
        let follows = self.interests.follows(&session, &stream);
        if follows
            .iter()
            .any(|follow| follow.number() == holder.number)
        {
            return;
        }
        let last = state
            .holds
            .last()
            .filter(|last| last.number == holder.number);
        let began = last.map_or(state.top, |last| last.began);
        // Of a hold that no tail ever had nobody has read anything.
        let cursor = holds.lapsed(holder.number, began).unwrap_or(began);
        match self.let_go(&holds, session, holder.number, cursor).await {
            Ok(()) => self.wake_waiting(&session, &stream),
            Err(error) => tracing::debug!(%error, "a stream could not be let go of"),
        }
    }

    /// Lets go of a hold that has lapsed.
    pub(super) async fn let_go(
        &self,
        holds: &OfSession,
        session: SessionKey,
        number: u64,
        cursor: Position,
    ) -> Result<()> {
        let release = Hold::Release { number, cursor };
        self.hold(&session, &StreamId::standalone(), release)
            .await?;
        holds.settle(number);
        Ok(())
    }
}
