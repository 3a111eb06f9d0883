//! Client requests: one outcome each, and the winner's answer is what the
//! waiter gets.

use mcp_adapter_core::{Delivery, ErrorKind, OutcomeKind};

use super::{
    Violation,
    facts::{Facts, Request},
};
use crate::history::{No, Written};

pub(super) fn check(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    for (no, request) in &facts.requests {
        Check {
            facts,
            no: *no,
            request,
        }
        .run(found);
    }
}

struct Check<'a> {
    facts: &'a Facts<'a>,
    no: No,
    request: &'a Request,
}

impl Check<'_> {
    fn bad(&self, rule: &'static str, text: &str, found: &mut Vec<Violation>) {
        found.push(Violation::new(rule, format!("request {}: {text}", self.no)));
    }

    fn run(&self, found: &mut Vec<Violation>) {
        let Request { waits, answers, .. } = self.request;
        let begun = waits.values().map(|wait| wait.begun).min().unwrap_or(0);
        let last = |at: Option<u64>| at.unwrap_or(0);
        let over = last(
            waits
                .values()
                .flat_map(|w| &w.outcome)
                .map(|(at, _)| *at)
                .max(),
        )
        .max(last(
            answers
                .values()
                .filter_map(|a| a.done)
                .map(|(at, _)| at)
                .max(),
        ));
        let lost = self.facts.lost_between(begun, over);
        let delivered: Vec<_> = answers
            .iter()
            .filter(|(_, answer)| {
                matches!(answer.done, Some((_, Written::Done(Delivery::Delivered))))
            })
            .map(|(no, _)| *no)
            .collect();
        // Those that were or may have been created: each can be answered once.
        let created = waits
            .values()
            .filter(|wait| match wait.done {
                // An earlier try may have been there before the delete.
                Some((_, Written::Refused(kind))) => kind == ErrorKind::SessionNotFound,
                _ => true,
            })
            .count();
        if delivered.len() > created && !lost {
            let text = format!("answers {delivered:?} were all delivered");
            self.bad("one answer is delivered", &text, found);
        }
        for (no, wait) in waits {
            if wait.outcome.len() > 1 {
                self.bad(
                    "one outcome",
                    &format!("wait {no}: {:?}", wait.outcome),
                    found,
                );
            }
            for (at, (kind, answer)) in &wait.outcome {
                self.outcome(*no, wait.instance, (*at, *kind, *answer), lost, found);
            }
        }
        if let ([(no, wait)], false) = (waits.iter().collect::<Vec<_>>().as_slice(), lost) {
            for (at, (kind, answer)) in &wait.outcome {
                self.agreement(**no, (*at, *kind, *answer), &delivered, found);
            }
        }
    }

    /// What the waiter got must have a cause.
    fn outcome(
        &self,
        wait: No,
        instance: No,
        (at, kind, answer): (u64, OutcomeKind, Option<No>),
        lost: bool,
        found: &mut Vec<Violation>,
    ) {
        let Request {
            session,
            waits,
            answers,
            revokes,
        } = self.request;
        let sound = match kind {
            OutcomeKind::Answered | OutcomeKind::Rejected => {
                answer
                    .and_then(|answer| answers.get(&answer))
                    .is_some_and(|answer| {
                        let offered = answer.begun <= at;
                        let won = waits.len() > 1
                            || match answer.done {
                                // A library's repeat that comes after the session finds
                                // nothing, although its first try won.
                                Some((told, Written::Done(Delivery::Unknown))) => {
                                    self.facts.is_deleted(*session, told)
                                }
                                Some((_, Written::Done(delivery))) => {
                                    delivery == Delivery::Delivered
                                }
                                Some((_, Written::Refused(_))) => false,
                                // It may have taken effect; or its instance died.
                                Some((_, Written::Unknown(_))) | None => true,
                            };
                        offered && (won || lost)
                    })
            }
            OutcomeKind::OwnerLost => lost || self.facts.stood_still(instance, at),
            OutcomeKind::Replaced => waits
                .iter()
                .any(|(other, of)| *other != wait && of.begun <= at),
            OutcomeKind::Cancelled => !revokes.is_empty() || self.facts.stood_still(instance, at),
            OutcomeKind::SessionEnded => true,
            OutcomeKind::TimedOut => true,
            // Only what the backend lost, or kept from its waiter for too long.
            OutcomeKind::Lost => {
                let (_, _, result_ttl) = self.facts.ttls();
                let begun = waits.get(&wait).map_or(0, |wait| wait.begun);
                lost || at - begun >= self.facts.max_outage().min(result_ttl)
            }
        };
        if !sound {
            let text = format!("wait {wait} ended as {kind:?} ({answer:?}) at {at} without cause");
            self.bad("an outcome has its cause", &text, found);
        }
    }

    /// With one creation all must have been told the same.
    fn agreement(
        &self,
        wait: No,
        (at, kind, answer): (u64, OutcomeKind, Option<No>),
        delivered: &[No],
        found: &mut Vec<Violation>,
    ) {
        // Where the waiter came too late to read it, the others know better.
        if kind == OutcomeKind::Lost {
            return;
        }
        for winner in delivered {
            if answer != Some(*winner) && kind != OutcomeKind::SessionEnded {
                let text = format!(
                    "answer {winner} was delivered, but wait {wait} ended as {kind:?} ({answer:?}) at {at}"
                );
                self.bad("the delivered answer is the outcome", &text, found);
            }
        }
        for (no, of) in &self.request.answers {
            if let Some((told, Written::Done(Delivery::AlreadyEnded(how)))) = of.done
                && how != kind
                && kind != OutcomeKind::SessionEnded
            {
                let text = format!(
                    "answer {no} was told {how:?} at {told}, but wait {wait} ended as {kind:?} at {at}"
                );
                self.bad("all are told the same outcome", &text, found);
            }
        }
        for (told, done) in &self.request.revokes {
            if let Some(Written::Done(Some(how))) = done
                && *how != kind
                && kind != OutcomeKind::SessionEnded
            {
                let text = format!(
                    "who withdrew was told {how:?} at {told}, but wait {wait} ended as {kind:?} at {at}"
                );
                self.bad("all are told the same outcome", &text, found);
            }
        }
    }
}
