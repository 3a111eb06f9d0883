//! What the metrics mean, for exporters that show it.

use metrics::{Unit, describe_counter, describe_histogram};

/// Counters of every instance.
const COUNTERS: &[(&str, &str)] = &[
    (
        "mcp_adapter_ambiguous_cancels_total",
        "Cancels that named several running calls, and ended none",
    ),
    (
        "mcp_adapter_client_requests_total",
        "Client requests that waited here and have ended, by outcome",
    ),
    (
        "mcp_adapter_gaps_total",
        "Holes that readers of streams were told of",
    ),
    (
        "mcp_adapter_links_lost_total",
        "Times that the wake-up link was lost",
    ),
    (
        "mcp_adapter_overloaded_total",
        "Operations refused because a queue is full, by operation",
    ),
    (
        "mcp_adapter_owners_lost_total",
        "Streams of dead instances that this one ended",
    ),
    (
        "mcp_adapter_results_dropped_total",
        "Results that the backend did not take for so long that they were given up",
    ),
    (
        "mcp_adapter_results_unstored_total",
        "Results that went to their socket while the backend did not take them",
    ),
    (
        "mcp_adapter_sessions_created_total",
        "Sessions created here",
    ),
    (
        "mcp_adapter_sessions_deleted_total",
        "Sessions deleted here",
    ),
    (
        "mcp_adapter_signals_dropped_total",
        "Signals that a slow listener did not get",
    ),
    (
        "mcp_adapter_streams_disowned_total",
        "Streams that others took for this instance's, and that it ended",
    ),
    (
        "mcp_adapter_streams_reopened_total",
        "Streams that the backend had lost and that were opened again",
    ),
    (
        "mcp_adapter_streams_repaired_total",
        "Streams whose last events were written again after the backend lost some",
    ),
    (
        "mcp_adapter_swept_total",
        "Expired things removed, and things of the dead ended, by this instance",
    ),
    (
        "mcp_adapter_undecodable_total",
        "Stored events that could not be read",
    ),
    (
        "mcp_adapter_writers_revoked_total",
        "Streams of this instance that others ended",
    ),
];

/// Describes the metrics of this crate to the recorder that is installed. Each
/// [`Engine`](crate::Engine) does it when it is made; call it again where the
/// recorder is installed later.
pub fn describe_metrics() {
    for (name, what) in COUNTERS {
        describe_counter!(*name, Unit::Count, *what);
    }
    describe_histogram!(
        "mcp_adapter_step_seconds",
        Unit::Seconds,
        "Time that a step of the backend took, its repeats included, by backend and step"
    );
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn sources(folder: &Path, found: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.file_name().unwrap() != "describe.rs" {
                found.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn every_counter_is_described_and_no_other() {
        let mut source = String::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut source,
        );
        let mut used: Vec<_> = source
            .split("counter!(\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        used.sort_unstable();
        used.dedup();
        let described: Vec<_> = COUNTERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(used, described);
    }
}
