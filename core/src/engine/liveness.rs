//! Heartbeats, the dead, and sweeping (clauses F3 and S5).

use std::sync::{Arc, atomic::Ordering};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Shared, interest::Owned, retry::within};
use crate::storage::{Beat, Storage};

/// Things that one step of sweeping may remove.
const SWEEP_BUDGET: usize = 512;
/// Steps of one round of sweeping: with a backlog the next round goes on.
const SWEEP_STEPS: usize = 64;
/// Leases that a heartbeat is kept for, at least.
const BEAT_KEPT: u32 = 10;

impl<S: Storage> Shared<S> {
    pub(super) async fn run_heartbeat(self: Arc<Self>) {
        let mut tick = interval(self.limits.heartbeat());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is raised with the link.
        tick.tick().await;
        loop {
            tick.tick().await;
            self.beat().await;
        }
    }

    /// Before something is owned here: where others may hold this instance dead
    /// by its last counter, it raises a new one first, or what it opens now
    /// would be ended at once. A try that failed just now is not repeated: while
    /// the backend is away in part, what is not must not wait for it.
    pub(super) async fn assure_alive(&self) {
        let failed = self.beat_failed.load(Ordering::Relaxed);
        let just_now = failed != 0 && self.since(failed) < self.limits.heartbeat();
        if !self.is_surely_alive() && !just_now {
            self.beat().await;
        }
    }

    /// Whether no heartbeat was acknowledged for so long that others may hold this
    /// instance dead.
    fn is_maybe_dead(&self) -> bool {
        let beaten = self.beaten.load(Ordering::Relaxed);
        beaten != 0 && self.since(beaten) >= self.limits.lease()
    }

    /// Whether others may have ended, since it was opened, what this instance owns.
    pub(super) fn may_have_lost(&self, owned: &Owned) -> bool {
        let lapsed = *self.lapsed.lock();
        self.is_maybe_dead() || lapsed.is_some_and(|lapsed| lapsed >= owned.opened)
    }

    /// Raises the counter and reads all.
    pub(super) async fn beat(&self) {
        let beat = Beat {
            instance: self.me,
            count: self.beats.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let (sent, millis) = (Instant::now(), self.millis());
        // At least as long as anything that this instance may leave behind: a
        // fleet that was suspended as a whole learns of its dead from what is
        // stored.
        let ttl = (self.limits.lease() * BEAT_KEPT).max(self.limits.idle_ttl());
        // One try: a later one must not count as sent now.
        let deadline = sent + self.limits.operation_timeout().min(self.limits.lease() / 4);
        let beats = within("heartbeat", deadline, self.storage.heartbeat(beat, ttl)).await;
        self.note(&beats);
        let mut observer = self.observer.lock();
        match beats {
            Ok(beats) => {
                observer.read(&beats, sent, Instant::now());
                if self.is_maybe_dead() {
                    *self.lapsed.lock() = Some(Instant::now());
                }
                self.beaten.store(millis, Ordering::Relaxed);
                self.beat_failed.store(0, Ordering::Relaxed);
            }
            Err(error) => {
                observer.failed();
                drop(observer);
                self.beat_failed.store(self.millis(), Ordering::Relaxed);
                tracing::warn!(%error, "the heartbeat failed");
            }
        }
    }

    pub(super) async fn run_sweep(self: Arc<Self>) {
        // Not in step with the heartbeat, which must not wait for it.
        let mut tick = interval(self.limits.heartbeat());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tick.tick().await;
            self.listeners.sweep();
            self.repair.forget(self.kept_for());
            self.holds.forget(self.limits.idle_ttl());
            self.sweep().await;
        }
    }

    async fn sweep(&self) {
        let dead = self.observer.lock().all_dead();
        let kept = self.limits.finished_ttl();
        for _ in 0..SWEEP_STEPS {
            let step = self.storage.sweep(SWEEP_BUDGET, &dead, kept);
            let swept = within("sweep", self.deadline(), step).await;
            self.note(&swept);
            match swept {
                Ok(swept) => {
                    metrics::counter!("mcp_adapter_swept_total").increment(swept.removed as u64);
                    if !swept.more {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "sweeping failed; the next round goes on");
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
    }
}
