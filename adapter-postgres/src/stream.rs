//! Reads, holders, cancel marks and claims.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    Cancelled, InstanceId, Position, Result, RpcId, SessionKey, StreamId,
    storage::{
        Claim, Cursor, Held, Hold, HoldStart, Holder, Read, StoredEvent, StreamEnd, StreamState,
    },
};
use sqlx::postgres::PgRow;

use crate::{
    call::{Given, after, all, bits, count, get, index, micros, odd, position},
    codec,
    error::corrupt,
    pool::Who,
    storage::Inner,
};

const READ: &str = "read";
const HOLD: &str = "hold";
/// How long a new holder waits for appends of the stream's owner that are under way,
/// and holds up those that follow. Longer ones are left to the catch-up.
const PATIENCE: Duration = Duration::from_millis(200);

fn at(operation: &'static str, row: &PgRow, epoch: usize, seq: usize) -> Result<Option<Position>> {
    position(
        operation,
        get(operation, row, epoch)?,
        get(operation, row, seq)?,
    )
}

/// The columns from `first` on: top, oldest, end, owner, holder, its number, cancelled,
/// holds.
fn state(operation: &'static str, row: &PgRow, first: usize) -> Result<StreamState> {
    let end = match get::<Option<i16>>(operation, row, first + 4)? {
        None => None,
        Some(1) => Some(StreamEnd::Finished),
        Some(2) => Some(StreamEnd::OwnerLost),
        Some(_) => return Err(odd(operation)),
    };
    let instance = |column| -> Result<Option<InstanceId>> {
        let bytes: Option<&[u8]> = get(operation, row, column)?;
        Ok(bytes.and_then(codec::instance))
    };
    let number: i64 = get(operation, row, first + 7)?;
    Ok(StreamState {
        top: at(operation, row, first, first + 1)?.ok_or_else(|| odd(operation))?,
        oldest: at(operation, row, first + 2, first + 3)?,
        end,
        owner: instance(first + 5)?,
        holder: instance(first + 6)?.map(|instance| Holder {
            instance,
            number: number.cast_unsigned(),
        }),
        cancelled: get(operation, row, first + 8)?,
        holds: holds(operation, row, first + 9)?,
    })
}

fn holds(operation: &'static str, row: &PgRow, column: usize) -> Result<Vec<HoldStart>> {
    let numbers: Option<Vec<i64>> = get(operation, row, column)?;
    let numbers = numbers.unwrap_or_default();
    let start = |start: &[i64; 3]| {
        let [number, epoch, seq] = *start;
        let began = position(operation, Some(epoch), Some(seq))?;
        Ok(HoldStart {
            number: number.cast_unsigned(),
            began: began.ok_or_else(|| odd(operation))?,
        })
    };
    numbers.as_chunks().0.iter().map(start).collect()
}

impl Inner {
    pub(crate) async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        let touched: BTreeSet<_> = cursors
            .iter()
            .filter(|cursor| cursor.touch)
            .map(|cursor| cursor.session.0)
            .collect();
        let all_of = |of: fn(&Cursor) -> i64| -> Vec<_> { cursors.iter().map(of).collect() };
        let given = Given::new()
            .bind(cursors.iter().map(|c| c.session.0).collect::<Vec<_>>())
            .bind(
                cursors
                    .iter()
                    .map(|c| c.stream.as_str())
                    .collect::<Vec<_>>(),
            )
            .bind(all_of(|cursor| after(cursor.after).0))
            .bind(all_of(|cursor| after(cursor.after).1))
            .bind(all_of(|cursor| count(cursor.max_events)))
            .bind(all_of(|cursor| count(cursor.max_bytes)))
            .bind(touched.into_iter().collect::<Vec<_>>());
        let sql = &self.functions().read;
        let rows = self.run(READ, Who::Caller, sql, given).await?;
        let mut answers = vec![None; cursors.len()];
        for row in &rows {
            let place = index(READ, get(READ, row, 0)?, cursors.len())?;
            if answers[place].is_none() {
                let id: Option<i64> = get(READ, row, 2)?;
                answers[place] = Some(match (get(READ, row, 1)?, id) {
                    (false, _) => Read::NoSession,
                    (true, None) => Read::NoStream,
                    (true, Some(_)) => Read::Page {
                        events: Vec::new(),
                        state: state(READ, row, 3)?,
                    },
                });
            }
            if let (Some(Read::Page { events, state }), Some(position)) =
                (&mut answers[place], at(READ, row, 13, 14)?)
            {
                if state.holds.is_empty() {
                    state.holds = holds(READ, row, 12)?;
                }
                let data: Option<Vec<u8>> = get(READ, row, 17)?;
                events.push(StoredEvent {
                    position,
                    prev: at(READ, row, 15, 16)?,
                    data: data.map(Bytes::from),
                });
            }
        }
        for answer in answers.iter_mut().flatten() {
            if let Read::Page { events, .. } = answer {
                events.sort_unstable_by_key(|event| event.position);
            }
        }
        all(READ, answers)
    }

    pub(crate) async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held> {
        const RELEASE: i16 = 2;
        let (kind, from, number, cursor) = match hold {
            Hold::Take => (0_i16, None, 0, Position::START),
            Hold::TakeFrom(from) => {
                let number = from.map_or(0, |from| from.number);
                (1, from.map(|from| from.instance), number, Position::START)
            }
            Hold::Release { number, cursor } => (RELEASE, None, number, cursor),
            Hold::Continue { number } => (3, None, number, Position::START),
        };
        let given = Given::new()
            .bind(session.0)
            .bind(stream.as_str())
            .bind(stream.is_standalone())
            .bind(me.0.to_be_bytes())
            .bind(kind)
            .bind(from.map(|from| from.0.to_be_bytes()))
            .bind(bits(number))
            .bind(i64::from(cursor.epoch))
            .bind(bits(cursor.seq));
        let sql = &self.functions().hold;
        let row = &self.run_one(HOLD, Who::Caller, sql, given).await?;
        match get::<i16>(HOLD, row, 0)? {
            0 => {
                let state = state(HOLD, row, 5)?;
                if let (None, Some(owner)) = (state.end, state.owner)
                    && owner != me
                    && kind != RELEASE
                {
                    self.let_through(owner).await;
                }
                let held: i64 = get(HOLD, row, 1)?;
                let former: Option<&[u8]> = get(HOLD, row, 2)?;
                Ok(Held::Done {
                    number: held.cast_unsigned(),
                    former: former.and_then(codec::instance),
                    cursor: at(HOLD, row, 3, 4)?.ok_or_else(|| odd(HOLD))?,
                    state,
                })
            }
            1 => {
                let holder = state(HOLD, row, 5)?.holder;
                Ok(Held::Busy(holder.ok_or_else(|| odd(HOLD))?))
            }
            2 => Ok(Held::NoStream),
            3 => Ok(Held::NoSession),
            4 => Ok(Held::Past),
            _ => Err(odd(HOLD)),
        }
    }

    /// An append of the owner that is under way has the lease from before this hold:
    /// it wakes nobody here, and a read that comes before its commit does not see it.
    async fn let_through(&self, owner: InstanceId) {
        let given = Given::new()
            .bind(self.lock_of(owner))
            .bind(PATIENCE.as_millis().to_string());
        let sql = &self.functions().let_through;
        if let Err(error) = self.run(HOLD, Who::Caller, sql, given).await {
            tracing::debug!(%error, "an append of a stream's owner takes long");
        }
    }

    pub(crate) async fn mark_cancel(
        &self,
        session: &SessionKey,
        id: &RpcId,
    ) -> Result<Option<Cancelled>> {
        const OPERATION: &str = "cancel";
        let given = |ring| {
            Given::new()
                .bind(session.0)
                .bind(codec::id_bytes(id))
                .bind(ring)
        };
        let sql = &self.functions().cancel;
        let rows = self.run_ringing(OPERATION, Who::Caller, sql, given).await?;
        let row = rows.first().ok_or_else(|| odd(OPERATION))?;
        match get::<Option<i16>>(OPERATION, row, 0)? {
            None => Ok(None),
            Some(0) => {
                let name: &str = get(OPERATION, row, 1)?;
                let stream = name.parse().map_err(|error| corrupt(OPERATION, error))?;
                Ok(Some(Cancelled::Marked(stream)))
            }
            Some(1) => Ok(Some(Cancelled::NotRunning)),
            Some(2) => Ok(Some(Cancelled::Ambiguous)),
            Some(_) => Err(odd(OPERATION)),
        }
    }

    pub(crate) async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        const OPERATION: &str = "claim";
        let dead = |claim: &Claim| claim.dead.instance;
        let given = |ring| {
            Given::new()
                .bind(
                    batch
                        .iter()
                        .map(|claim| claim.session.0)
                        .collect::<Vec<_>>(),
                )
                .bind(
                    batch
                        .iter()
                        .map(|claim| claim.stream.as_str())
                        .collect::<Vec<_>>(),
                )
                .bind(
                    batch
                        .iter()
                        .map(|claim| dead(claim).0.to_be_bytes())
                        .collect::<Vec<_>>(),
                )
                .bind(
                    batch
                        .iter()
                        .map(|claim| claim.dead.beat.map(bits))
                        .collect::<Vec<_>>(),
                )
                .bind(
                    batch
                        .iter()
                        .map(|claim| self.lock_of(dead(claim)))
                        .collect::<Vec<_>>(),
                )
                .bind(
                    batch
                        .iter()
                        .map(|claim| micros(claim.finished_ttl))
                        .collect::<Vec<_>>(),
                )
                .bind(ring)
        };
        let sql = &self.functions().claim;
        let rows = self.run_ringing(OPERATION, Who::Caller, sql, given).await?;
        let row = rows.first().ok_or_else(|| odd(OPERATION))?;
        usize::try_from(get::<i64>(OPERATION, row, 0)?).map_err(|_| odd(OPERATION))
    }
}
