//! The schema, its version, and which history the file tells.

use std::time::{Duration, Instant};

use mcp_adapter_core::{InstanceId, storage::Generation};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    clock,
    error::{Done, SqliteError},
    file,
    lock::begin,
    options::Synchronous,
};

/// The schema of this version of the crate.
const VERSION: i64 = 2;

const SCHEMA: &str = include_str!("schema.sql");

/// From each version to the next, from 1 on.
const UPGRADES: [&str; 1] = [include_str!("upgrade_2.sql")];

/// "mcpa": what a file of our making says of itself.
const APPLICATION_ID: i32 = 0x6d63_7061;

/// The history of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    id: Vec<u8>,
    /// Shared streams go on in it.
    pub(crate) epoch: u32,
}

impl History {
    pub(crate) fn generation(&self) -> Generation {
        let mut name = String::from("sqlite-");
        for byte in &self.id {
            name += &format!("{byte:02x}");
        }
        Generation(format!("{name}-{}", self.epoch).into())
    }
}

struct Known {
    version: i64,
    history: History,
    inode: i64,
    boot: String,
    relaxed: bool,
}

/// What the file is now.
struct Here {
    inode: i64,
    boot: String,
    relaxed: bool,
}

impl Here {
    /// Whether the history of a file that was left so goes on: it is the same
    /// file, and nothing was lost with the system's memory.
    fn continues(&self, known: &Known) -> bool {
        let lost = known.relaxed && !known.boot.is_empty() && known.boot != self.boot;
        known.inode == self.inode && !lost
    }

    fn is_told_by(&self, known: &Known) -> bool {
        self.continues(known) && known.boot == self.boot && known.relaxed >= self.relaxed
    }
}

fn read(conn: &Connection) -> Done<Option<Known>> {
    let there =
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'mcp_file')";
    if !conn.query_row(there, [], |row| row.get::<_, bool>(0))? {
        return Ok(None);
    }
    // The one column that no version may rename.
    let version = conn
        .query_row("SELECT version FROM mcp_file", [], |row| row.get(0))
        .optional()?;
    let Some(version) = version else {
        return Ok(None);
    };
    if version > VERSION {
        return Err(SqliteError::NewerSchema {
            found: version,
            known: VERSION,
        });
    }
    let sql = "SELECT id, epoch, inode, boot, relaxed FROM mcp_file";
    Ok(Some(conn.query_row(sql, [], |row| {
        Ok(Known {
            version,
            history: History {
                id: row.get(0)?,
                epoch: row.get(1)?,
            },
            inode: row.get(2)?,
            boot: row.get(3)?,
            relaxed: row.get(4)?,
        })
    })?))
}

/// An epoch that no lost history can have used. Two restores of one copy within
/// an eighth of a second are told apart with a chance of one in 1024 to fail.
fn later_epoch(former: u32) -> u32 {
    const YEAR_2025: i64 = 1_735_689_600_000;
    let eighths = (clock::now() - YEAR_2025).max(0) / 125;
    let by_clock = u32::try_from(eighths).unwrap_or(u32::MAX - 1024);
    former
        .saturating_add(1 + fastrand::u32(..1024))
        .max(by_clock)
}

/// Brings the file to this version and tells its history. Safe at any number of
/// processes at once: all but one find it done.
pub(crate) fn prepare(
    conn: &Connection,
    inode: u64,
    synchronous: Synchronous,
    until: Instant,
) -> Done<History> {
    let here = Here {
        inode: inode.cast_signed(),
        boot: file::boot(),
        relaxed: synchronous != Synchronous::Full,
    };
    match read(conn)? {
        Some(known) if known.version == VERSION && here.is_told_by(&known) => {
            return Ok(known.history);
        }
        _ => {}
    }
    begin(conn, until)?;
    let history = migrate(conn, &here);
    let end = if history.is_ok() {
        "COMMIT"
    } else {
        "ROLLBACK"
    };
    conn.execute_batch(end)?;
    history
}

fn migrate(conn: &Connection, here: &Here) -> Done<History> {
    let Some(known) = read(conn)? else {
        return create(conn, here);
    };
    let done = usize::try_from(known.version - 1).map_err(|_| SqliteError::Corrupt)?;
    for upgrade in UPGRADES.iter().skip(done) {
        conn.execute_batch(upgrade)?;
    }
    let epoch = if here.continues(&known) {
        known.history.epoch
    } else {
        later_epoch(known.history.epoch)
    };
    // Without loss so far, a stricter way of writing counts from now on.
    let relaxed = here.relaxed || (known.relaxed && known.boot == here.boot);
    let sql = "UPDATE mcp_file SET version = ?, epoch = ?, inode = ?, boot = ?, relaxed = ?";
    conn.execute(sql, params![VERSION, epoch, here.inode, here.boot, relaxed])?;
    Ok(History {
        epoch,
        ..known.history
    })
}

fn create(conn: &Connection, here: &Here) -> Done<History> {
    let foreign: i64 =
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if foreign == 0 {
        conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    conn.execute_batch(SCHEMA)?;
    conn.execute("INSERT INTO mcp_total(one) VALUES (1)", [])?;
    let history = History {
        id: InstanceId::generate().0.to_be_bytes().to_vec(),
        epoch: later_epoch(0),
    };
    let sql = "INSERT INTO mcp_file(one, version, id, epoch, inode, boot, relaxed)
        VALUES (1, ?, ?, ?, ?, ?, ?)";
    conn.execute(
        sql,
        params![
            VERSION,
            history.id,
            history.epoch,
            here.inode,
            here.boot,
            here.relaxed
        ],
    )?;
    Ok(history)
}

/// How long the first process may keep the others waiting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
