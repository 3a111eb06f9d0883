//! A session of a client built on the SDK.
#![expect(
    deprecated,
    reason = "2026-07-28 deprecates logging; the revisions with sessions use it"
)]

mod app;
mod http;
mod steps;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rmcp::{
    Peer, RoleClient, ServiceError,
    model::{CallToolRequestParams, ClientRequest, Request, ServerResult},
    service::{PeerRequestOptions, RequestHandle, RunningService, serve_client},
    transport::streamable_http_client::{
        StreamableHttpClientTransport, StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Value, json};

use self::{
    app::Application,
    http::{Patient, Wire},
};
use super::{
    check::{self, End, Expect, ExpectedLogs, Seen},
    raw,
    script::{self, SDK_DECK},
    world::{Backoff, Trouble, World},
};

/// Progress is handed to tasks of its own and may trail the result; what takes
/// longer than this is lost.
const TRAIL: Duration = Duration::from_secs(5);

/// An open session.
#[derive(Debug)]
struct SdkSession {
    world: Arc<World>,
    label: String,
    app: Application,
    peer: Peer<RoleClient>,
    unique: AtomicU64,
    logs: Mutex<Vec<ExpectedLogs>>,
    run: u64,
}

/// Runs the whole life of one session.
pub(super) async fn run(world: Arc<World>, number: usize, calls: usize, mut rng: fastrand::Rng) {
    let label = format!("sdk session {number}");
    let began = Instant::now();
    let wire = Arc::new(Wire::default());
    let app = Application::new(Arc::clone(&world));
    let connected = world.within(connect(&world, &app, &wire)).await;
    let client = match connected {
        Ok(client) => client,
        Err(trouble) => return world.count(&trouble, &format!("{label} initialize"), None, began),
    };
    let session = Arc::new(SdkSession {
        world: Arc::clone(&world),
        label,
        app,
        peer: client.peer().clone(),
        unique: AtomicU64::new(1),
        logs: Mutex::default(),
        run: rng.u64(..),
    });
    for step in script::plan(SDK_DECK, calls, &mut rng) {
        session.step(step).await;
    }
    session.settle_logs().await;
    session.close(client, &wire).await;
}

async fn connect(
    world: &Arc<World>,
    app: &Application,
    wire: &Arc<Wire>,
) -> Result<RunningService<RoleClient, Application>, Trouble> {
    let mut config = StreamableHttpClientTransportConfig::with_uri(world.endpoint.url());
    // A new session in place of a lost one would hide the loss.
    config.reinit_on_expired_session = false;
    let mut backoff = Backoff::new();
    loop {
        let since = Instant::now();
        let http = Patient::new(Arc::clone(world), Arc::clone(wire));
        let transport = StreamableHttpClientTransport::with_client(http, config.clone());
        match serve_client(app.clone(), transport).await {
            Ok(client) => return Ok(client),
            // The stream with the answer died with its instance.
            Err(_) if world.outages.excuse(None, since) => {
                world.tally.count(|counts| counts.expected_errors += 1);
                backoff.pause().await;
            }
            Err(error) => {
                return Err(Trouble::Refused {
                    instance: None,
                    text: error.to_string(),
                });
            }
        }
    }
}

impl SdkSession {
    fn unique(&self, what: &str) -> String {
        let n = self.unique.fetch_add(1, Ordering::Relaxed);
        format!("{what} {:x} {} {n}", self.run, self.label)
    }

    /// Sends a call; again if its connection died before an answer and that is excused.
    async fn send(
        &self,
        tool: &'static str,
        arguments: &Value,
    ) -> Result<RequestHandle<RoleClient>, Trouble> {
        let mut params = CallToolRequestParams::new(tool);
        if let Value::Object(arguments) = arguments {
            params = params.with_arguments(arguments.clone());
        }
        let request = ClientRequest::CallToolRequest(Request::new(params));
        let mut backoff = Backoff::new();
        loop {
            let since = Instant::now();
            let options = PeerRequestOptions::no_options();
            match self
                .peer
                .send_cancellable_request(request.clone(), options)
                .await
            {
                Ok(handle) => return Ok(handle),
                Err(_) if self.world.outages.excuse(None, since) => {
                    self.world.tally.count(|counts| counts.expected_errors += 1);
                    backoff.pause().await;
                }
                Err(error) => return Err(refused(&error)),
            }
        }
    }

    /// Calls and judges; returns when the result came.
    async fn call(
        &self,
        tool: &'static str,
        arguments: Value,
        expect: Expect,
    ) -> Option<(Instant, Instant)> {
        let world = &self.world;
        world.tally.count(|counts| counts.calls += 1);
        let began = Instant::now();
        let work = async {
            let handle = self.send(tool, &arguments).await?;
            let token = json!(handle.progress_token);
            let sent = Instant::now();
            let result = handle
                .await_response()
                .await
                .map_err(|error| refused(&error))?;
            Ok((token, sent, Instant::now(), result))
        };
        let done = world.within(work).await;
        let times = self.judge(tool, done, expect, began).await;
        world.tally.call_ended();
        times
    }

    async fn judge(
        &self,
        tool: &str,
        done: Result<(Value, Instant, Instant, ServerResult), Trouble>,
        mut expect: Expect,
        began: Instant,
    ) -> Option<(Instant, Instant)> {
        let world = &self.world;
        let what = format!("{} {tool}", self.label);
        let (token, sent, at, result) = match done {
            Ok(done) => done,
            Err(trouble) => {
                world.count(&trouble, &what, None, began);
                return None;
            }
        };
        if let Some((own, n)) = &mut expect.progress {
            *own = token.clone();
            self.await_progress(&token, *n).await;
        }
        // The SDK matches ids and hides them; the rest is judged as for raw clients.
        expect.id = Value::Null;
        expect.unordered = true;
        let mut seen = Vec::new();
        let mut inbox = self.app.inbox.lock();
        let progress = inbox.progress.remove(&token.to_string());
        for message in progress.into_iter().flatten() {
            seen.push(Seen {
                event_id: None,
                message,
            });
        }
        for question in &expect.questions {
            for _ in inbox.questions.get(question).into_iter().flatten() {
                let params = json!({ "message": question });
                seen.push(Seen {
                    event_id: None,
                    message: json!({ "method": "elicitation/create", "params": params }),
                });
            }
        }
        drop(inbox);
        seen.push(Seen {
            event_id: None,
            message: json!({ "id": null, "result": result }),
        });
        let verdict = check::call(&expect, &seen, End::Answered);
        world.tally.judge(verdict, || {
            let shown: Vec<_> = seen.iter().map(|seen| seen.message.to_string()).collect();
            format!("{what}: {}", shown.join(" | "))
        });
        Some((sent, at))
    }

    async fn await_progress(&self, token: &Value, n: u64) {
        let key = token.to_string();
        let wanted = usize::try_from(n).unwrap_or(usize::MAX);
        let complete = async {
            loop {
                let changed = self.app.changed.notified();
                let there = {
                    let inbox = self.app.inbox.lock();
                    inbox.progress.get(&key).map_or(0, Vec::len)
                };
                if there >= wanted {
                    return;
                }
                changed.await;
            }
        };
        // What is still missing shows in the verdict.
        let _ = tokio::time::timeout(TRAIL, complete).await;
    }

    async fn settle_logs(&self) {
        let complete = async {
            loop {
                let changed = self.app.changed.notified();
                if self.judge_logs().lost == 0 {
                    return;
                }
                changed.await;
            }
        };
        // What is still missing shows in the verdict.
        let _ = tokio::time::timeout(self.world.patience, complete).await;
        self.world.tally.judge(self.judge_logs(), || {
            format!(
                "{} logs: {:?} {:?}",
                self.label,
                self.logs.lock(),
                self.app.inbox.lock().logs
            )
        });
    }

    fn judge_logs(&self) -> check::Verdict {
        check::logs(&self.logs.lock(), &self.app.inbox.lock().logs, false)
    }

    async fn close(&self, client: RunningService<RoleClient, Application>, wire: &Wire) {
        let world = &self.world;
        let began = Instant::now();
        let closing = async {
            client.cancel().await.map_err(|error| Trouble::Refused {
                instance: None,
                text: error.to_string(),
            })?;
            if world.leaves {
                return Ok(());
            }
            let Some(id) = wire.session() else {
                return Err(Trouble::Refused {
                    instance: None,
                    text: "the server gave no session id".into(),
                });
            };
            if !wire.deleted() {
                return Err(Trouble::Refused {
                    instance: None,
                    text: "DELETE failed".into(),
                });
            }
            world.tally.count(|counts| counts.deletes += 1);
            raw::gone(world, &id, &self.label).await
        };
        if let Err(trouble) = world.within(closing).await {
            world.count(&trouble, &format!("{} DELETE", self.label), None, began);
        }
    }
}

fn refused(error: &ServiceError) -> Trouble {
    Trouble::Refused {
        instance: None,
        text: error.to_string(),
    }
}
