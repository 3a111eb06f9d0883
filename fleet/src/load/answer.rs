//! What a client answers to a question, and what the asking call must return then.
//!
//! Everything follows from the question's text, so an answer that went to another
//! call shows.

use serde_json::{Value, json};

/// One in this many questions is declined, and one is dismissed.
const REFUSAL: u32 = 8;

/// The user's decision on a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The form, filled in.
    Accept {
        /// Field `answer`.
        answer: String,
        /// Field `confirm`.
        confirm: bool,
    },
    /// No.
    Decline,
    /// Dismissed.
    Cancel,
}

impl Answer {
    /// The answer to `question`.
    pub(super) fn to(question: &str) -> Self {
        // FNV-1a: spreads questions that differ in one digit.
        let hash = question.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        match (hash >> 8) % REFUSAL {
            0 => Self::Decline,
            1 => Self::Cancel,
            n => Self::Accept {
                answer: format!("re: {question}"),
                confirm: n % 2 == 0,
            },
        }
    }

    /// What `ask` returns for this answer.
    pub(super) fn result_text(&self) -> String {
        match self {
            Self::Accept { answer, confirm } => format!("accept: {answer} {confirm}"),
            Self::Decline => "decline".into(),
            Self::Cancel => "cancel".into(),
        }
    }

    /// As the result of `elicitation/create`.
    pub(super) fn to_result(&self) -> Value {
        match self {
            Self::Accept { answer, confirm } => {
                json!({ "action": "accept", "content": { "answer": answer, "confirm": confirm } })
            }
            Self::Decline => json!({ "action": "decline" }),
            Self::Cancel => json!({ "action": "cancel" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_decisions_occur_and_accepted_texts_differ() {
        let answers: Vec<_> = (0..64).map(|n| Answer::to(&format!("q {n}"))).collect();
        assert!(answers.contains(&Answer::Decline));
        assert!(answers.contains(&Answer::Cancel));
        let texts: std::collections::HashSet<_> = answers
            .iter()
            .filter(|answer| matches!(answer, Answer::Accept { .. }))
            .map(Answer::result_text)
            .collect();
        assert!(texts.len() > 32);
    }
}
