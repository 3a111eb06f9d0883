//! What one client listens for.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use rmcp::{
    model::SubscriptionFilter,
    service::{SubscriptionSendError, SubscriptionSink},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::{ListChanged, What},
    registry::Stateless,
};

/// One `subscriptions/listen` and what it has not been sent yet.
pub(super) struct Listener {
    tools: bool,
    prompts: bool,
    resources: bool,
    uris: HashSet<String>,
    pending: Mutex<Pending>,
    changed: Notify,
    /// Cancelled when the instance shuts down.
    pub(super) ended: CancellationToken,
    response: Weak<Stateless>,
}

/// Changes in the order of their first occurrence, each once.
#[derive(Default)]
struct Pending {
    queue: VecDeque<Arc<What>>,
    known: HashSet<Arc<What>>,
}

impl Listener {
    pub(super) fn new(filter: &SubscriptionFilter, response: Weak<Stateless>) -> Self {
        let uris = filter.resource_subscriptions.iter().flatten();
        Self {
            tools: filter.tools_list_changed == Some(true),
            prompts: filter.prompts_list_changed == Some(true),
            resources: filter.resources_list_changed == Some(true),
            uris: uris.cloned().collect(),
            pending: Mutex::default(),
            changed: Notify::new(),
            ended: CancellationToken::new(),
            response,
        }
    }

    fn wants(&self, what: &What) -> bool {
        match what {
            What::ListChanged(ListChanged::Tools) => self.tools,
            What::ListChanged(ListChanged::Prompts) => self.prompts,
            What::ListChanged(ListChanged::Resources) => self.resources,
            What::Updated(uri) => self.uris.contains(uri),
        }
    }

    pub(super) fn tell(&self, what: &Arc<What>) {
        if !self.wants(what) {
            return;
        }
        let mut pending = self.pending.lock();
        if pending.known.insert(Arc::clone(what)) {
            pending.queue.push_back(Arc::clone(what));
            drop(pending);
            self.changed.notify_one();
        }
    }

    pub(super) fn tell_all(&self) {
        let lists = [
            ListChanged::Tools,
            ListChanged::Prompts,
            ListChanged::Resources,
        ];
        let lists = lists.into_iter().map(What::ListChanged);
        for what in lists.chain(self.uris.iter().cloned().map(What::Updated)) {
            self.tell(&Arc::new(what));
        }
    }

    pub(super) fn end(&self) {
        // A drain waits until the client has the result.
        if let Some(response) = self.response.upgrade() {
            response.count();
        }
        self.ended.cancel();
    }

    /// Forgotten before it is sent: a change during the sending is a new one.
    pub(super) fn take(&self) -> Option<Arc<What>> {
        let mut pending = self.pending.lock();
        let what = pending.queue.pop_front()?;
        pending.known.remove(&what);
        Some(what)
    }

    /// Sends until that fails.
    pub(super) async fn send_to(&self, sink: &SubscriptionSink) -> SubscriptionSendError {
        loop {
            while let Some(what) = self.take() {
                let sent = match &*what {
                    What::ListChanged(ListChanged::Tools) => sink.notify_tool_list_changed().await,
                    What::ListChanged(ListChanged::Prompts) => {
                        sink.notify_prompt_list_changed().await
                    }
                    What::ListChanged(ListChanged::Resources) => {
                        sink.notify_resource_list_changed().await
                    }
                    What::Updated(uri) => sink.notify_resource_updated(uri).await,
                };
                if let Err(error) = sent {
                    return error;
                }
                metrics::counter!("mcp_transport_subscription_notifications_total").increment(1);
            }
            self.changed.notified().await;
        }
    }
}
