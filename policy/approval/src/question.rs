//! What a person is asked.

use serde::{Deserialize, Serialize};

/// Longest object of a question: what a call touches, and its arguments.
const MAX_OBJECT_BYTES: usize = 1700;

/// A question, as the process puts it that wants to act. Who it acts for it does not say: the
/// supervisor knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Which capability is used, by its clear name: `tool.call`, `net.connect`.
    pub capability: String,
    /// On what: a tool and its paths, a host and its port.
    pub object: String,
    /// Why a person is asked: the rule that demands it, and what harm there may be.
    pub why: String,
    /// The piece of work that this belongs to, where there is one: for the scope `task`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

/// What keeps a question from being asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {field} of a question is {problem}")]
pub struct QuestionError {
    /// Which part of it.
    pub field: &'static str,
    /// What is wrong, as the end of a sentence.
    pub problem: &'static str,
}

impl Question {
    /// Holds the question to its bounds: a person has to be able to read it, and it is kept.
    ///
    /// # Errors
    /// A part of it is empty or too long.
    pub fn check(&self) -> Result<(), QuestionError> {
        let task = self.task.as_deref().unwrap_or("-");
        for (field, text, most) in [
            ("capability", self.capability.as_str(), 64),
            ("object", &self.object, MAX_OBJECT_BYTES),
            ("reason", &self.why, 1024),
            ("task", task, 128),
        ] {
            let problem = match text.len() {
                0 => "empty",
                length if length > most => "too long",
                _ => continue,
            };
            return Err(QuestionError { field, problem });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_bounds() {
        let good = Question {
            capability: "tool.call".to_owned(),
            object: "x".repeat(MAX_OBJECT_BYTES),
            why: "y".repeat(1024),
            task: None,
        };
        assert_eq!(good.check(), Ok(()));
        let wrong = |change: fn(&mut Question)| {
            let mut question = good.clone();
            change(&mut question);
            question.check().unwrap_err().to_string()
        };
        assert_eq!(
            wrong(|q| q.object.push('x')),
            "the object of a question is too long"
        );
        assert_eq!(
            wrong(|q| q.why.push('x')),
            "the reason of a question is too long"
        );
        assert_eq!(
            wrong(|q| q.capability = "x".repeat(65)),
            "the capability of a question is too long"
        );
        assert_eq!(
            wrong(|q| q.task = Some("x".repeat(129))),
            "the task of a question is too long"
        );
        assert_eq!(
            wrong(|q| q.object.clear()),
            "the object of a question is empty"
        );
        assert_eq!(
            wrong(|q| q.task = Some(String::new())),
            "the task of a question is empty"
        );
    }
}
