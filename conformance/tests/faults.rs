//! The faults themselves: does a proxy do what its link says?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mcp_adapter_conformance::faults::{Link, Proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const SHORT: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(10);

/// A server that answers each byte with the next one, and counts them.
async fn server() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, count) = (
        listener.local_addr().unwrap(),
        Arc::<AtomicUsize>::default(),
    );
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    counter.fetch_add(1, Ordering::SeqCst);
                    if stream.write_u8(byte.wrapping_add(1)).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addr, count)
}

async fn ask(stream: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
    stream.write_u8(byte).await?;
    timeout(LONG, stream.read_u8()).await.unwrap()
}

async fn connected() -> (Link, Proxy, TcpStream, Arc<AtomicUsize>) {
    let (addr, count) = server().await;
    let link = Link::new();
    let proxy = Proxy::start(addr, &link).unwrap();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(ask(&mut stream, 1).await.unwrap(), 2);
    (link, proxy, stream, count)
}

#[tokio::test]
async fn a_cut_closes_what_is_open_and_refuses_what_is_new() {
    let (link, proxy, mut stream, count) = connected().await;
    link.cut();
    let closed = timeout(LONG, stream.read_u8()).await.unwrap();
    assert!(closed.is_err(), "{closed:?}");
    for _ in 0..3 {
        // It may be accepted, and is closed at once.
        let Ok(mut refused) = TcpStream::connect(proxy.addr()).await else {
            continue;
        };
        assert!(ask(&mut refused, 1).await.is_err());
    }
    link.mend();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(ask(&mut stream, 5).await.unwrap(), 6);
    assert_eq!(
        count.load(Ordering::SeqCst),
        2,
        "nothing came through while it was cut"
    );
}

#[tokio::test]
async fn a_frozen_link_is_silent_and_loses_nothing() {
    let (link, proxy, mut stream, count) = connected().await;
    link.freeze();
    stream.write_u8(7).await.unwrap();
    let mut late = TcpStream::connect(proxy.addr()).await.unwrap();
    late.write_u8(9).await.unwrap();
    assert!(
        timeout(SHORT, stream.read_u8()).await.is_err(),
        "half-open, not closed"
    );
    assert!(
        timeout(SHORT, late.read_u8()).await.is_err(),
        "accepted, and silent"
    );
    assert_eq!(count.load(Ordering::SeqCst), 1);
    link.mend();
    assert_eq!(timeout(LONG, stream.read_u8()).await.unwrap().unwrap(), 8);
    assert_eq!(timeout(LONG, late.read_u8()).await.unwrap().unwrap(), 10);
    // Cut while it is frozen.
    link.freeze();
    link.cut();
    assert!(timeout(LONG, stream.read_u8()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_delay_takes_its_time_in_both_directions() {
    let (link, _proxy, mut stream, _) = connected().await;
    link.delay(SHORT);
    let asked = Instant::now();
    assert_eq!(ask(&mut stream, 1).await.unwrap(), 2);
    assert!(asked.elapsed() >= SHORT * 2, "{:?}", asked.elapsed());
    link.mend();
    let asked = Instant::now();
    assert_eq!(ask(&mut stream, 1).await.unwrap(), 2);
    assert!(asked.elapsed() < SHORT, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_lost_reply_is_lost_after_the_server_got_the_request() {
    let (link, proxy, mut stream, count) = connected().await;
    link.lose_replies(2);
    for lost in 1..=2 {
        assert!(
            ask(&mut stream, 1).await.is_err(),
            "closed in place of an answer"
        );
        assert_eq!(count.load(Ordering::SeqCst), 1 + lost, "it was applied");
        assert_eq!(link.replies_to_lose(), 2 - lost);
        stream = TcpStream::connect(proxy.addr()).await.unwrap();
    }
    assert_eq!(ask(&mut stream, 1).await.unwrap(), 2);
}

#[tokio::test]
async fn large_transfers_come_through_whole_and_an_end_is_passed_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap(), &Link::new()).unwrap();
    let sent: Vec<u8> = (0..3_000_000_u32)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let echo = async {
        let (mut server, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        server.write_all(&all).await.unwrap();
    };
    let client = async {
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        all
    };
    let ((), received) = timeout(LONG, async { tokio::join!(echo, client) })
        .await
        .unwrap();
    assert!(received == sent);
}

#[tokio::test]
async fn a_proxy_that_is_dropped_listens_no_more() {
    let (_link, proxy, mut stream, _) = connected().await;
    let addr = proxy.addr();
    drop(proxy);
    assert!(timeout(LONG, stream.read_u8()).await.unwrap().is_err());
    let until = Instant::now() + LONG;
    while TcpStream::connect(addr).await.is_ok() {
        assert!(Instant::now() < until, "it listens still");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
