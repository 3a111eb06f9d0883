//! A session of a raw client: handshake, standalone stream, end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    check::{self, ExpectedLogs, Seen},
    http::{Next, PROTOCOL_VERSION, Reply},
    steps,
    world::{Backoff, Trouble, World},
};

/// Requests after the DELETE that must find nothing; with up to so many
/// instances, round-robin reaches each.
const REQUESTS_AFTER_DELETE: usize = 4;
/// One in this many sessions wants no info messages.
const QUIET: usize = 4;
/// One in this many sessions listens twice, as clients with several views do.
const TWICE: usize = 3;
/// Times that each of two listeners loses its connection.
const BREAKS: usize = 3;
/// Times that the server may end the stream of a listener, beside those that a kill
/// excuses. Listeners that end one another for ever have more.
const ENDS: usize = 3;

/// An open session.
#[derive(Debug)]
pub(super) struct RawSession {
    pub(super) world: Arc<World>,
    pub(super) id: String,
    pub(super) label: String,
    /// Whether the log level lets info messages through.
    pub(super) verbose: bool,
    /// Whether there are two listeners: then messages come in order at each, and not
    /// over both.
    twice: bool,
    text_ids: bool,
    next_id: AtomicU64,
    logs: Mutex<Logs>,
    logged: Notify,
}

#[derive(Debug, Default)]
struct Logs {
    expected: Vec<ExpectedLogs>,
    seen: Vec<Seen>,
}

/// Runs the whole life of one session.
pub(super) async fn run(world: Arc<World>, number: usize, calls: usize, mut rng: fastrand::Rng) {
    let label = format!("raw session {number}");
    let began = Instant::now();
    let opened = world.within(open(&world, number, label.clone())).await;
    let session = match opened {
        Ok(session) => Arc::new(session),
        Err(trouble) => return world.count(&trouble, &format!("{label} initialize"), None, began),
    };
    let closing = CancellationToken::new();
    let (ready, is_ready) = oneshot::channel();
    let breaks = if session.twice { BREAKS } else { 0 };
    let listening = |ready, rng| {
        Arc::clone(&session).listen(Some(ready), closing.clone(), Breaks { left: breaks, rng })
    };
    let mut listeners = JoinSet::new();
    listeners.spawn(listening(ready, rng.fork()));
    if session.twice {
        let (ready, _) = oneshot::channel();
        listeners.spawn(listening(ready, rng.fork()));
    }
    let listening = world.within(async { Ok(is_ready.await.is_ok()) }).await;
    if let Err(trouble) = listening {
        world.count(&trouble, &format!("{label} GET"), None, began);
    }
    steps::run(&session, calls, &mut rng).await;
    session.settle_logs().await;
    closing.cancel();
    if world.leaves {
        listeners.abort_all();
        return;
    }
    session.close(listeners).await;
}

/// The handshake.
async fn open(world: &Arc<World>, number: usize, label: String) -> Result<RawSession, Trouble> {
    let id = initialize(world).await?;
    let session = RawSession {
        world: Arc::clone(world),
        id,
        label,
        verbose: !number.is_multiple_of(QUIET),
        twice: number.is_multiple_of(TWICE),
        text_ids: number.is_multiple_of(2),
        next_id: AtomicU64::new(1),
        logs: Mutex::default(),
        logged: Notify::new(),
    };
    session
        .notify("notifications/initialized", &json!({}))
        .await?;
    let level = if session.verbose { "info" } else { "error" };
    session.set_level(level).await?;
    Ok(session)
}

async fn initialize(world: &World) -> Result<String, Trouble> {
    let message = json!({
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": PROTOCOL_VERSION,
            "capabilities": { "elicitation": {} },
            "clientInfo": { "name": "fleet-raw", "version": env!("CARGO_PKG_VERSION") },
        },
    });
    request(world, None, &message)
        .await?
        .ok_or_else(|| Trouble::Refused {
            instance: None,
            text: "initialize: no session id".into(),
        })
}

/// Sends a request that may be repeated until its answer is a result; returns the
/// session id from the head.
async fn request(
    world: &World,
    session: Option<&str>,
    message: &Value,
) -> Result<Option<String>, Trouble> {
    let mut backoff = Backoff::new();
    loop {
        let since = Instant::now();
        let reply = world
            .insist(|| world.endpoint.post(session, message))
            .await?;
        if !reply.ok() {
            return Err(Trouble::refused(&message["method"].to_string(), reply).await);
        }
        let instance = reply.instance.clone();
        let given = reply.session.clone();
        let mut events = reply.events();
        let problem = loop {
            match events.next().await {
                Next::Event(event) => {
                    let Ok(answer) = serde_json::from_str::<Value>(&event.data) else {
                        continue;
                    };
                    if answer["id"] != message["id"] {
                        continue;
                    }
                    if answer.get("result").is_some() {
                        return Ok(given);
                    }
                    break answer.to_string();
                }
                Next::End => break "no answer on the stream".into(),
                Next::Broken(reason) => break reason,
            }
        };
        if !world.outages.excuse(instance.as_deref(), since) {
            return Err(Trouble::Refused {
                instance,
                text: format!("{}: {problem}", message["method"]),
            });
        }
        world.tally.count(|counts| counts.expected_errors += 1);
        backoff.pause().await;
    }
}

impl RawSession {
    /// An id for the next call: numbers in some sessions, texts in others.
    pub(super) fn next_id(&self) -> Value {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        if self.text_ids {
            json!(id.to_string())
        } else {
            json!(id)
        }
    }

    /// A text that occurs nowhere else in the run.
    pub(super) fn unique(&self, what: &str) -> String {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // Also apart from those of other runs against the same server.
        let part: String = self.id.chars().take(8).collect();
        format!("{what} {part} {} {id}", self.label)
    }

    pub(super) async fn notify(&self, method: &str, params: &Value) -> Result<Reply, Trouble> {
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        let world = &self.world;
        let reply = world
            .insist(|| world.endpoint.post(Some(&self.id), &message))
            .await?;
        if reply.ok() {
            Ok(reply)
        } else {
            Err(Trouble::refused(method, reply).await)
        }
    }

    async fn set_level(&self, level: &str) -> Result<(), Trouble> {
        let message = json!({
            "jsonrpc": "2.0",
            "id": self.next_id(),
            "method": "logging/setLevel",
            "params": { "level": level },
        });
        request(&self.world, Some(&self.id), &message)
            .await
            .map(drop)
    }

    /// The session must receive these log messages.
    pub(super) fn expect_logs(&self, logs: ExpectedLogs) {
        self.logs.lock().expected.push(logs);
    }

    /// A kill excuses missing messages of this tag.
    pub(super) fn excuse_logs(&self, tag: &str) {
        for logs in &mut self.logs.lock().expected {
            logs.excused |= logs.tag == tag;
        }
    }

    /// A log message has come.
    pub(super) fn logged(&self, seen: Seen) {
        self.logs.lock().seen.push(seen);
        self.logged.notify_one();
    }

    /// Waits for the messages that are still to come, then judges.
    async fn settle_logs(&self) {
        let complete = async {
            loop {
                let missing = {
                    let logs = self.logs.lock();
                    check::logs(&logs.expected, &logs.seen, !self.twice).lost
                };
                if missing == 0 {
                    return;
                }
                self.logged.notified().await;
            }
        };
        // What is still missing at the deadline shows in the verdict.
        let _ = tokio::time::timeout(self.world.patience, complete).await;
        let logs = std::mem::take(&mut *self.logs.lock());
        let verdict = check::logs(&logs.expected, &logs.seen, !self.twice);
        self.world.tally.judge(verdict, || {
            format!("{} logs: {:?} {:?}", self.label, logs.expected, logs.seen)
        });
    }

    /// Holds the standalone stream, or waits for its turn, until the session ends.
    async fn listen(
        self: Arc<Self>,
        mut ready: Option<oneshot::Sender<()>>,
        closing: CancellationToken,
        mut breaks: Breaks,
    ) {
        let world = &self.world;
        let mut ends = 0;
        let mut cursor: Option<String> = None;
        let mut holder: Option<Option<String>> = None;
        let mut backoff = Backoff::new();
        loop {
            let since = Instant::now();
            let reply = match world
                .insist(|| world.endpoint.get(&self.id, cursor.as_deref()))
                .await
            {
                Ok(reply) => reply,
                Err(_) if closing.is_cancelled() => return,
                Err(trouble) => {
                    return world.count(&trouble, &format!("{} GET", self.label), None, since);
                }
            };
            if !reply.ok() {
                if !closing.is_cancelled() {
                    let trouble = Trouble::refused("GET", reply).await;
                    world.count(&trouble, &self.label, None, since);
                }
                return;
            }
            if let Some(before) = &holder
                && cursor.is_some()
            {
                world.tally.count(|counts| {
                    counts.resumes += 1;
                    counts.cross_instance_resumes += u64::from(reply.instance != *before);
                });
            }
            let source = reply.instance.clone();
            holder = Some(source.clone());
            if let Some(ready) = ready.take() {
                // The session may have given up waiting.
                let _ = ready.send(());
            }
            let mut events = reply.events();
            let mut breaks_at = None;
            let broken = loop {
                let connection = async {
                    match breaks_at {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                let next = tokio::select! {
                    next = events.next() => next,
                    () = connection => break None,
                };
                match next {
                    Next::Event(event) => {
                        backoff = Backoff::new();
                        if event.id.is_some() {
                            cursor.clone_from(&event.id);
                            breaks_at = breaks_at.or_else(|| breaks.next());
                        }
                        if let Ok(message) = serde_json::from_str(&event.data) {
                            self.logged(Seen {
                                event_id: event.id,
                                message,
                            });
                        }
                    }
                    Next::End => {
                        ends += usize::from(!world.outages.excuse(source.as_deref(), since));
                        break None;
                    }
                    Next::Broken(reason) => break Some(reason),
                }
            };
            if closing.is_cancelled() {
                return;
            }
            if ends > ENDS {
                return world
                    .tally
                    .wrong(format_args!("{} GET: ended {ends} times", self.label));
            }
            if let Some(reason) = broken
                && !world.outages.excuse(source.as_deref(), since)
            {
                world
                    .tally
                    .error(format_args!("{} GET: broken: {reason}", self.label));
            }
            backoff.pause().await;
        }
    }

    /// DELETE, after which nothing is there any more.
    async fn close(&self, listeners: JoinSet<()>) {
        let began = Instant::now();
        if let Err(trouble) = self.world.within(self.delete()).await {
            self.world
                .count(&trouble, &format!("{} DELETE", self.label), None, began);
        }
        let ended = self
            .world
            .within(async { Ok(listeners.join_all().await) })
            .await;
        if ended.is_err() {
            self.world.tally.hung(format_args!(
                "{}: the GET stream outlives the session",
                self.label
            ));
        }
    }

    async fn delete(&self) -> Result<(), Trouble> {
        let world = &self.world;
        let began = Instant::now();
        let reply = world.insist(|| world.endpoint.delete(&self.id)).await?;
        // A DELETE that was repeated may find its own work done.
        let repeated = reply.status == 404 && world.outages.excuse(None, began);
        if !reply.ok() && !repeated {
            return Err(Trouble::refused("DELETE", reply).await);
        }
        world.tally.count(|counts| counts.deletes += 1);
        gone(world, &self.id, &self.label).await
    }
}

/// When a listener loses its connection: some time after it has read an id there. What
/// is sent to one that breaks before that is lost, for its client cannot say what it
/// has had.
struct Breaks {
    left: usize,
    rng: fastrand::Rng,
}

impl Breaks {
    fn next(&mut self) -> Option<tokio::time::Instant> {
        self.left = self.left.checked_sub(1)?;
        let time = Duration::from_millis(self.rng.u64(20..400));
        Some(tokio::time::Instant::now() + time)
    }
}

/// Every request of a deleted session must get 404.
pub(super) async fn gone(world: &World, id: &str, label: &str) -> Result<(), Trouble> {
    let ping = json!({ "jsonrpc": "2.0", "id": "after", "method": "ping" });
    for _ in 0..REQUESTS_AFTER_DELETE {
        let reply = world
            .insist(|| world.endpoint.post(Some(id), &ping))
            .await?;
        if reply.status != 404 {
            let status = reply.status;
            world
                .tally
                .wrong(format_args!("{label}: POST after DELETE got {status}"));
        }
    }
    let reply = world.insist(|| world.endpoint.get(id, None)).await?;
    if reply.status != 404 {
        let status = reply.status;
        world
            .tally
            .wrong(format_args!("{label}: GET after DELETE got {status}"));
    }
    Ok(())
}
