//! The reading connection of a handle: it never waits for a writer, and no
//! snapshot outlives a step, so that the log can be copied into the file.

use std::{rc::Rc, sync::Arc, time::Instant};

use mcp_adapter_core::{
    Count, Stats,
    storage::{Cursor, Read, RequestKey, RequestState},
};
use rusqlite::Connection;

use crate::{
    clock::{self, Time},
    error::{Done, SqliteError},
    file::Seal,
    lock::insist,
    log,
    open::{self, Opened, Use},
    options::SqliteOptions,
    request,
    rows::{Session, Stream},
    tail::Tail,
    worker::{Shared, Side},
};

pub(crate) struct Reader {
    options: SqliteOptions,
    shared: Arc<Shared>,
    open: Option<(Rc<Connection>, Seal)>,
    tail: Tail,
    now: Time,
}

impl Reader {
    pub(crate) fn new(options: SqliteOptions, shared: Arc<Shared>) -> Self {
        Self {
            options,
            shared,
            open: None,
            tail: Tail::default(),
            now: 0,
        }
    }

    pub(crate) fn conn(&self) -> Done<Rc<Connection>> {
        let open = self.open.as_ref().ok_or(SqliteError::NoFile)?;
        Ok(Rc::clone(&open.0))
    }

    pub(crate) fn now(&self) -> Time {
        self.now
    }

    pub(crate) fn read(&mut self, cursors: &[Cursor]) -> Done<Vec<Read>> {
        cursors.iter().map(|cursor| self.read_one(cursor)).collect()
    }

    fn read_one(&self, cursor: &Cursor) -> Done<Read> {
        let conn = self.conn()?;
        let Some(session) = Session::live(&conn, &self.tail, &cursor.session, self.now)? else {
            return Ok(Read::NoSession);
        };
        let stream = Stream::live(&conn, &self.tail, session.id, &cursor.stream, self.now)?;
        let Some(stream) = stream else {
            return Ok(Read::NoStream);
        };
        Ok(Read::Page {
            events: log::page(&conn, &stream.head, cursor)?,
            state: stream.state(),
        })
    }

    pub(crate) fn requests(&mut self, keys: &[RequestKey]) -> Done<Vec<RequestState>> {
        let conn = self.conn()?;
        keys.iter()
            .map(|key| request::state(&conn, &self.tail, key, self.now))
            .collect()
    }

    /// What was in a session that has expired is counted until that is swept.
    pub(crate) fn stats(&mut self) -> Done<Stats> {
        let conn = self.conn()?;
        let sql = "SELECT sessions, streams, events, bytes, pending FROM mcp_total";
        let mut counts = conn.prepare_cached(sql)?.query_row([], |row| {
            Ok([
                row.get::<_, i64>(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ])
        })?;
        counts[0] -= self.expired(&conn)?;
        let (events, bytes) = self.tail.gained();
        counts[2] += events;
        counts[3] += bytes;
        Ok(Stats::new(counts.map(|count| Count::Estimate {
            value: count.max(0).cast_unsigned(),
            age: self.options.limits.heartbeat(),
        })))
    }

    /// Sessions that have expired and were not swept yet: swept every two
    /// seconds, they are few.
    fn expired(&self, conn: &Connection) -> Done<i64> {
        let sql = "SELECT u.session, u.at, s.idle, s.hard
            FROM mcp_used u JOIN mcp_session s ON s.id = u.session WHERE u.due <= ?";
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query([self.now])?;
        let mut expired = 0;
        while let Some(row) = rows.next()? {
            let at = row.get::<_, Time>(1)?.max(self.tail.gain(row.get(0)?).at);
            let deadline = at.saturating_add(row.get(2)?).min(row.get(3)?);
            expired += i64::from(deadline <= self.now);
        }
        Ok(expired)
    }
}

impl Side for Reader {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn seal(&self) -> Option<&Seal> {
        self.open.as_ref().map(|(_, seal)| seal)
    }

    fn connect(&mut self, create: bool) -> Done<()> {
        let Opened { conn, seal, .. } = open::open(&self.options, Use::Read, create)?;
        self.open = Some((Rc::new(conn), seal));
        Ok(())
    }

    fn begin(&mut self, until: Instant) -> Done<()> {
        let conn = self.conn()?;
        conn.prepare_cached("BEGIN")?.execute([])?;
        self.now = clock::now();
        // The first read takes the snapshot; it waits only where the file is
        // being recovered.
        insist(until, || {
            self.tail.catch_up(&conn, |_| {})?;
            Ok(())
        })
    }

    fn commit(&mut self) -> Done<()> {
        self.conn()?.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    fn abort(&mut self, error: &SqliteError) {
        if let Some((conn, _)) = &self.open
            && !conn.is_autocommit()
        {
            // Where it fails the connection is closed below.
            let _ = conn.execute_batch("ROLLBACK");
        }
        self.tail.forget();
        let broken = self
            .open
            .as_ref()
            .is_some_and(|(conn, _)| !conn.is_autocommit());
        match error {
            SqliteError::Replaced | SqliteError::NoFile => {
                self.shared.lose();
                self.open = None;
            }
            SqliteError::Sqlite(_) | SqliteError::NotADatabase | SqliteError::Io(_) => {
                self.open = None;
            }
            _ if broken => self.open = None,
            _ => {}
        }
    }
}
