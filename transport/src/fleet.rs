//! Notifications to sessions from any code at any instance, readiness, drain.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use futures::StreamExt;
use mcp_adapter_core::{
    Error, ErrorKind, EventId, InstanceId, Principal, Result, SessionId, SessionRecord,
};
use rmcp::{
    ErrorData,
    model::{ServerJsonRpcMessage, ServerNotification},
    service::SubscriptionContext,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{bus::Bus, drain, lifecycle::Lifecycle, message, record, registry::Registry};

/// Sessions that are told at once of one broadcast.
const PARALLEL: usize = 16;
/// Where a session's record remembers what it was told.
const TOLD: &str = "mcp-adapter-transport/told";

/// Whose list has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ListChanged {
    /// `notifications/tools/list_changed`
    Tools,
    /// `notifications/prompts/list_changed`
    Prompts,
    /// `notifications/resources/list_changed`
    Resources,
}

/// Whether an instance should get requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Readiness {
    /// It should.
    Ready,
    /// It is shutting down. What it gets is served, but it should get no more.
    Draining,
    /// A store does not answer, or has not yet, so that it would refuse them.
    Unavailable,
}

/// What became of a [`drain`](FleetHandle::drain).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Calls that still ran at the deadline and ended with an error.
    pub aborted: usize,
}

impl Drained {
    pub(crate) fn new(aborted: usize) -> Self {
        Self { aborted }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Bound {
    pub(crate) registry: Weak<Registry>,
    pub(crate) bus: Weak<Bus>,
    pub(crate) lifecycle: Arc<Lifecycle>,
}

/// A handle on the sessions of the whole fleet and on this instance.
///
/// rmcp's way to send notifications is to keep `Peer`s. With sessions that any
/// instance serves, a `Peer` is one of several workers of a session, or of none
/// any more. This handle needs none of them: a message goes to the session's
/// standalone stream, once, wherever its client listens.
#[derive(Debug, Clone, Default)]
pub struct FleetHandle(Arc<OnceLock<Bound>>);

impl FleetHandle {
    pub(crate) fn of(registry: Weak<Registry>) -> Self {
        let handle = Self::default();
        if let Some(here) = registry.upgrade() {
            handle.bind(Bound {
                bus: Arc::downgrade(&here.bus),
                lifecycle: Arc::clone(&here.backends.lifecycle),
                registry,
            });
        }
        handle
    }

    pub(crate) fn bind(&self, bound: Bound) {
        // A transport is bound once, since binding takes it.
        let _ = self.0.set(bound);
    }

    fn registry(&self) -> Result<Arc<Registry>> {
        self.0
            .get()
            .and_then(|bound| bound.registry.upgrade())
            .ok_or_else(|| {
                Error::new(ErrorKind::Closed, "fleet handle")
                    .with_message("the transport has no sessions, is not bound yet or was dropped")
            })
    }

    fn bus(&self) -> Result<Arc<Bus>> {
        self.0
            .get()
            .and_then(|bound| bound.bus.upgrade())
            .ok_or_else(|| {
                Error::new(ErrorKind::Closed, "fleet handle")
                    .with_message("the transport is not bound yet or was dropped")
            })
    }

    /// Sends a notification to one session.
    ///
    /// # Errors
    /// [`SessionNotFound`](ErrorKind::SessionNotFound) (E6),
    /// [`TooLarge`](ErrorKind::TooLarge) (E4), [`Overloaded`](ErrorKind::Overloaded)
    /// (F4), [`Unavailable`](ErrorKind::Unavailable) or
    /// [`Timeout`](ErrorKind::Timeout) (F1); [`Closed`](ErrorKind::Closed)
    /// where the transport has no sessions or was dropped.
    pub async fn notify(
        &self,
        session: &SessionId,
        notification: ServerNotification,
    ) -> Result<EventId> {
        let registry = self.registry()?;
        let event = message::encode(&ServerJsonRpcMessage::notification(notification))
            .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "notify"))?;
        registry.backends.sessions.append(session, event).await
    }

    /// Tells every client of the fleet that a list has changed: those of
    /// sessions, and those of 2026-07-28 that [`listen`](Self::listen) for it.
    ///
    /// Reached are the sessions that have a worker or a listening client at
    /// some instance, each at most once, and all listeners whose filter has it.
    /// Other instances hear of it by a signal, which may be lost.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) or [`Timeout`](ErrorKind::Timeout)
    /// where the other instances could not be told: this one's clients were,
    /// and a repeat tells them again. [`Closed`](ErrorKind::Closed) where the
    /// transport is not bound yet or was dropped.
    pub async fn broadcast(&self, changed: ListChanged) -> Result<()> {
        self.publish(What::ListChanged(changed)).await
    }

    /// Tells every client that has subscribed to `uri`, by
    /// `resources/subscribe` or `subscriptions/listen`, that it was updated.
    /// Reach is that of [`broadcast`](Self::broadcast).
    ///
    /// # Errors
    /// Those of [`broadcast`](Self::broadcast), and
    /// [`TooLarge`](ErrorKind::TooLarge) for a URI that does not fit into a
    /// signal of [`MAX_SIGNAL_BYTES`](mcp_adapter_core::MAX_SIGNAL_BYTES):
    /// nobody was told.
    pub async fn resource_updated(&self, uri: impl Into<String> + Send) -> Result<()> {
        self.publish(What::Updated(uri.into())).await
    }

    async fn publish(&self, what: What) -> Result<()> {
        let broadcast = Broadcast {
            id: InstanceId::generate().to_string()[..16].to_owned(),
            what,
        };
        self.bus()?.publish(broadcast).await
    }

    /// Serves a `subscriptions/listen` of 2026-07-28: sends its client what
    /// [`broadcast`](Self::broadcast) and
    /// [`resource_updated`](Self::resource_updated) tell at any instance, as
    /// far as its filter goes. This is all that a handler's `listen` does:
    ///
    /// ```
    /// use mcp_adapter_transport::FleetHandle;
    /// use rmcp::{
    ///     ErrorData, ServerHandler,
    ///     model::{ServerCapabilities, ServerInfo, SubscriptionFilter},
    ///     service::SubscriptionContext,
    /// };
    ///
    /// struct MyServer {
    ///     fleet: FleetHandle,
    /// }
    ///
    /// impl ServerHandler for MyServer {
    ///     fn get_info(&self) -> ServerInfo {
    ///         let tools = ServerCapabilities::builder().enable_tools();
    ///         ServerInfo::new(tools.enable_tool_list_changed().build())
    ///     }
    ///
    ///     // rmcp grants no more than `get_info` offers.
    ///     fn accepted_subscription_filter(
    ///         &self,
    ///         requested: &SubscriptionFilter,
    ///     ) -> Option<SubscriptionFilter> {
    ///         Some(requested.clone())
    ///     }
    ///
    ///     async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
    ///         self.fleet.listen(context).await
    ///     }
    /// }
    /// ```
    ///
    /// Nothing that this instance hears after the request arrived is missed.
    /// Changes that a slow client has not read yet are sent once, however often
    /// they occurred, so what waits for it is bounded by its filter. It returns
    /// when the client is gone, and with a [`drain`](Self::drain), so that the
    /// client gets a result and listens elsewhere.
    ///
    /// # Errors
    /// An internal error for the client where the transport was dropped.
    pub async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        match self.bus() {
            Ok(bus) => {
                bus.hold(context).await;
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "a client cannot listen");
                Err(ErrorData::internal_error("nothing to listen to", None))
            }
        }
    }

    /// Whether this instance should get requests. It is
    /// [`Unavailable`](Readiness::Unavailable) whenever the adapter of any role
    /// is [`Down`](mcp_adapter_core::Health::Down), as they are until their
    /// stores have answered once. Costs nothing.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.0
            .get()
            .map_or(Readiness::Unavailable, |bound| bound.lifecycle.readiness())
    }

    /// Tells the load balancer, by [`readiness`](Self::readiness), that this
    /// instance is about to end. All requests are served as before; connections
    /// of HTTP/1 end with the request that they are used for next.
    pub fn start_drain(&self) {
        if let Some(bound) = self.0.get() {
            bound.lifecycle.start_drain();
        }
    }

    /// Shuts this instance down without a lost result.
    ///
    /// It is no longer [`Ready`](Readiness::Ready). The streams that clients
    /// listen on are closed, [`listen`](Self::listen)'s with a result, and
    /// reopened elsewhere. Calls run until `deadline`; then pending client
    /// requests fail, and calls that still run end with a JSON-RPC error.
    /// Sessions stay, for other instances.
    ///
    /// Until the deadline whatever comes is served, new sessions and calls too,
    /// and after it as well if nothing ran any more: any instance can serve any
    /// request, so there is no reason to refuse one. Past the deadline it would
    /// be cut off, and gets 503 with `Retry-After`. So stop listening first, and
    /// close the adapter after this; the [crate's page](crate#shutting-down) has
    /// the whole sequence.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.start_drain();
        match self.registry() {
            Ok(registry) => drain::drain(&registry, deadline).await,
            Err(_) => {
                if let Ok(bus) = self.bus() {
                    bus.end_listeners();
                }
                Drained::new(0)
            }
        }
    }
}

/// A notification for many sessions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Broadcast {
    id: String,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    ListChanged(ListChanged),
    Updated(String),
}

impl What {
    fn event(&self) -> bytes::Bytes {
        let (method, params) = match self {
            Self::ListChanged(ListChanged::Tools) => ("notifications/tools/list_changed", None),
            Self::ListChanged(ListChanged::Prompts) => ("notifications/prompts/list_changed", None),
            Self::ListChanged(ListChanged::Resources) => {
                ("notifications/resources/list_changed", None)
            }
            Self::Updated(uri) => ("notifications/resources/updated", Some(json!({"uri": uri}))),
        };
        message::notification(method, params)
    }

    fn concerns(&self, record: &SessionRecord) -> bool {
        match self {
            Self::ListChanged(_) => true,
            Self::Updated(uri) => record.subscriptions.contains(uri),
        }
    }
}

impl Registry {
    /// Tells the sessions known here. Several instances may know a session;
    /// the one that marks its record is the one to tell it.
    pub(crate) async fn deliver(self: &Arc<Self>, broadcast: Broadcast) {
        futures::stream::iter(self.sessions())
            .for_each_concurrent(PARALLEL, |(session, principal)| {
                let broadcast = &broadcast;
                async move {
                    match self.tell(&session, principal.as_ref(), broadcast).await {
                        Ok(()) => {}
                        Err(error) if error.kind() == ErrorKind::SessionNotFound => {}
                        Err(error) => {
                            metrics::counter!("mcp_transport_broadcasts_lost_total").increment(1);
                            tracing::warn!(%error, ?session, "a session was not told");
                        }
                    }
                }
            })
            .await;
    }

    async fn tell(
        &self,
        session: &SessionId,
        principal: Option<&Principal>,
        broadcast: &Broadcast,
    ) -> Result<()> {
        let stored = record::read(&self.backends, session, principal).await?;
        if !broadcast.what.concerns(&stored.record) {
            return Ok(());
        }
        let mark = |record: &mut SessionRecord| record::remember(record, TOLD, &broadcast.id);
        if record::edit(&self.backends, session, principal, stored, mark).await? {
            let event = broadcast.what.event();
            self.backends.sessions.append(session, event).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_handle_of_no_transport_says_so() {
        let handle = FleetHandle::default();
        let error = handle.broadcast(ListChanged::Tools).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert_eq!(handle.readiness(), Readiness::Unavailable);
        assert_eq!(handle.drain(Duration::ZERO).await.aborted, 0);
    }
}
