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

pub(crate) async fn drain(registry: &Arc<Registry>, deadline: Duration) -> Drained {
    let deadline = Instant::now() + deadline;
    registry.drain();
    registry.gets.cancel();
    registry.bus.end();
    until(registry, deadline, || !registry.is_busy()).await;

    // Nothing is lost by the order: what comes in from here on is told to
    // come again, which it can do elsewhere.
    registry.refuse();
    for worker in registry.workers() {
        worker.fail_asks();
    }
    until(registry, Instant::now() + GRACE, || !registry.is_busy()).await;
    let workers = registry.workers();
    let aborted = workers
        .iter()
        .map(|worker| worker.fail_calls("the server is shutting down"))
        .sum();
    until(registry, Instant::now() + SETTLE, || !registry.is_busy()).await;

    for worker in workers {
        worker.close();
    }
    until(registry, Instant::now() + STOP, || {
        registry.workers().is_empty()
    })
    .await;
    registry.stopped.cancel();
    tracing::info!(aborted, "drained");
    Drained::new(aborted)
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
