//! What a principal stores, in Cluster: a sum over partitions that no script can
//! make, so it is made beside and is a moment old.

use std::{collections::HashMap, time::Duration};

use mcp_adapter_core::{PrincipalKey, Result};
use parking_lot::Mutex;
use redis::Cmd;
use tokio::time::Instant;

use crate::{
    keys::Partition,
    server::{Call, Lane},
    storage::RedisStorage,
    value::unsigned,
};

/// A sum is used for so long.
const AGE: Duration = Duration::from_millis(500);
/// Principals whose sums are remembered.
const MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<HashMap<PrincipalKey, (u64, Instant)>>);

impl RedisStorage {
    /// Bytes of a principal as of a moment ago; 0 on one server, where the script
    /// knows better. A sum that is too old is made again for the next time.
    pub(crate) fn bytes_of(&self, principal: &PrincipalKey) -> u64 {
        if !self.router.names.cluster {
            return 0;
        }
        let now = Instant::now();
        let mut shares = self.shares.0.lock();
        let known = shares.get(principal).copied();
        if known.is_none_or(|(_, at)| now.duration_since(at) >= AGE) {
            if shares.len() >= MAX {
                shares.retain(|_, (_, at)| now.duration_since(*at) < AGE);
            }
            // Only one asks at a time.
            shares.insert(*principal, (known.map_or(0, |(bytes, _)| bytes), now));
            let (storage, principal) = (self.clone(), *principal);
            tokio::spawn(async move {
                // Without it the next one asks again.
                if let Ok(bytes) = storage.sum(&principal).await {
                    let entry = (bytes, Instant::now());
                    storage.shares.0.lock().insert(principal, entry);
                }
            });
        }
        known.map_or(0, |(bytes, _)| bytes)
    }

    async fn sum(&self, principal: &PrincipalKey) -> Result<u64> {
        let calls: Vec<_> = Partition::all()
            .map(|partition| {
                let mut command = Cmd::new();
                command
                    .arg("HGET")
                    .arg(self.router.names.of(partition, "b"))
                    .arg(&principal.0);
                Call {
                    partition,
                    command,
                    script: None,
                    generation: false,
                }
            })
            .collect();
        let answers = self.router.all(Lane::Control, "enter", calls).await?;
        Ok(answers.iter().filter_map(unsigned).sum())
    }
}
