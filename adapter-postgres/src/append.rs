//! Appends: a batch is one statement.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use mcp_adapter_core::{
    Applied, Error, ErrorKind, InstanceId, Position, Result, SessionKey, StreamId,
    storage::{Append, Appended, Knock, Place, StreamEnd, Target, Usage},
};
use sqlx::postgres::{PgDatabaseError, PgRow};
use tokio::time::Instant;

use crate::{
    bell::{self, Wakes},
    call::{Given, all, bits, count, get, index, micros, odd, position},
    codec,
    error::{LEASE_IS_OVER, breaks_connection, code, is_queue_full},
    known::{Lease, lasts},
    pool::Who,
    storage::{Inner, queue_is_full},
};

/// A batch, divided by how much the database has to look at.
#[derive(Debug, Default)]
struct Division {
    /// To streams that this instance has the lease of: in the order of their
    /// numbers.
    quick: Vec<(usize, Lease)>,
    /// All others, in the order of their sessions.
    careful: Vec<usize>,
}

fn end_number(end: StreamEnd) -> i16 {
    match end {
        StreamEnd::Finished => 1,
        StreamEnd::OwnerLost => 2,
    }
}

fn data(append: &Append) -> Option<&[u8]> {
    append.event.as_ref().map(|event| &event.data[..])
}

fn size(append: &Append) -> i64 {
    count(data(append).map_or(0, <[u8]>::len))
}

fn writer(append: &Append) -> InstanceId {
    match append.place {
        Place::Owned { owner, .. } => owner,
        Place::Shared { writer, .. } => writer,
    }
}

fn key(append: &Append) -> (SessionKey, StreamId) {
    (append.session, append.stream.clone())
}

/// The place of an append that may go the quick way, as far as it alone can tell.
fn plain(append: &Append) -> Option<Position> {
    let event = append.event.as_ref()?;
    match append.place {
        // The first of an epoch says what it follows.
        Place::Owned { position, .. } if event.prev.is_none() => Some(position),
        _ => None,
    }
}

impl Inner {
    pub(crate) async fn append(self: &Arc<Self>, batch: &[Append]) -> Result<Vec<Appended>> {
        if self.known.is_due() {
            self.write_counts().await?;
        }
        let mut division = self.divide(batch);
        let mut later = bell::wakes(batch);
        let mut first = self.bell.first(&mut later);
        // Each remedy helps once; beyond that the engine repeats.
        for _ in 0..4 {
            let (sql, given) = self.append_call(batch, &division, &first);
            let quick = division.quick.iter();
            self.known.lend(quick.map(|(index, _)| key(&batch[*index])));
            let sent = Instant::now();
            let error = match self.look("append", Who::Engine, sql, given).await? {
                Ok(rows) => {
                    self.ring_soon(later);
                    let rows = if division.is_quick(batch) {
                        &[]
                    } else {
                        &rows[..]
                    };
                    return self.appended(batch, &division, sent, rows);
                }
                Err(error) => error,
            };
            let refused = code(&error);
            if refused.is_some() && !breaks_connection(&error) {
                // Nothing was done: no lease is in doubt.
                for (index, _) in &division.quick {
                    self.known.forget(&key(&batch[*index]));
                }
            }
            match refused.as_deref() {
                // A lease is over, or the place is taken.
                Some(LEASE_IS_OVER | "23505") => {
                    metrics::counter!("mcp_adapter_postgres_leases_over_total").increment(1);
                    division.turn_careful(batch, &streams_of(&error));
                }
                Some(_) if !first.is_empty() && is_queue_full(&error) => {
                    queue_is_full(&error);
                    first.clear();
                }
                _ => return Err(self.failed("append", error)),
            }
        }
        Err(Error::unavailable("append", Applied::No)
            .with_message("the batch was refused although it was sent with all checks"))
    }

    /// A stream goes the quick way with all of its entries or with none: their
    /// order is that of the batch.
    fn divide(&self, batch: &[Append]) -> Division {
        /// The lease, the last place so far, and whether the stream has ended.
        type State = (Option<Lease>, Position, bool);
        let mut streams: HashMap<(SessionKey, &StreamId), State> = HashMap::new();
        for append in batch {
            let (lease, last, ended) = streams
                .entry((append.session, &append.stream))
                .or_insert_with(|| {
                    let lease = self.known.lease(&key(append));
                    (lease, lease.map_or(Position::START, |l| l.last), false)
                });
            match plain(append) {
                Some(position) if position > *last && !*ended => *last = position,
                _ => *lease = None,
            }
            *ended = append.finish.is_some();
        }
        let mut division = Division::default();
        for (index, append) in batch.iter().enumerate() {
            match streams.get(&(append.session, &append.stream)) {
                Some((Some(lease), ..)) => division.quick.push((index, *lease)),
                _ => division.careful.push(index),
            }
        }
        // Stable: the order within a stream stays.
        division.quick.sort_by_key(|(_, lease)| lease.id);
        division.sort_careful(batch);
        division
    }

    fn append_call(
        &self,
        batch: &[Append],
        division: &Division,
        first: &Wakes,
    ) -> (&Arc<str>, Given) {
        let owned = batch
            .iter()
            .filter(|append| matches!(append.place, Place::Owned { .. }));
        let writers: BTreeSet<_> = owned.map(writer).collect();
        let locks: BTreeSet<_> = writers.into_iter().map(|it| self.lock_of(it)).collect();
        let given = Given::new().bind(locks.into_iter().collect::<Vec<_>>());
        let quick = division.quick.iter();
        let quick: Vec<_> = quick
            .map(|(index, lease)| (&batch[*index], *lease))
            .collect();
        let (doors, payloads) = payloads(first);
        if division.is_quick(batch) {
            let given = bind_quick(given, &quick).bind(doors).bind(payloads);
            return (&self.functions().append_quick, given);
        }
        let careful = division.careful.iter();
        let careful: Vec<_> = careful.map(|index| &batch[*index]).collect();
        let alone = |append: &&Append| self.known.is_in_doubt(&key(append));
        let attached = self.attached.lock().clone();
        let (incarnation, lsn) =
            attached.map_or((None, 0), |known| (Some(known.incarnation), known.lsn));
        let given = given
            .bind(careful.iter().any(alone))
            .bind(incarnation)
            .bind(lsn);
        let given = bind_ends(bind_quick(given, &quick), &quick);
        let given = bind_careful(given, &careful).bind(doors).bind(payloads);
        (&self.functions().append, given)
    }

    fn appended(
        &self,
        batch: &[Append],
        division: &Division,
        sent: Instant,
        rows: &[PgRow],
    ) -> Result<Vec<Appended>> {
        const OPERATION: &str = "append";
        let mut answers = vec![None; batch.len()];
        for (index, lease) in &division.quick {
            let append = &batch[*index];
            self.known.add(append.session, 1, size(append));
            let Some(position) = plain(append) else {
                continue;
            };
            if append.finish.is_some() {
                self.known.forget(&key(append));
            } else {
                let lease = Lease {
                    last: position,
                    ..*lease
                };
                self.known.remember(key(append), lease);
            }
            answers[*index] = Some(Appended::Stored {
                position,
                holder: lease.holder,
                usage: Usage::default(),
                // A place that was taken would have failed the batch.
                repeat: false,
            });
        }
        let mut last = None;
        for row in rows {
            if get::<i16>(OPERATION, row, 0)? == 0 {
                let number = get(OPERATION, row, 1)?;
                let at = division.careful[index(OPERATION, number, division.careful.len())?];
                answers[at] = Some(self.careful(&batch[at], sent, row)?);
                last = Some(at);
                continue;
            }
            // Trimmed: of the careful one before, or of a stream by number.
            let id: Option<i64> = get(OPERATION, row, 6)?;
            let at = match get::<i16>(OPERATION, row, 2)? {
                1 => last,
                _ => {
                    let mut quick = division.quick.iter();
                    quick
                        .find(|(_, lease)| Some(lease.id) == id)
                        .map(|(at, _)| *at)
                }
            };
            let session = batch[at.ok_or_else(|| odd(OPERATION))?].session;
            let events: i64 = get(OPERATION, row, 4)?;
            let bytes: i64 = get(OPERATION, row, 8)?;
            self.known.add(session, -events, -bytes);
        }
        for (answer, append) in answers.iter_mut().zip(batch) {
            if let Some(Appended::Stored { usage, .. }) = answer {
                usage.session_bytes = self.known.session_bytes(&append.session);
            }
        }
        all(OPERATION, answers)
    }

    fn careful(&self, append: &Append, sent: Instant, row: &PgRow) -> Result<Appended> {
        const OPERATION: &str = "append";
        let code: i16 = get(OPERATION, row, 2)?;
        match code {
            0 | 5 => {}
            refused => {
                self.known.forget(&key(append));
                return match refused {
                    1 => Ok(Appended::Fenced),
                    2 => Ok(Appended::Finished),
                    3 => Ok(Appended::NoStream),
                    4 => Ok(Appended::NoSession),
                    _ => Err(odd(OPERATION)),
                };
            }
        }
        let at = position(OPERATION, get(OPERATION, row, 3)?, get(OPERATION, row, 4)?)?;
        let holder: Option<&[u8]> = get(OPERATION, row, 5)?;
        if let Some(bytes) = get::<Option<i64>>(OPERATION, row, 8)? {
            self.known.read_bytes(append.session, bytes);
        }
        if code == 0 && append.event.is_some() {
            self.known.add(append.session, 1, size(append));
        }
        let at = at.ok_or_else(|| odd(OPERATION))?;
        let holder = holder.and_then(codec::instance);
        let fresh: Option<i64> = get(OPERATION, row, 9)?;
        match (append.place, fresh) {
            // After a repeat the last place is not known.
            (Place::Owned { .. }, Some(fresh)) if code == 0 => {
                let lease = Lease {
                    id: get(OPERATION, row, 6)?,
                    fresh,
                    until: lasts(sent, get(OPERATION, row, 7)?),
                    last: at,
                    holder,
                };
                self.known.remember(key(append), lease);
            }
            _ => self.known.forget(&key(append)),
        }
        Ok(Appended::Stored {
            position: at,
            holder,
            usage: Usage::default(),
            repeat: code == 5,
        })
    }

    /// Writes what is not counted yet; names sessions that have too much.
    pub(crate) async fn write_counts(&self) -> Result<Vec<SessionKey>> {
        const OPERATION: &str = "count";
        let deltas = self.known.take();
        let mut over = Vec::new();
        if deltas.is_empty() {
            return Ok(over);
        }
        let column =
            |of: fn(&crate::known::Delta) -> i64| -> Vec<_> { deltas.iter().map(of).collect() };
        let given = Given::new()
            .bind(
                deltas
                    .iter()
                    .map(|delta| delta.session.0)
                    .collect::<Vec<_>>(),
            )
            .bind(column(|delta| delta.events))
            .bind(column(|delta| delta.bytes));
        let sql = &self.functions().account;
        match self.run(OPERATION, Who::Engine, sql, given).await {
            Ok(rows) => {
                for row in &rows {
                    let key: [u8; 32] = get(OPERATION, row, 0)?;
                    let bytes: i64 = get(OPERATION, row, 1)?;
                    self.known.read_bytes(SessionKey(key), bytes);
                    if bytes > count(self.place.session_bytes) {
                        over.push(SessionKey(key));
                    }
                }
                Ok(over)
            }
            Err(error) => {
                // Counted twice is worse than counted late, or not at all.
                if error.applied() == Applied::No {
                    for delta in deltas {
                        self.known.add(delta.session, delta.events, delta.bytes);
                    }
                }
                if error.kind() == ErrorKind::Corrupt {
                    return Err(error);
                }
                tracing::debug!(%error, "counts of sessions could not be written");
                Ok(over)
            }
        }
    }
}

impl Division {
    /// Nothing has to be looked at, ended or trimmed.
    fn is_quick(&self, batch: &[Append]) -> bool {
        let mut quick = self.quick.iter().map(|(index, _)| &batch[*index]);
        self.careful.is_empty()
            && quick.all(|append| append.finish.is_none() && append.trim.is_none())
    }

    /// The order in which all batches take their sessions.
    fn sort_careful(&mut self, batch: &[Append]) {
        self.careful.sort_by(|one, other| {
            let key = |index: &usize| (&batch[*index].session, &batch[*index].stream, *index);
            key(one).cmp(&key(other))
        });
    }

    /// Sends these streams, or all where none is named, with all checks.
    fn turn_careful(&mut self, batch: &[Append], streams: &[i64]) {
        let Self { quick, careful } = self;
        quick.retain(|(index, lease)| {
            let stays = !streams.is_empty() && !streams.contains(&lease.id);
            if !stays {
                careful.push(*index);
            }
            stays
        });
        self.sort_careful(batch);
    }
}

/// The streams that an error names.
fn streams_of(error: &sqlx::Error) -> Vec<i64> {
    let error = error.as_database_error();
    let error = error.and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    let named = error.filter(|error| error.code() == LEASE_IS_OVER);
    let numbers = named.and_then(PgDatabaseError::detail).unwrap_or_default();
    numbers
        .split(' ')
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn bind_quick(given: Given, quick: &[(&Append, Lease)]) -> Given {
    let at = |append: &Append| plain(append).unwrap_or(Position::START);
    let mut leases: Vec<_> = quick
        .iter()
        .map(|(_, lease)| (lease.id, lease.fresh))
        .collect();
    leases.dedup();
    let column = |of: fn(&Lease, Position) -> i64| -> Vec<_> {
        let each = quick.iter();
        each.map(|(append, lease)| of(lease, at(append))).collect()
    };
    let data: Vec<_> = quick.iter().map(|(append, _)| data(append)).collect();
    given
        .bind(leases.iter().map(|lease| lease.0).collect::<Vec<_>>())
        .bind(leases.iter().map(|lease| lease.1).collect::<Vec<_>>())
        .bind(column(|lease, _| lease.id))
        .bind(column(|_, at| i64::from(at.epoch)))
        .bind(column(|_, at| bits(at.seq)))
        .bind(data)
}

/// What of them ends its stream, and what trims it.
fn bind_ends(given: Given, quick: &[(&Append, Lease)]) -> Given {
    let entries = || quick.iter();
    let at = |append: &Append| plain(append).unwrap_or(Position::START);
    let ends = || entries().filter(|(append, _)| append.finish.is_some());
    let trims = || entries().filter_map(|(append, lease)| Some((lease.id, append.trim?)));
    given
        .bind(ends().map(|(_, lease)| lease.id).collect::<Vec<_>>())
        .bind(
            ends()
                .map(|(append, _)| i64::from(at(append).epoch))
                .collect::<Vec<_>>(),
        )
        .bind(
            ends()
                .map(|(append, _)| bits(at(append).seq))
                .collect::<Vec<_>>(),
        )
        .bind(
            ends()
                .map(|(append, _)| end_number(append.end))
                .collect::<Vec<_>>(),
        )
        .bind(
            ends()
                .map(|(append, _)| append.finish.map(micros))
                .collect::<Vec<_>>(),
        )
        .bind(trims().map(|(id, _)| id).collect::<Vec<_>>())
        .bind(
            trims()
                .map(|(_, trim)| i64::from(trim.epoch))
                .collect::<Vec<_>>(),
        )
        .bind(trims().map(|(_, trim)| bits(trim.seq)).collect::<Vec<_>>())
}

fn bind_careful(given: Given, careful: &[&Append]) -> Given {
    let entries = || careful.iter();
    let epoch = |append: &&&Append| match append.place {
        Place::Owned { position, .. } => i64::from(position.epoch),
        Place::Shared { .. } => 0,
    };
    let seq = |append: &&&Append| match append.place {
        Place::Owned { position, .. } => bits(position.seq),
        Place::Shared { tag, .. } => bits(tag),
    };
    let shared = |append: &&&Append| matches!(append.place, Place::Shared { .. });
    let prev = |append: &&&Append| append.event.as_ref().and_then(|event| event.prev);
    given
        .bind(entries().map(|append| append.session.0).collect::<Vec<_>>())
        .bind(
            entries()
                .map(|append| append.stream.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(entries().map(|append| shared(&append)).collect::<Vec<_>>())
        .bind(
            entries()
                .map(|append| writer(append).0.to_be_bytes())
                .collect::<Vec<_>>(),
        )
        .bind(entries().map(|append| epoch(&append)).collect::<Vec<_>>())
        .bind(entries().map(|append| seq(&append)).collect::<Vec<_>>())
        .bind(
            entries()
                .map(|append| append.event.is_some())
                .collect::<Vec<_>>(),
        )
        .bind(entries().map(|append| data(append)).collect::<Vec<_>>())
        .bind(
            entries()
                .map(|append| prev(&append).map(|at| i64::from(at.epoch)))
                .collect::<Vec<_>>(),
        )
        .bind(
            entries()
                .map(|append| prev(&append).map(|at| bits(at.seq)))
                .collect::<Vec<_>>(),
        )
        .bind(
            entries()
                .map(|append| append.finish.map(micros))
                .collect::<Vec<_>>(),
        )
        .bind(
            entries()
                .map(|append| end_number(append.end))
                .collect::<Vec<_>>(),
        )
        .bind(
            entries()
                .map(|append| count(append.keep_events))
                .collect::<Vec<_>>(),
        )
        .bind(
            entries()
                .map(|append| count(append.keep_bytes))
                .collect::<Vec<_>>(),
        )
        .bind(
            entries()
                .map(|append| append.trim.map(|at| i64::from(at.epoch)))
                .collect::<Vec<_>>(),
        )
        .bind(
            entries()
                .map(|append| append.trim.map(|at| bits(at.seq)))
                .collect::<Vec<_>>(),
        )
}

/// Wake-ups as payloads, each with its door.
fn payloads(wakes: &Wakes) -> (Vec<[u8; 16]>, Vec<String>) {
    let mut lines: Vec<(InstanceId, Vec<String>)> = Vec::new();
    for (holder, session, stream) in wakes {
        let line = codec::line(&Knock::Wake(*session, Target::Stream(stream.clone())));
        match lines.last_mut() {
            Some((last, lines)) if last == holder => lines.push(line),
            _ => lines.push((*holder, vec![line])),
        }
    }
    let payloads = lines.into_iter().flat_map(|(holder, lines)| {
        let payloads = codec::payloads(lines).into_iter();
        payloads.map(move |payload| (holder.0.to_be_bytes(), payload))
    });
    payloads.unzip()
}
