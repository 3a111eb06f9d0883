//! The work that goes on while things go wrong.

mod calls;
mod listeners;
mod readers;
mod requests;
mod sessions;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use mcp_adapter_core::{Error, ErrorKind, Position, SessionId, StreamId};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{
    fleet::Fleet,
    history::{History, No, What},
    rng::Rng,
};

pub(crate) use self::{
    readers::{Habits, Start},
    sessions::Business,
};

/// What is to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Ends by itself.
    Work,
    /// Ends with its session.
    Session,
}

#[derive(Default)]
struct Tasks {
    next: u64,
    running: BTreeMap<u64, (Group, String)>,
}

/// A session of the run.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) no: No,
    pub(crate) id: SessionId,
    /// Its standalone stream.
    pub(crate) standalone: No,
    /// Two listeners share that, and nobody else reads it.
    pub(crate) shared: bool,
}

pub(crate) struct Load {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) history: History,
    seed: u64,
    numbers: AtomicU32,
    tasks: Mutex<Tasks>,
    ended: watch::Sender<()>,
    /// Calls' streams, to be read again at the end.
    pub(crate) calls: Mutex<Vec<(Client, No, StreamId)>>,
    pub(crate) clients: Mutex<Vec<Client>>,
    pub(crate) until: Instant,
    /// The backend may lose data.
    pub(crate) lossy: bool,
    /// In 1000: events that are not small.
    pub(crate) padded: u64,
}

impl Load {
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        seed: u64,
        until: Instant,
        lossy: bool,
        padded: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            history: fleet.world.history.clone(),
            fleet,
            seed,
            numbers: AtomicU32::new(1),
            tasks: Mutex::default(),
            ended: watch::Sender::new(()),
            calls: Mutex::default(),
            clients: Mutex::default(),
            until,
            lossy,
            padded,
        })
    }

    /// A name for whatever. It depends on who comes first, so nothing may be
    /// drawn from it: tasks fork the generator of the task that began them.
    pub(crate) fn number(&self) -> No {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn spawn(
        self: &Arc<Self>,
        group: Group,
        name: String,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = {
            let mut tasks = self.tasks.lock();
            tasks.next += 1;
            let id = tasks.next;
            tasks.running.insert(id, (group, name));
            id
        };
        let load = Arc::clone(self);
        tokio::spawn(async move {
            work.await;
            load.tasks.lock().running.remove(&id);
            load.ended.send_replace(());
        });
    }

    fn running(&self, group: Group) -> Vec<String> {
        let tasks = self.tasks.lock();
        let running = tasks.running.values().filter(|(of, _)| *of == group);
        running.map(|(_, name)| name.clone()).collect()
    }

    /// Waits for all of `group`; who is not through in time hangs.
    pub(crate) async fn through(&self, group: Group, within: Duration) {
        let until = Instant::now() + within;
        let mut ended = self.ended.subscribe();
        while !self.running(group).is_empty() {
            if tokio::time::timeout_at(until, ended.changed())
                .await
                .is_err()
            {
                for name in self.running(group) {
                    self.history
                        .push(What::Hung(format!("{name} is not over in time")));
                }
                return;
            }
        }
    }

    pub(crate) fn found(&self, client: &Client, began: u64, found: bool, used: bool) {
        self.history.push(What::Found {
            session: client.no,
            began,
            found,
            used,
        });
    }

    /// Puts it on record where an error says that the session is not there.
    pub(crate) fn missed(&self, client: &Client, began: u64, error: &Error) {
        if error.kind() == ErrorKind::SessionNotFound {
            self.found(client, began, false, false);
        }
    }

    /// An event with a number that tells it from all others.
    pub(crate) fn event(&self, rng: &mut Rng) -> (No, Bytes) {
        let no = self.number();
        let padding = if rng.chance(self.padded) {
            rng.below(900)
        } else {
            0
        };
        let padding = usize::try_from(padding).unwrap_or(0);
        (no, format!("e{no} {}", "x".repeat(padding)).into())
    }
}

/// The number that a payload carries after its letter.
pub(crate) fn number_in(data: &[u8], letter: char) -> Option<No> {
    let text = std::str::from_utf8(data).ok()?;
    text.strip_prefix(letter)?.split(' ').next()?.parse().ok()
}

/// Lets virtual time pass.
pub(crate) async fn pause(rng: &mut Rng, low: u64, high: u64) {
    tokio::time::sleep(rng.millis(low, high)).await;
}

pub(crate) const START: Position = Position::START;
