//! What the metrics are.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Describes all metrics to the recorder that is installed by now.
pub(crate) fn describe() {
    mcp_adapter_core::describe_metrics();
    for (name, text) in COUNTERS {
        describe_counter!(*name, Unit::Count, *text);
    }
    for (name, text) in GAUGES {
        describe_gauge!(*name, Unit::Count, *text);
    }
    for (name, text) in SECONDS {
        describe_histogram!(*name, Unit::Seconds, *text);
    }
}

const COUNTERS: &[(&str, &str)] = &[
    (
        "mcp_transport_http_requests_total",
        "HTTP requests, by `method` and `status`",
    ),
    (
        "mcp_transport_sessions_created_total",
        "Sessions that clients have initialized here",
    ),
    (
        "mcp_transport_sessions_deleted_total",
        "Sessions that clients have deleted here",
    ),
    (
        "mcp_transport_restores_total",
        "Workers made for sessions that began elsewhere, by whether they came `up`",
    ),
    (
        "mcp_transport_worker_evictions_total",
        "Idle workers that left memory; their sessions stay",
    ),
    (
        "mcp_transport_resumes_total",
        "Streams that a client came back to",
    ),
    (
        "mcp_transport_gaps_total",
        "Places where a stream had to go on without events that are gone",
    ),
    (
        "mcp_transport_cancels_total",
        "Cancellations by clients, by what was `found`",
    ),
    (
        "mcp_transport_revocations_total",
        "Calls that had to stop, by `reason`",
    ),
    (
        "mcp_transport_client_requests_total",
        "Client requests of handlers that have ended, by `outcome`",
    ),
    (
        "mcp_transport_unstored_responses_total",
        "Responses that the backend has not taken",
    ),
    (
        "mcp_transport_calls_ended_by_error_total",
        "Streams that ended with an error in place of the call's response",
    ),
    (
        "mcp_transport_handler_panics_total",
        "Handlers that panicked",
    ),
    (
        "mcp_transport_subscription_notifications_total",
        "Changes told to listeners of 2026-07-28",
    ),
    (
        "mcp_transport_notifications_dropped_total",
        "Notifications of clients that a full worker did not take",
    ),
    (
        "mcp_transport_signals_lost_total",
        "Signals to other instances that could not be sent",
    ),
    (
        "mcp_transport_broadcasts_lost_total",
        "Broadcasts that a session was not told of",
    ),
    (
        "mcp_transport_sessionless_requests_total",
        "Requests of 2026-07-28 and later, which have no session and whose client cannot be asked",
    ),
];

const GAUGES: &[(&str, &str)] = &[
    (
        "mcp_transport_ready",
        "1 where this instance should get requests, 0 where not",
    ),
    (
        "mcp_transport_health",
        "How the adapter of a `role` is doing: 1 well, 0.5 degraded, 0 down",
    ),
    (
        "mcp_transport_live_sessions",
        "Live sessions in the store, those of all instances; may be an estimate",
    ),
    (
        "mcp_transport_workers",
        "Sessions that have a worker in this instance's memory",
    ),
    ("mcp_transport_running_calls", "Calls that run here"),
    ("mcp_transport_sse_streams", "Open responses with events"),
    (
        "mcp_transport_pending_client_requests",
        "Client requests of handlers here that wait for an answer",
    ),
    (
        "mcp_transport_subscriptions",
        "Listeners of 2026-07-28 that are served here",
    ),
];

const SECONDS: &[(&str, &str)] = &[(
    "mcp_transport_restore_seconds",
    "How long it took to make a worker for a session that began elsewhere",
)];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn names(path: &Path, found: &mut BTreeSet<String>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                names(&entry.unwrap().path(), found);
            }
        } else if !path.ends_with("telemetry.rs") {
            let text = fs::read_to_string(path).unwrap();
            let names = text.split(['"', '`']);
            let names = names.filter(|part| part.starts_with("mcp_transport_"));
            found.extend(names.map(str::to_owned));
        }
    }

    #[test]
    fn every_metric_is_described_and_documented() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut used, mut documented) = (BTreeSet::new(), BTreeSet::new());
        names(&root.join("src"), &mut used);
        names(&root.join("README.md"), &mut documented);
        let described = [COUNTERS, GAUGES, SECONDS].concat();
        let described: BTreeSet<_> = described
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        assert_eq!(used, described);
        assert_eq!(documented, described);
    }
}
