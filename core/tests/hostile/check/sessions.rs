//! Sessions: there while they are used, gone once they are deleted.

use std::collections::BTreeMap;

use mcp_adapter_core::{ErrorKind, storage::REMEMBERED};

use super::{
    Violation,
    facts::{Facts, Session, Update},
};
use crate::history::{No, What, Written};

/// How much longer than its time a command may have been under way.
const HELD_UP: u64 = 25_000;

pub(super) fn check(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    for (no, session) in &facts.sessions {
        let check = Check {
            facts,
            no: *no,
            session,
        };
        check.created_once(found);
        check.counted(found);
        for (at, (began, there, _)) in &session.found {
            if *there {
                check.deleted(*began, found);
                check.expired(*began, found);
            } else {
                check.missing(*at, found);
            }
        }
    }
}

struct Check<'a> {
    facts: &'a Facts<'a>,
    no: No,
    session: &'a Session,
}

impl Check<'_> {
    fn bad(&self, rule: &'static str, text: &str, found: &mut Vec<Violation>) {
        found.push(Violation::new(rule, format!("session {}: {text}", self.no)));
    }

    fn created_once(&self, found: &mut Vec<Violation>) {
        let done = self
            .session
            .created
            .iter()
            .filter(|(_, done)| *done == Written::Done(()));
        let count = done.count();
        if count > 1 && self.facts.lossless() {
            self.bad("created once", &format!("created {count} times"), found);
        }
    }

    /// Of those that read the same revision one wins (S2). Each revision has one
    /// winner, and counts the counter up by one.
    fn counted(&self, found: &mut Vec<Violation>) {
        if self.facts.lost_between(0, u64::MAX) {
            return;
        }
        let mut made: BTreeMap<u64, &Update> = BTreeMap::new();
        for update in &self.session.updated {
            let Written::Done(revision) = update.done else {
                continue;
            };
            if revision != update.from + 1 {
                let text = format!("from {} revision {revision} was made", update.from);
                self.bad("one author wins", &text, found);
            }
            if let Some(before) = made.insert(revision, update) {
                let text = format!(
                    "revision {revision} was won at {} and at {}",
                    before.at, update.at
                );
                self.bad("one author wins", &text, found);
            }
        }
        for (at, (revision, count)) in &self.session.counted {
            if revision - 1 != *count {
                let text = format!("revision {revision} counts {count} at {at}");
                self.bad("each winner counts", &text, found);
            }
        }
        let read = self
            .session
            .counted
            .iter()
            .map(|(_, (revision, _))| *revision);
        let last = read.chain(made.keys().copied()).max().unwrap_or(1);
        for revision in 2..=last {
            if !made.contains_key(&revision) && !self.may_have_won(revision, &made) {
                let text = format!("nobody was told that it made revision {revision} of {last}");
                self.bad("each winner is told", &text, found);
            }
        }
    }

    /// Whether somebody who was not told of it may have made this revision: who
    /// was told nothing, or whose repeat came after so many others that its name
    /// was forgotten.
    fn may_have_won(&self, revision: u64, made: &BTreeMap<u64, &Update>) -> bool {
        let forgotten = |at: u64| {
            let later = made.range(revision + REMEMBERED as u64..);
            later.into_iter().any(|(_, update)| update.begun <= at)
        };
        let mut tries = self.session.updated.iter();
        tries.any(|update| {
            update.from + 1 == revision
                && match update.done {
                    // A client library's repeat that comes after the session says
                    // that there is none, whatever its first try did.
                    Written::Unknown(_) | Written::Refused(ErrorKind::SessionNotFound) => true,
                    Written::Refused(_) => forgotten(update.at),
                    Written::Done(_) => false,
                }
        })
    }

    /// What begins after the answer of a delete finds nothing (S4).
    fn deleted(&self, began: u64, found: &mut Vec<Violation>) {
        let first = self.session.delete.first().copied().unwrap_or(0);
        for (at, done) in &self.session.deleted {
            if matches!(done, Written::Done(_))
                && began > *at
                && !self.facts.may_be_lost(first, *at)
            {
                let text = format!("deleted at {at}, and found by a request begun at {began}");
                self.bad("a deleted session never comes back", &text, found);
            }
        }
    }

    /// A session that nobody used and nobody follows expires (S3).
    fn expired(&self, began: u64, found: &mut Vec<Violation>) {
        if self.session.kept.is_some() {
            return;
        }
        let uses = self.session.found.iter().map(|(at, _)| *at);
        let mut last = uses.filter(|at| *at < began).max().unwrap_or(began);
        for stream in self
            .facts
            .streams
            .values()
            .filter(|stream| stream.session == self.no)
        {
            for seen in stream.seen.values() {
                let before = seen.iter().take_while(|entry| entry.at < began);
                let Some(latest) = before.last() else {
                    continue;
                };
                let let_go = matches!(
                    latest.what,
                    What::Cut { .. }
                        | What::Ended { .. }
                        | What::Quiet { .. }
                        | What::NoTail { .. }
                );
                last = last.max(if let_go { latest.at } else { began });
            }
        }
        let (_, idle_ttl, _) = self.facts.ttls();
        if began > last + idle_ttl + HELD_UP {
            let text = format!("not used since {last}, and found by a request begun at {began}");
            self.bad("an idle session expires", &text, found);
        }
    }

    /// A session that is used is there (S3).
    fn missing(&self, at: u64, found: &mut Vec<Violation>) {
        let (_, idle_ttl, _) = self.facts.ttls();
        let kept = self.session.kept.is_some_and(|kept| kept <= at);
        let used = |(done, (began, there, used)): &(u64, (u64, bool, bool))| {
            (*there && *used && *done <= at).then_some(*began)
        };
        let last = self.session.found.iter().filter_map(used).max();
        let idle = last.is_none_or(|last| last + idle_ttl <= at) && !kept;
        let deleted = self.session.delete.iter().any(|begun| *begun <= at);
        if !deleted && !idle && !self.facts.lost_between(0, at) {
            let text = format!("used at {last:?} (held: {kept}), and missing at {at}");
            self.bad("a session in use is there", &text, found);
        }
    }
}
