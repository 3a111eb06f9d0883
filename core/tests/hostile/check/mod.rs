//! What a history must look like. The rules are the promises of the contract;
//! what they are checked against is what callers were told, no more.

mod chain;
mod facts;
mod listeners;
mod requests;
mod sessions;
mod streams;
#[cfg(test)]
mod tests;

use std::fmt;

use mcp_adapter_core::Limits;

use self::facts::Facts;
use crate::history::{Entry, What};

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Names the rule.
    pub(crate) rule: &'static str,
    /// Where, and what shows it.
    pub(crate) text: String,
}

impl Violation {
    fn new(rule: &'static str, text: impl Into<String>) -> Self {
        Self {
            rule,
            text: text.into(),
        }
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.text)
    }
}

/// All violations in a history.
pub(crate) fn check(history: &[Entry], limits: &Limits) -> Vec<Violation> {
    let facts = Facts::of(history, limits);
    let mut found = Vec::new();
    for entry in history {
        match &entry.what {
            What::Hung(text) => found.push(Violation::new("everything ends", text)),
            What::Leftover(text) => found.push(Violation::new("nothing is left open", text)),
            _ => {}
        }
    }
    streams::check(&facts, &mut found);
    requests::check(&facts, &mut found);
    sessions::check(&facts, &mut found);
    found
}
