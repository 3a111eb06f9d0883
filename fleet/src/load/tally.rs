//! Counters and latencies of a run.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::check::Verdict;

/// Complaints kept for the person at the terminal.
const MAX_COMPLAINTS: usize = 20;
/// Measurements kept of a kind, half of them for sure: a run may take days.
const MAX_KEPT: usize = 1 << 17;

/// All counters of the report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) elicitations: u64,
    pub(crate) cross_instance_elicitations: u64,
    pub(crate) resumes: u64,
    pub(crate) cross_instance_resumes: u64,
    pub(crate) cancels: u64,
    pub(crate) deletes: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) wrong: u64,
    pub(crate) hung: u64,
    pub(crate) errors: u64,
    pub(crate) expected_errors: u64,
}

impl Counts {
    /// Whether the run kept every promise.
    pub(crate) fn clean(&self) -> bool {
        self.lost + self.duplicated + self.wrong + self.hung + self.errors == 0
    }
}

/// One measured call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// End of the call after the start of the run.
    pub(crate) at: Duration,
    /// How long it took.
    pub(crate) took: Duration,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    calls: Thinned<Sample>,
    elicits: Thinned<Sample>,
    ends: Thinned<Duration>,
    complaints: Vec<String>,
    silenced: u64,
}

/// Every so many of the items, evenly over the run.
#[derive(Debug)]
struct Thinned<T> {
    kept: Vec<T>,
    seen: u64,
    /// One was kept of so many.
    stride: u64,
}

impl<T> Default for Thinned<T> {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            seen: 0,
            stride: 1,
        }
    }
}

impl<T> Thinned<T> {
    fn push(&mut self, item: T) {
        if self.seen.is_multiple_of(self.stride) {
            if self.kept.len() >= MAX_KEPT {
                let mut index = 0_usize;
                self.kept.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.kept.push(item);
            }
        }
        self.seen += 1;
    }
}

/// Shared by all sessions of a run.
#[derive(Debug)]
pub(crate) struct Tally {
    start: Instant,
    state: Mutex<State>,
}

/// What a finished run leaves.
#[derive(Debug)]
pub(crate) struct Totals {
    pub(crate) counts: Counts,
    /// Calls without a wait of their own (`echo`, `whoami`).
    pub(crate) calls: Vec<Sample>,
    /// From the sending of an answer to the result of the call that asked.
    pub(crate) elicits: Vec<Sample>,
    /// When calls of any kind ended; each stands for `ends_each` of them.
    pub(crate) ends: Vec<Duration>,
    pub(crate) ends_each: u64,
    pub(crate) complaints: Vec<String>,
    pub(crate) silenced: u64,
    pub(crate) took: Duration,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// When the run started.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// Changes counters.
    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.state.lock().counts);
    }

    /// A call has ended, in whatever way.
    pub(super) fn call_ended(&self) {
        let at = self.start.elapsed();
        self.state.lock().ends.push(at);
    }

    /// Calls that have ended so far.
    pub(crate) fn calls_ended(&self) -> u64 {
        self.state.lock().ends.seen
    }

    /// Latency of a call that began at `since` and ends now.
    pub(super) fn call_took(&self, since: Instant, until: Instant) {
        let sample = self.sample(since, until);
        self.state.lock().calls.push(sample);
    }

    /// Latency of an elicitation.
    pub(super) fn elicit_took(&self, since: Instant, until: Instant) {
        let sample = self.sample(since, until);
        self.state.lock().elicits.push(sample);
    }

    fn sample(&self, since: Instant, until: Instant) -> Sample {
        Sample {
            at: until.duration_since(self.start),
            took: until.duration_since(since),
        }
    }

    /// Adds a verdict; says what about when there is something to say.
    pub(super) fn judge(&self, verdict: Verdict, about: impl FnOnce() -> String) {
        if verdict == Verdict::default() {
            return;
        }
        self.count(|counts| {
            counts.lost += verdict.lost;
            counts.duplicated += verdict.duplicated;
            counts.wrong += verdict.wrong;
        });
        self.complain(format!("{verdict:?}: {}", about()));
    }

    /// Something broke that no kill excuses.
    pub(super) fn error(&self, text: impl std::fmt::Display) {
        self.count(|counts| counts.errors += 1);
        self.complain(format!("error: {text}"));
    }

    /// Something came that must not have.
    pub(super) fn wrong(&self, text: impl std::fmt::Display) {
        self.count(|counts| counts.wrong += 1);
        self.complain(format!("wrong: {text}"));
    }

    /// No end within the deadline.
    pub(super) fn hung(&self, text: impl std::fmt::Display) {
        self.count(|counts| counts.hung += 1);
        self.complain(format!("hung: {text}"));
    }

    fn complain(&self, text: String) {
        let mut state = self.state.lock();
        if state.complaints.len() < MAX_COMPLAINTS {
            state.complaints.push(text);
        } else {
            state.silenced += 1;
        }
    }

    /// Ends the run.
    pub(super) fn finish(&self) -> Totals {
        let took = self.start.elapsed();
        let state = std::mem::take(&mut *self.state.lock());
        Totals {
            counts: state.counts,
            calls: state.calls.kept,
            elicits: state.elicits.kept,
            ends: state.ends.kept,
            ends_each: state.ends.stride,
            complaints: state.complaints,
            silenced: state.silenced,
            took,
        }
    }
}

/// The `percent`th percentile by nearest rank, in milliseconds; 0 for no samples.
pub(crate) fn percentile_ms(samples: &[Sample], percent: usize) -> f64 {
    let mut sorted: Vec<Duration> = samples.iter().map(|sample| sample.took).collect();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted
        .get(rank)
        .map_or(0.0, |took| took.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let samples: Vec<_> = (1..=200)
            .rev()
            .map(|ms| Sample {
                at: Duration::ZERO,
                took: Duration::from_millis(ms),
            })
            .collect();
        assert!((percentile_ms(&samples, 50) - 100.0).abs() < 1e-9);
        assert!((percentile_ms(&samples, 99) - 198.0).abs() < 1e-9);
        assert!((percentile_ms(&samples[..1], 99) - 200.0).abs() < 1e-9);
        assert!(percentile_ms(&[], 50).abs() < 1e-9);
    }

    #[test]
    fn long_runs_are_thinned_evenly() {
        let mut thinned = Thinned::default();
        let total = 5 * u64::try_from(MAX_KEPT).unwrap();
        for n in 0..total {
            thinned.push(n);
        }
        assert_eq!(thinned.seen, total);
        assert!(thinned.kept.len() <= MAX_KEPT);
        let every = thinned.kept.iter().zip(0..);
        assert!(
            every
                .into_iter()
                .all(|(item, n)| *item == n * thinned.stride)
        );
        assert_eq!(thinned.kept.len() as u64, total.div_ceil(thinned.stride));
    }

    #[test]
    fn complaints_are_bounded() {
        let tally = Tally::new();
        for n in 0..MAX_COMPLAINTS + 3 {
            tally.error(n.to_string());
        }
        let totals = tally.finish();
        assert_eq!(totals.complaints.len(), MAX_COMPLAINTS);
        assert_eq!(totals.silenced, 3);
        assert!(!totals.counts.clean());
    }
}
