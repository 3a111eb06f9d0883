//! Hand-made histories: each breaks one promise, and the checker names it; the
//! same history without the break passes.

mod listeners;
mod sessions;
mod streams;

use mcp_adapter_core::{Delivery, EndReason, Limits, OutcomeKind, Position};

use super::check;
use crate::history::{Entry, What, Written};

const fn at(seq: u64) -> Position {
    Position::new(1, seq)
}

/// A history of one session (1), one call (stream 10 of instance 0) and one
/// reader (20, at instance 1), as far as a test wants it.
struct Past {
    entries: Vec<Entry>,
    now: u64,
}

impl Past {
    fn new() -> Self {
        let mut past = Self {
            entries: Vec::new(),
            now: 0,
        };
        past.push(What::Started { instance: 0 });
        past.push(What::Started { instance: 1 });
        past.push(What::Created {
            session: 1,
            done: Written::Done(()),
        });
        past.found(true);
        past.push(What::Opened {
            stream: 10,
            session: 1,
            owner: Some(0),
        });
        past.push(What::Read {
            reader: 20,
            stream: 10,
            instance: 1,
            after: Some(Position::START),
        });
        past
    }

    fn push(&mut self, what: What) {
        self.now += 1;
        self.entries.push(Entry { at: self.now, what });
    }

    /// Time passes, in which instances 0 and 1 live.
    fn live(&mut self, millis: u64) {
        for _ in 0..millis / 2000 {
            self.now += 2000;
            for instance in [0, 1] {
                self.push(What::Beat { instance });
            }
        }
    }

    fn found(&mut self, found: bool) {
        let began = self.now;
        self.push(What::Found {
            session: 1,
            began,
            found,
            used: true,
        });
    }

    fn append(&mut self, event: u32, done: Written<Position>) {
        let terminal = event >= 90;
        self.push(What::Append {
            stream: 10,
            event,
            terminal,
            bytes: 10,
        });
        self.push(What::Appended {
            stream: 10,
            event,
            done,
        });
    }

    fn stored(&mut self, event: u32, seq: u64) {
        self.append(event, Written::Done(at(seq)));
    }

    fn got(&mut self, event: u32, seq: u64) {
        self.push(What::Got {
            reader: 20,
            at: at(seq),
            event,
        });
    }

    fn ended(&mut self, why: EndReason) {
        self.push(What::Ended { reader: 20, why });
    }

    fn lost(&mut self, after: u64) {
        self.push(What::Lost { after });
    }

    /// One request (30) with one wait (31) and two answers (32, 33).
    fn asked(&mut self) {
        self.push(What::Ask {
            request: 30,
            wait: 31,
            session: 1,
            instance: 0,
        });
        self.push(What::Asked {
            wait: 31,
            done: Written::Done(()),
        });
        self.push(What::Answer {
            request: 30,
            answer: 32,
        });
        self.push(What::Answer {
            request: 30,
            answer: 33,
        });
    }

    fn counts_up(&mut self, from: u64, done: Written<u64>) {
        let begun = self.now;
        self.push(What::Updated {
            session: 1,
            begun,
            from,
            done,
        });
    }

    fn counted(&mut self, revision: u64, count: u64) {
        self.push(What::Counted {
            session: 1,
            revision,
            count,
        });
    }

    fn answered(&mut self, answer: u32, delivery: Delivery) {
        self.push(What::Answered {
            answer,
            done: Written::Done(delivery),
        });
    }

    fn outcome(&mut self, kind: OutcomeKind, answer: Option<u32>) {
        self.push(What::Outcome {
            wait: 31,
            kind,
            answer,
        });
    }

    fn shows(&self) -> Vec<&'static str> {
        let limits = Limits::default();
        let mut rules: Vec<_> = check(&self.entries, &limits)
            .into_iter()
            .map(|violation| violation.rule)
            .collect();
        rules.dedup();
        rules
    }
}

#[track_caller]
fn sound(write: impl FnOnce(&mut Past)) {
    let mut past = Past::new();
    write(&mut past);
    assert_eq!(past.shows(), Vec::<&str>::new());
}

#[track_caller]
fn breaks(rule: &str, write: impl FnOnce(&mut Past)) {
    let mut past = Past::new();
    write(&mut past);
    assert!(past.shows().contains(&rule), "{:?}", past.shows());
}
