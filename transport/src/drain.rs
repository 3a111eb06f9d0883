//! The end of an instance.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{fleet::Drained, registry::Registry};

/// What handlers get to return after their client requests have failed.
const GRACE: Duration = Duration::from_secs(1);
/// What the last terminal events get to be stored.
const SETTLE: Duration = Duration::from_secs(5);
/// What rmcp's service loops get to end; they give handlers five seconds.
const STOP: Duration = Duration::from_secs(6);

/// Waits for what runs, and serves what comes as before: whoever shuts the
/// instance down may have left its listener open, and all instances share the
/// state. Only at the deadline it refuses, since what begins then is cut off.
pub(crate) async fn drain(registry: &Arc<Registry>, deadline: Duration) -> Drained {
    let deadline = Instant::now() + deadline;
    registry.end_gets();
    until(registry, deadline, || !registry.is_busy()).await;
    let aborted = if registry.is_busy() {
        fail_the_rest(registry).await
    } else {
        close(registry, |worker| worker.close_if_quiet()).await;
        // Those that came back meanwhile.
        registry.end_gets();
        0
    };
    tracing::info!(aborted, "drained");
    Drained::new(aborted)
}

async fn fail_the_rest(registry: &Arc<Registry>) -> usize {
    // Nothing is lost by the order: what comes in from here on is told to
    // come again, which it can do elsewhere.
    registry.refuse();
    registry.end_gets();
    for worker in registry.workers() {
        worker.fail_asks();
    }
    until(registry, Instant::now() + GRACE, || !registry.is_busy()).await;
    let aborted = registry
        .workers()
        .iter()
        .map(|worker| worker.fail_calls("the server is shutting down"))
        .sum();
    until(registry, Instant::now() + SETTLE, || !registry.is_busy()).await;
    close(registry, |worker| {
        worker.close();
        true
    })
    .await;
    registry.stopped.cancel();
    aborted
}

/// Closes workers, and waits until they have ended.
async fn close(registry: &Arc<Registry>, close: impl Fn(&crate::worker::Worker) -> bool) {
    let mut closed = registry.workers();
    closed.retain(|worker| close(worker));
    let ended = || !closed.iter().any(|worker| registry.has(worker));
    until(registry, Instant::now() + STOP, ended).await;
}

async fn until(registry: &Registry, deadline: Instant, done: impl Fn() -> bool) {
    loop {
        let changed = registry.backends.settled.notified();
        tokio::pin!(changed);
        // Before the look, so that no change in between is missed.
        changed.as_mut().enable();
        if done() || timeout_at(deadline, changed).await.is_err() {
            return;
        }
    }
}
