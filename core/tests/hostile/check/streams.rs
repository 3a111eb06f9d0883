//! Events: exactly once, in order, or a typed gap or end.

use std::collections::BTreeMap;

use mcp_adapter_core::{EndReason, ErrorKind, Position, Revocation};

use super::{
    Violation,
    facts::{Facts, Stream},
};
use crate::history::{No, What, Written};

pub(super) fn check(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    for (no, stream) in &facts.streams {
        let check = Check {
            facts,
            no: *no,
            stream,
        };
        check.places(found);
        for (reader, seen) in &stream.seen {
            let mut chain = Chain::new(&check, *reader);
            for entry in seen {
                chain.step(entry.at, &entry.what, found);
            }
        }
        check.acknowledged_after_the_end(found);
        check.revoked(found);
    }
}

struct Check<'a> {
    facts: &'a Facts<'a>,
    no: No,
    stream: &'a Stream,
}

impl Check<'_> {
    fn stored(&self) -> impl Iterator<Item = (No, Position)> {
        let stored = |(event, of): (&No, &super::facts::Event)| match of.done {
            Some((_, Written::Done(at))) => Some((*event, at)),
            _ => None,
        };
        self.stream.events.iter().filter_map(stored)
    }

    /// One event has one place, and one place one event, for the writer and for
    /// all readers, whatever the backend has lost (E1).
    fn places(&self, found: &mut Vec<Violation>) {
        let (mut places, mut events) = (BTreeMap::new(), BTreeMap::new());
        let seen = self.stream.seen.values().flatten().filter_map(|entry| match entry.what {
            What::Got { at, event, .. } => Some((event, at)),
            _ => None,
        });
        for (event, at) in self.stored().chain(seen) {
            let place = *places.entry(event).or_insert(at);
            let other = *events.entry(at).or_insert(event);
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

    fn finish_begun(&self) -> Option<u64> {
        let terminal = self.stream.events.values().filter(|event| event.terminal);
        let terminal = terminal.map(|event| event.begun).min();
        let bare = self.stream.finish.map(|(at, _)| at);
        [terminal, bare].into_iter().flatten().min()
    }

    /// When the finish was begun and acknowledged.
    fn finish_done(&self) -> Option<(u64, u64)> {
        let terminal = self.stream.events.values().find_map(|event| match event.done {
            Some((at, Written::Done(_))) if event.terminal => Some((event.begun, at)),
            _ => None,
        });
        let bare = match (self.stream.finish, self.stream.finished) {
            (Some((begun, _)), Some((at, Written::Done(())))) => Some((begun, at)),
            _ => None,
        };
        terminal.or(bare)
    }

    /// Whether somebody may have ended the stream in its owner's place by `at`.
    fn may_be_orphan(&self, at: u64) -> bool {
        let Some(owner) = self.stream.owner else {
            return false;
        };
        let abandoned = self.stream.finish.is_some_and(|(begun, gone)| gone && begun <= at);
        let given_up = || {
            let begun = self.finish_begun();
            begun.is_some_and(|begun| begun + self.facts.max_outage() <= at)
        };
        abandoned
            || self.facts.stood_still(owner, at)
            || self.facts.lost_between(self.stream.opened, at)
            || (self.finish_done().is_none() && given_up())
    }

    fn orphan(&self, at: u64, who: &str, found: &mut Vec<Violation>) {
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
            && done <= at
            && !self.facts.may_be_lost(begun, done)
        {
            found.push(Violation::new(
                "one end",
                format!("stream {}: finished at {done}, but {who} lost its owner at {at}", self.no),
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

/// What one reader has seen of a stream, over all its tails.
struct Chain<'a> {
    check: &'a Check<'a>,
    reader: No,
    instance: No,
    /// Up to where it has everything or was told of a gap; `None`: unknown.
    cursor: Option<Position>,
    gap: bool,
    got: BTreeMap<No, Position>,
    terminal: bool,
    unstored: bool,
}

impl<'a> Chain<'a> {
    fn new(check: &'a Check<'a>, reader: No) -> Self {
        Self {
            check,
            reader,
            instance: 0,
            cursor: None,
            gap: false,
            got: BTreeMap::new(),
            terminal: false,
            unstored: false,
        }
    }

    fn bad(&self, rule: &'static str, text: &str, found: &mut Vec<Violation>) {
        let text = format!("stream {}, reader {}: {text}", self.check.no, self.reader);
        found.push(Violation::new(rule, text));
    }

    fn step(&mut self, at: u64, what: &What, found: &mut Vec<Violation>) {
        match what {
            What::Read { instance, after, .. } => {
                self.instance = *instance;
                self.gap = false;
                self.cursor = *after;
            }
            What::Got { at: position, event, .. } => self.got(*position, *event, found),
            What::Garbled { at: position, .. } => {
                let text = format!("something at {position:?} that nobody wrote");
                self.bad("bytes come back as they went in", &text, found);
            }
            What::Unstored { event, .. } => self.unstored(*event, found),
            What::Gap { .. } => {
                self.gap = true;
                self.unfounded_gap(at, found);
            }
            What::Ended { why, .. } => self.ended(at, *why, found),
            What::Quiet { .. } => self.complete(at.saturating_sub(5000), found),
            What::NoTail { kind: ErrorKind::StreamGone, .. } => self.gone(at, found),
            _ => {}
        }
    }

    fn got(&mut self, position: Position, event: No, found: &mut Vec<Violation>) {
        if self.terminal || self.unstored {
            let text = format!("event {event} after the terminal one");
            self.bad("nothing after the end", &text, found);
        }
        if let Some(before) = self.got.insert(event, position) {
            let text = format!("event {event} at {before:?} and again at {position:?}");
            self.bad("no event twice", &text, found);
        }
        if self.cursor.is_some_and(|cursor| position <= cursor) {
            let text = format!("event {event} at {position:?} after {:?}", self.cursor);
            self.bad("events in order", &text, found);
        }
        match self.check.stream.events.get(&event) {
            None => {
                let text = format!("event {event} is of another stream");
                self.bad("a stream's own events", &text, found);
            }
            Some(of) => {
                self.terminal |= of.terminal;
                let refused = matches!(of.done, Some((_, Written::Refused(_))));
                // A writer gives its own socket what it has not stored yet.
                if refused && self.check.stream.owner != Some(self.instance) {
                    let text = format!("event {event} at {position:?} was refused");
                    self.bad("nothing that was refused", &text, found);
                }
            }
        }
        if let Some(cursor) = self.cursor {
            self.hole(cursor, position, found);
            let next = position.epoch == cursor.epoch && position.seq == cursor.seq + 1;
            if self.gap && next {
                let text = format!("a gap between {cursor:?} and {position:?}");
                self.bad("no gap where nothing is missing", &text, found);
            }
        }
        self.gap = false;
        self.cursor = Some(position);
    }

    /// What was acknowledged between the two must have come, or a gap (E5).
    fn hole(&self, after: Position, before: Position, found: &mut Vec<Violation>) {
        if self.gap {
            return;
        }
        for (event, at) in self.check.stored() {
            if at > after && at < before && !self.got.contains_key(&event) {
                let text = format!("event {event} at {at:?} is missing before {before:?}");
                self.bad("no silent hole", &text, found);
            }
        }
    }

    /// Nothing follows: all that was acknowledged by `until` must have come.
    fn complete(&self, until: u64, found: &mut Vec<Violation>) {
        let Some(cursor) = self.cursor else {
            return;
        };
        if self.gap || self.unstored {
            return;
        }
        for (event, at) in self.check.stored() {
            let of = &self.check.stream.events[&event];
            let in_time = of.done.is_some_and(|(done, _)| done <= until);
            if at > cursor && in_time && !self.got.contains_key(&event) {
                let text = format!("event {event} at {at:?} has never come");
                self.bad("no silent hole", &text, found);
            }
        }
    }

    fn unstored(&mut self, event: No, found: &mut Vec<Violation>) {
        let of = self.check.stream.events.get(&event);
        if !of.is_some_and(|of| of.terminal) {
            let text = format!("event {event}, which is no result, came without an id");
            self.bad("only a result comes unstored", &text, found);
        }
        if self.got.contains_key(&event) {
            let text = format!("event {event} came with an id and without");
            self.bad("no event twice", &text, found);
        }
        self.unstored = true;
    }

    fn ended(&self, at: u64, why: EndReason, found: &mut Vec<Violation>) {
        match why {
            EndReason::Finished => {
                if self.check.finish_begun().is_none_or(|begun| begun > at) {
                    self.bad("finished by its writer", "nobody finished it", found);
                }
                self.complete(u64::MAX, found);
            }
            EndReason::OwnerLost => {
                self.check.orphan(at, &format!("reader {}", self.reader), found);
            }
            EndReason::StreamGone => self.gone(at, found),
            _ => {}
        }
    }

    fn gone(&self, at: u64, found: &mut Vec<Violation>) {
        let stream = self.check.stream;
        let (finished_ttl, ..) = self.check.facts.ttls();
        let expired = self.check.finish_begun().is_some_and(|begun| begun + finished_ttl <= at);
        let orphan = stream.owner.is_some() && self.check.facts.stood_still(stream.owner.unwrap_or(0), at);
        if !expired && !orphan && !self.check.facts.lost_between(stream.opened, at) {
            self.bad("no stream is gone too soon", &format!("gone at {at}"), found);
        }
    }

    fn unfounded_gap(&self, at: u64, found: &mut Vec<Violation>) {
        let Check { facts, stream, .. } = self.check;
        let stored = stream.events.values().all(|event| {
            matches!(event.done, Some((_, Written::Done(_) | Written::Refused(_))))
        });
        let kept = stream.events.len() <= facts.limits.stream_events();
        if stored && kept && !facts.restarted_between(0, at) {
            self.bad("no gap where nothing is missing", &format!("a gap at {at}"), found);
        }
    }
}
