//! The listen bus: what changes at one instance reaches the clients that hold
//! `subscriptions/listen` (2026-07-28) at any other.
//!
//! Such a request has no session and its stream ends with its socket, so there
//! is nothing to store: each instance keeps its own listeners, and changes
//! travel on a topic of the fleet.
//!
//! A change says "look again". So one that a listener has not been sent yet
//! stands for all that follow it, and what a listener has pending is bounded by
//! the filter that it was granted, however slowly its client reads.

mod listener;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use futures::StreamExt;
use mcp_adapter_core::{Channel, ErrorKind, Result};
use parking_lot::Mutex;
use rmcp::{model::SubscriptionFilter, service::SubscriptionContext};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::listener::Listener;
use crate::{
    fleet::{Broadcast, What},
    registry::{Registry, Stateless},
    signals::{LISTEN_AGAIN, News, Signals},
};

pub(crate) const TOPIC: &str = "mcp-adapter-transport";
/// Changes that are remembered for listeners whose request is on its way.
const RECENT: usize = 256;
/// Broadcasts that wait until the sessions here are told.
const QUEUED: usize = 256;
/// How long a listener's request waits until this instance hears the others.
const READY: Duration = Duration::from_secs(5);

/// The listeners of one instance.
pub(crate) struct Bus {
    signals: Arc<Signals>,
    /// Whose sessions are told as well; without one there are none.
    registry: OnceLock<Weak<Registry>>,
    stopped: CancellationToken,
    state: Mutex<State>,
    hearing: watch::Sender<Hearing>,
    started: OnceLock<()>,
}

/// Whether other instances are heard.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hearing {
    NotYet,
    Yes,
    No,
}

#[derive(Default)]
struct State {
    /// Changes so far; `recent` ends with the last of them.
    changes: u64,
    recent: VecDeque<Arc<What>>,
    listeners: HashMap<u64, Arc<Listener>>,
    next: u64,
    closed: bool,
}

/// When a listener's request arrived, in the request's extensions: it is told
/// of what has changed since, though it listens only after the acknowledgement.
#[derive(Clone)]
pub(crate) struct Arrival {
    changes: u64,
    /// Counts the request as running once it has been asked to end.
    response: Weak<Stateless>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").finish_non_exhaustive()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.end();
        self.stopped.cancel();
    }
}

impl Bus {
    /// A bus that works until `stopped`.
    pub(crate) fn new(signals: Arc<Signals>, stopped: &CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            signals,
            registry: OnceLock::new(),
            stopped: stopped.child_token(),
            state: Mutex::default(),
            hearing: watch::Sender::new(Hearing::NotYet),
            started: OnceLock::new(),
        })
    }

    pub(crate) fn serve_sessions(&self, registry: Weak<Registry>) {
        // A bus is bound once, with its transport.
        let _ = self.registry.set(registry);
    }

    fn registry(&self) -> Option<Arc<Registry>> {
        self.registry.get().and_then(Weak::upgrade)
    }

    /// Starts to hear the other instances, at the first request: only then
    /// there is surely a runtime.
    pub(crate) fn start(self: &Arc<Self>) {
        if self.signals.are_none() || self.started.set(()).is_err() {
            return;
        }
        let (queue, queued) = mpsc::channel(QUEUED);
        let sessions = tell_sessions(Arc::downgrade(self), queued);
        tokio::spawn(self.stopped.clone().run_until_cancelled_owned(sessions));
        let hear = hear(Arc::downgrade(self), Arc::clone(&self.signals), queue);
        tokio::spawn(self.stopped.clone().run_until_cancelled_owned(hear));
    }

    /// Whether changes elsewhere are heard here, once that is known.
    pub(crate) async fn is_ready(&self) -> bool {
        if self.signals.are_none() {
            return true;
        }
        let mut hearing = self.hearing.subscribe();
        let tried = hearing.wait_for(|hearing| *hearing != Hearing::NotYet);
        let tried = tokio::time::timeout(READY, tried).await;
        matches!(tried, Ok(Ok(hearing)) if *hearing == Hearing::Yes)
    }

    /// Takes a request for a listener's into account.
    pub(crate) fn arrival(&self, response: Weak<Stateless>) -> Arrival {
        Arrival {
            changes: self.state.lock().changes,
            response,
        }
    }

    /// Tells the fleet's listeners and sessions.
    pub(crate) async fn publish(&self, broadcast: Broadcast) -> Result<()> {
        let signal = self.signals.seal(News::Broadcast(broadcast.clone()))?;
        self.deliver(&Arc::new(broadcast.what.clone()));
        let channel = Channel::Topic(TOPIC.into());
        let sessions = async {
            if let Some(registry) = self.registry() {
                registry.deliver(broadcast).await;
            }
        };
        let (sent, ()) = tokio::join!(self.signals.send(&channel, signal), sessions);
        sent
    }

    /// Tells the listeners here.
    fn deliver(&self, what: &Arc<What>) {
        let mut state = self.state.lock();
        state.changes += 1;
        if state.recent.len() >= RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back(Arc::clone(what));
        for listener in state.listeners.values() {
            listener.tell(what);
        }
    }

    fn add(self: &Arc<Self>, filter: &SubscriptionFilter, arrival: Option<&Arrival>) -> Place {
        let response = arrival.map_or_else(Weak::new, |arrival| Weak::clone(&arrival.response));
        let listener = Arc::new(Listener::new(filter, response));
        let mut state = self.state.lock();
        let since = arrival.map_or(state.changes, |arrival| arrival.changes);
        let missed = usize::try_from(state.changes - since).unwrap_or(usize::MAX);
        match state.recent.len().checked_sub(missed) {
            Some(seen) => {
                for what in state.recent.range(seen..) {
                    listener.tell(what);
                }
            }
            // More than is remembered: any of it may have changed.
            None => listener.tell_all(),
        }
        if state.closed {
            listener.end();
        }
        let key = state.next;
        state.next += 1;
        state.listeners.insert(key, Arc::clone(&listener));
        metrics::gauge!("mcp_transport_subscriptions").increment(1);
        drop(state);
        Place {
            bus: Arc::downgrade(self),
            key,
            listener,
        }
    }

    /// Holds a subscription until its client leaves or this instance ends.
    pub(crate) async fn hold(self: Arc<Self>, context: SubscriptionContext) {
        let parts = context.request_context().extensions.get();
        let arrival = parts.and_then(|parts: &http::request::Parts| parts.extensions.get());
        let place = self.add(context.accepted(), arrival);
        // The service may be dropped while clients listen.
        drop(self);
        tokio::select! {
            () = context.cancelled() => {}
            () = place.listener.ended.cancelled() => {}
            error = place.listener.send_to(context.sink()) => {
                tracing::debug!(%error, "a listener has left");
            }
        }
    }

    /// Ends all subscriptions with a result, so that their clients go
    /// elsewhere.
    pub(crate) fn end_listeners(&self) {
        for listener in self.state.lock().listeners.values() {
            listener.end();
        }
    }

    /// The same, also for those that are still to come.
    pub(crate) fn end(&self) {
        self.state.lock().closed = true;
        self.end_listeners();
    }
}

/// A listener's entry, until it is dropped.
struct Place {
    bus: Weak<Bus>,
    key: u64,
    listener: Arc<Listener>,
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("mcp_transport_subscriptions").decrement(1);
        if let Some(bus) = self.bus.upgrade() {
            bus.state.lock().listeners.remove(&self.key);
        }
    }
}

/// Hears the other instances as long as the bus lives. Listeners are told at
/// once; sessions, each of which costs a round trip, by a task of their own.
async fn hear(bus: Weak<Bus>, signals: Arc<Signals>, queue: mpsc::Sender<Broadcast>) {
    let channel = Channel::Topic(TOPIC.into());
    loop {
        match signals.listen(&channel).await {
            Ok(mut heard) => {
                let Some(here) = bus.upgrade() else { return };
                here.hearing.send_replace(Hearing::Yes);
                drop(here);
                while let Some(signal) = heard.next().await {
                    let Some(bus) = bus.upgrade() else { return };
                    if let Some(News::Broadcast(broadcast)) = signals.open(&signal.payload) {
                        bus.deliver(&Arc::new(broadcast.what.clone()));
                        if bus.registry().is_some() && queue.try_send(broadcast).is_err() {
                            metrics::counter!("mcp_transport_broadcasts_lost_total").increment(1);
                            tracing::warn!("too many broadcasts: the sessions here are not told");
                        }
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Closed => return,
            Err(error) => tracing::warn!(%error, "cannot listen for broadcasts"),
        }
        let Some(here) = bus.upgrade() else { return };
        here.hearing.send_replace(Hearing::No);
        drop(here);
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

async fn tell_sessions(bus: Weak<Bus>, mut queued: mpsc::Receiver<Broadcast>) {
    while let Some(broadcast) = queued.recv().await {
        let Some(registry) = bus.upgrade().and_then(|bus| bus.registry()) else {
            return;
        };
        registry.deliver(broadcast).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::ListChanged;

    const TOOLS: What = What::ListChanged(ListChanged::Tools);
    const PROMPTS: What = What::ListChanged(ListChanged::Prompts);

    fn bus() -> Arc<Bus> {
        Bus::new(Arc::new(Signals::new(None)), &CancellationToken::new())
    }

    fn filter() -> SubscriptionFilter {
        let filter = SubscriptionFilter::builder().tools_list_changed();
        filter.resource_subscriptions(["a", "b"]).build()
    }

    fn updated(uri: &str) -> What {
        What::Updated(uri.into())
    }

    fn pending(place: &Place) -> Vec<What> {
        std::iter::from_fn(|| place.listener.take())
            .map(|what| (*what).clone())
            .collect()
    }

    #[test]
    fn pending_changes_are_bounded_by_the_filter() {
        let bus = bus();
        let place = bus.add(&filter(), None);
        for _ in 0..10_000 {
            for what in [TOOLS, PROMPTS, updated("b"), updated("c")] {
                bus.deliver(&Arc::new(what));
            }
        }
        assert_eq!(pending(&place), [TOOLS, updated("b")]);
        // What was sent is told again.
        bus.deliver(&Arc::new(TOOLS));
        assert_eq!(pending(&place), [TOOLS]);
    }

    #[test]
    fn a_change_between_arrival_and_listening_is_not_missed() {
        let bus = bus();
        bus.deliver(&Arc::new(updated("a")));
        let arrival = bus.arrival(Weak::new());
        bus.deliver(&Arc::new(TOOLS));
        bus.deliver(&Arc::new(PROMPTS));
        let place = bus.add(&filter(), Some(&arrival));
        assert_eq!(pending(&place), [TOOLS]);
    }

    #[test]
    fn whoever_missed_more_than_is_remembered_looks_at_all() {
        let bus = bus();
        let arrival = bus.arrival(Weak::new());
        for _ in 0..=RECENT {
            bus.deliver(&Arc::new(PROMPTS));
        }
        let mut all = pending(&bus.add(&filter(), Some(&arrival)));
        all[1..].sort_by_key(|what| format!("{what:?}"));
        assert_eq!(all, [TOOLS, updated("a"), updated("b")]);
    }

    #[test]
    fn a_place_is_given_back() {
        let bus = bus();
        let place = bus.add(&filter(), None);
        assert_eq!(bus.state.lock().listeners.len(), 1);
        drop(place);
        assert!(bus.state.lock().listeners.is_empty());
    }

    #[test]
    fn whoever_comes_after_the_end_is_ended() {
        let bus = bus();
        let before = bus.add(&filter(), None);
        bus.end();
        assert!(before.listener.ended.is_cancelled());
        assert!(bus.add(&filter(), None).listener.ended.is_cancelled());
    }

    #[test]
    fn listeners_outlive_the_bus_and_are_ended_by_it() {
        let bus = bus();
        let place = bus.add(&filter(), None);
        drop(bus);
        assert!(place.listener.ended.is_cancelled());
    }
}
