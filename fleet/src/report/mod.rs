//! What a run prints and writes.

mod html;
mod plot;
mod table;

use serde::Serialize;

pub(crate) use self::{html::html, table::table};
use crate::{
    error::Failure,
    load::{Plan, Totals, percentile_ms},
    run::Judged,
};

/// The result of a run; the fields of its JSON object.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    /// `None` where only the clients ran.
    pub(crate) backend: Option<&'static str>,
    pub(crate) instances: Option<u16>,
    pub(crate) policy: Option<&'static str>,
    pub(crate) sessions: usize,
    pub(crate) calls: u64,
    pub(crate) elicitations: u64,
    pub(crate) cross_instance_elicitations: u64,
    pub(crate) resumes: u64,
    pub(crate) cross_instance_resumes: u64,
    pub(crate) cancels: u64,
    pub(crate) deletes: u64,
    pub(crate) kills: usize,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) wrong: u64,
    pub(crate) hung: u64,
    pub(crate) errors: u64,
    pub(crate) expected_errors: u64,
    pub(crate) calls_per_s: f64,
    pub(crate) call_p50_ms: f64,
    pub(crate) call_p99_ms: f64,
    pub(crate) elicit_p50_ms: f64,
    pub(crate) elicit_p99_ms: f64,
    /// Only of a soak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) soak: Option<Vec<Judged>>,
    #[serde(skip)]
    pub(crate) seed: u64,
}

impl Summary {
    /// The part that the clients know.
    pub(crate) fn new(plan: &Plan, totals: &Totals) -> Self {
        let counts = &totals.counts;
        let seconds = totals.took.as_secs_f64().max(f64::MIN_POSITIVE);
        let calls = f64::from(u32::try_from(counts.calls).unwrap_or(u32::MAX));
        Self {
            backend: None,
            instances: None,
            policy: None,
            sessions: plan.sessions,
            calls: counts.calls,
            elicitations: counts.elicitations,
            cross_instance_elicitations: counts.cross_instance_elicitations,
            resumes: counts.resumes,
            cross_instance_resumes: counts.cross_instance_resumes,
            cancels: counts.cancels,
            deletes: counts.deletes,
            kills: 0,
            lost: counts.lost,
            duplicated: counts.duplicated,
            wrong: counts.wrong,
            hung: counts.hung,
            errors: counts.errors,
            expected_errors: counts.expected_errors,
            calls_per_s: rounded(calls / seconds),
            call_p50_ms: rounded(percentile_ms(&totals.calls, 50)),
            call_p99_ms: rounded(percentile_ms(&totals.calls, 99)),
            elicit_p50_ms: rounded(percentile_ms(&totals.elicits, 50)),
            elicit_p99_ms: rounded(percentile_ms(&totals.elicits, 99)),
            soak: None,
            seed: plan.seed,
        }
    }

    /// One JSON object on one line.
    pub(crate) fn to_json(&self) -> Result<String, Failure> {
        serde_json::to_string(self).map_err(Failure::context("cannot write the result"))
    }
}

/// Three decimals are more than the measurement holds.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
