//! One reader of a stream, from its first tail to its last.

use std::collections::BTreeMap;

use mcp_adapter_core::{EndReason, ErrorKind, Position};

use super::{Violation, streams::Check};
use crate::history::{No, What, Written};

/// Within how many milliseconds a reader has what is stored when all is well.
pub(super) const CAUGHT_UP: u64 = 5000;

/// What one reader has seen of a stream, over all its tails.
pub(super) struct Chain<'a> {
    check: &'a Check<'a>,
    reader: No,
    instance: No,
    /// Up to where it has everything or was told of a gap; `None`: unknown.
    cursor: Option<Position>,
    gap: bool,
    /// Of the standalone stream: it may be waiting for its turn.
    waits: bool,
    got: BTreeMap<No, Position>,
    terminal: bool,
    unstored: bool,
    /// When and where the log told it that the stream is over.
    pub(super) end: Option<(u64, Position)>,
}

impl<'a> Chain<'a> {
    pub(super) fn new(check: &'a Check<'a>, reader: No) -> Self {
        Self {
            check,
            reader,
            instance: 0,
            cursor: None,
            gap: false,
            waits: false,
            got: BTreeMap::new(),
            terminal: false,
            unstored: false,
            end: None,
        }
    }

    fn bad(&self, rule: &'static str, text: &str, found: &mut Vec<Violation>) {
        let text = format!("stream {}, reader {}: {text}", self.check.no, self.reader);
        found.push(Violation::new(rule, text));
    }

    pub(super) fn step(&mut self, at: u64, what: &What, found: &mut Vec<Violation>) {
        match what {
            What::Read {
                instance, after, ..
            } => {
                self.instance = *instance;
                self.gap = false;
                self.cursor = *after;
                self.waits = self.check.stream.owner.is_none();
                // A result without an id leaves no trace in the cursor: who is cut
                // off between it and the end gets the stored one as well.
                self.unstored = false;
            }
            What::Begins { after, .. } => self.begins(*after, found),
            What::Got {
                at: position,
                event,
                ..
            } => self.got(*position, *event, found),
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
            // What was lost shows with the next event.
            What::Quiet { .. } => {
                self.complete(at.saturating_sub(CAUGHT_UP), false, found);
            }
            What::NoTail {
                kind: ErrorKind::StreamGone,
                ..
            } => self.gone(at, found),
            _ => {}
        }
    }

    /// What is up to there was for others, or it has it.
    fn begins(&mut self, after: Position, found: &mut Vec<Violation>) {
        if self.cursor.is_some_and(|cursor| after < cursor) {
            let text = format!("it begins after {after:?} and had {:?}", self.cursor);
            self.bad("events in order", &text, found);
        }
        self.gap = false;
        self.waits = false;
        self.cursor = Some(after);
    }

    fn got(&mut self, position: Position, event: No, found: &mut Vec<Violation>) {
        if self.terminal || self.unstored {
            let text = format!("event {event} after the terminal one");
            self.bad("nothing after the end", &text, found);
        }
        if let Some(before) = self.got.insert(event, position)
            && (before == position || !self.check.repeated_after_a_loss(event))
        {
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
                // A client library's repeat that comes after the session says that
                // there is none, whatever its first try did.
                let refused = matches!(of.done, Some((_, Written::Refused(kind)))
                    if kind != ErrorKind::SessionNotFound);
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
    fn complete(&self, until: u64, lost_too: bool, found: &mut Vec<Violation>) {
        let Some(cursor) = self.cursor else {
            return;
        };
        if self.gap || self.unstored || self.waits {
            return;
        }
        for (event, at) in self.check.stored() {
            let of = &self.check.stream.events[&event];
            let in_time = of.done.is_some_and(|(done, _)| {
                done <= until && (lost_too || !self.check.facts.may_be_lost(of.begun, done))
            });
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

    fn ended(&mut self, at: u64, why: EndReason, found: &mut Vec<Violation>) {
        match why {
            EndReason::Finished => {
                if self.check.finish_begun().is_none_or(|begun| begun > at) {
                    self.bad("finished by its writer", "nobody finished it", found);
                }
                self.complete(u64::MAX, true, found);
            }
            EndReason::OwnerLost => {
                self.check
                    .orphan(at, &format!("reader {}", self.reader), found);
                // Elsewhere than at its owner the end is told by the log. Of a stream
                // that was removed for its session's bytes nothing is known any more:
                // a late repeat of what opened it has it open again, with nobody to
                // write it.
                if self.check.stream.owner != Some(self.instance) && !self.check.removed(at) {
                    self.end = self.cursor.map(|cursor| (at, cursor));
                    self.complete(at, false, found);
                }
            }
            EndReason::StreamGone => self.gone(at, found),
            _ => {}
        }
    }

    fn gone(&self, at: u64, found: &mut Vec<Violation>) {
        let stream = self.check.stream;
        let (finished_ttl, ..) = self.check.facts.ttls();
        let expired = self
            .check
            .finish_begun()
            .is_some_and(|begun| begun + finished_ttl <= at);
        let orphan =
            stream.owner.is_some() && self.check.facts.stood_still(stream.owner.unwrap_or(0), at);
        if !expired
            && !orphan
            && !self.check.removed(at)
            && !self.check.facts.lost_between(stream.opened, at)
        {
            self.bad(
                "no stream is gone too soon",
                &format!("gone at {at}"),
                found,
            );
        }
    }

    fn unfounded_gap(&self, at: u64, found: &mut Vec<Violation>) {
        let Check { facts, stream, .. } = self.check;
        let stored = stream.events.values().all(|event| {
            matches!(
                event.done,
                Some((_, Written::Done(_) | Written::Refused(_)))
            )
        });
        if stored && !facts.evicted(stream, at) && !facts.restarted_between(0, at) {
            self.bad(
                "no gap where nothing is missing",
                &format!("a gap at {at}"),
                found,
            );
        }
    }
}
