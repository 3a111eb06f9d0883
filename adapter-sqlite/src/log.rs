//! The log of all events, from an event to the one before it.

use bytes::Bytes;
use mcp_adapter_core::{
    Position,
    storage::{Cursor, StoredEvent},
};
use rusqlite::{Connection, OptionalExtension as _};

use crate::{
    error::Done,
    record::{Entry, Head},
};

/// One event, but for its payload. None where it is gone or cannot be read:
/// all before it is a gap then.
pub(crate) fn entry(conn: &Connection, id: i64) -> Done<Option<Entry>> {
    let mut statement = conn.prepare_cached("SELECT entry FROM mcp_event WHERE id = ?")?;
    let entry = statement
        .query_row([id], |row| {
            Ok(Entry::decode(id, row.get_ref(0)?.as_blob()?))
        })
        .optional()?;
    Ok(entry.flatten())
}

/// Visits the events of a stream, the newest first, as long as `visit` says.
/// What is linked to the last of them was evicted and waits for its removal.
pub(crate) fn walk(
    conn: &Connection,
    head: &Head,
    mut visit: impl FnMut(&Entry) -> bool,
) -> Done<()> {
    let mut left = head.count;
    if left == 0 {
        return Ok(());
    }
    linked(conn, head, |entry| {
        left = left.saturating_sub(1);
        visit(entry) && left > 0
    })
}

/// The same, and what was evicted and is still there.
pub(crate) fn linked(
    conn: &Connection,
    head: &Head,
    mut visit: impl FnMut(&Entry) -> bool,
) -> Done<()> {
    let mut next = head.last;
    while next > 0 {
        let Some(entry) = entry(conn, next)? else {
            return Ok(());
        };
        if !visit(&entry) {
            return Ok(());
        }
        next = entry.prev;
    }
    Ok(())
}

/// All that a stream keeps, the oldest first.
pub(crate) fn all(conn: &Connection, head: &Head) -> Done<Vec<Entry>> {
    let mut all = Vec::with_capacity(usize::try_from(head.count).unwrap_or(0));
    walk(conn, head, |entry| {
        all.push(entry.clone());
        true
    })?;
    all.reverse();
    Ok(all)
}

/// Whether the event at `position` is there.
pub(crate) fn has(conn: &Connection, head: &Head, position: Position) -> Done<bool> {
    let mut found = false;
    walk(conn, head, |entry| {
        found = entry.head.top == position;
        entry.head.top > position
    })?;
    Ok(found)
}

/// A page of a stream.
pub(crate) fn page(conn: &Connection, head: &Head, cursor: &Cursor) -> Done<Vec<StoredEvent>> {
    if cursor.max_events == 0 || cursor.after >= head.top {
        return Ok(Vec::new());
    }
    let mut newer = Vec::new();
    walk(conn, head, |entry| {
        let wanted = entry.head.top > cursor.after;
        if wanted {
            newer.push((entry.head.last, entry.head.top, entry.follows, entry.size));
        }
        wanted
    })?;
    let mut bytes = 0_u64;
    let mut page = Vec::new();
    let mut statement = conn.prepare_cached("SELECT data FROM mcp_event WHERE id = ?")?;
    for (id, position, prev, size) in newer.into_iter().rev().take(cursor.max_events) {
        // An empty event counts, too: only the first one is free.
        bytes += size.max(1);
        if !page.is_empty() && bytes > cursor.max_bytes as u64 {
            break;
        }
        let data = statement
            .query_row([id], |row| {
                Ok(Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?))
            })
            .optional()?;
        page.push(StoredEvent {
            position,
            prev,
            data,
        });
    }
    Ok(page)
}
