//! The documented way to end an instance, by the example that shows it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mcp_adapter_memory::MemoryAdapter;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{
    client::Client,
    fleet::limits,
    serve::{Timing, serve},
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Served {
    addr: SocketAddr,
    url: String,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

async fn start(timing: Timing) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let adapter = MemoryAdapter::new(limits());
    let server = tokio::spawn(serve(listener, adapter, timing, async move {
        stopped.await.unwrap();
    }));
    Served {
        addr,
        url: format!("http://{addr}/mcp"),
        stop,
        server,
    }
}

/// Connects and sends the beginning of a request.
async fn begin(addr: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_shutdown_waits_for_nobody_who_sends_half_a_request() {
    let timing = Timing {
        notice: Duration::ZERO,
        settle: Duration::from_millis(100),
        calls: Duration::from_secs(1),
        linger: Duration::from_millis(300),
    };
    let served = start(timing).await;
    let head = begin(served.addr, "POST /mcp HTTP/1.1\r\nhost: loc").await;
    let body = begin(
        served.addr,
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: 100\r\n\r\n{\"json",
    )
    .await;
    let idle = TcpStream::connect(served.addr).await.unwrap();
    // It has read what there is of them.
    let mut client = Client::new(PATIENCE);
    client.initialize(&served.url).await.unwrap();
    let begun = Instant::now();
    served.stop.send(()).unwrap();
    served.server.await.unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop((head, body, idle));
}

#[tokio::test]
async fn while_a_server_shuts_down_it_serves() {
    let timing = Timing {
        notice: Duration::from_millis(500),
        settle: Duration::from_millis(500),
        calls: Duration::from_secs(10),
        linger: Duration::from_secs(1),
    };
    let served = start(timing).await;
    let ready = format!("http://{}/ready", served.addr);
    let client = Client::new(PATIENCE);
    assert_eq!(client.get(&ready, None).await.unwrap().status(), 200);
    let mut open = TcpStream::connect(served.addr).await.unwrap();
    served.stop.send(()).unwrap();
    while client.get(&ready, None).await.unwrap().status() != 503 {
        tokio::task::yield_now().await;
    }
    // The balancer has not looked yet.
    let mut late = Client::new(PATIENCE);
    late.initialize(&served.url).await.unwrap();
    let mut listening = late.resume(&served.url, None).await.unwrap();
    assert!(listening.next().await.unwrap().unwrap().id.is_some());
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    let answer = late.post(&served.url, &ping).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["connection"], "close");
    drop(answer);
    // Nobody can connect any more, but who has is served.
    let closed = async {
        while TcpStream::connect(served.addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
    let request = b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
    open.write_all(request).await.unwrap();
    let mut answer = [0; 12];
    open.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 503");
    listening.ends().await.unwrap();
    served.server.await.unwrap();
}
