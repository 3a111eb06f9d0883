//! Judges what a client received: nothing lost, nothing twice, nothing wrong.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// A message as it arrived, with the id of its event.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Id of the event; clients of other makes hide it.
    pub(super) event_id: Option<String>,
    /// The message; `Null` for an event without data.
    pub(super) message: Value,
}

/// What a call must bring.
#[derive(Debug, Clone, Default)]
pub(super) struct Expect {
    /// The call's JSON-RPC id.
    pub(super) id: Value,
    /// Progress token, and up to which number it counts.
    pub(super) progress: Option<(Value, u64)>,
    /// Numbers up to this one were received earlier: only later ones may come.
    pub(super) after: u64,
    /// Messages of the elicitations that this call makes.
    pub(super) questions: Vec<String>,
    /// Text of the result; `None` accepts any.
    pub(super) text: Option<String>,
    /// Notifications may have changed places: the client hands each to a task of its own.
    pub(super) unordered: bool,
}

/// How the stream of a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With the answer to the call.
    Answered,
    /// By a cancel: no answer may have come.
    Cancelled,
    /// By an error: the rest is missing, but what came has no hole.
    Broken,
}

/// Counts of what went wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Should have come and did not.
    pub(super) lost: u64,
    /// Came again.
    pub(super) duplicated: u64,
    /// Should not have come, or came out of order or with another content.
    pub(super) wrong: u64,
}

impl std::ops::AddAssign for Verdict {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.wrong += other.wrong;
    }
}

/// Text of a tool result.
pub(super) fn result_text(message: &Value) -> Option<&str> {
    message.pointer("/result/content/0/text")?.as_str()
}

/// Judges the stream of one call, over all connections it took to read it.
pub(super) fn call(expect: &Expect, seen: &[Seen], end: End) -> Verdict {
    let mut verdict = Verdict::default();
    let mut event_ids = HashSet::new();
    let mut numbers = Numbers::new(expect.after, !expect.unordered);
    let mut asked: HashMap<&str, Value> = HashMap::new();
    let mut answers = 0_u64;
    let mut errors = HashSet::new();
    for Seen { event_id, message } in seen {
        if let Some(id) = event_id
            && !event_ids.insert(id)
        {
            verdict.duplicated += 1;
            continue;
        }
        let method = message.get("method").and_then(Value::as_str);
        match method {
            Some("notifications/progress") => {
                let params = &message["params"];
                match &expect.progress {
                    Some((token, total))
                        if params["progressToken"] == *token
                            && whole(&params["total"]) == Some(*total) =>
                    {
                        numbers.take(whole(&params["progress"]), *total, &mut verdict);
                    }
                    _ => verdict.wrong += 1,
                }
            }
            Some("elicitation/create") => {
                let question = message["params"]["message"].as_str().unwrap_or_default();
                match expect.questions.iter().find(|wanted| *wanted == question) {
                    None => verdict.wrong += 1,
                    Some(wanted) => {
                        if asked.insert(wanted, message["id"].clone()).is_some() {
                            verdict.duplicated += 1;
                        }
                    }
                }
            }
            // Others may come on any stream and are no part of the call.
            Some(_) => {}
            None if message.get("result").is_some() || message.get("error").is_some() => {
                if message["id"] != expect.id {
                    verdict.wrong += 1;
                } else if event_id.is_none()
                    && message.get("error").is_some()
                    && !errors.insert(message.to_string())
                {
                    // What tells that a call's instance is gone is stored nowhere: it
                    // has no id and comes with every resume.
                } else {
                    answers += 1;
                    if message.get("result").is_some()
                        && expect.text.is_some()
                        && result_text(message) != expect.text.as_deref()
                    {
                        verdict.wrong += 1;
                    }
                }
            }
            None => {}
        }
    }
    verdict.duplicated += answers.saturating_sub(1);
    let total = expect.progress.as_ref().map_or(0, |(_, total)| *total);
    match end {
        End::Answered => {
            verdict.lost += numbers.missing(total) + u64::from(answers == 0);
            verdict.lost += count(expect.questions.len().saturating_sub(asked.len()));
        }
        End::Cancelled => {
            verdict.lost += numbers.missing(numbers.highest);
            verdict.wrong += answers;
        }
        End::Broken => verdict.lost += numbers.missing(numbers.highest),
    }
    verdict
}

/// Log messages that one call must have sent.
#[derive(Debug, Clone)]
pub(super) struct ExpectedLogs {
    /// Tag given to the call.
    pub(super) tag: String,
    /// How many, numbered from 1.
    pub(super) total: u64,
    /// Whether a killed instance excuses missing ones.
    pub(super) excused: bool,
}

/// Judges the log messages of one session.
pub(super) fn logs(expected: &[ExpectedLogs], seen: &[Seen], ordered: bool) -> Verdict {
    let mut verdict = Verdict::default();
    let mut event_ids = HashSet::new();
    let mut by_tag: HashMap<&str, Numbers> = HashMap::new();
    for Seen { event_id, message } in seen {
        if let Some(id) = event_id
            && !event_ids.insert(id)
        {
            verdict.duplicated += 1;
            continue;
        }
        if message["method"] != "notifications/message" {
            continue;
        }
        let data = &message["params"]["data"];
        let tag = data["tag"].as_str().unwrap_or_default();
        let Some(logs) = expected.iter().find(|logs| logs.tag == tag) else {
            verdict.wrong += 1;
            continue;
        };
        by_tag
            .entry(&logs.tag)
            .or_insert_with(|| Numbers::new(0, ordered))
            .take(whole(&data["n"]), logs.total, &mut verdict);
    }
    for logs in expected.iter().filter(|logs| !logs.excused) {
        verdict.lost += by_tag
            .get(logs.tag.as_str())
            .map_or(logs.total, |numbers| numbers.missing(logs.total));
    }
    verdict
}

/// Numbers of a count from `after + 1` on.
#[derive(Debug)]
struct Numbers {
    after: u64,
    highest: u64,
    ordered: bool,
    seen: HashSet<u64>,
}

impl Numbers {
    fn new(after: u64, ordered: bool) -> Self {
        Self {
            after,
            highest: after,
            ordered,
            seen: HashSet::new(),
        }
    }

    fn take(&mut self, number: Option<u64>, total: u64, verdict: &mut Verdict) {
        match number {
            Some(number) if number > 0 && number <= total => {
                // What came before the cursor of a resume was received earlier.
                if number <= self.after || !self.seen.insert(number) {
                    verdict.duplicated += 1;
                } else if self.ordered && number < self.highest {
                    verdict.wrong += 1;
                }
                self.highest = self.highest.max(number);
            }
            _ => verdict.wrong += 1,
        }
    }

    fn missing(&self, total: u64) -> u64 {
        total
            .saturating_sub(self.after)
            .saturating_sub(count(self.seen.len()))
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A whole number, also where it is written as `3.0`.
pub(super) fn whole(value: &Value) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range is checked"
        )]
        (number.fract() == 0.0 && (0.0..EXACT).contains(&number)).then_some(number as u64)
    })
}
