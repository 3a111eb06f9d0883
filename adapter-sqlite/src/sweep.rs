//! Removing what has expired, and ending what belongs to the dead.

use std::time::Duration;

use mcp_adapter_core::{
    OutcomeKind, StreamId,
    storage::{Dead, Swept},
};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    clock::{Time, after},
    error::Done,
    log,
    rows::{Session, Stream},
    writer::Writer,
};

/// Events of streams that are gone, in one step.
const TRASH: usize = 2048;
/// How long knocks lie at their doors, in milliseconds: who comes later is told
/// that anything may have been written.
const KNOCKS: i64 = 10_000;
/// Changes that are remembered for processes that have not written for a while.
const CHANGES: i64 = 20_000;

/// Whether there is anything to sweep: asked without the write lock, every two
/// seconds by every process.
pub(crate) fn is_due(conn: &Connection, now: Time, dead: &[Dead]) -> Done<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM mcp_used WHERE due <= ?1)
        OR EXISTS (SELECT 1 FROM mcp_stream WHERE expires <= ?1)
        OR EXISTS (SELECT 1 FROM mcp_request WHERE due <= ?1)
        OR EXISTS (SELECT 1 FROM mcp_deleted WHERE until <= ?1)
        OR EXISTS (SELECT 1 FROM mcp_beat WHERE until <= ?1)
        OR EXISTS (SELECT 1 FROM mcp_trash)
        OR coalesce((SELECT at FROM mcp_knock WHERE id < (SELECT max(id) FROM mcp_knock)
            ORDER BY id LIMIT 1) <= ?2, 0)
        OR (SELECT coalesce(max(id), 0) - coalesce(min(id), 0) FROM mcp_change) > ?3";
    let due = conn
        .prepare_cached(sql)?
        .query_row(params![now, now - 2 * KNOCKS, 2 * CHANGES], |row| {
            row.get::<_, bool>(0)
        })?;
    if due {
        return Ok(true);
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM mcp_stream
            WHERE owner = ?1 AND ended IS NULL AND owner IS NOT NULL)
        OR EXISTS (SELECT 1 FROM mcp_request WHERE owner = ?1 AND outcome IS NULL)";
    let mut statement = conn.prepare_cached(sql)?;
    for dead in dead {
        if statement.query_row([dead.instance.0.to_be_bytes()], |row| row.get(0))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What one step may still do, and what it has done.
struct Budget {
    left: usize,
    removed: usize,
}

impl Budget {
    /// Something was looked at that is not removed yet.
    fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Something was removed, or ended because its owner is dead.
    fn remove(&mut self) {
        self.spend();
        self.removed += 1;
    }
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

impl Writer {
    pub(crate) fn sweep(
        &mut self,
        budget: usize,
        dead: &[Dead],
        finished_ttl: Duration,
    ) -> Done<Swept> {
        self.fold()?;
        let mut budget = Budget {
            left: budget,
            removed: 0,
        };
        let rearmed = self.sweep_sessions(&mut budget)?;
        self.sweep_streams(&mut budget)?;
        self.sweep_requests(&mut budget)?;
        self.sweep_notes()?;
        for dead in dead {
            if budget.left > 0 && self.is_dead(dead)? {
                self.bury(dead, after(self.now, finished_ttl), &mut budget)?;
            }
        }
        self.doomed.remove(&*self.conn()?)?;
        let trash = self.sweep_trash()?;
        Ok(Swept {
            removed: budget.removed,
            more: budget.left == 0 || rearmed || trash,
        })
    }

    fn ids(&self, sql: &str, limit: usize) -> Done<Vec<i64>> {
        let conn = self.conn()?;
        let mut statement = conn.prepare_cached(sql)?;
        let rows = statement.query_map(params![self.now, rows(limit)], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether there may be more although none was removed: use does not move
    /// what is listed, who sweeps does.
    fn sweep_sessions(&mut self, budget: &mut Budget) -> Done<bool> {
        let conn = self.conn()?;
        let sql = "SELECT session FROM mcp_used WHERE due <= ? ORDER BY due LIMIT ?";
        let due = self.ids(sql, budget.left)?;
        let all = due.len() == budget.left && budget.left > 0;
        for session in due {
            let Some(key) = self.key_of(session)? else {
                conn.prepare_cached("DELETE FROM mcp_used WHERE session = ?")?
                    .execute([session])?;
                continue;
            };
            let Some(row) = Session::find(&conn, &self.tail, &key)? else {
                continue;
            };
            if row.deadline() <= self.now {
                self.remove_session(session)?;
                budget.remove();
            } else {
                conn.prepare_cached("UPDATE mcp_used SET due = ? WHERE session = ?")?
                    .execute(params![row.deadline(), session])?;
            }
        }
        Ok(all)
    }

    fn sweep_streams(&mut self, budget: &mut Budget) -> Done<()> {
        let conn = self.conn()?;
        let sql = "SELECT id FROM mcp_stream WHERE expires <= ? ORDER BY expires LIMIT ?";
        for id in self.ids(sql, budget.left)? {
            if let Some(stream) = Stream::by_id(&conn, &self.tail, id)? {
                self.remove_stream(&stream)?;
                budget.remove();
            }
        }
        Ok(())
    }

    fn sweep_requests(&mut self, budget: &mut Budget) -> Done<()> {
        let conn = self.conn()?;
        let sql = "SELECT id FROM mcp_request WHERE due <= ? ORDER BY due LIMIT ?";
        for id in self.ids(sql, budget.left)? {
            self.time_out(id)?;
            // What has timed out just now is remembered for its time.
            let forgotten = conn
                .prepare_cached("DELETE FROM mcp_request WHERE id = ? AND due <= ?")?
                .execute(params![id, self.now])?;
            if forgotten == 0 {
                budget.spend();
            } else {
                budget.remove();
            }
        }
        Ok(())
    }

    /// The last knock and the last change stay: their ids must not come again.
    fn sweep_notes(&mut self) -> Done<()> {
        let conn = self.conn()?;
        for sql in [
            "DELETE FROM mcp_deleted WHERE id IN
                (SELECT id FROM mcp_deleted WHERE until <= ?1 LIMIT 512)",
            "DELETE FROM mcp_beat WHERE until <= ?1",
        ] {
            conn.prepare_cached(sql)?.execute([self.now])?;
        }
        let sql = "DELETE FROM mcp_knock WHERE id IN
            (SELECT id FROM mcp_knock ORDER BY id LIMIT 4096)
            AND at <= ?1 AND id < (SELECT max(id) FROM mcp_knock)";
        conn.prepare_cached(sql)?.execute([self.now - KNOCKS])?;
        let sql = "DELETE FROM mcp_change WHERE id IN
            (SELECT id FROM mcp_change ORDER BY id LIMIT 4096)
            AND id < (SELECT max(id) FROM mcp_change) - ?1";
        conn.prepare_cached(sql)?.execute([CHANGES])?;
        Ok(())
    }

    /// Removes events of streams that are gone. Whether there are more.
    fn sweep_trash(&mut self) -> Done<bool> {
        let conn = self.conn()?;
        let mut delete = conn.prepare_cached("DELETE FROM mcp_event WHERE id = ?")?;
        let mut left = TRASH;
        loop {
            let trash: Option<(i64, i64)> = conn
                .prepare_cached("SELECT id, last FROM mcp_trash ORDER BY id LIMIT 1")?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((id, mut last)) = trash else {
                return Ok(false);
            };
            while last > 0 && left > 0 {
                let entry = log::entry(&conn, last)?;
                delete.execute([last])?;
                left -= 1;
                last = entry.map_or(0, |entry| entry.prev);
            }
            if last > 0 {
                conn.prepare_cached("UPDATE mcp_trash SET last = ? WHERE id = ?")?
                    .execute([last, id])?;
                return Ok(true);
            }
            conn.prepare_cached("DELETE FROM mcp_trash WHERE id = ?")?
                .execute([id])?;
        }
    }

    fn bury(&mut self, dead: &Dead, expires: Time, budget: &mut Budget) -> Done<()> {
        let conn = self.conn()?;
        let owner = dead.instance.0.to_be_bytes();
        let sql = "SELECT id, name FROM mcp_stream
            WHERE owner = ? AND ended IS NULL AND owner IS NOT NULL LIMIT ?";
        let streams: Vec<(i64, String)> = conn
            .prepare_cached(sql)?
            .query_map(params![owner, rows(budget.left)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        for (id, name) in streams {
            let Some(stream) = Stream::by_id(&conn, &self.tail, id)? else {
                continue;
            };
            let key = self.key_of(stream.session)?;
            if let (Some(key), Ok(name)) = (key, name.parse::<StreamId>()) {
                self.lose_owner(&key, &name, &stream, expires)?;
                budget.remove();
            }
        }
        let sql = "SELECT id FROM mcp_request WHERE owner = ? AND outcome IS NULL LIMIT ?";
        let requests: Vec<i64> = conn
            .prepare_cached(sql)?
            .query_map(params![owner, rows(budget.left)], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for id in requests {
            self.end_request(id, OutcomeKind::OwnerLost, &[], None)?;
            budget.remove();
        }
        Ok(())
    }
}
