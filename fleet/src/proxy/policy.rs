//! Where a request goes.

use std::sync::atomic::{AtomicUsize, Ordering};

use clap::ValueEnum;

/// How the proxy spreads requests over its upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// Each request to the next upstream
    RoundRobin,
    /// Initialize and requests to the first upstream, everything else to the second
    Anti,
    /// Initialize to the first upstream, requests to the second, the rest to the first
    Anti2,
}

impl Policy {
    /// The name on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Anti => "anti",
            Self::Anti2 => "anti2",
        }
    }
}

/// What an HTTP request is to the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// POST of an `initialize` request.
    Initialize,
    /// POST of any other request.
    Request,
    /// POST of a notification.
    Notification,
    /// POST of a response or an error to a request of the server.
    Answer,
    /// GET: the standalone stream, or a resume.
    Get,
    /// DELETE of a session.
    Delete,
}

/// A policy with its position.
#[derive(Debug)]
pub(super) struct Router {
    policy: Policy,
    upstreams: usize,
    next: AtomicUsize,
}

impl Router {
    /// `upstreams` must not be 0.
    pub(super) fn new(policy: Policy, upstreams: usize) -> Self {
        Self {
            policy,
            upstreams: upstreams.max(1),
            next: AtomicUsize::new(0),
        }
    }

    /// Upstreams for this request, the wanted one first; the others follow in
    /// order, for when the wanted one is dead.
    pub(super) fn order(&self, kind: Kind) -> impl Iterator<Item = usize> + use<> {
        let first = match self.policy {
            Policy::RoundRobin => self.next.fetch_add(1, Ordering::Relaxed),
            Policy::Anti => match kind {
                Kind::Initialize | Kind::Request => 0,
                Kind::Notification | Kind::Answer | Kind::Get | Kind::Delete => 1,
            },
            Policy::Anti2 => match kind {
                Kind::Request => 1,
                Kind::Initialize | Kind::Notification | Kind::Answer | Kind::Get | Kind::Delete => {
                    0
                }
            },
        };
        let upstreams = self.upstreams;
        (0..upstreams).map(move |step| first.wrapping_add(step) % upstreams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firsts(policy: Policy, upstreams: usize, kinds: &[Kind]) -> Vec<usize> {
        let router = Router::new(policy, upstreams);
        kinds
            .iter()
            .map(|kind| router.order(*kind).next().unwrap())
            .collect()
    }

    const ALL: [Kind; 6] = [
        Kind::Initialize,
        Kind::Request,
        Kind::Notification,
        Kind::Answer,
        Kind::Get,
        Kind::Delete,
    ];

    #[test]
    fn the_three_policies() {
        assert_eq!(firsts(Policy::RoundRobin, 3, &ALL), [0, 1, 2, 0, 1, 2]);
        assert_eq!(firsts(Policy::Anti, 3, &ALL), [0, 0, 1, 1, 1, 1]);
        assert_eq!(firsts(Policy::Anti2, 3, &ALL), [0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn one_upstream_serves_everything() {
        for policy in [Policy::RoundRobin, Policy::Anti, Policy::Anti2] {
            assert_eq!(firsts(policy, 1, &ALL), [0; 6]);
        }
    }

    #[test]
    fn every_upstream_is_tried_once() {
        let router = Router::new(Policy::Anti, 3);
        assert_eq!(router.order(Kind::Get).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(router.order(Kind::Request).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
