//! A worker: one rmcp service of one session in this process. Several
//! instances may have one for the same session, and a session may have none.

mod asks;
mod calls;
mod capabilities;
mod ending;
mod outbound;
mod settings;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp_adapter_core::{InstanceId, Principal, SessionId};
use parking_lot::Mutex;
use rmcp::model::{
    ClientCapabilities, ClientJsonRpcMessage, ClientNotification, ClientRequest, GetExtensions,
    NumberOrString, RequestId, ServerJsonRpcMessage,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::{
    asks::Asked,
    settings::{Applied, Change},
};
pub(crate) use self::{
    asks::Mapped,
    calls::{Call, Start},
    outbound::WorkerTransport,
};
use crate::{config::Backends, handle::Session, registry::Registry, verdict::SendError};

/// Notifications of clients that wait for the worker; one more is refused.
const MAX_INBOX: usize = 1024;

pub(crate) struct Worker {
    pub(crate) session: SessionId,
    pub(crate) principal: Option<Principal>,
    pub(crate) backends: Arc<Backends>,
    pub(crate) registry: Weak<Registry>,
    /// Makes ids unique in the whole fleet (P1).
    nonce: Arc<str>,
    state: Mutex<State>,
    arrived: Notify,
    /// Cancelled once no message is taken any more.
    pub(crate) closed: CancellationToken,
    /// Handlers that have not returned, those of cancelled calls included.
    handlers: AtomicUsize,
    /// Terminal events that are being stored.
    settling: AtomicUsize,
}

struct State {
    inbox: VecDeque<Item>,
    /// Requests of our own that the handler has not answered yet.
    replaying: HashSet<Arc<str>>,
    open: bool,
    handshake: Option<Handshake>,
    calls: HashMap<Arc<str>, Arc<Call>>,
    asked: HashMap<RequestId, Asked>,
    /// What the client has declared.
    capabilities: ClientCapabilities,
    applied: Applied,
    /// Whether the handler has had `initialized`, or must not get it.
    initialized: bool,
    next: u64,
    used: Instant,
}

impl State {
    fn runs(&self) -> bool {
        !self.calls.is_empty()
            || !self.asked.is_empty()
            || !self.inbox.is_empty()
            || self.handshake.is_some()
    }
}

enum Item {
    Message(Box<ClientJsonRpcMessage>),
    /// What follows waits until nothing is replayed any more, or until this
    /// instant: rmcp runs handlers side by side.
    Barrier(Instant),
}

struct Handshake {
    id: RequestId,
    answer: oneshot::Sender<ServerJsonRpcMessage>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// Why a worker does not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// It has ended; the session may go on with another worker.
    Closed,
    Full,
}

/// A worker whose session is not stored yet. Dropping it ends the worker.
#[derive(Debug)]
pub(crate) struct NewWorker(Option<Arc<Worker>>);

impl NewWorker {
    pub(crate) fn new(worker: Arc<Worker>) -> Self {
        Self(Some(worker))
    }

    pub(crate) fn worker(&self) -> Option<&Arc<Worker>> {
        self.0.as_ref()
    }

    pub(crate) fn keep(mut self) -> Option<Arc<Worker>> {
        self.0.take()
    }
}

impl Drop for NewWorker {
    fn drop(&mut self) {
        if let Some(worker) = &self.0 {
            worker.close();
        }
    }
}

impl Worker {
    pub(crate) fn new(
        session: SessionId,
        principal: Option<Principal>,
        backends: Arc<Backends>,
        registry: Weak<Registry>,
    ) -> Arc<Self> {
        let nonce = InstanceId::generate().to_string();
        Arc::new(Self {
            session,
            principal,
            backends,
            registry,
            // 80 bits: unguessable enough to be unique, short on the wire.
            nonce: nonce[..20].into(),
            state: Mutex::new(State {
                inbox: VecDeque::new(),
                replaying: HashSet::new(),
                open: true,
                handshake: None,
                calls: HashMap::new(),
                asked: HashMap::new(),
                capabilities: ClientCapabilities::default(),
                applied: Applied::default(),
                initialized: false,
                next: 0,
                used: Instant::now(),
            }),
            arrived: Notify::new(),
            closed: CancellationToken::new(),
            handlers: AtomicUsize::new(0),
            settling: AtomicUsize::new(0),
        })
    }

    fn mint(&self, state: &mut State) -> Arc<str> {
        state.next += 1;
        format!("{}-{}", self.nonce, state.next).into()
    }

    /// Queues what this instance itself has to say. There is at most one such
    /// message per call and client request, so that the queue stays bounded.
    fn push(&self, state: &mut State, message: ClientJsonRpcMessage) {
        if state.open {
            state.inbox.push_back(Item::Message(Box::new(message)));
            self.arrived.notify_one();
        }
    }

    /// Sends rmcp's `initialize` and waits for what the handler answers to it.
    pub(crate) async fn handshake(
        &self,
        mut message: ClientJsonRpcMessage,
    ) -> Option<ServerJsonRpcMessage> {
        let ClientJsonRpcMessage::Request(request) = &mut message else {
            return None;
        };
        let (sender, answer) = oneshot::channel();
        let wire_id = {
            let mut state = self.state.lock();
            // A restored worker gets what its session's record holds.
            if let ClientRequest::InitializeRequest(initialize) = &request.request {
                let declared = &initialize.params.capabilities;
                state.capabilities.clone_from(declared);
            }
            let key = self.mint(&mut state);
            let id = NumberOrString::String(key);
            let wire_id = std::mem::replace(&mut request.id, id.clone());
            state.handshake = Some(Handshake { id, answer: sender });
            self.push(&mut state, message);
            wire_id
        };
        let mut answer = tokio::time::timeout(crate::verdict::HANDSHAKE_TIMEOUT, answer)
            .await
            .ok()?
            .ok()?;
        match &mut answer {
            ServerJsonRpcMessage::Response(response) => response.id = wire_id,
            ServerJsonRpcMessage::Error(error) => error.id = Some(wire_id),
            _ => return None,
        }
        Some(answer)
    }

    /// Hands a client's notification to the handler.
    pub(crate) fn notify(
        self: &Arc<Self>,
        mut notification: ClientNotification,
    ) -> Result<(), NotTaken> {
        notification
            .extensions_mut()
            .insert(Session::new(Arc::clone(self), None));
        let mut state = self.state.lock();
        if !state.open {
            return Err(NotTaken::Closed);
        }
        if state.inbox.len() >= MAX_INBOX {
            return Err(NotTaken::Full);
        }
        state.used = Instant::now();
        self.push(&mut state, ClientJsonRpcMessage::notification(notification));
        Ok(())
    }

    /// Hands `initialized` to the handler unless it has had it.
    pub(crate) fn notify_initialized(self: &Arc<Self>, notification: ClientNotification) {
        if std::mem::replace(&mut self.state.lock().initialized, true) {
            return;
        }
        // Full or closed: as if the client had never sent it, which is legal.
        let _ = self.notify(notification);
    }

    /// For workers of sessions whose client has sent `initialized` already, to
    /// another worker.
    pub(crate) fn skip_initialized(&self) {
        self.state.lock().initialized = true;
    }

    /// The next message for rmcp's service loop. Cancel safe.
    pub(crate) async fn receive(&self) -> Option<ClientJsonRpcMessage> {
        loop {
            let barrier = {
                let mut state = self.state.lock();
                match state.inbox.pop_front() {
                    Some(Item::Message(message)) => return Some(*message),
                    Some(Item::Barrier(until)) => {
                        if state.replaying.is_empty() || until <= Instant::now() {
                            state.replaying.clear();
                            continue;
                        }
                        state.inbox.push_front(Item::Barrier(until));
                        Some(until)
                    }
                    None if !state.open => return None,
                    None => None,
                }
            };
            match barrier {
                // Either way the queue is looked at again.
                Some(until) => drop(timeout_at(until, self.arrived.notified()).await),
                None => self.arrived.notified().await,
            }
        }
    }

    /// A replayed request was answered. `false`: it was none.
    fn replayed(&self, key: &str) -> bool {
        let replayed = self.state.lock().replaying.remove(key);
        if replayed {
            self.arrived.notify_one();
        }
        replayed
    }

    /// Takes no message any more. What is queued is still handled; then
    /// rmcp's service loop ends.
    pub(crate) fn close(&self) {
        self.state.lock().open = false;
        self.closed.cancel();
        self.arrived.notify_one();
    }

    /// Closes the worker if nothing has run in it for `idle`.
    pub(crate) fn close_if_idle(&self, idle: Duration) -> bool {
        self.close_unless(|state| {
            state.runs()
                || self.handlers.load(Ordering::Acquire) > 0
                || self.settling.load(Ordering::Acquire) > 0
                || state.used.elapsed() < idle
        })
    }

    /// Closes the worker if no client waits for anything in it.
    pub(crate) fn close_if_quiet(&self) -> bool {
        self.close_unless(|state| state.runs() || self.settling.load(Ordering::Acquire) > 0)
    }

    fn close_unless(&self, busy: impl FnOnce(&State) -> bool) -> bool {
        {
            let mut state = self.state.lock();
            if busy(&state) {
                return false;
            }
            state.open = false;
        }
        self.close();
        true
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// rmcp's loop is over: whatever still waits for it will wait in vain.
    fn ended(self: &Arc<Self>) {
        self.close();
        let (inbox, handshake) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.inbox), state.handshake.take())
        };
        drop((inbox, handshake));
        self.fail_calls("the server has stopped");
        // Those of no call.
        self.fail_asks();
        if let Some(registry) = self.registry.upgrade() {
            registry.forget(self);
        }
    }
}
