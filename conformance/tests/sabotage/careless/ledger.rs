//! What the rules that are missed need to know, of all instances on a store.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use mcp_adapter_core::{
    Position, PrincipalKey, RpcId, SessionKey, StreamId, WaiterToken,
    storage::{Appended, StoredEvent},
};
use parking_lot::Mutex;

pub(crate) type Key = (SessionKey, StreamId);

/// Clones are the same ledger.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ledger(pub(super) Arc<Mutex<Book>>);

#[derive(Debug, Default)]
pub(super) struct Book {
    /// Handles that are open, and how often there were none in between.
    pub(super) handles: usize,
    pub(super) restarts: u64,
    /// Streams that were ever opened or written.
    pub(super) known: HashSet<Key>,
    /// Events that nobody can read any more, or of which nobody can read the payload.
    pub(super) gone: HashSet<(Key, Position)>,
    pub(super) undecodable: HashSet<(Key, Position)>,
    /// All events of all lives of a session.
    pub(super) lives: HashMap<Key, Vec<StoredEvent>>,
    /// The first answers.
    pub(super) answers: HashMap<(Key, String), Appended>,
    /// Bytes that were refused.
    pub(super) refused: HashMap<SessionKey, u64>,
    pub(super) finished: HashSet<Key>,
    pub(super) principals: HashMap<SessionKey, PrincipalKey>,
    /// Who created the live session, and those that were deleted.
    pub(super) creators: HashMap<SessionKey, WaiterToken>,
    pub(super) deleted: HashMap<SessionKey, Vec<WaiterToken>>,
    pub(super) deletes: usize,
    pub(super) updates: HashMap<SessionKey, Vec<WaiterToken>>,
    pub(super) waiters: HashMap<(SessionKey, RpcId), Vec<WaiterToken>>,
    pub(super) attempts: HashMap<(SessionKey, RpcId), Vec<WaiterToken>>,
    /// Requests that were put and found room.
    pub(super) pending: HashMap<SessionKey, usize>,
    pub(super) released: HashMap<SessionKey, Position>,
    /// Marks that were made, and those that another one has overwritten.
    pub(super) marks: HashMap<SessionKey, u64>,
    pub(super) unmarked: HashSet<Key>,
}

impl Ledger {
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Book) -> T) -> T {
        act(&mut self.0.lock())
    }
}
