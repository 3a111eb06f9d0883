//! The server under test. What it does and when it goes on is in the hands of
//! the test, so that nothing waits for time to pass.

use std::{sync::Arc, time::Duration};

use mcp_adapter_transport::{FleetHandle, Replayed, Session};
use parking_lot::Mutex;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, CustomNotification,
        InitializeRequestParams, InitializeResult, ListToolsResult, PaginatedRequestParams,
        ProgressNotificationParam, ServerConfig, SubscribeRequestParams, SubscriptionFilter,
        UnsubscribeRequestParams,
    },
    service::{
        NotificationContext, Peer, PeerRequestOptions, RequestContext, ServiceError,
        SubscriptionContext,
    },
    transport::streamable_http_server::SessionRestoreMarker,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

/// What a test sees of the servers of one instance, and how it drives them.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) name: &'static str,
    /// Each step of a `count` takes a permit.
    pub(crate) steps: Semaphore,
    seen: Mutex<Vec<String>>,
    changed: Notify,
}

impl Probe {
    pub(crate) fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            steps: Semaphore::new(0),
            seen: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn saw(&self, what: impl Into<String>) {
        self.seen.lock().push(what.into());
        self.changed.notify_waiters();
    }

    pub(crate) fn times(&self, what: &str) -> usize {
        self.seen.lock().iter().filter(|seen| *seen == what).count()
    }

    /// Whether it happens before the patience is over.
    pub(crate) async fn sees(&self, what: &str, patience: Duration) -> bool {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.times(what) > 0 {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }
}

pub(crate) struct Fixture {
    pub(crate) probe: Arc<Probe>,
    level: Mutex<String>,
    uris: Mutex<Vec<String>>,
    fleet: FleetHandle,
}

impl Fixture {
    pub(crate) fn new(probe: Arc<Probe>, fleet: FleetHandle) -> Self {
        Self {
            probe,
            fleet,
            level: Mutex::new("none".into()),
            uris: Mutex::default(),
        }
    }

    async fn notify(context: &RequestContext<RoleServer>, method: &str, params: Value) {
        let notification = json!({"method": method, "params": params});
        let notification = serde_json::from_value(notification).unwrap();
        // A call that was cancelled cannot speak any more.
        let _ = context.peer.send_notification(notification).await;
    }

    async fn count(&self, n: u64, context: &RequestContext<RoleServer>) -> Option<String> {
        let token = context.meta.get_progress_token();
        self.probe.saw("counting");
        for i in 1..=n {
            tokio::select! {
                permit = self.probe.steps.acquire() => permit.unwrap().forget(),
                () = context.ct.cancelled() => {
                    self.probe.saw("cancelled");
                    return None;
                }
            }
            if let Some(token) = &token {
                let params = json!({"progressToken": token, "progress": i});
                Self::notify(context, "notifications/progress", params).await;
            }
        }
        self.probe.saw("counted");
        Some(format!("counted {n}"))
    }

    async fn ask(&self, message: &str, context: &RequestContext<RoleServer>) -> String {
        let request = json!({"method": "elicitation/create", "params": {
            "message": message,
            "requestedSchema": {"type": "object", "properties": {"answer": {"type": "string"}}},
        }});
        let request = serde_json::from_value(request).unwrap();
        self.probe.saw("asking");
        match context.peer.send_request(request).await {
            Ok(result) => {
                let result = serde_json::to_value(result).unwrap();
                format!(
                    "{}: {}",
                    result["action"].as_str().unwrap(),
                    result["content"]["answer"]
                )
            }
            Err(error) => format!("failed: {error}"),
        }
    }
}

/// A state of an application's own.
#[derive(Default, Serialize, Deserialize)]
struct Visits {
    count: u64,
}

async fn visit(session: &Session) -> String {
    let count = |visits: &mut Visits| {
        visits.count += 1;
        visits.count
    };
    match session.update(count).await {
        Ok(count) => count.to_string(),
        Err(error) => {
            let cause = std::error::Error::source(&error).unwrap();
            format!("{:?}, because: {cause}", error.kind())
        }
    }
}

/// Sends a client request as it is given.
async fn send(request: Value, peer: &Peer<RoleServer>) -> String {
    let request = serde_json::from_value(request).unwrap();
    match peer.send_request(request).await {
        Ok(result) => format!("answered {}", serde_json::to_value(result).unwrap()),
        Err(ServiceError::McpError(error)) => {
            let data = error.data.unwrap_or_default();
            format!("refused {} {data}", error.code.0)
        }
        Err(error) => format!("failed: {error}"),
    }
}

impl ServerHandler for Fixture {
    fn get_info(&self) -> ServerConfig {
        serde_json::from_value(json!({
            "protocolVersion": "2025-11-25",
            "capabilities": {
                "tools": {"listChanged": true},
                "logging": {},
                "resources": {"subscribe": true},
            },
            "serverInfo": {"name": "fixture", "version": "1"},
        }))
        .unwrap()
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        self.probe
            .saw(match context.extensions.get::<SessionRestoreMarker>() {
                Some(_) => "restored",
                None => "initialize",
            });
        if request.client_info.name == "unwanted" {
            return Err(ErrorData::invalid_params("unwanted", None));
        }
        if request.client_info.name == "slow"
            && context.extensions.get::<SessionRestoreMarker>().is_some()
        {
            self.probe.steps.acquire().await.unwrap().forget();
        }
        context.peer.set_peer_info(request.clone());
        self.negotiate_initialize(&request)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = json!({"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]});
        Ok(serde_json::from_value(tools).unwrap())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let mut arguments = Value::Object(request.arguments.unwrap_or_default());
        let n = arguments["n"].as_u64().unwrap_or(0);
        let text = match request.name.as_ref() {
            "echo" => arguments["message"].as_str().unwrap().to_owned(),
            "whoami" => self.probe.name.to_owned(),
            "count" => match self.count(n, &context).await {
                Some(text) => text,
                None => return Err(ErrorData::internal_error("cancelled", None)),
            },
            "ask" => {
                let message = arguments["message"].as_str().unwrap();
                self.ask(message, &context).await
            }
            "send" => send(arguments["request"].take(), &context.peer).await,
            "send many" => {
                let requests = arguments["requests"].as_array().unwrap();
                let asked = requests.iter().map(async |request| {
                    send(request.clone(), &context.peer).await;
                    self.probe.saw("answered");
                });
                futures::future::join_all(asked).await;
                "asked".to_owned()
            }
            // Asks from a task of its own: nobody can tell for which call.
            "ask aside" => {
                let (request, peer) = (arguments["request"].take(), context.peer.clone());
                let probe = Arc::clone(&self.probe);
                tokio::spawn(async move { probe.saw(send(request, &peer).await) });
                "asked".to_owned()
            }
            // Asks, and does not wait for the answer longer than the test wants.
            "leave" | "break" => {
                tokio::select! {
                    answer = send(arguments["request"].take(), &context.peer) => answer,
                    permit = self.probe.steps.acquire() => {
                        permit.unwrap().forget();
                        assert_eq!(request.name, "leave", "a handler that breaks");
                        "left".to_owned()
                    }
                }
            }
            "give up" => {
                let request = serde_json::from_value(arguments["request"].take()).unwrap();
                let options = PeerRequestOptions::no_options();
                let asked = context.peer.send_request_with_option(request, options);
                let asked = asked.await.unwrap();
                self.probe.steps.acquire().await.unwrap().forget();
                asked.cancel(Some("no longer needed".into())).await.unwrap();
                "given up".to_owned()
            }
            "log" => {
                for i in 1..=n {
                    let params = json!({"level": "info", "data": i});
                    Self::notify(&context, "notifications/message", params).await;
                }
                format!("logged {n}")
            }
            "shout" => {
                let notification = json!({"method": "notifications/message",
                    "params": {"level": "info", "data": "x".repeat(usize::try_from(n).unwrap())}});
                let notification = serde_json::from_value(notification).unwrap();
                match context.peer.send_notification(notification).await {
                    Ok(()) => "heard".to_owned(),
                    Err(error) => error.to_string(),
                }
            }
            "odd" => {
                let result = json!({"content": [{"type": "text", "text": "odd"}],
                    "structuredContent": {"big": 9_007_199_254_740_993_u64, "null": null, "1.0": 1.0},
                    "_meta": {"z": 1, "a": {"y": []}}});
                let result: CallToolResult = serde_json::from_value(result).unwrap();
                return Ok(result.into());
            }
            "level" => self.level.lock().clone(),
            "uris" => self.uris.lock().join(" "),
            "big" => "x".repeat(usize::try_from(n).unwrap()),
            "panic" => panic!("a handler that breaks"),
            // Returns only when it is told to, whatever is cancelled.
            "stubborn" => {
                self.probe.saw("stubborn");
                self.probe.steps.acquire().await.unwrap().forget();
                "done".to_owned()
            }
            "nap" => {
                let session = context.extensions.get::<Session>().unwrap();
                assert!(session.close_stream(Some(Duration::from_millis(1))));
                self.probe.saw("napping");
                self.probe.steps.acquire().await.unwrap().forget();
                "rested".to_owned()
            }
            "add" => {
                let session = context.extensions.get::<Session>().unwrap();
                loop {
                    let seen = session.state().await.unwrap();
                    let sum = seen.as_u64().unwrap_or(0) + n;
                    if session.compare_and_set(&seen, json!(sum)).await.unwrap() {
                        break sum.to_string();
                    }
                }
            }
            "visit" => visit(context.extensions.get::<Session>().unwrap()).await,
            "visits" => {
                let state = context.extensions.get::<Session>().unwrap().state().await;
                state.unwrap()["count"].to_string()
            }
            "state" => {
                let state = context.extensions.get::<Session>().unwrap().state().await;
                state.unwrap().to_string()
            }
            "principal" => {
                let session = context.extensions.get::<Session>().unwrap();
                session
                    .principal()
                    .map_or("nobody".to_owned(), |principal| {
                        principal.as_str().to_owned()
                    })
            }
            other => return Err(ErrorData::invalid_params(other.to_owned(), None)),
        };
        let result = json!({"content": [{"type": "text", "text": text}]});
        let result: CallToolResult = serde_json::from_value(result).unwrap();
        Ok(result.into())
    }

    #[expect(deprecated, reason = "log levels go in 2026-07-28, not before")]
    async fn set_level(
        &self,
        request: rmcp::model::SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let level = serde_json::to_value(request.level).unwrap();
        *self.level.lock() = level.as_str().unwrap().to_owned();
        self.probe.saw(match context.extensions.get::<Replayed>() {
            Some(_) => "level replayed",
            None => "level",
        });
        Ok(())
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.uris.lock().push(request.uri.to_string());
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.uris.lock().retain(|uri| **uri != *request.uri);
        Ok(())
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let done = self.fleet.listen(context).await;
        self.probe.saw("listened");
        done
    }

    async fn on_initialized(&self, _: NotificationContext<RoleServer>) {
        self.probe.saw("initialized");
    }

    async fn on_roots_list_changed(&self, _: NotificationContext<RoleServer>) {
        self.probe.saw("roots");
    }

    async fn on_progress(
        &self,
        progress: ProgressNotificationParam,
        _: NotificationContext<RoleServer>,
    ) {
        self.probe.saw(format!("progress {}", progress.progress));
    }

    async fn on_custom_notification(
        &self,
        notification: CustomNotification,
        _: NotificationContext<RoleServer>,
    ) {
        self.probe.saw(notification.method);
    }
}
