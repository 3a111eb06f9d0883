//! What instances tell each other. All of it may get lost: what must not be
//! is in a record or a stream as well.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use mcp_adapter_core::{
    Channel, Error, ErrorKind, InstanceId, MAX_SIGNAL_BYTES, Result, SessionId, Signal,
    SignalAdapter,
};
use rmcp::model::{ClientJsonRpcMessage, ClientNotification};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    config::Backends,
    fleet::Broadcast,
    record,
    worker::{Mapped, NotTaken, Worker},
};

/// How long a listener waits before it listens again after a failure.
pub(crate) const LISTEN_AGAIN: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct Envelope {
    /// Who sent it: everybody hears their own signals, too.
    origin: String,
    news: News,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum News {
    /// The session's record has changed.
    Changed,
    /// The session was deleted.
    Deleted,
    /// A client's notification, for workers elsewhere.
    Notification(Box<RawValue>),
    Broadcast(Broadcast),
}

/// The way to the other instances, if there is one.
#[derive(Debug)]
pub(crate) struct Signals {
    adapter: Option<Arc<dyn SignalAdapter>>,
    /// Tells our own signals from those of others.
    origin: String,
}

impl Signals {
    pub(crate) fn new(adapter: Option<Arc<dyn SignalAdapter>>) -> Self {
        Self {
            adapter,
            origin: InstanceId::generate().to_string(),
        }
    }

    pub(crate) fn are_none(&self) -> bool {
        self.adapter.is_none()
    }

    /// The bytes of a signal.
    ///
    /// # Errors
    /// [`TooLarge`](ErrorKind::TooLarge), also where nobody would be told: a
    /// limit that holds with some backends only would be found in production.
    pub(crate) fn seal(&self, news: News) -> Result<Bytes> {
        let envelope = Envelope {
            origin: self.origin.clone(),
            news,
        };
        let payload = crate::message::encode(&envelope)
            .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "signal"))?;
        if payload.len() > MAX_SIGNAL_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, "signal"));
        }
        Ok(payload)
    }

    /// What others have to say; our own signals are none.
    pub(crate) fn open(&self, payload: &[u8]) -> Option<News> {
        let envelope: Envelope = serde_json::from_slice(payload)
            .inspect_err(|error| tracing::debug!(%error, "a signal that is not ours"))
            .ok()?;
        (envelope.origin != self.origin).then_some(envelope.news)
    }

    /// Sends what was sealed, and counts it where that fails.
    pub(crate) async fn send(&self, channel: &Channel, payload: Bytes) -> Result<()> {
        let Some(adapter) = &self.adapter else {
            return Ok(());
        };
        let sent = adapter.signal(channel, payload).await;
        if sent.is_err() {
            metrics::counter!("mcp_transport_signals_lost_total").increment(1);
        }
        sent
    }

    /// Hears the others; without an adapter nothing is ever said.
    pub(crate) async fn listen(&self, channel: &Channel) -> Result<BoxStream<'static, Signal>> {
        match &self.adapter {
            Some(adapter) => adapter.listen(channel).await,
            None => Err(Error::new(ErrorKind::Closed, "listen")),
        }
    }
}

impl Backends {
    async fn signal(&self, channel: &Channel, news: News) {
        if self.signals.are_none() {
            return;
        }
        let sent = match self.signals.seal(news) {
            Ok(payload) => self.signals.send(channel, payload).await,
            Err(error) => {
                metrics::counter!("mcp_transport_signals_lost_total").increment(1);
                Err(error)
            }
        };
        match sent {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::TooLarge => {
                tracing::debug!(%error, "a notification is too large for other instances");
            }
            Err(error) => tracing::warn!(%error, "a signal was not sent"),
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
}

/// Listens for a worker until it ends. Returns once it listens, or at the
/// first failure, after which it goes on trying.
pub(crate) async fn listen(worker: &Arc<Worker>) {
    let signals = Arc::clone(&worker.backends.signals);
    if signals.are_none() {
        return;
    }
    let channel = Channel::Session(worker.session.clone());
    let first = signals.listen(&channel).await;
    let (weak, closed) = (Arc::downgrade(worker), worker.closed.clone());
    tokio::spawn(closed.run_until_cancelled_owned(async move {
        let mut listening = first;
        loop {
            match listening {
                Ok(mut heard) => {
                    while let Some(signal) = heard.next().await {
                        let Some(worker) = weak.upgrade() else { return };
                        if let Some(news) = signals.open(&signal.payload) {
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
) -> std::result::Result<bool, NotTaken> {
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
