//! Removing what has expired and ending what belongs to the dead.

use std::{sync::atomic::Ordering, time::Duration};

use mcp_adapter_core::{
    Count, InstanceId, SessionKey, Stats, StreamId,
    storage::{Dead, Door, Knock, Swept, Target},
};

use crate::{
    clock::Time,
    session::{Session, Totals},
    shard::Due,
    storage::{Inner, SHARDS},
};

/// Things done under a lock before others may have it.
const CHUNK: usize = 64;
/// Sessions that one step looks at in search of what belongs to the dead.
const VISITS: usize = 4096;

/// Where the search for what belongs to the dead goes on, round and round.
/// Sessions may change places meanwhile: one that is missed in this round is
/// found in the next.
#[derive(Debug, Default)]
pub(crate) struct Search {
    shard: usize,
    index: usize,
    /// Shards to go until these dead have been looked for in all of them.
    left: usize,
    dead: Vec<Dead>,
}

impl Inner {
    pub(crate) fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Swept {
        let now = self.clock.now();
        // Each step begins one shard further, so that a small budget reaches all.
        let first = self.sweeps.fetch_add(1, Ordering::Relaxed);
        let mut removed = 0;
        for shard in 0..SHARDS {
            removed +=
                self.sweep_shard((first.wrapping_add(shard)) % SHARDS, now, budget - removed);
        }
        let mut more = removed == budget;
        if !dead.is_empty() && removed < budget {
            let mut dead = dead.to_vec();
            {
                let verdict = self.beats.verdict(now);
                dead.retain(|dead| verdict.is_dead(*dead));
            }
            let (ended, unfinished) = self.bury(dead, now, budget - removed, finished_ttl);
            removed += ended;
            more = unfinished;
        }
        Swept { removed, more }
    }

    fn sweep_shard(&self, shard: usize, now: Time, budget: usize) -> usize {
        let mut removed = 0;
        while removed < budget {
            // Dropped after the lock is released.
            let mut expired: Vec<Session> = Vec::new();
            let mut shard = self.shards[shard].lock();
            for _ in 0..CHUNK {
                if removed >= budget {
                    break;
                }
                match shard.sweep(now, budget - removed, &self.principals) {
                    Due::Nothing => return removed,
                    Due::Purged(things) => removed += things,
                    Due::Expired(session) => {
                        removed += 1;
                        expired.push(session);
                    }
                }
            }
            drop(shard);
        }
        removed
    }

    /// Returns how many things were ended, and whether the round is unfinished.
    fn bury(
        &self,
        mut dead: Vec<Dead>,
        now: Time,
        budget: usize,
        finished_ttl: Duration,
    ) -> (usize, bool) {
        if dead.is_empty() {
            return (0, false);
        }
        let times = (now, now.after(finished_ttl.into()));
        dead.sort_by_key(|dead| (dead.instance, dead.beat));
        let mut search = self.search.lock();
        if search.left == 0 || search.dead != dead {
            // The shard in which the search stands is begun only.
            search.left = SHARDS + usize::from(search.index > 0);
            search.dead.clone_from(&dead);
        }
        let (mut ended, mut visits) = (0, 0);
        while search.left > 0 {
            let mut wakes: Vec<(InstanceId, SessionKey, StreamId)> = Vec::new();
            let mut shard = self.shards[search.shard].lock();
            for _ in 0..CHUNK {
                if search.index >= shard.sessions() || ended >= budget {
                    break;
                }
                if let Some(key) = shard.key_at(search.index) {
                    let entry = shard.entry_at(search.index, now, &self.principals);
                    if let Some(mut entry) = entry {
                        let (streams, requests) =
                            entry.bury(&dead, &self.beats, times, budget - ended);
                        ended += streams.len() + requests;
                        let holders = streams.into_iter().filter_map(|(stream, holder)| {
                            holder.map(|holder| (holder, key, stream))
                        });
                        wakes.extend(holders);
                    }
                }
                // A session that took the rest of the budget may have more.
                if ended < budget {
                    search.index += 1;
                    visits += 1;
                }
            }
            let through = search.index >= shard.sessions();
            drop(shard);
            for (holder, session, stream) in wakes {
                let knock = Knock::Wake(session, Target::Stream(stream));
                self.doors.knock(Door::Of(holder), knock);
            }
            if through {
                search.shard = (search.shard + 1) % SHARDS;
                search.index = 0;
                search.left -= 1;
            }
            if ended >= budget || visits >= VISITS {
                break;
            }
        }
        (ended, search.left > 0)
    }

    /// Exact: what has expired is removed first.
    pub(crate) fn stats(&self) -> Stats {
        let now = self.clock.now();
        let mut sessions = 0;
        let mut sum = Totals::default();
        for (index, shard) in self.shards.iter().enumerate() {
            self.sweep_shard(index, now, usize::MAX);
            let shard = shard.lock();
            sessions += shard.sessions() as u64;
            let totals = shard.totals();
            sum.streams += totals.streams;
            sum.events += totals.events;
            sum.bytes += totals.bytes;
            sum.pending += totals.pending;
        }
        Stats::new([sessions, sum.streams, sum.events, sum.bytes, sum.pending].map(Count::Exact))
    }
}
