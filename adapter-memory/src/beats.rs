//! Heartbeats.

use std::{collections::HashMap, time::Duration};

use mcp_adapter_core::{
    InstanceId,
    storage::{Beat, Dead},
};
use parking_lot::{RwLock, RwLockReadGuard};

use crate::clock::Time;

type Counters = HashMap<InstanceId, (u64, Time)>;

/// The heartbeat counters of all instances. Locked within a shard's lock, never
/// around one.
#[derive(Debug, Default)]
pub(crate) struct Beats(RwLock<Counters>);

/// While it is held no instance can prove that it lives: what is done under it
/// is one step with the comparison of the counter.
pub(crate) struct Verdict<'a> {
    counters: RwLockReadGuard<'a, Counters>,
    now: Time,
}

impl Beats {
    /// A counter never falls: a late repeat must not take life away.
    pub(crate) fn beat(&self, me: Beat, ttl: Duration, now: Time) -> Vec<Beat> {
        let mut counters = self.0.write();
        counters.retain(|_, (_, expires)| now < *expires);
        let mine = counters.entry(me.instance).or_insert((me.count, now));
        *mine = (me.count.max(mine.0), now.after(ttl.into()));
        counters
            .iter()
            .map(|(instance, (count, _))| Beat {
                instance: *instance,
                count: *count,
            })
            .collect()
    }

    pub(crate) fn verdict(&self, now: Time) -> Verdict<'_> {
        Verdict {
            counters: self.0.read(),
            now,
        }
    }
}

impl Verdict<'_> {
    pub(crate) fn is_dead(&self, dead: Dead) -> bool {
        let beat = self
            .counters
            .get(&dead.instance)
            .and_then(|(count, expires)| (self.now < *expires).then_some(*count));
        beat == dead.beat
    }
}
