//! The one writing connection of a handle: transactions, and what is done in
//! each of them.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use mcp_adapter_core::{
    InstanceId, SessionKey,
    storage::{Generation, Knock, Target},
};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    cache::Cache,
    clock::{self, Time},
    doomed::Doomed,
    error::{Done, SqliteError},
    file::Seal,
    lock::{self, Courtesy},
    open::{self, Opened, Use},
    options::SqliteOptions,
    record,
    schema::History,
    tail::{Behind, Tail},
    worker::{Shared, Side},
};

/// Knocks at one door in one transaction, before one stands for all.
const KNOCKS: usize = 1024;

/// How the counts change with a transaction.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) sessions: i64,
    pub(crate) streams: i64,
    pub(crate) events: i64,
    pub(crate) bytes: i64,
    pub(crate) pending: i64,
}

struct Open {
    conn: Rc<Connection>,
    seal: Seal,
    history: History,
}

pub(crate) struct Writer {
    options: SqliteOptions,
    shared: Arc<Shared>,
    open: Option<Open>,
    pub(crate) tail: Tail,
    pub(crate) cache: Cache,
    pub(crate) doomed: Doomed,
    /// The last change that was read.
    changes: Option<i64>,
    pub(crate) now: Time,
    pub(crate) total: Total,
    knocks: Vec<(Option<InstanceId>, Vec<Knock>)>,
    pub(crate) courtesy: Courtesy,
}

impl Writer {
    pub(crate) fn new(options: SqliteOptions, shared: Arc<Shared>) -> Self {
        Self {
            options,
            shared,
            open: None,
            tail: Tail::default(),
            cache: Cache::default(),
            doomed: Doomed::default(),
            changes: None,
            now: 0,
            total: Total::default(),
            knocks: Vec::new(),
            courtesy: Courtesy::new(),
        }
    }

    /// The connection, which is open in every step.
    pub(crate) fn conn(&self) -> Done<Rc<Connection>> {
        let open = self.open.as_ref().ok_or(SqliteError::NoFile)?;
        Ok(Rc::clone(&open.conn))
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.open.as_ref().map_or(1, |open| open.history.epoch)
    }

    pub(crate) fn generation(&self) -> Done<Generation> {
        let open = self.open.as_ref().ok_or(SqliteError::NoFile)?;
        Ok(open.history.generation())
    }

    /// Heads and counts are in the tables after it.
    pub(crate) fn fold(&mut self) -> Done<()> {
        let conn = self.conn()?;
        self.tail.fold(&conn)
    }

    /// Tells other processes that what they remember of a session is out of
    /// date.
    pub(crate) fn tell(&mut self, session: i64) -> Done<()> {
        let conn = self.conn()?;
        conn.prepare_cached("INSERT INTO mcp_change(session) VALUES (?)")?
            .execute([session])?;
        self.changes = Some(conn.last_insert_rowid());
        Ok(())
    }

    /// The same, and forgets it here.
    pub(crate) fn change(&mut self, session: i64) -> Done<()> {
        self.cache.evict(session);
        self.tell(session)
    }

    pub(crate) fn wake(&mut self, door: InstanceId, session: SessionKey, target: Target) {
        self.knock(Some(door), Knock::Wake(session, target));
    }

    /// `None`: all doors.
    pub(crate) fn knock(&mut self, door: Option<InstanceId>, knock: Knock) {
        match self.knocks.iter_mut().find(|(at, _)| *at == door) {
            Some((_, knocks)) => knocks.push(knock),
            None => self.knocks.push((door, vec![knock])),
        }
    }

    fn write_knocks(&mut self, conn: &Connection) -> Done<()> {
        for (door, mut knocks) in std::mem::take(&mut self.knocks) {
            if knocks.len() > KNOCKS {
                knocks.retain(|knock| matches!(knock, Knock::Signal { .. }));
                knocks.push(Knock::Everything);
            }
            let door = door.map(|door| door.0.to_be_bytes());
            conn.prepare_cached("INSERT INTO mcp_knock(door, at, knocks) VALUES (?, ?, ?)")?
                .execute(params![door, self.now, record::knocks(&knocks)])?;
        }
        Ok(())
    }

    fn write_total(&mut self, conn: &Connection) -> Done<()> {
        let total = std::mem::take(&mut self.total);
        if total == Total::default() {
            return Ok(());
        }
        let sql = "UPDATE mcp_total SET sessions = sessions + ?, streams = streams + ?,
            events = events + ?, bytes = bytes + ?, pending = pending + ?";
        conn.prepare_cached(sql)?.execute(params![
            total.sessions,
            total.streams,
            total.events,
            total.bytes,
            total.pending
        ])?;
        Ok(())
    }

    /// What others have done since the last transaction.
    fn catch_up(&mut self, conn: &Connection) -> Done<()> {
        let Self { tail, cache, .. } = self;
        let mut others = false;
        let behind = tail.catch_up(conn, |entry| {
            others = true;
            cache.saw(entry);
        })?;
        match behind {
            Behind::No => {}
            Behind::Counts => cache.recount(),
            Behind::Lost => cache.clear(),
        }
        others |= !matches!(behind, Behind::No);
        let Some(former) = self.changes else {
            self.cache.clear();
            let last = "SELECT max(id) FROM mcp_change";
            let last: Option<i64> = conn.query_row(last, [], |row| row.get(0))?;
            self.changes = Some(last.unwrap_or(0));
            return Ok(());
        };
        let mut last = former;
        let mut statement =
            conn.prepare_cached("SELECT id, session FROM mcp_change WHERE id > ? ORDER BY id")?;
        let mut rows = statement.query([former])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            if id == last + 1 {
                self.cache.evict(row.get(1)?);
            } else {
                // Some are no longer kept.
                self.cache.clear();
            }
            last = id;
        }
        self.changes = Some(last);
        if others || last > former {
            self.courtesy.met_others();
        }
        Ok(())
    }

    /// The key of a session, by its row.
    pub(crate) fn key_of(&self, session: i64) -> Done<Option<SessionKey>> {
        let conn = self.conn()?;
        let mut statement = conn.prepare_cached("SELECT key FROM mcp_session WHERE id = ?")?;
        let key = statement
            .query_row([session], |row| {
                Ok(row.get_ref(0)?.as_blob()?.try_into().ok().map(SessionKey))
            })
            .optional()?;
        Ok(key.flatten())
    }
}

impl Side for Writer {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn seal(&self) -> Option<&Seal> {
        self.open.as_ref().map(|open| &open.seal)
    }

    fn connect(&mut self, create: bool) -> Done<()> {
        let Opened {
            conn,
            seal,
            history,
        } = open::open(&self.options, Use::Write, create)?;
        self.open = Some(Open {
            conn: Rc::new(conn),
            seal,
            history,
        });
        Ok(())
    }

    fn begin(&mut self, until: Instant) -> Done<()> {
        self.courtesy.give_way();
        let conn = self.conn()?;
        lock::begin(&conn, until)?;
        self.now = clock::now();
        self.doomed.begin();
        self.catch_up(&conn)
    }

    fn commit(&mut self) -> Done<()> {
        let conn = self.conn()?;
        if self.tail.is_full() || self.doomed.is_full() {
            self.tail.fold(&conn)?;
        }
        if self.doomed.is_full() {
            self.doomed.remove(&conn)?;
        }
        self.write_knocks(&conn)?;
        self.write_total(&conn)?;
        if let Some(open) = &self.open {
            open.seal.check()?;
        }
        conn.prepare_cached("COMMIT")?.execute([])?;
        let doomed = self.doomed.commit();
        self.shared.doomed.store(doomed, Ordering::Relaxed);
        Ok(())
    }

    fn abort(&mut self, error: &SqliteError) {
        if let Some(open) = &self.open
            && !open.conn.is_autocommit()
        {
            // Where it fails the connection is closed below, which undoes it.
            let _ = open.conn.execute_batch("ROLLBACK");
        }
        self.tail.forget();
        self.cache.clear();
        self.doomed.abort();
        self.changes = None;
        self.total = Total::default();
        self.knocks.clear();
        let broken = self
            .open
            .as_ref()
            .is_some_and(|open| !open.conn.is_autocommit());
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

    fn idle(&mut self) {
        self.courtesy.idle();
    }
}
