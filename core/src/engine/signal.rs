//! Signals: at most once, in order per sender.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Shared;
use crate::{
    MAX_SIGNAL_BYTES,
    error::{Error, ErrorKind, Result},
    signal::{Channel, Signal},
    storage::{Door, Knock, SignalChannel, Storage},
};

/// Signals that a listener may have unread; the oldest are dropped.
const UNREAD: usize = 256;
const MAX_TOPIC_BYTES: usize = 100;

#[derive(Debug, Default)]
struct Listener {
    unread: Mutex<VecDeque<Signal>>,
    arrived: Notify,
}

/// Who listens at this instance.
#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<HashMap<SignalChannel, Vec<Weak<Listener>>>>);

impl Listeners {
    fn add(&self, channel: SignalChannel) -> Arc<Listener> {
        let listener = Arc::<Listener>::default();
        let mut listeners = self.0.lock();
        let of_channel = listeners.entry(channel).or_default();
        of_channel.retain(|listener| listener.strong_count() > 0);
        of_channel.push(Arc::downgrade(&listener));
        listener
    }

    pub(super) fn deliver(&self, channel: &SignalChannel, signal: &Signal) {
        let listeners = self.0.lock();
        let of_channel = listeners.get(channel).into_iter().flatten();
        for listener in of_channel.filter_map(Weak::upgrade) {
            let mut unread = listener.unread.lock();
            if unread.len() >= UNREAD {
                unread.pop_front();
                metrics::counter!("mcp_adapter_signals_dropped_total").increment(1);
            }
            unread.push_back(signal.clone());
            drop(unread);
            listener.arrived.notify_one();
        }
    }

    /// Forgets channels that nobody listens to any more.
    pub(super) fn sweep(&self) {
        self.0.lock().retain(|_, of_channel| {
            of_channel.retain(|listener| listener.strong_count() > 0);
            !of_channel.is_empty()
        });
    }
}

fn channel_of(channel: &Channel, operation: &'static str) -> Result<SignalChannel> {
    match channel {
        Channel::Session(id) => Ok(SignalChannel::Session(id.key())),
        Channel::Topic(topic) if topic.len() > MAX_TOPIC_BYTES => {
            Err(Error::new(ErrorKind::InvalidArgument, operation)
                .with_message("a topic must have at most 100 bytes"))
        }
        Channel::Topic(topic) => Ok(SignalChannel::Topic(Arc::clone(topic))),
    }
}

impl<S: Storage> Shared<S> {
    pub(super) async fn send_signal(
        self: &Arc<Self>,
        channel: &Channel,
        payload: Bytes,
    ) -> Result<()> {
        const OPERATION: &str = "signal";
        let channel = channel_of(channel, OPERATION)?;
        if payload.len() > MAX_SIGNAL_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, OPERATION));
        }
        self.ready(OPERATION).await?;
        let knock = [(
            Door::All,
            Knock::Signal {
                from: self.me,
                channel,
                payload,
            },
        )];
        // One at a time, and tried once: a repeat could arrive twice, and a
        // second sender in between would break the order.
        let _turn = self.signal_turn.lock().await;
        let sent =
            super::retry::within(OPERATION, self.deadline(), self.storage.knock(&knock)).await;
        self.note(&sent);
        sent
    }

    pub(super) async fn listen(
        self: &Arc<Self>,
        channel: &Channel,
    ) -> Result<BoxStream<'static, Signal>> {
        let channel = channel_of(channel, "listen")?;
        let listener = self.listeners.add(channel);
        self.ready("listen").await?;
        let state = (listener, Arc::clone(self));
        Ok(
            futures::stream::unfold(state, |(listener, shared)| async move {
                loop {
                    let next = listener.unread.lock().pop_front();
                    if let Some(signal) = next {
                        return Some((signal, (listener, shared)));
                    }
                    tokio::select! {
                        () = listener.arrived.notified() => {}
                        () = shared.stopped() => return None,
                    }
                }
            })
            .boxed(),
        )
    }
}
