//! Holds of the standalone stream whose tails are gone, and what a thawed instance
//! may do (clauses E9, F3).

use std::time::Duration;

use futures::FutureExt;
use mcp_adapter_core::{
    ErrorKind, Limits, Position, Revocation, SessionAdapter, SessionId, TailFrom,
};
use tokio::time::{Instant, sleep};

use super::{
    listeners::Listener,
    support::{Fleet, Instance, all, bytes, open, start_of},
};

/// Until a step that gets no answer is given up.
const GIVEN_UP: Duration = Duration::from_secs(6);

#[tokio::test(start_paused = true)]
async fn a_holder_that_stood_still_gets_what_was_its_own_on_its_open_connection() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let (mut x, mut y) = (Listener::new(), Listener::new());
    x.get(&a, &id).await;
    y.get(&b, &id).await;
    a.engine.append(&id, bytes("1")).await.unwrap();
    x.read(&a, &id).await;
    a.link.cut();
    b.engine.append(&id, bytes("2")).await.unwrap();
    sleep(fleet.limits.lease() * 2).await;
    y.read(&b, &id).await;
    b.engine.append(&id, bytes("3")).await.unwrap();
    y.read(&b, &id).await;
    a.link.mend();
    sleep(Duration::from_secs(5)).await;
    x.read(&a, &id).await;
    y.read(&b, &id).await;
    assert_eq!((&x.seen[..], x.gets), (&["1".into(), "2".into()][..], 1));
    assert_eq!(y.seen, ["3"]);
}

/// A client that has read one event at `a`, whose hold is not let go of: nothing gets
/// through when it goes away.
async fn cut_off(a: &Instance, b: &Instance, id: &SessionId) -> Listener {
    let mut x = Listener::new();
    x.get(a, id).await;
    b.engine.append(id, bytes("1")).await.expect("stored");
    x.read(a, id).await;
    a.link.cut();
    x.tail = None;
    sleep(GIVEN_UP).await;
    a.link.mend();
    x
}

#[tokio::test(start_paused = true)]
async fn what_was_read_in_a_hold_that_was_not_let_go_of_comes_to_nobody_else() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let mut y = Listener::new();
    let mut x = cut_off(&a, &b, &id).await;
    sleep(Duration::from_secs(2)).await;
    // The backend thinks that this instance holds the stream, and does not know for
    // whom.
    y.get(&a, &id).await;
    b.engine.append(&id, bytes("2")).await.unwrap();
    y.read(&a, &id).await;
    assert_eq!(y.seen, ["2"]);
    x.get(&b, &id).await;
    x.read(&b, &id).await;
    assert_eq!(x.seen, ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_was_not_let_go_of_keeps_nobody_waiting_elsewhere() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let mut y = Listener::new();
    let _x = cut_off(&a, &b, &id).await;
    y.get(&b, &id).await;
    b.engine.append(&id, bytes("2")).await.unwrap();
    let began = Instant::now();
    while y.seen.is_empty() && began.elapsed() < fleet.limits.lease() * 2 {
        y.read(&b, &id).await;
    }
    assert_eq!(y.seen, ["2"]);
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_nobody_waits_for_any_more_is_let_go_of() {
    let fleet = Fleet::new(Limits::default());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let mut y = Listener::new();
    // Its client goes away while the backend takes the stream for it.
    let mut x = a.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    a.link.lose_replies(1);
    while a.link.replies_left_to_lose() > 0 {
        assert!(futures::StreamExt::next(&mut x).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    drop(x);
    b.engine.append(&id, bytes("1")).await.unwrap();
    y.get(&b, &id).await;
    let began = Instant::now();
    while y.seen.is_empty() && began.elapsed() < fleet.limits.lease() * 2 {
        y.read(&b, &id).await;
    }
    assert_eq!(y.seen, ["1"]);
}

#[tokio::test(start_paused = true)]
async fn clients_that_go_away_while_their_tail_is_made_leave_nothing() {
    let fleet = Fleet::new(Limits::default());
    let a = fleet.instance();
    let id = a.begin().await;
    a.engine.append(&id, bytes("1")).await.unwrap();
    for _ in 0..=fleet.limits.waiting_streams() {
        let (after, hold) = (Position::new(1, 1), None);
        let from = TailFrom::Returning { after, hold };
        assert!(a.engine.tail(&id, from).now_or_never().is_none());
    }
    let tail = a.engine.tail(&id, TailFrom::Standalone).await;
    assert!(tail.is_ok(), "{tail:?}");
}

#[tokio::test(start_paused = true)]
async fn a_thawed_owner_does_not_open_a_stream_again_that_others_have_ended() {
    let ttl = Duration::from_secs(1);
    let fleet = Fleet::new(Limits::builder().finished_ttl(ttl).build().unwrap());
    let (a, b) = (fleet.instance(), fleet.instance());
    let id = a.begin().await;
    let writer = open(&a.engine, &id, 1).await;
    writer.append(bytes("1")).await.unwrap();
    let stream = writer.stream().clone();
    let idle = open(&a.engine, &id, 2).await;
    a.link.cut();
    sleep(fleet.limits.lease() / 2).await;
    let mut tail = b.engine.tail(&id, start_of(&stream)).await.unwrap();
    assert_eq!(all(&mut tail).await, ["1", "OwnerLost"]);
    // Long enough for both to be removed.
    let mut other = b.engine.tail(&id, start_of(idle.stream())).await.unwrap();
    assert_eq!(all(&mut other).await, ["OwnerLost"]);
    sleep(ttl * 5).await;
    let late = writer.append(bytes("2"));
    a.link.mend();
    assert_eq!(late.await.unwrap_err().kind(), ErrorKind::Fenced);
    // And who writes nothing is told.
    let told = tokio::time::timeout(fleet.limits.lease(), idle.revoked()).await;
    assert_eq!(told.expect("told"), Revocation::Fenced);
    let gone = b.engine.tail(&id, start_of(&stream)).await;
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::StreamGone);
}

#[tokio::test(start_paused = true)]
async fn a_tail_that_nobody_polls_keeps_nobody_waiting() {
    let fleet = Fleet::new(Limits::default());
    let a = fleet.instance();
    let id = a.begin().await;
    let mut y = Listener::new();
    y.get(&a, &id).await;
    a.engine.append(&id, bytes("1")).await.unwrap();
    y.read(&a, &id).await;
    y.tail = None;
    // Its client reads nothing more just as its turn begins.
    let mut x = a.engine.tail(&id, TailFrom::Standalone).await.unwrap();
    a.link.lose_replies(1);
    while a.link.replies_left_to_lose() > 0 {
        assert!(futures::StreamExt::next(&mut x).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let began = Instant::now();
    y.get(&a, &id).await;
    assert!(began.elapsed() < Duration::from_secs(2));
    drop(x);
    a.engine.append(&id, bytes("2")).await.unwrap();
    while y.seen.len() < 2 && began.elapsed() < fleet.limits.lease() * 2 {
        y.read(&a, &id).await;
    }
    assert_eq!(y.seen, ["1", "2"]);
}
