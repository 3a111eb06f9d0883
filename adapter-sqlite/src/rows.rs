//! Sessions and streams as they are now: the tables, and the tail over them.

use std::rc::Rc;

use mcp_adapter_core::{
    InstanceId, Position, PrincipalKey, SessionKey, StreamId,
    storage::{HoldStart, Holder, StreamEnd, StreamState},
};
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row, params};

use crate::{
    clock::Time,
    error::{Done, SqliteError},
    record::{self, Head},
    tail::Tail,
};

/// A session.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: i64,
    pub(crate) principal: i64,
    pub(crate) born: u32,
    /// The last epoch of its shared stream that is gone, or 0.
    pub(crate) gone: u32,
    pub(crate) idle: Time,
    pub(crate) hard: Time,
    /// When it was used last.
    pub(crate) at: Time,
    pub(crate) bytes: i64,
}

impl Session {
    pub(crate) fn deadline(&self) -> Time {
        self.at.saturating_add(self.idle).min(self.hard)
    }

    /// As stored, whether it has expired or not.
    pub(crate) fn find(conn: &Connection, tail: &Tail, key: &SessionKey) -> Done<Option<Self>> {
        let mut statement = conn.prepare_cached(
            "SELECT s.id, s.principal, s.born, s.gone, s.idle, s.hard, u.at, u.bytes
             FROM mcp_session s JOIN mcp_used u ON u.session = s.id WHERE s.key = ?",
        )?;
        let session = statement
            .query_row([&key.0[..]], |row| {
                Ok(Self {
                    id: row.get(0)?,
                    principal: row.get(1)?,
                    born: row.get(2)?,
                    gone: row.get(3)?,
                    idle: row.get(4)?,
                    hard: row.get(5)?,
                    at: row.get(6)?,
                    bytes: row.get(7)?,
                })
            })
            .optional()?;
        Ok(session.map(|session| {
            let gain = tail.gain(session.id);
            Self {
                at: session.at.max(gain.at),
                bytes: session.bytes + gain.bytes,
                ..session
            }
        }))
    }

    /// One that is there for everybody.
    pub(crate) fn live(
        conn: &Connection,
        tail: &Tail,
        key: &SessionKey,
        now: Time,
    ) -> Done<Option<Self>> {
        let found = Self::find(conn, tail, key)?;
        Ok(found.filter(|session| now < session.deadline()))
    }
}

/// A stream.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) id: i64,
    pub(crate) session: i64,
    pub(crate) owner: Option<InstanceId>,
    pub(crate) cancelled: bool,
    pub(crate) end: Option<StreamEnd>,
    pub(crate) expires: Option<Time>,
    pub(crate) holder: Option<InstanceId>,
    /// The last number given to a holder.
    pub(crate) number: u64,
    /// Where the present hold began.
    pub(crate) began: Position,
    /// Where the last holder let go.
    pub(crate) released: Option<Position>,
    /// Of the shared stream: where its last holds began. An append copies the row,
    /// so this is shared.
    pub(crate) holds: Rc<[HoldStart]>,
    pub(crate) head: Head,
}

pub(crate) fn end_code(end: StreamEnd) -> i64 {
    match end {
        StreamEnd::Finished => 0,
        StreamEnd::OwnerLost => 1,
    }
}

fn column<T>(
    row: &Row<'_>,
    index: usize,
    read: impl Fn(&[u8]) -> Option<T>,
) -> rusqlite::Result<Option<T>> {
    let value = row.get_ref(index)?;
    let bytes = value.as_blob_or_null()?;
    bytes
        .map(|bytes| {
            read(bytes).ok_or_else(|| {
                rusqlite::Error::InvalidColumnType(index, String::new(), value.data_type())
            })
        })
        .transpose()
}

/// An instance in a column of its own.
pub(crate) fn instance(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<InstanceId>> {
    column(row, index, record::instance)
}

const STREAM: &str = "SELECT t.id, t.session, t.owner, t.cancelled, t.ended, t.expires, t.holder,
    t.number, t.began, t.released, t.holds, h.head
    FROM mcp_stream t LEFT JOIN mcp_head h ON h.stream = t.id WHERE ";

impl Stream {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let end: Option<i64> = row.get(4)?;
        Ok(Self {
            id: row.get(0)?,
            session: row.get(1)?,
            owner: instance(row, 2)?,
            cancelled: row.get(3)?,
            end: end.map(|end| match end {
                0 => StreamEnd::Finished,
                _ => StreamEnd::OwnerLost,
            }),
            expires: row.get(5)?,
            holder: instance(row, 6)?,
            number: row.get::<_, i64>(7)?.cast_unsigned(),
            began: column(row, 8, record::read_position)?.unwrap_or(Position::START),
            released: column(row, 9, record::read_position)?,
            holds: column(row, 10, record::read_holds)?
                .unwrap_or_default()
                .into(),
            head: column(row, 11, Head::decode)?.unwrap_or_default(),
        })
    }

    fn prepare<'a>(conn: &'a Connection, by: &str) -> Done<CachedStatement<'a>> {
        Ok(conn.prepare_cached(&format!("{STREAM}{by}"))?)
    }

    fn over(tail: &Tail, stream: Option<Self>) -> Option<Self> {
        stream.map(|mut stream| {
            stream.head = tail.head(stream.id).unwrap_or(stream.head);
            stream
        })
    }

    /// As stored, whether it has expired or not.
    pub(crate) fn find(
        conn: &Connection,
        tail: &Tail,
        session: i64,
        name: &StreamId,
    ) -> Done<Option<Self>> {
        let mut statement = Self::prepare(conn, "t.session = ? AND t.name = ?")?;
        let stream = statement
            .query_row(params![session, name.as_str()], Self::read)
            .optional()?;
        Ok(Self::over(tail, stream))
    }

    /// One that is there for everybody.
    pub(crate) fn live(
        conn: &Connection,
        tail: &Tail,
        session: i64,
        name: &StreamId,
        now: Time,
    ) -> Done<Option<Self>> {
        let found = Self::find(conn, tail, session, name)?;
        Ok(found.filter(|stream| stream.expires.is_none_or(|expires| now < expires)))
    }

    pub(crate) fn by_id(conn: &Connection, tail: &Tail, id: i64) -> Done<Option<Self>> {
        let mut statement = Self::prepare(conn, "t.id = ?")?;
        let stream = statement.query_row([id], Self::read).optional()?;
        Ok(Self::over(tail, stream))
    }

    pub(crate) fn of_session(conn: &Connection, tail: &Tail, session: i64) -> Done<Vec<Self>> {
        let mut statement = Self::prepare(conn, "t.session = ?")?;
        let rows = statement.query_map([session], Self::read)?;
        let rows: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
        Ok(rows
            .into_iter()
            .filter_map(|stream| Self::over(tail, Some(stream)))
            .collect())
    }

    pub(crate) fn state(&self) -> StreamState {
        StreamState {
            top: self.head.top,
            oldest: self.head.oldest,
            end: self.end,
            owner: self.owner,
            holder: self.held_by(),
            cancelled: self.cancelled,
            holds: self.holds.to_vec(),
        }
    }

    pub(crate) fn held_by(&self) -> Option<Holder> {
        self.holder.map(|instance| Holder {
            instance,
            number: self.number,
        })
    }
}

/// The row of a principal.
pub(crate) fn principal(conn: &Connection, key: &PrincipalKey) -> Done<Option<i64>> {
    let mut statement = conn.prepare_cached("SELECT id FROM mcp_principal WHERE key = ?")?;
    Ok(statement
        .query_row([&key.0[..]], |row| row.get(0))
        .optional()?)
}

/// A blob that must be readable.
pub(crate) fn readable<T>(value: Option<T>) -> Done<T> {
    value.ok_or(SqliteError::Corrupt)
}
