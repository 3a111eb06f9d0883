//! The end of the log that is not yet in the heads.
//!
//! An append writes its event to the log and nothing else. What it changes of
//! its stream, session and principal is in the event itself, and every process
//! keeps it in memory until somebody folds it into the tables: one write per
//! stream for many events. Up to where that was done is the mark. No event after
//! it is ever removed: each says what it adds, and all of them are counted or
//! none.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use crate::{
    clock::Time,
    error::Done,
    record::{Entry, Head},
};

/// Events after the mark, at most, but for one batch.
const FOLD: usize = 32_768;

/// What a session gained.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gain {
    pub(crate) at: Time,
    pub(crate) events: i64,
    pub(crate) bytes: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// Anything was read.
    known: bool,
    mark: i64,
    /// The last event that was read.
    end: i64,
    entries: usize,
    heads: HashMap<i64, Head>,
    sessions: HashMap<i64, Gain>,
    principals: HashMap<i64, i64>,
    events: i64,
    bytes: i64,
}

/// How far a process had fallen behind.
pub(crate) enum Behind {
    /// It has seen every event.
    No,
    /// Some of what others folded into the tables it has not counted.
    Counts,
    /// It has not seen all.
    Lost,
}

/// What has not been seen of foreign events, at most, before all that is
/// remembered is dropped.
const UNSEEN: i64 = 65_536;

impl Tail {
    /// Reads what others have written. To be done first in every transaction.
    pub(crate) fn catch_up(
        &mut self,
        conn: &Connection,
        mut seen: impl FnMut(&Entry),
    ) -> Done<Behind> {
        let mark: i64 = conn
            .prepare_cached("SELECT mark FROM mcp_total")?
            .query_row([], |row| row.get(0))?;
        let mut behind = Behind::No;
        let mut from = self.end;
        if mark != self.mark || !self.known {
            if !self.known || mark < self.end || mark - self.end > UNSEEN {
                behind = Behind::Lost;
                from = mark;
            } else if mark > self.end {
                behind = Behind::Counts;
            }
            *self = Self {
                known: true,
                mark,
                end: mark,
                ..Self::default()
            };
        }
        let mut statement =
            conn.prepare_cached("SELECT id, entry FROM mcp_event WHERE id > ? ORDER BY id")?;
        let mut rows = statement.query([from])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let entry = Entry::decode(id, row.get_ref(1)?.as_blob().unwrap_or_default());
            if id > mark {
                self.end = id;
            }
            // One that cannot be read shows as a gap to its readers.
            if let Some(entry) = entry {
                seen(&entry);
                if id > mark {
                    self.add(&entry);
                }
            }
        }
        Ok(behind)
    }

    /// The id of the next event.
    pub(crate) fn next(&self) -> i64 {
        self.end + 1
    }

    /// This process has written it, as the next one.
    pub(crate) fn push(&mut self, entry: &Entry) {
        self.end = entry.head.last;
        self.add(entry);
    }

    fn add(&mut self, entry: &Entry) {
        self.entries += 1;
        self.heads.insert(entry.stream, entry.head);
        let gain = self.sessions.entry(entry.session).or_default();
        gain.at = gain.at.max(entry.at);
        gain.events += entry.more();
        gain.bytes += entry.grew();
        *self.principals.entry(entry.principal).or_default() += entry.grew();
        self.events += entry.more();
        self.bytes += entry.grew();
    }

    pub(crate) fn head(&self, stream: i64) -> Option<Head> {
        self.heads.get(&stream).copied()
    }

    pub(crate) fn gain(&self, session: i64) -> Gain {
        self.sessions.get(&session).copied().unwrap_or_default()
    }

    /// Bytes that a principal gained.
    pub(crate) fn principal(&self, principal: i64) -> i64 {
        self.principals.get(&principal).copied().unwrap_or_default()
    }

    /// Events and bytes that came in and went.
    pub(crate) fn gained(&self) -> (i64, i64) {
        (self.events, self.bytes)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries >= FOLD
    }

    /// Writes all to the tables, in the order of their rows, so that each page
    /// is met once.
    pub(crate) fn fold(&mut self, conn: &Connection) -> Done<()> {
        if self.mark == self.end {
            return Ok(());
        }
        let mut heads: Vec<_> = self.heads.iter().collect();
        heads.sort_unstable_by_key(|(stream, _)| **stream);
        let mut write = conn.prepare_cached(
            "INSERT INTO mcp_head(stream, head) VALUES (?, ?)
             ON CONFLICT (stream) DO UPDATE SET head = excluded.head",
        )?;
        for (stream, head) in heads {
            write.execute(params![stream, head.encode()])?;
        }
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        sessions.sort_unstable_by_key(|(session, _)| **session);
        let mut write = conn.prepare_cached(
            "UPDATE mcp_used SET at = max(at, ?2), events = events + ?3, bytes = bytes + ?4
             WHERE session = ?1",
        )?;
        for (session, gain) in sessions {
            write.execute(params![session, gain.at, gain.events, gain.bytes])?;
        }
        let mut write =
            conn.prepare_cached("UPDATE mcp_principal SET bytes = bytes + ?2 WHERE id = ?1")?;
        for (principal, bytes) in &self.principals {
            write.execute(params![principal, bytes])?;
        }
        conn.prepare_cached(
            "UPDATE mcp_total SET mark = ?, events = events + ?, bytes = bytes + ?",
        )?
        .execute(params![self.end, self.events, self.bytes])?;
        *self = Self {
            known: true,
            mark: self.end,
            end: self.end,
            ..Self::default()
        };
        Ok(())
    }

    /// After a transaction that did not happen.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}
