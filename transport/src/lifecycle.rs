//! Whether an instance should get requests: what it knows of its stores, and
//! whether it is about to end.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mcp_adapter_core::{Health, Role, SessionAdapter};
use tokio_util::sync::CancellationToken;

use crate::{config::Roles, fleet::Readiness};

/// How often gauges are brought up to date.
const SAMPLE: Duration = Duration::from_secs(10);
#[derive(Debug)]
pub(crate) struct Lifecycle {
    draining: AtomicBool,
    /// Every role that was given, whether or not they have one store.
    roles: Vec<GivenRole>,
    sessions: Option<Arc<dyn SessionAdapter>>,
    stopped: CancellationToken,
    started: OnceLock<()>,
}

#[derive(Debug)]
struct GivenRole {
    name: &'static str,
    adapter: Arc<dyn Role>,
}

impl Lifecycle {
    /// Of the roles as they were given, until `stopped`.
    pub(crate) fn new(roles: &Roles, stopped: CancellationToken) -> Arc<Self> {
        let sessions = roles.sessions.clone().map(|role| role as Arc<dyn Role>);
        let requests = roles.requests.clone().map(|role| role as Arc<dyn Role>);
        let signals = roles.signals.clone().map(|role| role as Arc<dyn Role>);
        let given = [
            ("sessions", sessions),
            ("client_requests", requests),
            ("signals", signals),
        ];
        let given = given.into_iter().filter_map(|(name, adapter)| {
            let adapter = adapter?;
            Some(GivenRole { name, adapter })
        });
        Arc::new(Self {
            draining: AtomicBool::new(false),
            roles: given.collect(),
            sessions: roles.sessions.clone(),
            stopped,
            started: OnceLock::new(),
        })
    }

    /// Starts what runs beside requests, adapters' tasks too, on the runtime of
    /// the caller. Without one it waits for the next call.
    pub(crate) fn start(self: &Arc<Self>) {
        if self.started.get().is_some() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.started.set(()).is_err() {
            return;
        }
        for role in &self.roles {
            // An adapter that was made outside of a runtime looks at its store
            // from here on.
            let _ = role.adapter.health();
        }
        let sample = sample(Arc::downgrade(self));
        runtime.spawn(self.stopped.clone().run_until_cancelled_owned(sample));
    }

    pub(crate) fn start_drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn readiness(self: &Arc<Self>) -> Readiness {
        self.start();
        if self.is_draining() {
            return Readiness::Draining;
        }
        let away = |role: &GivenRole| matches!(role.adapter.health(), Health::Down { .. });
        if self.roles.iter().any(away) {
            return Readiness::Unavailable;
        }
        Readiness::Ready
    }
}

/// Gauges of what nobody counts.
async fn sample(lifecycle: Weak<Lifecycle>) {
    let mut tick = tokio::time::interval(SAMPLE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(here) = lifecycle.upgrade() else {
            return;
        };
        let is_ready = here.readiness() == Readiness::Ready;
        metrics::gauge!("mcp_transport_ready").set(if is_ready { 1.0 } else { 0.0 });
        for role in &here.roles {
            let health = match role.adapter.health() {
                Health::Ok => 1.0,
                Health::Degraded { .. } => 0.5,
                _ => 0.0,
            };
            metrics::gauge!("mcp_transport_health", "role" => role.name).set(health);
        }
        let sessions = here.sessions.clone();
        drop(here);
        if let Some(sessions) = sessions
            && let Ok(stats) = sessions.stats().await
        {
            #[expect(clippy::cast_precision_loss, reason = "a gauge")]
            let live = stats.sessions.value() as f64;
            metrics::gauge!("mcp_transport_live_sessions").set(live);
        }
    }
}
