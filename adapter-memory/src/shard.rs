//! One lock's worth of sessions.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use mcp_adapter_core::{SessionKey, storage::NewSession};

use crate::{
    clock::Time,
    hash::BuildKeyHasher,
    principal::Principals,
    session::{Live, Session, Totals},
};

/// The sessions of one shard, densely stored, and when to look at each.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    sessions: IndexMap<SessionKey, Session, BuildKeyHasher>,
    /// Each session is listed exactly once, by [`Session::armed`] and its place
    /// in `sessions`. Use does not move it: who sweeps puts it where it belongs
    /// by then.
    due: BTreeSet<(Time, usize)>,
    totals: Totals,
}

/// A session that is there, with nothing in it past its deadline.
pub(crate) struct Entry<'a> {
    pub(crate) session: &'a mut Session,
    pub(crate) totals: &'a mut Totals,
    pub(crate) now: Time,
    principals: &'a Principals,
    due: &'a mut BTreeSet<(Time, usize)>,
    index: usize,
}

/// What one look at a shard's listing did.
pub(crate) enum Due {
    /// Nothing is past its deadline.
    Nothing,
    /// So many streams and requests were removed from a session.
    Purged(usize),
    /// A session has expired. It may be large: drop it outside the lock.
    Expired(Session),
}

impl Shard {
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn entry<'a>(
        &'a mut self,
        key: &SessionKey,
        now: Time,
        principals: &'a Principals,
    ) -> Option<Entry<'a>> {
        let index = self.sessions.get_index_of(key)?;
        if self.sessions[index].armed <= now {
            if self.sessions[index].deadline <= now {
                self.remove_at(index, principals);
                return None;
            }
            let mut entry = self.entry_at(index, now, principals)?;
            entry.purge(usize::MAX);
        }
        self.entry_at(index, now, principals)
    }

    pub(crate) fn entry_at<'a>(
        &'a mut self,
        index: usize,
        now: Time,
        principals: &'a Principals,
    ) -> Option<Entry<'a>> {
        let (_, session) = self.sessions.get_index_mut(index)?;
        Some(Entry {
            session,
            totals: &mut self.totals,
            now,
            principals,
            due: &mut self.due,
            index,
        })
    }

    /// The key of the session at `index`.
    pub(crate) fn key_at(&self, index: usize) -> Option<SessionKey> {
        self.sessions.get_index(index).map(|(key, _)| *key)
    }

    /// The caller knows that there is no such session.
    pub(crate) fn insert(&mut self, new: &NewSession, now: Time) {
        let session = Session::new(new, now);
        let armed = session.armed;
        let (index, _) = self.sessions.insert_full(new.session, session);
        self.due.insert((armed, index));
    }

    pub(crate) fn remove(&mut self, key: &SessionKey, principals: &Principals) -> Option<Session> {
        let index = self.sessions.get_index_of(key)?;
        self.remove_at(index, principals)
    }

    fn remove_at(&mut self, index: usize, principals: &Principals) -> Option<Session> {
        let (_, session) = self.sessions.swap_remove_index(index)?;
        self.due.remove(&(session.armed, index));
        // The last session has moved to the place of this one.
        if let Some((_, moved)) = self.sessions.get_index(index) {
            self.due.remove(&(moved.armed, self.sessions.len()));
            self.due.insert((moved.armed, index));
        }
        if let Some(live) = &session.live {
            self.totals.streams -= live.streams.len() as u64;
            self.totals.events -= live.events;
            self.totals.bytes -= live.bytes;
            self.totals.pending -= live.pending as u64;
            live.account.change(0, live.bytes);
            principals.close(&session.principal);
        }
        if self.sessions.len() < self.sessions.capacity() / 4 {
            let keep = self.sessions.len() * 2;
            self.sessions.shrink_to(keep);
        }
        Some(session)
    }

    /// Looks at the session that is due first, if one is.
    pub(crate) fn sweep(&mut self, now: Time, budget: usize, principals: &Principals) -> Due {
        let Some((_, index)) = self.due.first().copied().filter(|(due, _)| *due <= now) else {
            return Due::Nothing;
        };
        if self.sessions[index].deadline <= now {
            return self
                .remove_at(index, principals)
                .map_or(Due::Nothing, Due::Expired);
        }
        self.entry_at(index, now, principals)
            .map_or(Due::Nothing, |mut entry| Due::Purged(entry.purge(budget)))
    }
}

impl Entry<'_> {
    pub(crate) fn touch(&mut self) {
        self.session.touch(self.now);
    }

    /// Something in the session has a deadline at `due`.
    pub(crate) fn arm(&mut self, due: Time) {
        if due < self.session.armed {
            self.rearm(due);
        }
    }

    fn rearm(&mut self, due: Time) {
        self.due.remove(&(self.session.armed, self.index));
        self.session.armed = due;
        self.due.insert((due, self.index));
    }

    /// Streams and requests, made where there are none yet.
    pub(crate) fn live(&mut self) -> &mut Live {
        let Session {
            live, principal, ..
        } = &mut *self.session;
        live.get_or_insert_with(|| Box::new(Live::new(self.principals.open(principal))))
    }

    /// Bytes of the session's principal.
    pub(crate) fn principal_bytes(&self) -> u64 {
        match &self.session.live {
            Some(live) => live.account.bytes(),
            None => self.principals.bytes(&self.session.principal),
        }
    }

    fn purge(&mut self, budget: usize) -> usize {
        let mut removed = 0;
        let mut due = self.session.deadline;
        if let Some(live) = &mut self.session.live {
            removed = live.purge(self.now, budget, self.totals);
            due = due.min(live.due());
        }
        self.rearm(due);
        self.trim();
        removed
    }

    /// Gives the room for streams and requests back where there are none left.
    pub(crate) fn trim(&mut self) {
        if self
            .session
            .live
            .as_ref()
            .is_some_and(|live| live.is_empty())
        {
            self.session.live = None;
            self.principals.close(&self.session.principal);
        }
    }
}
