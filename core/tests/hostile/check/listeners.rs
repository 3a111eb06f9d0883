//! Listeners that share a standalone stream (clause E9).

use std::collections::BTreeMap;

use mcp_adapter_core::Position;

use super::{Violation, chain::CAUGHT_UP, streams::Check};
use crate::history::{No, What};

/// GETs of one listener after the last fault, at most.
const GETS: usize = 4;

pub(super) fn check(check: &Check<'_>, found: &mut Vec<Violation>) {
    let pair = Pair { check };
    pair.at_one_of_them(found);
    pair.complete(found);
    pair.at_rest(found);
}

struct Pair<'a> {
    check: &'a Check<'a>,
}

impl Pair<'_> {
    fn bad(&self, rule: &'static str, text: &str, found: &mut Vec<Violation>) {
        let text = format!("stream {}: {text}", self.check.no);
        found.push(Violation::new(rule, text));
    }

    fn of(&self, ghost: bool) -> impl Iterator<Item = No> {
        let readers = self.check.stream.listeners.iter();
        readers.filter_map(move |(reader, is)| (*is == ghost).then_some(*reader))
    }

    /// No message at two of them. What the backend has lost it cannot tell those
    /// who come back.
    fn at_one_of_them(&self, found: &mut Vec<Violation>) {
        let mut got: BTreeMap<No, (No, u64)> = BTreeMap::new();
        for reader in self.of(false) {
            for entry in self.check.stream.seen.get(&reader).into_iter().flatten() {
                let What::Got { event, .. } = entry.what else {
                    continue;
                };
                let Some((other, at)) = got.insert(event, (reader, entry.at)) else {
                    continue;
                };
                let last = at.max(entry.at);
                if other != reader && !self.check.facts.lost_between(0, last) {
                    let text = format!(
                        "event {event} at listener {other} ({at}) and at {reader} ({})",
                        entry.at
                    );
                    self.bad("each message at one listener", &text, found);
                }
            }
        }
    }

    /// Each message at one of them, or a gap.
    fn complete(&self, found: &mut Vec<Violation>) {
        let Check { facts, stream, .. } = self.check;
        let Some(settled) = stream.settled else {
            return;
        };
        if facts.is_deleted(stream.session, settled) {
            return;
        }
        for (event, position) in self.check.stored() {
            let of = &stream.events[&event];
            let in_time = of.done.is_some_and(|(done, _)| {
                done + CAUGHT_UP <= settled && !facts.may_be_lost(of.begun, done)
            });
            if !in_time
                || self
                    .of(false)
                    .any(|reader| self.has(reader, event, position))
            {
                continue;
            }
            if self.for_nobody(event, position) {
                continue;
            }
            let text = format!("event {event} at {position:?} has come to nobody");
            self.bad("no message is lost between listeners", &text, found);
        }
    }

    /// Whether it got the event, or was told of a gap there.
    fn has(&self, reader: No, event: No, position: Position) -> bool {
        let (mut cursor, mut gap) = (None, None);
        for entry in self.check.stream.seen.get(&reader).into_iter().flatten() {
            match entry.what {
                What::Got { event: other, .. } if other == event => return true,
                What::Got { at, .. } => {
                    if gap
                        .take()
                        .is_some_and(|from| from < position && position < at)
                    {
                        return true;
                    }
                    cursor = Some(at);
                }
                What::Gap { .. } => gap = Some(cursor.unwrap_or(Position::START)),
                What::Begins { after, .. } => {
                    if gap
                        .take()
                        .is_some_and(|from| from < position && position <= after)
                    {
                        return true;
                    }
                    cursor = Some(after);
                }
                _ => {}
            }
        }
        gap.is_some_and(|from| from < position)
    }

    /// Whether the event was for a client that has never heard of its hold: a
    /// ghost's own, or one that is not known here at all.
    fn for_nobody(&self, event: No, position: Position) -> bool {
        let Check { stream, .. } = self.check;
        let mut holds: Vec<_> = stream
            .listeners
            .iter()
            .flat_map(|(reader, ghost)| {
                let seen = stream.seen.get(reader).into_iter().flatten();
                seen.filter_map(|entry| match entry.what {
                    What::Begins { after, hold, .. } => Some((hold, after, entry.at, *ghost)),
                    _ => None,
                })
            })
            .collect();
        holds.sort_unstable();
        let mine = holds.iter().rposition(|(_, after, ..)| *after < position);
        let Some((number, .., ghost)) = mine.map(|mine| holds[mine]) else {
            // Whoever took it first has died before it said so.
            return self.lost_holder(event, holds.first().map(|(_, _, at, _)| *at));
        };
        if ghost {
            return true;
        }
        // Between this hold and the next that is known there may have been another:
        // its instance died before it told anybody.
        let next = holds
            .iter()
            .find(|(other, after, ..)| *other > number && *after >= position);
        let numbers = next.is_none_or(|(other, ..)| *other > number + 1);
        let until = next.map(|(_, _, at, _)| *at);
        let lost = self.check.facts.lost_between(0, until.unwrap_or(u64::MAX));
        lost || (numbers && self.lost_holder(event, until))
    }

    /// Whether an instance died or stood still before the next hold began.
    fn lost_holder(&self, event: No, until: Option<u64>) -> bool {
        let begun = self.check.stream.events[&event].begun;
        let settled = self.check.stream.settled.unwrap_or(u64::MAX);
        let until = until.unwrap_or(settled);
        begun <= until && self.check.facts.anybody_stood_still(until)
    }

    /// When nothing goes wrong any more they stop coming back.
    fn at_rest(&self, found: &mut Vec<Violation>) {
        let Some(calm) = self.check.facts.calm else {
            return;
        };
        for reader in self.of(false) {
            let seen = self.check.stream.seen.get(&reader).into_iter().flatten();
            let gets = |entry: &&crate::history::Entry| {
                entry.at > calm && matches!(entry.what, What::Read { .. })
            };
            let gets = seen.filter(gets).count();
            if gets > GETS {
                let text = format!("listener {reader} has come {gets} times since {calm}");
                self.bad("listeners come to rest", &text, found);
            }
        }
    }
}
