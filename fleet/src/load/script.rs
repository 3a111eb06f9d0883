//! What a session does, in which order.

/// A part of a session's script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// A call that returns at once.
    Echo,
    /// The name of the instance.
    WhoAmI,
    /// A count with progress.
    Count,
    /// One question.
    Ask,
    /// Questions at the same time.
    ParallelAsks,
    /// Messages on the standalone stream.
    Log,
    /// A cut stream, resumed while the call runs.
    ResumeRunning,
    /// A cut stream, resumed after the call has finished.
    ResumeFinished,
    /// A cancelled call.
    Cancel,
    /// Two calls with the same JSON-RPC id and progress token.
    Twins,
}

/// Questions that are open at once in [`Step::ParallelAsks`].
pub(super) const PARALLEL: usize = 3;

/// Steps of clients that see every byte.
pub(super) const RAW_DECK: &[Step] = &[
    Step::Echo,
    Step::WhoAmI,
    Step::Count,
    Step::Ask,
    Step::ParallelAsks,
    Step::Log,
    Step::ResumeRunning,
    Step::ResumeFinished,
    Step::Cancel,
    Step::Twins,
];

/// Steps of clients built on the SDK: it resumes by itself and chooses ids and tokens.
pub(super) const SDK_DECK: &[Step] = &[
    Step::Echo,
    Step::WhoAmI,
    Step::Count,
    Step::Ask,
    Step::ParallelAsks,
    Step::Log,
    Step::Cancel,
];

impl Step {
    /// Tool calls that the step makes.
    pub(super) fn calls(self) -> usize {
        match self {
            Self::ParallelAsks => PARALLEL,
            Self::Twins => 2,
            _ => 1,
        }
    }
}

/// Steps with exactly `calls` calls: the deck, shuffled, again and again; what
/// does not fit any more becomes [`Step::Echo`].
pub(super) fn plan(deck: &[Step], calls: usize, rng: &mut fastrand::Rng) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut left = calls;
    let mut cards: Vec<Step> = Vec::new();
    while left > 0 {
        if cards.is_empty() {
            cards.extend_from_slice(deck);
            rng.shuffle(&mut cards);
        }
        let step = match cards.pop() {
            Some(step) if step.calls() <= left => step,
            _ => Step::Echo,
        };
        left -= step.calls();
        steps.push(step);
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_plan_has_exactly_the_calls_that_were_asked_for() {
        for deck in [RAW_DECK, SDK_DECK] {
            for calls in 0..60 {
                let steps = plan(deck, calls, &mut fastrand::Rng::with_seed(3));
                assert_eq!(steps.iter().map(|step| step.calls()).sum::<usize>(), calls);
            }
        }
    }

    #[test]
    fn every_step_has_its_turn_and_the_seed_decides_the_order() {
        let plan = |seed| plan(RAW_DECK, 26, &mut fastrand::Rng::with_seed(seed));
        assert_eq!(
            plan(1).into_iter().collect::<HashSet<_>>().len(),
            RAW_DECK.len()
        );
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }
}
