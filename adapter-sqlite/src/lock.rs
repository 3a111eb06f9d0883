//! The write lock of a file that many processes share.
//!
//! SQLite's own busy handler sleeps longer the longer it waits, so that a
//! process which writes without a pause starves all others. Here who has waited
//! long asks more often, and who writes without a pause makes one, if there
//! are others.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::error::{Done, SqliteError};

/// In this time a waiting process asks several times.
const PAUSE: Duration = Duration::from_micros(250);
/// So long a process may write without a pause.
const SPELL: Duration = Duration::from_millis(4);

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, never one of the runtime"
)]
pub(crate) fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// How long to wait before the lock is tried again.
fn pause(waited: Duration) -> Duration {
    let (least, most) = match waited.as_millis() {
        0..3 => (50, 150),
        3..1000 => (20, 60),
        // No process of ours writes for so long.
        _ => (2000, 6000),
    };
    Duration::from_micros(fastrand::u64(least..most))
}

/// Tries until it succeeds or the deadline has passed.
pub(crate) fn insist<T>(until: Instant, mut work: impl FnMut() -> Done<T>) -> Done<T> {
    let started = Instant::now();
    loop {
        match work() {
            Err(SqliteError::Locked) if Instant::now() < until => sleep(pause(started.elapsed())),
            done => return done,
        }
    }
}

/// Takes the write lock. Never a read that is to become a write: that fails at
/// once where somebody wrote in between.
pub(crate) fn begin(conn: &Connection, until: Instant) -> Done<()> {
    insist(until, || {
        let mut statement = conn.prepare_cached("BEGIN IMMEDIATE")?;
        statement.execute([])?;
        Ok(())
    })
}

/// Lets other processes write.
#[derive(Debug)]
pub(crate) struct Courtesy {
    since: Instant,
    /// Until when others are taken to be there.
    others: Option<Instant>,
}

impl Courtesy {
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            others: None,
        }
    }

    /// Somebody else writes to the file.
    pub(crate) fn met_others(&mut self) {
        self.others = Some(Instant::now() + Duration::from_secs(5));
    }

    /// The queue was empty: there was a pause.
    pub(crate) fn idle(&mut self) {
        self.since = Instant::now();
    }

    /// After a commit.
    pub(crate) fn give_way(&mut self) {
        let now = Instant::now();
        if self.others.is_some_and(|until| now < until) && now - self.since > SPELL {
            sleep(PAUSE);
            self.since = Instant::now();
        }
    }
}
