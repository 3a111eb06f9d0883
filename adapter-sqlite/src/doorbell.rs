//! Wake-ups across processes: knocks lie in a table, and a write to the log of
//! the file says that there may be some.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::stream::BoxStream;
use mcp_adapter_core::{Error, InstanceId, Result, storage::Knock};
use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::{Done, SqliteError},
    file::Seal,
    open::{self, Opened, Use},
    options::SqliteOptions,
    record,
    watch::{LONGEST, Watch},
    worker::Shared,
};

/// Knocks that wait for this instance to read them.
const UNREAD: usize = 4096;
/// After a write, how long to look again and again: the pages of a commit are
/// written before it can be seen, and there is no second sign.
const LOOKS: [u64; 9] = [60, 120, 250, 500, 1000, 2000, 4000, 8000, 16_000];

fn failed(error: SqliteError) -> Error {
    error.into_error("doorbell", mcp_adapter_core::Applied::No)
}

/// Opens the door of `me`; a thread listens at it as long as the stream is there.
pub(crate) async fn open(
    options: &SqliteOptions,
    shared: &Arc<Shared>,
    me: InstanceId,
) -> Result<BoxStream<'static, Result<Knock>>> {
    let (bell, knocks) = mpsc::channel(UNREAD);
    let (ready, is_ready) = oneshot::channel();
    let (options, shared) = (options.clone(), Arc::clone(shared));
    let listen = move || {
        let mut listener = match Listener::open(&options, &shared, me) {
            Ok(listener) => listener,
            Err(error) => {
                // Nobody may be waiting any more.
                let _ = ready.send(Err(failed(error)));
                return;
            }
        };
        if ready.send(Ok(())).is_ok()
            && let Err(error) = listener.run(&bell)
        {
            let _ = bell.blocking_send(Err(failed(error)));
        }
    };
    std::thread::Builder::new()
        .name("mcp-sqlite-bell".into())
        .spawn(listen)
        .map_err(|error| failed(error.into()))?;
    match is_ready.await {
        Ok(ready) => ready?,
        Err(_) => return Err(failed(SqliteError::NoFile)),
    }
    Ok(Box::pin(futures::stream::unfold(
        knocks,
        |mut knocks| async move { Some((knocks.recv().await?, knocks)) },
    )))
}

struct Listener {
    conn: Connection,
    seal: Seal,
    watch: Watch,
    door: [u8; 16],
    /// The last knock that was read.
    last: i64,
    /// The state of the file when it was read, as SQLite counts it.
    version: i64,
    /// Some knocks found no room.
    dropped: bool,
}

impl Listener {
    fn open(options: &SqliteOptions, shared: &Arc<Shared>, me: InstanceId) -> Done<Self> {
        let create = shared.may_open(false)?;
        let Opened { conn, seal, .. } = open::open(options, Use::Listen, create)?;
        // Before the first look: what is written after it is noticed.
        let watch = Watch::new(seal.log(), options.watch);
        let last: Option<i64> =
            conn.query_row("SELECT max(id) FROM mcp_knock", [], |row| row.get(0))?;
        Ok(Self {
            conn,
            seal,
            watch,
            door: me.0.to_be_bytes(),
            last: last.unwrap_or(0),
            version: 0,
            dropped: false,
        })
    }

    fn run(&mut self, bell: &mpsc::Sender<Result<Knock>>) -> Done<()> {
        let mut checked = Instant::now();
        // Which of the looks after a write is next.
        let mut look = LOOKS.len();
        loop {
            let time = LOOKS
                .get(look)
                .copied()
                .map_or(LONGEST, Duration::from_micros);
            look = if self.watch.wait(time) { 0 } else { look + 1 };
            if bell.is_closed() {
                return Ok(());
            }
            if checked.elapsed() >= LONGEST {
                checked = Instant::now();
                self.seal.check()?;
            }
            if self.is_news()? {
                self.read(bell)?;
                // A commit more may be on its way.
                look = look.min(LOOKS.len() / 2);
            }
            look = look.min(LOOKS.len());
            if self.dropped && bell.try_send(Ok(Knock::Everything)).is_ok() {
                self.dropped = false;
            }
        }
    }

    /// Whether another connection has committed: costs two microseconds.
    fn is_news(&mut self) -> Done<bool> {
        let version = self
            .conn
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |row| row.get(0));
        match version {
            Ok(version) => {
                let news = version != self.version;
                self.version = version;
                Ok(news)
            }
            // The file is being recovered.
            Err(error) => match error.into() {
                SqliteError::Locked => Ok(false),
                error => Err(error),
            },
        }
    }

    fn read(&mut self, bell: &mpsc::Sender<Result<Knock>>) -> Done<()> {
        let sql = "SELECT id, door, knocks FROM mcp_knock WHERE id > ? ORDER BY id";
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(params![self.last])?;
        let mut last = self.last;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => match error.into() {
                    SqliteError::Locked => break,
                    error => return Err(error),
                },
            };
            let id: i64 = row.get(0)?;
            // Some were removed before they were read here.
            self.dropped |= id != last + 1;
            last = id;
            let door = row.get_ref(1)?.as_blob_or_null().unwrap_or(None);
            if door.is_some_and(|door| door != self.door) {
                continue;
            }
            for knock in record::read_knocks(row.get_ref(2)?.as_blob().unwrap_or_default()) {
                self.dropped |= bell.try_send(Ok(knock)).is_err();
            }
        }
        self.last = last;
        Ok(())
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_watched_unless_the_options_say_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(folder.path().join("mcp"));
        let shared = Arc::default();
        let watch = |options| {
            Listener::open(&options, &shared, InstanceId(1))
                .unwrap()
                .watch
        };
        let far = Duration::from_secs(30);
        // What it waits for is the log that SQLite writes.
        let watched = Listener::open(&options, &shared, InstanceId(1)).unwrap();
        let polled = watch(options.clone().poll_only());
        let writer = open::open(&options, Use::Write, false).unwrap().conn;
        writer
            .execute_batch("UPDATE mcp_total SET pending = 1")
            .unwrap();
        assert!(watched.watch.wait(far));
        assert!(!polled.wait(far));
    }
}
