//! Events: exactly once, in order, or a typed gap or end.

use std::collections::{BTreeMap, BTreeSet};

use mcp_adapter_core::{EndReason, Position, Revocation};

use super::{
    Violation,
    chain::Chain,
    facts::{Facts, Stream},
    listeners,
};
use crate::history::{No, What, Written};

/// Milliseconds within which an instance has noticed a restart or a loss, be it
/// frozen.
const NOTICED: u64 = 40_000;

pub(super) fn check(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    for (no, stream) in &facts.streams {
        let check = Check::new(facts, *no, stream);
        check.places(found);
        let mut ends = Vec::new();
        for (reader, seen) in &stream.seen {
            let mut chain = Chain::new(&check, *reader);
            for entry in seen {
                chain.step(entry.at, &entry.what, found);
            }
            ends.extend(chain.end);
        }
        check.final_end(&ends, found);
        check.acknowledged_after_the_end(found);
        check.revoked(found);
        if !stream.listeners.is_empty() {
            listeners::check(&check, found);
        }
    }
}

pub(super) struct Check<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) no: No,
    pub(super) stream: &'a Stream,
    /// Events whose place is not known.
    doubtful: BTreeSet<No>,
}

impl<'a> Check<'a> {
    fn new(facts: &'a Facts<'a>, no: No, stream: &'a Stream) -> Self {
        let mut check = Self {
            facts,
            no,
            stream,
            doubtful: BTreeSet::new(),
        };
        check.doubtful = check.doubtful();
        check
    }

    /// Of events that it no longer keeps a backend knows the place of each writer's
    /// last one only, and gives it to the repeat of any of them. Writers of calls
    /// choose their places.
    fn doubtful(&self) -> BTreeSet<No> {
        if self.stream.owner.is_some() {
            return BTreeSet::new();
        }
        let mut places: BTreeMap<Position, BTreeSet<No>> = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for (event, at) in self.seen() {
            seen.insert(event, at);
            places.entry(at).or_default().insert(event);
        }
        for (event, at) in self.stored() {
            places.entry(at).or_default().insert(event);
        }
        let doubtful = |(event, at): &(No, Position)| {
            let elsewhere = seen.get(event).is_some_and(|seen| seen != at);
            let done = self.stream.events[event].done.map_or(0, |(done, _)| done);
            (elsewhere || places[at].len() > 1) && self.facts.evicted(self.stream, done)
        };
        let events = self.stored().filter(doubtful);
        events.map(|(event, _)| event).collect()
    }

    fn seen(&self) -> impl Iterator<Item = (No, Position)> {
        let entries = self.stream.seen.values().flatten();
        entries.filter_map(|entry| match entry.what {
            What::Got { at, event, .. } => Some((event, at)),
            _ => None,
        })
    }

    /// Events whose writers were told their places.
    pub(super) fn stored(&self) -> impl Iterator<Item = (No, Position)> {
        let stored = |(event, of): (&No, &super::facts::Event)| match of.done {
            Some((_, Written::Done(at))) if !self.doubtful.contains(event) => Some((*event, at)),
            _ => None,
        };
        self.stream.events.iter().filter_map(stored)
    }

    /// One event has one place, and one place one event, for the writer and for
    /// all readers, whatever the backend has lost (E1).
    fn places(&self, found: &mut Vec<Violation>) {
        let (mut places, mut events) = (BTreeMap::new(), BTreeMap::new());
        for (event, at) in self.stored().chain(self.seen()) {
            let place = *places.entry(event).or_insert(at);
            let other = *events.entry(at).or_insert(event);
            if place != at && self.repeated_after_a_loss(event) {
                continue;
            }
            if place != at || other != event {
                found.push(Violation::new(
                    "one place for one event",
                    format!(
                        "stream {}: event {event} is at {at:?} and at {place:?}, \
                         where event {other} is",
                        self.no
                    ),
                ));
            }
        }
    }

    /// The standalone stream's places are the backend's. An append that waits
    /// for its acknowledgement while the backend loses the first try is stored
    /// again, elsewhere: nobody is left who knows of the first one.
    pub(super) fn repeated_after_a_loss(&self, event: No) -> bool {
        self.stream.owner.is_none()
            && self.stream.events.get(&event).is_some_and(|of| {
                let done = of.done.map_or(u64::MAX, |(done, _)| done);
                self.facts.lost_between(of.begun, done)
            })
    }

    pub(super) fn finish_begun(&self) -> Option<u64> {
        let terminal = self.stream.events.values().filter(|event| event.terminal);
        let terminal = terminal.map(|event| event.begun).min();
        let bare = self.stream.finish.map(|(at, _)| at);
        [terminal, bare].into_iter().flatten().min()
    }

    /// Whether the stream may have been over by then, and removed for its session's
    /// bytes, which takes finished streams first.
    pub(super) fn removed(&self, at: u64) -> bool {
        let lost = |owner| self.facts.stood_still(owner, at);
        let over = self.finish_begun().is_some_and(|begun| begun <= at)
            || self.stream.owner.is_some_and(lost);
        over && self.facts.shrunk(self.stream.session, at)
    }

    /// When the finish was begun and acknowledged.
    fn finish_done(&self) -> Option<(u64, u64)> {
        let terminal = self
            .stream
            .events
            .values()
            .find_map(|event| match event.done {
                Some((at, Written::Done(_))) if event.terminal => Some((event.begun, at)),
                _ => None,
            });
        let bare = match (self.stream.finish, self.stream.finished) {
            (Some((begun, _)), Some((at, Written::Done(())))) => Some((begun, at)),
            _ => None,
        };
        terminal.or(bare)
    }

    /// A finish without an event in an epoch of its own cannot show what the
    /// backend may have lost before: the stream must not look whole. The writer
    /// may learn of a restart when its stream is open already.
    fn bare_after_a_restart(&self) -> bool {
        let noticed_late = self.stream.opened.saturating_sub(NOTICED);
        let restarted = |begun| self.facts.restarted_between(noticed_late, begun);
        self.stream
            .finish
            .is_some_and(|(begun, _)| restarted(begun))
    }

    /// Whether somebody may have ended the stream in its owner's place by `at`.
    fn may_be_orphan(&self, at: u64) -> bool {
        let Some(owner) = self.stream.owner else {
            return false;
        };
        let abandoned = self
            .stream
            .finish
            .is_some_and(|(begun, gone)| gone && begun <= at);
        let given_up = || {
            let begun = self.finish_begun();
            begun.is_some_and(|begun| begun + self.facts.max_outage() <= at)
        };
        abandoned
            || self.bare_after_a_restart()
            || self.removed(at)
            || self.facts.stood_still(owner, at)
            || self
                .facts
                .lost_between(self.stream.opened.saturating_sub(NOTICED), at)
            || (self.finish_done().is_none() && given_up())
    }

    pub(super) fn orphan(&self, at: u64, who: &str, found: &mut Vec<Violation>) {
        if !self.may_be_orphan(at) {
            found.push(Violation::new(
                "no living owner is ended",
                format!(
                    "stream {}: {who} was told at {at}, and its owner, instance {:?}, never \
                     stood still for a lease",
                    self.no, self.stream.owner
                ),
            ));
        }
        if let Some((begun, done)) = self.finish_done()
            && !self.bare_after_a_restart()
            && !self.removed(at)
            && done <= at
            && !self.facts.may_be_lost(begun, done)
        {
            found.push(Violation::new(
                "one end",
                format!(
                    "stream {}: finished at {done}, but {who} lost its owner at {at}",
                    self.no
                ),
            ));
        }
    }

    fn revoked(&self, found: &mut Vec<Violation>) {
        match self.stream.revoked {
            Some((at, Revocation::Fenced)) => self.orphan(at, "the writer", found),
            Some((at, Revocation::Cancelled)) if self.stream.cancel.is_none_or(|c| c > at) => {
                let text = format!("stream {}: cancelled by nobody at {at}", self.no);
                found.push(Violation::new("cancelled by somebody", text));
            }
            _ => {}
        }
    }

    /// What ended at one place for one reader does not go on for another.
    fn final_end(&self, ends: &[(u64, Position)], found: &mut Vec<Violation>) {
        let Some((told, end)) = ends.iter().min_by_key(|(_, end)| *end) else {
            return;
        };
        for (reader, seen) in &self.stream.seen {
            let mut elsewhere = false;
            for entry in seen {
                match entry.what {
                    // Its own socket is given what is refused later.
                    What::Read { instance, .. } => {
                        elsewhere = self.stream.owner != Some(instance);
                    }
                    What::Got { at, event, .. }
                        if elsewhere
                            && at > *end
                            && !self
                                .facts
                                .lost_between(self.stream.opened, entry.at.max(*told)) =>
                    {
                        found.push(Violation::new(
                            "nothing after the end",
                            format!(
                                "stream {}: over at {end:?} for a reader at {told}, and reader \
                                 {reader} got event {event} at {at:?}",
                                self.no
                            ),
                        ));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Once a reader was told of the end, nothing more is stored: a thawed
    /// owner is fenced (F3, E8).
    fn acknowledged_after_the_end(&self, found: &mut Vec<Violation>) {
        let ends = self.stream.seen.values().flatten().filter(|entry| {
            let over = |why: &EndReason| matches!(why, EndReason::OwnerLost | EndReason::Finished);
            matches!(&entry.what, What::Ended { why, .. } if over(why))
        });
        let Some(end) = ends.map(|entry| entry.at).min() else {
            return;
        };
        for (event, of) in &self.stream.events {
            if let Some((done, Written::Done(_))) = of.done
                && of.begun > end
                && !self.facts.lost_between(self.stream.opened, done)
            {
                found.push(Violation::new(
                    "nothing after the end",
                    format!(
                        "stream {}: over at {end} for a reader, and event {event}, begun at {}, \
                         was acknowledged at {done}",
                        self.no, of.begun
                    ),
                ));
            }
        }
    }
}
