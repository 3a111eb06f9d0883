//! Several clients listen to the standalone stream of one session (clause E9).

use std::time::Duration;

use futures::StreamExt;
use mcp_adapter_core::{Limits, SessionAdapter, SessionId, Tail, TailEvent, TailFrom};

use super::support::{Fleet, Instance, bytes, show};

/// A client that listens as an `EventSource` does: it comes back with what it had
/// last, and remembers what it was told.
pub(crate) struct Listener {
    pub(crate) tail: Option<Tail>,
    pub(crate) last: TailFrom,
    pub(crate) gets: usize,
    pub(crate) seen: Vec<String>,
}

impl Listener {
    pub(crate) fn new() -> Self {
        Self {
            tail: None,
            last: TailFrom::Standalone,
            gets: 0,
            seen: Vec::new(),
        }
    }

    pub(crate) async fn get(&mut self, at: &Instance, id: &SessionId) {
        self.gets += 1;
        let tail = at.engine.tail(id, self.last.clone()).await;
        self.tail = Some(tail.expect("the session is there"));
    }

    /// Reads until nothing more comes; comes back at `at` where its tail ends.
    pub(crate) async fn read(&mut self, at: &Instance, id: &SessionId) {
        loop {
            let Some(tail) = &mut self.tail else {
                self.get(at, id).await;
                continue;
            };
            match tokio::time::timeout(Duration::from_secs(3), tail.next()).await {
                Err(_) => return,
                Ok(Some(TailEvent::Begins { after, hold })) => {
                    self.last = TailFrom::Returning {
                        after: after.position,
                        hold: Some(hold),
                    };
                }
                Ok(Some(TailEvent::Event { id, data, .. })) => {
                    self.last = TailFrom::Returning {
                        after: id.position,
                        hold: None,
                    };
                    self.seen.push(String::from_utf8_lossy(&data).into_owned());
                }
                Ok(Some(TailEvent::End(_)) | None) => {
                    self.tail = None;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok(Some(other)) => panic!("{}", show(other)),
            }
        }
    }
}

/// Both read at the same time, at instances of their own.
async fn read(one: (&mut Listener, &Instance), two: (&mut Listener, &Instance), id: &SessionId) {
    futures::join!(one.0.read(one.1, id), two.0.read(two.1, id));
}

#[tokio::test(start_paused = true)]
async fn two_listeners_that_come_back_come_to_rest() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    for same in [true, false] {
        let second = if same { &a } else { &b };
        let id = a.begin().await;
        let (mut x, mut y) = (Listener::new(), Listener::new());
        x.get(&a, &id).await;
        y.get(second, &id).await;
        let mut n = 0;
        for round in 0..6 {
            // Each in turn loses its connection, and something is sent meanwhile.
            let broken = if round % 2 == 0 { &mut x } else { &mut y };
            broken.tail = None;
            n += 1;
            b.engine.append(&id, bytes(&n.to_string())).await.unwrap();
            read((&mut x, &a), (&mut y, second), &id).await;
            for _ in 0..4 {
                n += 1;
                b.engine.append(&id, bytes(&n.to_string())).await.unwrap();
            }
            read((&mut x, &a), (&mut y, second), &id).await;
        }
        let mut seen: Vec<u32> = [&x.seen, &y.seen]
            .into_iter()
            .flatten()
            .map(|text| text.parse().unwrap())
            .collect();
        seen.sort_unstable();
        assert_eq!(
            seen,
            (1..=n).collect::<Vec<_>>(),
            "each once, at one of them"
        );
        assert_eq!((x.gets, y.gets), (4, 4), "one at first, one for each break");
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_from_a_dead_socket_gets_its_stream_at_once() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let mut client = Listener::new();
    client.get(&a, &id).await;
    client.read(&a, &id).await;
    a.engine.append(&id, bytes("1")).await.unwrap();
    client.read(&a, &id).await;
    let mut dead = Vec::new();
    for n in 2..8 {
        // The server does not notice, and goes on writing to nobody.
        dead.extend(client.tail.take());
        b.engine.append(&id, bytes(&n.to_string())).await.unwrap();
        let at = if n % 2 == 0 { &b } else { &a };
        let began = tokio::time::Instant::now();
        client.get(at, &id).await;
        client.read(at, &id).await;
        assert!(began.elapsed() < Duration::from_secs(4), "{n}");
        assert_eq!(client.seen.last(), Some(&n.to_string()));
    }
    // Its own short absence gives none of the dead its place.
    client.tail = None;
    tokio::time::sleep(Duration::from_secs(2)).await;
    b.engine.append(&id, bytes("8")).await.unwrap();
    client.get(&b, &id).await;
    client.read(&b, &id).await;
    assert_eq!(client.seen, ["1", "2", "3", "4", "5", "6", "7", "8"]);
}

#[tokio::test(start_paused = true)]
async fn a_displaced_listener_has_its_turn_when_nobody_comes_back() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    // Two clients that share what they had last.
    let (mut x, mut y) = (Listener::new(), Listener::new());
    x.get(&a, &id).await;
    a.engine.append(&id, bytes("1")).await.unwrap();
    x.read(&a, &id).await;
    y.last = x.last.clone();
    y.get(&b, &id).await;
    b.engine.append(&id, bytes("2")).await.unwrap();
    read((&mut x, &a), (&mut y, &b), &id).await;
    assert_eq!((x.seen.len(), &y.seen[..]), (1, &["2".to_owned()][..]));
    y.tail = None;
    b.engine.append(&id, bytes("3")).await.unwrap();
    for _ in 0..3 {
        x.read(&a, &id).await;
    }
    assert_eq!(x.seen, ["1", "3"]);
    assert_eq!(x.gets, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_written_to_a_dead_instance_is_still_its_listeners() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let (mut x, mut y) = (Listener::new(), Listener::new());
    x.get(&a, &id).await;
    x.read(&a, &id).await;
    y.get(&b, &id).await;
    a.engine.append(&id, bytes("1")).await.unwrap();
    x.read(&a, &id).await;
    a.link.cut();
    // The holder is dead, but nobody knows yet: what comes now is its own.
    b.engine.append(&id, bytes("2")).await.unwrap();
    tokio::time::sleep(fleet.limits.lease() * 2).await;
    y.read(&b, &id).await;
    b.engine.append(&id, bytes("3")).await.unwrap();
    y.read(&b, &id).await;
    assert_eq!(y.seen, ["3"]);
    x.tail = None;
    x.get(&b, &id).await;
    x.read(&b, &id).await;
    assert_eq!(x.seen, ["1", "2"], "and the rest has been the other's");
}
