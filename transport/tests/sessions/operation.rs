//! What whoever runs a server sees of it.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use mcp_adapter_conformance::faults::{Far, Link};
use mcp_adapter_core::{Adapter, ClientRequestAdapter, Engine, SessionAdapter, SignalAdapter};
use mcp_adapter_memory::{MemoryAdapter, MemoryStorage};
use mcp_adapter_transport::{FleetHandle, Readiness, StreamableHttpTransport};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;
use serde_json::json;
use tracing_subscriber::{
    filter::Targets,
    fmt::MakeWriter,
    layer::{Layer, SubscriberExt},
};

use crate::{
    client::{Client, text},
    fixture::{Fixture, Probe},
    flaky::Flaky,
    fleet::{Instance, limits, transport},
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn becomes(handle: &FleetHandle, wanted: Readiness) {
    let look = async {
        while handle.readiness() != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, look).await;
    assert!(seen.is_ok(), "{:?}, not {wanted:?}", handle.readiness());
}

#[tokio::test]
async fn an_instance_is_ready_when_the_stores_of_all_roles_are_there() {
    let well = || Flaky::new(MemoryAdapter::new(limits()));
    for ill in ["sessions", "client requests", "signals", "all"] {
        let [sessions, requests, signals] = [well(), well(), well()];
        let (transport, flaky) = match ill {
            "all" => (transport().with_adapter(sessions.clone()), sessions),
            role => {
                let transport = transport()
                    .with_session_adapter(sessions.clone())
                    .with_client_request_adapter(requests.clone())
                    .with_signal_adapter(signals.clone());
                let flaky = match role {
                    "sessions" => sessions,
                    "signals" => signals,
                    _ => requests,
                };
                (transport, flaky)
            }
        };
        // Away from the start, and without a single request.
        flaky.set_broken(true);
        let fleet = transport.fleet();
        let probe = Probe::new("a");
        let handle = fleet.clone();
        let service = transport.bind(move || Ok(Fixture::new(Arc::clone(&probe), handle.clone())));
        assert_eq!(fleet.readiness(), Readiness::Unavailable, "{ill}");
        flaky.set_broken(false);
        assert_eq!(fleet.readiness(), Readiness::Ready, "{ill}");
        flaky.set_broken(true);
        assert_eq!(fleet.readiness(), Readiness::Unavailable, "{ill}");
        drop(service);
    }
}

/// With a store that is away: nothing has been asked of it.
#[test]
fn an_instance_that_has_not_served_yet_knows_whether_its_store_is_there() {
    let store = MemoryStorage::new();
    let link = Link::new();
    link.cut();
    // Made and bound before there is a runtime.
    let far = Engine::new(Far::new(store, &link), limits());
    let apart = transport()
        .with_session_adapter(MemoryAdapter::new(limits()))
        .with_signal_adapter(far);
    let fleet = apart.fleet();
    let handle = fleet.clone();
    let service = apart.bind(move || Ok(Fixture::new(Probe::new("a"), handle.clone())));
    assert_eq!(fleet.readiness(), Readiness::Unavailable);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        assert_eq!(fleet.readiness(), Readiness::Unavailable);
        link.mend();
        becomes(&fleet, Readiness::Ready).await;
        link.cut();
        becomes(&fleet, Readiness::Unavailable).await;
    });
    drop(service);
}

#[tokio::test]
async fn adapters_may_be_chosen_at_run_time() {
    let all: Arc<dyn Adapter> = Arc::new(MemoryAdapter::new(limits()));
    let sessions: Arc<dyn SessionAdapter> = Arc::new(MemoryAdapter::new(limits()));
    let requests: Arc<dyn Adapter> = Arc::new(MemoryAdapter::new(limits()));
    let signals: Arc<dyn SignalAdapter> = Arc::new(MemoryAdapter::new(limits()));
    let asked: Arc<dyn ClientRequestAdapter> = Arc::new(MemoryAdapter::new(limits()));
    drop(asked);
    let apart = transport()
        .with_session_adapter(sessions)
        .with_client_request_adapter(requests)
        .with_signal_adapter(signals);
    for transport in [transport().with_adapter(Arc::clone(&all)), apart] {
        let instance = Instance::of("a", transport).await;
        let mut client = Client::new(PATIENCE);
        client.initialize(&instance.url).await.unwrap();
        let message = json!({"message": "?"});
        let mut call = client.call(&instance.url, 1, "ask", message).await.unwrap();
        let question = call.asked().await.unwrap();
        client
            .answer(&instance.url, &question, "yes")
            .await
            .unwrap();
        let answer = text(&call.response().await.unwrap()).unwrap();
        assert_eq!(answer, "accept: \"yes\"");
        becomes(&instance.handle, Readiness::Ready).await;
    }
    assert_eq!(all.name(), "memory");
}

/// A recorder that hears what is described.
#[derive(Default)]
struct Described(Mutex<BTreeSet<String>>);

impl Described {
    fn hear(&self, key: &KeyName, text: &SharedString) {
        assert!(!text.is_empty());
        self.0.lock().insert(key.as_str().to_owned());
    }
}

impl Recorder for Described {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, text: SharedString) {
        self.hear(&key, &text);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, text: SharedString) {
        self.hear(&key, &text);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, text: SharedString) {
        self.hear(&key, &text);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn metrics_are_described_when_a_transport_is_bound() {
    let described = Described::default();
    metrics::with_local_recorder(&described, || {
        let fleet = FleetHandle::default();
        let probe = Probe::new("a");
        let bound = StreamableHttpTransport::new()
            .bind(move || Ok(Fixture::new(Arc::clone(&probe), fleet.clone())));
        drop(bound);
    });
    let described = described.0.lock();
    for name in [
        "mcp_transport_live_sessions",
        "mcp_transport_http_requests_total",
        "mcp_transport_restore_seconds",
        "mcp_adapter_gaps_total",
        "mcp_adapter_step_seconds",
    ] {
        assert!(described.contains(name), "{name} of {described:?}");
    }
}

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(std::mem::take(&mut self.0.lock())).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// What README.md advises.
fn advised() -> Targets {
    let readme = include_str!("../../README.md");
    let advised = readme.split("RUST_LOG=").nth(1).unwrap();
    advised.lines().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_advised_log_filter_shows_what_matters_and_no_session_id() {
    let log = Log::default();
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(log.clone());
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(advised()));
    // All runs on this thread.
    let _guard = tracing::subscriber::set_default(subscriber);

    let transport = transport().with_adapter(MemoryAdapter::new(limits()));
    let instance = Instance::of("a", transport).await;
    let url = &instance.url;
    let mut client = Client::new(PATIENCE);
    client.initialize(url).await.unwrap();
    client.text(url, "whoami", json!({})).await.unwrap();
    let mut counting = client.call(url, 2, "count", json!({"n": 1})).await.unwrap();
    assert!(instance.probe.sees("counting", PATIENCE).await);
    let params = json!({"requestId": 2});
    client
        .tell(url, "notifications/cancelled", params)
        .await
        .unwrap();
    counting.rest().await.unwrap();
    let mut listening = client.resume(url, None).await.unwrap();
    client.delete(url).await.unwrap();
    listening.rest().await.unwrap();
    // An old session, as a client has it that comes back late.
    for _ in 0..3 {
        client.text(url, "whoami", json!({})).await.unwrap_err();
        client.get(url, None).await.unwrap();
    }
    let lines = log.lines();
    let id = client.session.as_deref().unwrap();
    let errors = |line: &&String| line.contains("ERROR") || line.contains(id);
    let errors: Vec<_> = lines.iter().filter(errors).collect();
    assert!(errors.is_empty(), "{errors:#?}");

    let refused = client.http.get(url).header("host", "evil.example").send();
    assert_eq!(refused.await.unwrap().status(), 403);
    let lines = log.lines();
    let said = |line: &String| line.contains("WARN") && line.contains("disallowed Host");
    assert!(lines.iter().any(said), "{lines:#?}");

    // Clients that cannot be asked: one line, and not one each.
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "whoami",
        "arguments": {},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    }});
    for _ in 0..3 {
        client
            .modern(url, &call)
            .await
            .unwrap()
            .rest()
            .await
            .unwrap();
    }
    let lines = log.lines();
    let said = lines
        .iter()
        .filter(|line| line.contains("served without a session"));
    assert_eq!(said.count(), 1, "{lines:#?}");
}
