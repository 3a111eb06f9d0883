//! Events that were evicted and are to be removed.
//!
//! One by one, each removal would write a page of its own: what is evicted
//! together lies all over the log. Many at once, in the order of the log, share
//! their pages. Until then they are linked to what their stream keeps; should
//! this process end before, the next one that evicts from the stream, or removes
//! it, finds them there.

use rusqlite::Connection;

use crate::error::Done;

/// Events that wait, at most, but for one batch.
const EVENTS: usize = 8192;
/// Bytes of them.
const BYTES: u64 = 8 << 20;

#[derive(Debug, Default)]
pub(crate) struct Doomed {
    ids: Vec<i64>,
    bytes: u64,
    /// How many there were when the transaction began.
    begun: usize,
    /// All were removed in this transaction.
    removed: bool,
}

impl Doomed {
    pub(crate) fn push(&mut self, id: i64, bytes: u64) {
        self.ids.push(id);
        self.bytes += bytes;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.ids.len() >= EVENTS || self.bytes >= BYTES
    }

    /// Removes all. Heads are folded before: no event after the mark is ever
    /// removed.
    pub(crate) fn remove(&mut self, conn: &Connection) -> Done<()> {
        let mut ids = self.ids.clone();
        ids.sort_unstable();
        let mut delete = conn.prepare_cached("DELETE FROM mcp_event WHERE id = ?")?;
        for id in ids {
            delete.execute([id])?;
        }
        self.removed = true;
        Ok(())
    }

    pub(crate) fn begin(&mut self) {
        self.begun = self.ids.len();
        self.removed = false;
    }

    /// How many are left.
    pub(crate) fn commit(&mut self) -> usize {
        if self.removed {
            self.ids.clear();
            self.bytes = 0;
        }
        self.ids.len()
    }

    /// What was evicted in a transaction that did not happen is kept.
    pub(crate) fn abort(&mut self) {
        self.ids.truncate(self.begun);
        self.removed = false;
    }
}
