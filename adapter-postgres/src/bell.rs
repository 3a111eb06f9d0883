//! Wake-ups of appends, so that a busy writer does not notify with each batch: before
//! Postgres 19 one notification wakes every listener of the database, and whoever
//! sends it keeps all others waiting until the disk has its commit.
//!
//! The first wake-up of an instance goes along with the append itself. Those that
//! follow within [`PAUSE`] are gathered, each stream once, and sent together by a
//! statement that waits for no disk.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use mcp_adapter_core::{
    InstanceId, SessionKey, StreamId,
    storage::{Append, Door, Knock, Target},
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use crate::storage::Inner;

/// An instance is notified at most so often by appends.
const PAUSE: Duration = Duration::from_millis(5);
/// Streams gathered for one instance. Beyond them it is told to look at everything.
const GATHERED: usize = 1024;
/// Wake-ups that do not get out are left to the catch-up. A connection that was lost
/// takes one try.
const TRIES: u32 = 3;
const WORTH: Duration = Duration::from_secs(1);

/// Streams to look at, of each instance that follows some.
pub(crate) type Wakes = BTreeSet<(InstanceId, SessionKey, StreamId)>;

/// The wake-ups of a batch: each holder hears of each stream once.
pub(crate) fn wakes(batch: &[Append]) -> Wakes {
    let wakes = batch.iter().filter_map(|append| {
        let holder = append.wake?;
        Some((holder, append.session, append.stream.clone()))
    });
    wakes.collect()
}

#[derive(Debug)]
struct Follower {
    /// It is not notified again before.
    next: Instant,
    waiting: BTreeSet<(SessionKey, StreamId)>,
    /// More than can be gathered.
    everything: bool,
}

impl Follower {
    fn new(next: Instant) -> Self {
        Self {
            next,
            waiting: BTreeSet::new(),
            everything: false,
        }
    }

    fn is_waiting(&self) -> bool {
        self.everything || !self.waiting.is_empty()
    }
}

#[derive(Debug, Default)]
struct State {
    followers: HashMap<InstanceId, Follower>,
    /// Somebody will send what is gathered.
    ringing: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Bell(Mutex<State>);

impl State {
    /// Those of `wakes` that go along with the append; the others are left.
    fn first(&mut self, wakes: &mut Wakes, now: Instant) -> Wakes {
        let mut instances: Vec<_> = wakes.iter().map(|(instance, ..)| *instance).collect();
        instances.dedup();
        self.followers
            .retain(|_, follower| follower.is_waiting() || now < follower.next);
        instances.retain(|instance| !self.followers.contains_key(instance));
        for instance in &instances {
            self.followers.insert(*instance, Follower::new(now + PAUSE));
        }
        let (first, rest) = std::mem::take(wakes)
            .into_iter()
            .partition(|(instance, ..)| instances.contains(instance));
        *wakes = rest;
        first
    }

    fn gather(&mut self, wakes: Wakes, now: Instant) {
        for (instance, session, stream) in wakes {
            let follower = self.followers.entry(instance);
            let follower = follower.or_insert_with(|| Follower::new(now));
            if follower.waiting.len() < GATHERED {
                follower.waiting.insert((session, stream));
            } else if !follower.waiting.contains(&(session, stream)) {
                follower.everything = true;
            }
        }
    }

    /// When the next of those that are gathered is due.
    fn due(&self) -> Option<Instant> {
        let waiting = self.followers.values().filter(|f| f.is_waiting());
        waiting.map(|follower| follower.next).min()
    }

    fn take(&mut self, now: Instant) -> Vec<(Door, Knock)> {
        let mut knocks = Vec::new();
        for (instance, follower) in &mut self.followers {
            if !follower.is_waiting() || now < follower.next {
                continue;
            }
            follower.next = now + PAUSE;
            let streams = std::mem::take(&mut follower.waiting);
            let door = Door::Of(*instance);
            if std::mem::take(&mut follower.everything) {
                knocks.push((door, Knock::Everything));
                continue;
            }
            knocks.extend(streams.into_iter().map(|(session, stream)| {
                let wake = Knock::Wake(session, Target::Stream(stream));
                (door, wake)
            }));
        }
        knocks
    }
}

impl Bell {
    /// Those of `wakes` that go along with the append; the others are left, for when
    /// it is committed.
    pub(crate) fn first(&self, wakes: &mut Wakes) -> Wakes {
        if wakes.is_empty() {
            return Wakes::new();
        }
        self.0.lock().first(wakes, Instant::now())
    }
}

impl Inner {
    /// Sends these soon. What they announce is committed: whoever looks sees it.
    pub(crate) fn ring_soon(self: &Arc<Self>, wakes: Wakes) {
        if wakes.is_empty() {
            return;
        }
        let mut state = self.bell.0.lock();
        state.gather(wakes, Instant::now());
        if !std::mem::replace(&mut state.ringing, true) {
            tokio::spawn(ring(Arc::downgrade(self)));
        }
    }

    async fn ring_now(&self, knocks: &[(Door, Knock)]) {
        let sent = timeout(WORTH, async {
            for _ in 0..TRIES {
                match self.knock(knocks).await {
                    Ok(()) => return true,
                    Err(error) => tracing::debug!(%error, "wake-ups could not be sent"),
                }
            }
            false
        });
        if !sent.await.unwrap_or(false) {
            metrics::counter!("mcp_adapter_postgres_wakes_dropped_total").increment(1);
        }
    }
}

/// Sends what is gathered when it is due, until there is no more.
async fn ring(inner: Weak<Inner>) {
    loop {
        let due = {
            let Some(inner) = inner.upgrade() else {
                return;
            };
            let mut state = inner.bell.0.lock();
            let due = state.due();
            state.ringing = due.is_some();
            due
        };
        let Some(due) = due else {
            return;
        };
        sleep_until(due).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let knocks = inner.bell.0.lock().take(Instant::now());
        inner.ring_now(&knocks).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: InstanceId = InstanceId(1);
    const TWO: InstanceId = InstanceId(2);

    fn wake(instance: InstanceId, session: u8) -> (InstanceId, SessionKey, StreamId) {
        (instance, SessionKey([session; 32]), StreamId::standalone())
    }

    fn streams(knocks: &[(Door, Knock)]) -> Vec<Door> {
        knocks.iter().map(|(door, _)| *door).collect()
    }

    #[test]
    fn the_first_goes_at_once_and_the_others_together() {
        let (mut state, start) = (State::default(), Instant::now());
        let mut wakes = Wakes::from([wake(ONE, 1)]);
        assert_eq!(state.first(&mut wakes, start).len(), 1);
        assert!(wakes.is_empty() && state.due().is_none());
        // Another instance was not notified yet.
        let mut wakes = Wakes::from([wake(ONE, 1), wake(ONE, 2), wake(TWO, 1)]);
        let first = state.first(&mut wakes, start);
        assert_eq!(first, Wakes::from([wake(TWO, 1)]));
        state.gather(wakes.clone(), start);
        state.gather(wakes, start);
        assert_eq!(state.due(), Some(start + PAUSE));
        // Behind those that wait nobody goes first, however late it is.
        let late = start + PAUSE * 3;
        assert!(
            state
                .first(&mut Wakes::from([wake(ONE, 3)]), late)
                .is_empty()
        );
        assert_eq!(streams(&state.take(late)), [Door::Of(ONE); 2]);
        assert!(state.take(late).is_empty() && state.due().is_none());
        assert!(
            state
                .first(&mut Wakes::from([wake(ONE, 3)]), late)
                .is_empty()
        );
        let quiet = late + PAUSE;
        assert_eq!(
            state.first(&mut Wakes::from([wake(ONE, 3)]), quiet).len(),
            1
        );
        assert_eq!(state.followers.len(), 1, "who is quiet is forgotten");
    }

    #[test]
    fn too_many_are_told_to_look_at_everything() {
        let (mut state, start) = (State::default(), Instant::now());
        for number in 0..=GATHERED {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            let wake = (ONE, SessionKey(key), StreamId::standalone());
            state.gather(Wakes::from([wake]), start);
        }
        let knocks = state.take(start);
        assert_eq!(knocks, [(Door::Of(ONE), Knock::Everything)]);
    }
}
