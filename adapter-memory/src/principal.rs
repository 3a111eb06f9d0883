//! Bytes per principal.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mcp_adapter_core::PrincipalKey;
use parking_lot::Mutex;

use crate::hash::BuildKeyHasher;

const SHARDS: usize = 16;

/// The bytes of one principal. Sessions that have streams share it, so that an
/// append costs one addition and no lookup.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account(Arc<AtomicU64>);

impl Account {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Most appends to a long stream change nothing: as much goes as comes.
    pub(crate) fn change(&self, added: u64, removed: u64) {
        if added != removed {
            // Wraps where more is removed than added.
            self.0
                .fetch_add(added.wrapping_sub(removed), Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Default)]
struct Balance {
    account: Account,
    sessions: usize,
}

/// The accounts of the principals who have a session with streams or requests.
/// Locked within a shard's lock, never around one.
#[derive(Debug, Default)]
pub(crate) struct Principals([Mutex<HashMap<PrincipalKey, Balance, BuildKeyHasher>>; SHARDS]);

impl Principals {
    fn shard(
        &self,
        principal: &PrincipalKey,
    ) -> &Mutex<HashMap<PrincipalKey, Balance, BuildKeyHasher>> {
        &self.0[usize::from(principal.0[0]) % SHARDS]
    }

    /// Each is to be followed by one [`close`](Self::close).
    pub(crate) fn open(&self, principal: &PrincipalKey) -> Account {
        let mut shard = self.shard(principal).lock();
        let balance = shard.entry(*principal).or_default();
        balance.sessions += 1;
        balance.account.clone()
    }

    pub(crate) fn close(&self, principal: &PrincipalKey) {
        let mut shard = self.shard(principal).lock();
        if let Entry::Occupied(mut entry) = shard.entry(*principal) {
            entry.get_mut().sessions -= 1;
            if entry.get().sessions == 0 {
                entry.remove();
            }
        }
        if shard.len() < shard.capacity() / 4 {
            let keep = shard.len() * 2;
            shard.shrink_to(keep);
        }
    }

    pub(crate) fn bytes(&self, principal: &PrincipalKey) -> u64 {
        let shard = self.shard(principal).lock();
        shard
            .get(principal)
            .map_or(0, |balance| balance.account.bytes())
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().len()).sum()
    }
}
