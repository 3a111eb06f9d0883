//! Histories, heartbeats, sweeping and counts.

use std::time::Duration;

use mcp_adapter_core::{
    Count, ErrorKind, InstanceId, Result, SessionKey, Stats,
    storage::{Beat, Dead, Generation, Swept},
};
use tokio::time::Instant;

use crate::{
    call::{Given, bits, count, get, micros, odd},
    codec,
    error::corrupt,
    pool::Who,
    storage::{Attached, Inner},
};

/// How often leftovers that no other rule finds are looked for.
const TIDY: Duration = Duration::from_secs(30);
/// Streams that one step of it looks at.
const TIDY_STEPS: i64 = 200;
/// Sessions that one sweep brings under their bytes; others with their next append.
const SHRINKS: usize = 32;
/// Counting that takes longer than this, in the database, is done rarely: at most
/// one part in so many of the time is spent on it.
const COUNTING: (Duration, u32) = (Duration::from_millis(250), 20);

/// What sweeping and counting remember between steps.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    tidied: Option<Instant>,
    tidy_from: i64,
    counts: Option<Counts>,
}

/// Counts of the whole store.
#[derive(Debug, Clone, Copy)]
struct Counts {
    values: [u64; 5],
    at: Instant,
    took: Duration,
    /// How old they were already then.
    lag: Duration,
}

impl Counts {
    fn told(&self) -> Stats {
        let age = self.at.elapsed() + self.lag;
        Stats::new(self.values.map(|value| Count::Estimate { value, age }))
    }
}

impl Inner {
    pub(crate) async fn attach(&self) -> Result<Generation> {
        const OPERATION: &str = "attach";
        let known = self.attached.lock().clone();
        let given = Given::new()
            .bind(known.as_ref().map(|known| known.incarnation.clone()))
            .bind(known.as_ref().map_or(0, |known| known.lsn))
            .bind(self.place.lossy);
        let sql = &self.functions().attach;
        let row = self.run_one(OPERATION, Who::Engine, sql, given).await?;
        let attached = Attached {
            incarnation: get(OPERATION, &row, 0)?,
            lsn: get(OPERATION, &row, 2)?,
        };
        let generation = Generation(attached.incarnation.as_str().into());
        *self.attached.lock() = Some(attached);
        Ok(generation)
    }

    pub(crate) async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        const OPERATION: &str = "heartbeat";
        let given = Given::new()
            .bind(me.instance.0.to_be_bytes())
            .bind(bits(me.count))
            .bind(micros(ttl));
        let sql = &self.functions().heartbeat;
        let rows = self.run(OPERATION, Who::Engine, sql, given).await?;
        let mut beats = Vec::with_capacity(rows.len());
        for row in &rows {
            let instance: &[u8] = get(OPERATION, row, 0)?;
            let count: i64 = get(OPERATION, row, 1)?;
            beats.push(Beat {
                instance: codec::instance(instance).ok_or_else(|| odd(OPERATION))?,
                count: count.cast_unsigned(),
            });
        }
        if let Some(row) = rows.first() {
            self.seen(get(OPERATION, row, 2)?);
        }
        Ok(beats)
    }

    /// The server's log was so long. Where it is shorter later on, the server was
    /// put back to an older copy.
    fn seen(&self, lsn: i64) {
        let mut attached = self.attached.lock();
        let Some(known) = attached.as_mut() else {
            return;
        };
        if lsn >= known.lsn {
            known.lsn = lsn;
        } else {
            drop(attached);
            self.histories.send_modify(|count| *count += 1);
        }
    }

    pub(crate) async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        self.write_counts().await?;
        self.shrink_now(session, max_bytes).await
    }

    async fn shrink_now(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        const OPERATION: &str = "shrink";
        let max = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let given = Given::new().bind(session.0).bind(max);
        let sql = &self.functions().shrink;
        let row = self.run_one(OPERATION, Who::Caller, sql, given).await?;
        let left: Option<i64> = get(OPERATION, &row, 0)?;
        let Some(left) = left else {
            return Ok(0);
        };
        let left = u64::try_from(left).map_err(|error| corrupt(OPERATION, error))?;
        self.known.counted(*session, left);
        Ok(left)
    }

    pub(crate) async fn sweep(
        &self,
        budget: usize,
        dead: &[Dead],
        finished_ttl: Duration,
    ) -> Result<Swept> {
        const OPERATION: &str = "sweep";
        // Several instances may have brought a session over its bytes together.
        for session in self.write_counts().await?.into_iter().take(SHRINKS) {
            let max = u64::try_from(self.place.session_bytes).unwrap_or(u64::MAX);
            self.shrink_now(&session, max).await?;
        }
        let instance = |dead: &Dead| dead.instance.0.to_be_bytes();
        let lock = |instance: InstanceId| self.lock_of(instance);
        let given = |ring| {
            Given::new()
                .bind(count(budget))
                .bind(dead.iter().map(instance).collect::<Vec<_>>())
                .bind(
                    dead.iter()
                        .map(|dead| dead.beat.map(bits))
                        .collect::<Vec<_>>(),
                )
                .bind(
                    dead.iter()
                        .map(|dead| lock(dead.instance))
                        .collect::<Vec<_>>(),
                )
                .bind(micros(finished_ttl))
                .bind(ring)
        };
        let sql = &self.functions().sweep;
        let rows = self.run_ringing(OPERATION, Who::Engine, sql, given).await?;
        let row = rows.first().ok_or_else(|| odd(OPERATION))?;
        let removed: i64 = get(OPERATION, row, 0)?;
        let swept = Swept {
            removed: usize::try_from(removed).map_err(|error| corrupt(OPERATION, error))?,
            more: get(OPERATION, row, 1)?,
        };
        if !swept.more {
            self.tidy().await?;
        }
        Ok(swept)
    }

    async fn tidy(&self) -> Result<()> {
        const OPERATION: &str = "tidy";
        let now = Instant::now();
        let from = {
            let mut upkeep = self.upkeep.lock();
            let tidied = *upkeep.tidied.get_or_insert(now);
            if now < tidied + TIDY {
                return Ok(());
            }
            upkeep.tidied = Some(now);
            upkeep.tidy_from
        };
        let given = Given::new().bind(from).bind(TIDY_STEPS);
        let sql = &self.functions().tidy;
        let row = self.run_one(OPERATION, Who::Engine, sql, given).await?;
        let next: i64 = get(OPERATION, &row, 0)?;
        let mut upkeep = self.upkeep.lock();
        upkeep.tidy_from = next;
        if next > 0 {
            // In the middle of a round: the next step goes on with it.
            upkeep.tidied = Some(now - TIDY);
        }
        Ok(())
    }

    /// Counting reads a row per session and stream. Where that takes long the last
    /// counts are told, with their age.
    pub(crate) async fn stats(&self) -> Result<Stats> {
        const OPERATION: &str = "stats";
        let (most, share) = COUNTING;
        let last = self.upkeep.lock().counts;
        if let Some(last) = last.filter(|last| last.took > most)
            && last.at.elapsed() < last.took * share
        {
            return Ok(last.told());
        }
        self.write_counts().await?;
        let sql = &self.functions().stats;
        let asked = Instant::now();
        let row = self.run_one(OPERATION, Who::Caller, sql, Given::new());
        let row = match (row.await, last) {
            (Ok(row), _) => row,
            // Too many to be counted in time: the old counts are better than none.
            (Err(error), Some(last)) if error.kind() == ErrorKind::Timeout => {
                tracing::debug!(%error, "counting took too long");
                return Ok(last.told());
            }
            (Err(error), _) => return Err(error),
        };
        let mut values = [0; 5];
        for (column, value) in values.iter_mut().enumerate() {
            let found: i64 = get(OPERATION, &row, column)?;
            *value = u64::try_from(found).map_err(|error| corrupt(OPERATION, error))?;
        }
        let took: i64 = get(OPERATION, &row, 6)?;
        let counts = Counts {
            values,
            at: asked,
            took: Duration::from_micros(took.max(0).cast_unsigned()),
            // What other instances have stored since their last sweep is missing.
            lag: match get(OPERATION, &row, 5)? {
                true => Duration::ZERO,
                false => self.place.sweeps,
            },
        };
        self.upkeep.lock().counts = Some(counts);
        if counts.lag.is_zero() {
            Ok(Stats::new(values.map(Count::Exact)))
        } else {
            Ok(counts.told())
        }
    }
}
