//! Removing what has expired, ending what belongs to the dead, and counting.

use std::time::Duration;

use mcp_adapter_core::{
    Count, Result, Stats,
    storage::{Beat, Dead, Swept},
};
use redis::Value;

use crate::{
    append::millis_of,
    error::odd,
    keys::{PARTITIONS, Partition},
    script::Script,
    server::Lane,
    storage::{RedisStorage, beat_text},
    value::{text, unsigned},
};

/// Sessions that one step looks at in search of what belongs to the dead.
const VISITS: usize = 256;
/// Looks of one step of the search.
const LOOKS: usize = 32;
/// Sessions that are counted again in one step.
const RECOUNTED: usize = 4096;

/// Where the search for what belongs to the dead goes on, round and round.
#[derive(Debug, Default)]
pub(crate) struct Search {
    partition: u16,
    after: String,
    /// Partitions to go until these dead have been looked for in all of them.
    left: u16,
    dead: Vec<Dead>,
}

/// What a partition tells of itself.
struct Told {
    due: u64,
    busy: u64,
    counts: [u64; 5],
}

impl RedisStorage {
    pub(crate) async fn sweep_step(
        &self,
        budget: usize,
        dead: &[Dead],
        finished_ttl: Duration,
    ) -> Result<Swept> {
        self.recount().await?;
        let told = self.ask_all().await?;
        let (mut removed, mut more) = (0, false);
        let (mut calls, mut shares) = (Vec::new(), budget);
        for (partition, told) in Partition::all().zip(&told) {
            let share = usize::try_from(told.due).unwrap_or(budget).min(shares);
            more |= usize::try_from(told.due).unwrap_or(usize::MAX) > share;
            if share > 0 {
                shares -= share;
                let key = self.router.names.of(partition, "i");
                let mut call = self.router.script(Script::Sweep, partition, &key);
                call.command.arg(share);
                calls.push(call);
            }
        }
        if !calls.is_empty() {
            for answer in self.router.all(Lane::Pool, "sweep", calls).await? {
                let fields = answer.as_sequence().unwrap_or_default();
                let [gone, left] = fields else {
                    return Err(odd("sweep"));
                };
                removed += usize::try_from(unsigned(gone).ok_or_else(|| odd("sweep"))?)
                    .unwrap_or(usize::MAX);
                more |= unsigned(left).unwrap_or(0) > 0;
            }
        }
        let dead = self.living_dead(dead).await?;
        if !dead.is_empty() && removed < budget {
            let busy: Vec<_> = told.iter().map(|told| told.busy > 0).collect();
            let (ended, unfinished) = self
                .bury(dead, &busy, budget - removed, finished_ttl)
                .await?;
            removed += ended;
            more |= unfinished;
        } else if !dead.is_empty() {
            more = true;
        }
        Ok(Swept { removed, more })
    }

    /// Returns how many things were ended, and whether the round is unfinished.
    async fn bury(
        &self,
        mut dead: Vec<Dead>,
        busy: &[bool],
        budget: usize,
        finished_ttl: Duration,
    ) -> Result<(usize, bool)> {
        dead.sort_by_key(|dead| (dead.instance, dead.beat));
        let mut search = self.search.lock().await;
        if search.left == 0 || search.dead != dead {
            // The partition in which the search stands is begun only.
            search.left = PARTITIONS + u16::from(!search.after.is_empty());
            search.dead.clone_from(&dead);
        }
        let (mut ended, mut looks) = (0, 0);
        while search.left > 0 && ended < budget && looks < LOOKS {
            let number = search.partition;
            if !busy.get(usize::from(number)).copied().unwrap_or(true) {
                search.next();
                continue;
            }
            let partition = Partition::Number(number);
            let key = self.router.names.of(partition, "l");
            let mut call = self.router.script(Script::Bury, partition, &key);
            call.command
                .arg(&search.after)
                .arg(VISITS)
                .arg(budget - ended)
                .arg(millis_of(finished_ttl));
            for dead in &dead {
                call.command
                    .arg(dead.instance.to_string())
                    .arg(beat_text(dead.beat));
            }
            looks += 1;
            let answer = self.router.one_answer("sweep", call).await?;
            let fields = answer.as_sequence().unwrap_or_default();
            let (Some(count), Some(on)) = (
                fields.first().and_then(unsigned),
                fields.get(1).and_then(text),
            ) else {
                return Err(odd("sweep"));
            };
            ended += usize::try_from(count).unwrap_or(usize::MAX);
            if fields.len() < 3 && on.is_empty() {
                search.next();
            } else {
                on.clone_into(&mut search.after);
            }
        }
        Ok((ended, search.left > 0))
    }

    /// Has scripts count what was added natively (S6).
    async fn recount(&self) -> Result<()> {
        let calls: Vec<_> = self
            .cache
            .take_uncounted(RECOUNTED)
            .into_iter()
            .map(|(session, streams)| {
                let mut call = self.session_script(Script::Account, &session);
                for stream in &streams {
                    call.command.arg(stream.as_str());
                }
                call
            })
            .collect();
        if !calls.is_empty() {
            self.router.all(Lane::Control, "stats", calls).await?;
        }
        Ok(())
    }

    async fn ask_all(&self) -> Result<Vec<Told>> {
        let calls: Vec<_> = Partition::all()
            .map(|partition| {
                let key = self.router.names.of(partition, "i");
                self.router.script(Script::Stats, partition, &key)
            })
            .collect();
        let answers = self.router.all(Lane::Pool, "stats", calls).await?;
        let told = |answer: &Value| {
            let numbers: Option<Vec<u64>> = answer.as_sequence()?.iter().map(unsigned).collect();
            let [due, busy, counts @ ..] = &numbers?[..] else {
                return None;
            };
            Some(Told {
                due: *due,
                busy: *busy,
                counts: counts.try_into().ok()?,
            })
        };
        let told = answers
            .iter()
            .map(|answer| told(answer).ok_or_else(|| odd("stats")));
        told.collect()
    }

    /// Sessions are counted exactly. The rest leaves out what other instances
    /// have added natively since their last sweep, and counts what has expired
    /// and is not swept yet.
    pub(crate) async fn count_all(&self) -> Result<Stats> {
        self.recount().await?;
        let mut sums = [0; 5];
        for told in self.ask_all().await? {
            for (sum, count) in sums.iter_mut().zip(told.counts) {
                *sum += count;
            }
        }
        let [sessions, streams, events, bytes, pending] = sums;
        let age = self.limits.heartbeat();
        let estimate = |value| Count::Estimate { value, age };
        Ok(Stats::new([
            Count::Exact(sessions),
            estimate(streams),
            estimate(events),
            estimate(bytes),
            estimate(pending),
        ]))
    }

    /// Raises the copies of a heartbeat in all partitions of a Cluster.
    pub(crate) async fn copy_beat(&self, me: Beat, ttl: Duration) -> Result<()> {
        let calls: Vec<_> = Partition::all()
            .map(|partition| {
                let key = format!("h:{}", me.instance);
                let key = self.router.names.of(partition, &key);
                let mut call = self.router.script(Script::Copy, partition, &key);
                call.command.arg(me.count).arg(millis_of(ttl));
                call
            })
            .collect();
        self.router
            .all(Lane::Control, "heartbeat", calls)
            .await
            .map(drop)
    }
}

impl Search {
    fn next(&mut self) {
        self.partition = (self.partition + 1) % PARTITIONS;
        self.after.clear();
        self.left -= 1;
    }
}
