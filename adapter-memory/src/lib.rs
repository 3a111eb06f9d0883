#![doc = include_str!("../README.md")]

mod beats;
mod clock;
mod doorbell;
mod hash;
mod principal;
mod request;
mod session;
mod shard;
mod steps;
mod storage;
mod stream;
mod sweep;
mod tags;

use std::fmt;

use mcp_adapter_core::{Engine, EngineAdapter, Limits};

pub use storage::MemoryStorage;

/// The adapter for servers of one process: all roles of the contract, in this
/// process's memory.
///
/// Clones are the same instance; [`instance`](Self::instance) opens another one
/// on the same store, as another process would be on a shared backend. The
/// store lives as long as its last instance, and no longer: nothing is written
/// anywhere.
///
/// All limits of [`Limits`] hold exactly, those of shared streams included, and
/// `stats` are [`Exact`](mcp_adapter_core::Count::Exact) (clauses E4, S6).
#[derive(Clone)]
pub struct MemoryAdapter {
    engine: Engine<MemoryStorage>,
    store: MemoryStorage,
    limits: Limits,
}

impl MemoryAdapter {
    /// The first instance on a new, empty store.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::on(MemoryStorage::new(), limits)
    }

    /// Another instance, with its own id and heartbeat, on the same store.
    #[must_use]
    pub fn instance(&self) -> Self {
        Self::on(self.store.clone(), self.limits.clone())
    }

    fn on(store: MemoryStorage, limits: Limits) -> Self {
        Self {
            engine: Engine::new(store.clone(), limits.clone()),
            store,
            limits,
        }
    }
}

impl Default for MemoryAdapter {
    /// With the default [`Limits`].
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl EngineAdapter for MemoryAdapter {
    type Storage = MemoryStorage;

    fn engine(&self) -> &Engine<MemoryStorage> {
        &self.engine
    }
}

impl fmt::Debug for MemoryAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryAdapter").finish_non_exhaustive()
    }
}
