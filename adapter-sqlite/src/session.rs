//! Sessions: their record, their beginning and their end.

use std::collections::BTreeSet;

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, PrincipalKey, SessionKey,
    storage::{Entered, NewSession, OpenStream, UpdateSession, Updated},
};
use rusqlite::params;

use crate::{
    clock::{NEVER, after, millis},
    error::Done,
    record,
    rows::{self, Session, Stream},
    writer::Writer,
};

/// How long a deleted session is remembered, in milliseconds: far longer than a
/// step waits for its turn.
const REMEMBERED: i64 = 120_000;
/// Creators of one key that are remembered: so many may be deleted within that time.
const CREATORS: i64 = 64;

impl Writer {
    pub(crate) fn create(&mut self, new: &NewSession) -> Done<bool> {
        let conn = self.conn()?;
        let creator = new.creator.0.to_be_bytes();
        let key = &new.session.0[..];
        if let Some(session) = Session::find(&conn, &self.tail, &new.session)? {
            if self.now < session.deadline() {
                let sql = "SELECT creator FROM mcp_session WHERE id = ?";
                let by: Vec<u8> = conn
                    .prepare_cached(sql)?
                    .query_row([session.id], |row| row.get(0))?;
                return Ok(by == creator);
            }
            self.remove_session(session.id)?;
        }
        let sql = "SELECT EXISTS (SELECT 1 FROM mcp_deleted
            WHERE key = ? AND creator = ? AND until > ?)";
        let late: bool = conn
            .prepare_cached(sql)?
            .query_row(params![key, creator, self.now], |row| row.get(0))?;
        if late {
            return Ok(false);
        }
        let principal = self.principal(&new.principal)?;
        let hard = new.absolute_ttl.map_or(NEVER, |ttl| after(self.now, ttl));
        let idle = millis(new.idle_ttl).max(1);
        let sql = "INSERT INTO mcp_session
            (key, principal, creator, born, idle, hard, revision, record)
            VALUES (?, ?, ?, ?, ?, ?, 1, ?)";
        conn.prepare_cached(sql)?.execute(params![
            key,
            principal,
            creator,
            self.epoch(),
            idle,
            hard,
            &new.record[..]
        ])?;
        let id = conn.last_insert_rowid();
        let due = self.now.saturating_add(idle).min(hard);
        let sql = "INSERT INTO mcp_used(session, at, events, bytes, due) VALUES (?, ?, 0, 0, ?)";
        conn.prepare_cached(sql)?
            .execute(params![id, self.now, due])?;
        self.total.sessions += 1;
        Ok(true)
    }

    /// The row of a principal who has one session more.
    fn principal(&self, key: &PrincipalKey) -> Done<i64> {
        let conn = self.conn()?;
        let sql = "INSERT INTO mcp_principal(key, sessions, bytes) VALUES (?, 1, 0)
            ON CONFLICT (key) DO UPDATE SET sessions = sessions + 1 RETURNING id";
        let mut statement = conn.prepare_cached(sql)?;
        Ok(statement.query_row([&key.0[..]], |row| row.get(0))?)
    }

    pub(crate) fn enter(
        &mut self,
        key: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Done<Entered> {
        let conn = self.conn()?;
        let Some(session) = Session::live(&conn, &self.tail, key, self.now)? else {
            return Ok(Entered::NoSession);
        };
        if rows::principal(&conn, principal)? != Some(session.principal) {
            return Ok(Entered::NoSession);
        }
        if let Some(open) = open
            && let Some(refused) = self.open_stream(&session, open)?
        {
            return Ok(refused);
        }
        self.touch(session.id)?;
        let mut statement =
            conn.prepare_cached("SELECT record, revision FROM mcp_session WHERE id = ?")?;
        Ok(statement.query_row([session.id], |row| {
            Ok(Entered::Session {
                record: Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?),
                revision: row.get::<_, i64>(1)?.cast_unsigned(),
            })
        })?)
    }

    /// Says why not, where a stream cannot be opened.
    fn open_stream(&mut self, session: &Session, open: &OpenStream) -> Done<Option<Entered>> {
        let conn = self.conn()?;
        let former = Stream::find(&conn, &self.tail, session.id, &open.stream)?;
        let expired = |stream: &Stream| stream.expires.is_some_and(|at| at <= self.now);
        if former.as_ref().is_some_and(|stream| !expired(stream)) {
            return Ok(None);
        }
        let sql = "SELECT count(*) FROM mcp_stream
            WHERE session = ? AND owner IS NOT NULL AND ended IS NULL";
        let running: i64 = conn
            .prepare_cached(sql)?
            .query_row([session.id], |row| row.get(0))?;
        if running.cast_unsigned() >= open.max_open as u64 {
            return Ok(Some(Entered::TooManyStreams));
        }
        let bytes: i64 = conn
            .prepare_cached("SELECT bytes FROM mcp_principal WHERE id = ?")?
            .query_row([session.principal], |row| row.get(0))?;
        let bytes = bytes + self.tail.principal(session.principal);
        if bytes.max(0).cast_unsigned() > open.max_principal_bytes {
            return Ok(Some(Entered::PrincipalQuota));
        }
        if let Some(former) = former {
            self.fold()?;
            self.remove_stream(&former)?;
        }
        let owner = open.owner.0.to_be_bytes();
        let sql = "INSERT INTO mcp_stream(session, name, owner, request, holder, number)
            VALUES (?, ?, ?, ?, ?, 1)";
        conn.prepare_cached(sql)?.execute(params![
            session.id,
            open.stream.as_str(),
            owner,
            record::rpc_id(&open.request),
            owner
        ])?;
        self.total.streams += 1;
        Ok(None)
    }

    pub(crate) fn update(&mut self, update: &UpdateSession) -> Done<Updated> {
        let conn = self.conn()?;
        let Some(session) = Session::live(&conn, &self.tail, &update.session, self.now)? else {
            return Ok(Updated::NoSession);
        };
        if rows::principal(&conn, &update.principal)? != Some(session.principal) {
            return Ok(Updated::NoSession);
        }
        let (revision, updates) = conn
            .prepare_cached("SELECT revision, updates FROM mcp_session WHERE id = ?")?
            .query_row([session.id], |row| {
                let updates = record::names(row.get_ref(1)?.as_blob()?);
                Ok((row.get::<_, i64>(0)?.cast_unsigned(), updates))
            })?;
        let mut updates = rows::readable(updates)?;
        if let Some(age) = updates.age(update.attempt) {
            return Ok(Updated::Done(revision.saturating_sub(age)));
        }
        if revision != update.revision {
            return Ok(Updated::Conflict);
        }
        updates.push(update.attempt);
        let made = revision + 1;
        let sql = "UPDATE mcp_session SET revision = ?, record = ?, updates = ? WHERE id = ?";
        conn.prepare_cached(sql)?.execute(params![
            made.cast_signed(),
            &update.record[..],
            updates.to_bytes(),
            session.id
        ])?;
        Ok(Updated::Done(made))
    }

    pub(crate) fn delete(
        &mut self,
        key: &SessionKey,
        principal: &PrincipalKey,
    ) -> Done<Option<Vec<InstanceId>>> {
        let conn = self.conn()?;
        let Some(session) = Session::live(&conn, &self.tail, key, self.now)? else {
            return Ok(None);
        };
        if rows::principal(&conn, principal)? != Some(session.principal) {
            return Ok(None);
        }
        let mut parties = BTreeSet::new();
        for stream in Stream::of_session(&conn, &self.tail, session.id)? {
            parties.extend(stream.owner.filter(|_| stream.end.is_none()));
            parties.extend(stream.holder);
        }
        let sql = "SELECT owner FROM mcp_request
            WHERE session = ? AND outcome IS NULL AND due > ?";
        let mut statement = conn.prepare_cached(sql)?;
        let owners =
            statement.query_map(params![session.id, self.now], |row| rows::instance(row, 0))?;
        for owner in owners {
            parties.extend(owner?);
        }
        let sql = "INSERT OR REPLACE INTO mcp_deleted(key, creator, until)
            SELECT key, creator, ? FROM mcp_session WHERE id = ?";
        conn.prepare_cached(sql)?
            .execute(params![self.now.saturating_add(REMEMBERED), session.id])?;
        let sql = "DELETE FROM mcp_deleted WHERE id IN
            (SELECT id FROM mcp_deleted WHERE key = ? ORDER BY id DESC LIMIT -1 OFFSET ?)";
        conn.prepare_cached(sql)?
            .execute(params![&key.0[..], CREATORS])?;
        self.remove_session(session.id)?;
        Ok(Some(parties.into_iter().collect()))
    }

    /// Removes a session with all that belongs to it. Its events are left to
    /// the sweep.
    pub(crate) fn remove_session(&mut self, session: i64) -> Done<()> {
        self.fold()?;
        let conn = self.conn()?;
        for stream in Stream::of_session(&conn, &self.tail, session)? {
            self.remove_stream_rows(&stream)?;
        }
        let sql = "SELECT count(*) FROM mcp_request WHERE session = ? AND outcome IS NULL";
        let pending: i64 = conn
            .prepare_cached(sql)?
            .query_row([session], |row| row.get(0))?;
        self.total.pending -= pending;
        conn.prepare_cached("DELETE FROM mcp_request WHERE session = ?")?
            .execute([session])?;
        let sql = "DELETE FROM mcp_used WHERE session = ? RETURNING events, bytes";
        let (events, bytes): (i64, i64) = conn
            .prepare_cached(sql)?
            .query_row([session], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.total.events -= events;
        self.total.bytes -= bytes;
        let sql = "DELETE FROM mcp_session WHERE id = ? RETURNING principal";
        let principal: i64 = conn
            .prepare_cached(sql)?
            .query_row([session], |row| row.get(0))?;
        let sql = "UPDATE mcp_principal SET sessions = sessions - 1, bytes = bytes - ?2
            WHERE id = ?1";
        conn.prepare_cached(sql)?
            .execute(params![principal, bytes])?;
        conn.prepare_cached("DELETE FROM mcp_principal WHERE id = ? AND sessions <= 0")?
            .execute([principal])?;
        self.total.sessions -= 1;
        self.change(session)
    }

    /// Removes a stream of a session that stays. Heads are folded before.
    pub(crate) fn remove_stream(&mut self, stream: &Stream) -> Done<()> {
        self.remove_stream_rows(stream)?;
        if stream.owner.is_none() {
            let conn = self.conn()?;
            conn.prepare_cached("UPDATE mcp_session SET gone = ?2 WHERE id = ?1 AND gone < ?2")?
                .execute(params![stream.session, stream.head.top.epoch])?;
        }
        let (events, bytes) = (
            stream.head.count.cast_signed(),
            stream.head.bytes.cast_signed(),
        );
        self.lose(stream.session, events, bytes)?;
        self.change(stream.session)
    }

    fn remove_stream_rows(&mut self, stream: &Stream) -> Done<()> {
        let conn = self.conn()?;
        if stream.head.last > 0 {
            conn.prepare_cached("INSERT INTO mcp_trash(last) VALUES (?)")?
                .execute([stream.head.last])?;
        }
        for sql in [
            "DELETE FROM mcp_stream WHERE id = ?",
            "DELETE FROM mcp_head WHERE stream = ?",
            "DELETE FROM mcp_writer WHERE stream = ?",
        ] {
            conn.prepare_cached(sql)?.execute([stream.id])?;
        }
        self.total.streams -= 1;
        Ok(())
    }

    /// So many events of a session are gone.
    pub(crate) fn lose(&mut self, session: i64, events: i64, bytes: i64) -> Done<()> {
        if events == 0 {
            return Ok(());
        }
        let conn = self.conn()?;
        let sql = "UPDATE mcp_used SET events = events - ?2, bytes = bytes - ?3 WHERE session = ?1";
        conn.prepare_cached(sql)?
            .execute(params![session, events, bytes])?;
        let sql = "UPDATE mcp_principal SET bytes = bytes - ?2
            WHERE id = (SELECT principal FROM mcp_session WHERE id = ?1)";
        conn.prepare_cached(sql)?.execute(params![session, bytes])?;
        self.total.events -= events;
        self.total.bytes -= bytes;
        Ok(())
    }
}
