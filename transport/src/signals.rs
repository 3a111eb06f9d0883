//! What instances tell each other. All of it may get lost: what must not be
//! is in a record or a stream as well.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use mcp_adapter_core::{Channel, ErrorKind, SessionId};
use rmcp::model::{ClientJsonRpcMessage, ClientNotification};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    config::Backends,
    fleet::Broadcast,
    record,
    registry::Registry,
    worker::{Mapped, NotTaken, Worker},
};

/// How long a listener waits before it listens again after a failure.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
const TOPIC: &str = "mcp-adapter-transport";

#[derive(Serialize, Deserialize)]
struct Envelope {
    /// Who sent it: everybody hears their own signals, too.
    origin: String,
    news: News,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum News {
    /// The session's record has changed.
    Changed,
    /// The session was deleted.
    Deleted,
    /// A client's notification, for workers elsewhere.
    Notification(Box<RawValue>),
    Broadcast(Broadcast),
}

impl Backends {
    async fn signal(&self, channel: &Channel, news: News) {
        let Some(signals) = &self.signals else {
            return;
        };
        let envelope = Envelope {
            origin: self.origin.clone(),
            news,
        };
        let Some(payload) = crate::message::encode(&envelope) else {
            return;
        };
        if let Err(error) = signals.signal(channel, payload).await {
            metrics::counter!("mcp_transport_signals_lost_total").increment(1);
            if error.kind() == ErrorKind::TooLarge {
                tracing::debug!(%error, "a notification is too large for other instances");
            } else {
                tracing::warn!(%error, "a signal was not sent");
            }
        }
    }

    pub(crate) async fn signal_sync(&self, session: &SessionId) {
        self.signal(&Channel::Session(session.clone()), News::Changed)
            .await;
    }

    pub(crate) async fn signal_deleted(&self, session: &SessionId) {
        self.signal(&Channel::Session(session.clone()), News::Deleted)
            .await;
    }

    /// Hands a client's notification, as it came, to workers elsewhere.
    pub(crate) async fn signal_notification(&self, session: &SessionId, body: &Bytes) {
        if let Ok(raw) = serde_json::from_slice::<Box<RawValue>>(body) {
            self.signal(&Channel::Session(session.clone()), News::Notification(raw))
                .await;
        }
    }

    pub(crate) async fn signal_broadcast(&self, broadcast: Broadcast) {
        self.signal(&Channel::Topic(TOPIC.into()), News::Broadcast(broadcast))
            .await;
    }
}

/// Listens for a worker until it ends. Returns once it listens, or at the
/// first failure, after which it goes on trying.
pub(crate) async fn listen(worker: &Arc<Worker>) {
    let Some(signals) = worker.backends.signals.clone() else {
        return;
    };
    let channel = Channel::Session(worker.session.clone());
    let first = signals.listen(&channel).await;
    let (weak, closed) = (Arc::downgrade(worker), worker.closed.clone());
    let backends = Arc::clone(&worker.backends);
    tokio::spawn(closed.run_until_cancelled_owned(async move {
        let mut listening = first;
        loop {
            match listening {
                Ok(mut heard) => {
                    while let Some(signal) = heard.next().await {
                        let Some(worker) = weak.upgrade() else { return };
                        if let Some(news) = read(&backends, &signal.payload) {
                            hear(&worker, news).await;
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(error) => tracing::warn!(%error, "cannot listen for signals"),
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
            listening = signals.listen(&channel).await;
        }
    }));
}

fn read(backends: &Backends, payload: &[u8]) -> Option<News> {
    let envelope: Envelope = serde_json::from_slice(payload)
        .inspect_err(|error| tracing::debug!(%error, "a signal that is not ours"))
        .ok()?;
    (envelope.origin != backends.origin).then_some(envelope.news)
}

async fn hear(worker: &Arc<Worker>, news: News) {
    match news {
        News::Changed => {
            let principal = worker.principal.as_ref();
            match record::read(&worker.backends, &worker.session, principal).await {
                Ok(stored) => worker.sync_now(&stored, None),
                // The next request reads the record in any case.
                Err(error) => tracing::debug!(%error, "a changed record was not read"),
            }
        }
        News::Deleted => worker.end_session(),
        News::Notification(raw) => {
            let message = serde_json::from_str::<ClientJsonRpcMessage>(raw.get());
            if let Ok(ClientJsonRpcMessage::Notification(message)) = message
                && deliver(worker, message.notification) == Err(NotTaken::Full)
            {
                metrics::counter!("mcp_transport_notifications_dropped_total").increment(1);
            }
        }
        News::Broadcast(_) => {}
    }
}

/// Gives a notification to a worker. `Ok(false)`: it is for another one.
pub(crate) fn deliver(
    worker: &Arc<Worker>,
    mut notification: ClientNotification,
) -> Result<bool, NotTaken> {
    match &mut notification {
        ClientNotification::InitializedNotification(_) => worker.notify_initialized(notification),
        ClientNotification::ProgressNotification(progress) => {
            match worker.map_progress(&mut progress.params) {
                Mapped::Ours => worker.notify(notification)?,
                Mapped::Ended => {}
                Mapped::Foreign => return Ok(false),
            }
        }
        _ => worker.notify(notification)?,
    }
    Ok(true)
}

/// Listens for broadcasts as long as the registry lives.
pub(crate) fn listen_for_broadcasts(registry: &Arc<Registry>) {
    let Some(signals) = registry.backends.signals.clone() else {
        return;
    };
    let (weak, stopped): (Weak<Registry>, _) = (Arc::downgrade(registry), registry.stopped.clone());
    tokio::spawn(stopped.run_until_cancelled_owned(async move {
        let channel = Channel::Topic(TOPIC.into());
        loop {
            match signals.listen(&channel).await {
                Ok(mut heard) => {
                    while let Some(signal) = heard.next().await {
                        let Some(registry) = weak.upgrade() else {
                            return;
                        };
                        if let Some(News::Broadcast(broadcast)) =
                            read(&registry.backends, &signal.payload)
                        {
                            registry.deliver(broadcast).await;
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(error) => tracing::warn!(%error, "cannot listen for broadcasts"),
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }));
}
