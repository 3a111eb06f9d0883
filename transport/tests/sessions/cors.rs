//! Pages of other origins: what browsers ask, and a browser.

use std::{process::Stdio, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::Html,
    routing::{get, post},
};
use mcp_adapter_memory::MemoryAdapter;
use mcp_adapter_transport::cors;
use tokio::{net::TcpListener, process::Command, sync::mpsc};

use crate::{
    client::Client,
    fixture::{Fixture, Probe},
    fleet::{limits, transport},
    raw::ask,
};

const PATIENCE: Duration = Duration::from_secs(20);
const SCRIPT: &str = include_str!("cors.js");

/// An instance whose layer allows pages of this origin; gives its URL.
async fn served(origin: &str) -> (String, Arc<Probe>) {
    let probe = Probe::new("a");
    let made = Arc::clone(&probe);
    let transport = transport().with_adapter(MemoryAdapter::new(limits()));
    let fleet = transport.fleet();
    let service = transport.bind(move || Ok(Fixture::new(Arc::clone(&made), fleet.clone())));
    let router: axum::Router = axum::Router::new()
        .nest_service("/mcp", service)
        .layer(cors([origin]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, probe)
}

fn list(value: &str) -> Vec<String> {
    value
        .split(',')
        .map(|item| item.trim().to_lowercase())
        .collect()
}

#[tokio::test]
async fn a_browser_is_told_what_a_page_may_do() {
    let (url, _) = served("https://app.example").await;
    let client = Client::new(PATIENCE);
    let wanted = "authorization,content-type,last-event-id,mcp-param-region,\
                  mcp-protocol-version,mcp-session-id";
    for (origin, allowed) in [
        ("https://app.example", true),
        ("https://evil.example", false),
        ("https://app.example:8443", false),
        ("null", false),
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let preflight = [
                ("origin", origin),
                ("access-control-request-method", method),
                ("access-control-request-headers", wanted),
            ];
            let answer = ask(&client, "OPTIONS", &url, &preflight, "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let told = answer.header("access-control-allow-origin");
            assert_eq!(told == Some(origin), allowed, "{answer:?}");
            let methods = list(answer.header("access-control-allow-methods").unwrap());
            assert!(methods.contains(&method.to_lowercase()), "{answer:?}");
            let headers = list(answer.header("access-control-allow-headers").unwrap());
            assert_eq!(headers, list(wanted));
            assert_eq!(answer.header("access-control-allow-credentials"), None);
        }
        // What comes back may be read, errors too.
        let answer = ask(&client, "POST", &url, &[("origin", origin)], "{").await;
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.header("access-control-allow-origin") == Some(origin),
            allowed
        );
        let exposed = list(answer.header("access-control-expose-headers").unwrap());
        for name in ["mcp-session-id", "retry-after", "www-authenticate"] {
            assert!(exposed.iter().any(|exposed| exposed == name), "{answer:?}");
        }
    }
}

/// A page in Chromium lists tools, is asked and answers, loses its connection
/// and resumes, all from another origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Chromium: see CONTRIBUTING.md"]
async fn a_page_in_a_browser_works_from_another_origin() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let (url, probe) = served(&origin).await;
    let script = SCRIPT.replace("{MCP}", &url);
    let page = format!("<!doctype html><meta charset=utf-8><script type=module>{script}</script>");
    let (report, mut reports) = mpsc::unbounded_channel();
    let router: axum::Router = axum::Router::new()
        .route("/", get(async move || Html(page)))
        // The handler goes on when the page has lost its connection.
        .route(
            "/go",
            post(async move || {
                probe.steps.add_permits(1);
            }),
        )
        .route(
            "/report",
            post(
                async |State(report): State<mpsc::UnboundedSender<String>>, text: String| {
                    let _ = report.send(text);
                },
            ),
        )
        .with_state(report);
    tokio::spawn(async move { axum::serve(listener, router).await });

    let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    let profile = tempfile::tempdir().unwrap();
    let mut browser = Command::new(&program)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("--remote-debugging-port=0")
        .arg(&origin)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = tokio::time::timeout(3 * PATIENCE, reports.recv()).await;
    browser.kill().await.unwrap();
    let text = text.expect("the page reports").unwrap();
    let steps: Vec<&str> = text.lines().collect();
    assert_eq!(
        steps,
        [
            "session",
            "tools echo",
            "asked ?",
            "answered accept: \"from a page\"",
            "cut after 1",
            "resumed 2 counted 2",
            "204 after the end",
            "deleted",
        ]
    );
}
