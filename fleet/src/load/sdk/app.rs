//! The application behind the SDK's client: answers questions and keeps the rest.

use std::{collections::HashMap, sync::Arc, time::Instant};

use parking_lot::Mutex;
use rmcp::{
    ClientHandler, ErrorData, RoleClient,
    model::{
        ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult, Implementation,
        LoggingMessageNotificationParam, ProgressNotificationParam,
    },
    service::{NotificationContext, RequestContext},
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::load::{answer::Answer, check::Seen, world::World};

/// What the server sent beside results.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// By token.
    pub(super) progress: HashMap<String, Vec<Value>>,
    /// When each question came.
    pub(super) questions: HashMap<String, Vec<Instant>>,
    pub(super) logs: Vec<Seen>,
}

/// The application behind the client.
#[derive(Debug, Clone)]
pub(super) struct Application {
    world: Arc<World>,
    pub(super) inbox: Arc<Mutex<Inbox>>,
    /// Notified of whatever comes.
    pub(super) changed: Arc<Notify>,
}

impl Application {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self {
            world,
            inbox: Arc::default(),
            changed: Arc::default(),
        }
    }
}

impl ClientHandler for Application {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(
            ClientCapabilities::builder().enable_elicitation().build(),
            Implementation::new("fleet-sdk", env!("CARGO_PKG_VERSION")),
        )
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let ElicitRequestParams::FormElicitationParams { message, .. } = request else {
            return Err(ErrorData::invalid_params("no form", None));
        };
        self.world.tally.count(|counts| counts.elicitations += 1);
        let answer = Answer::to(&message).to_result();
        self.inbox
            .lock()
            .questions
            .entry(message)
            .or_default()
            .push(Instant::now());
        serde_json::from_value(answer)
            .map_err(|error| ErrorData::internal_error(error.to_string(), None))
    }

    async fn on_progress(
        &self,
        params: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        let message = json!({ "method": "notifications/progress", "params": params });
        let token = message["params"]["progressToken"].to_string();
        self.inbox
            .lock()
            .progress
            .entry(token)
            .or_default()
            .push(message);
        self.changed.notify_waiters();
    }

    async fn on_logging_message(
        &self,
        params: LoggingMessageNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        let message = json!({ "method": "notifications/message", "params": params });
        self.inbox.lock().logs.push(Seen {
            event_id: None,
            message,
        });
        self.changed.notify_waiters();
    }
}
