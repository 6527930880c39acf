//! What conditions say of an act.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What conditions say of an act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ruling {
    /// These permit it, and none forbids it.
    Permitted(Vec<String>),
    /// These forbid it, whatever else permits it.
    Forbidden(Vec<String>),
    /// None permits it.
    NotPermitted,
    /// None of this ancestor's permits it.
    NotPermittedBy(String),
    /// One of them could not be evaluated, so that nothing is permitted.
    Failed(String),
    /// Nobody has said anything, so that nothing is permitted.
    Unanswered(String),
}

impl Ruling {
    /// Whether the act may be done.
    pub fn is_permitted(&self) -> bool {
        matches!(self, Self::Permitted(_))
    }

    /// Whether it is not permitted, and nothing forbids it.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::NotPermitted | Self::NotPermittedBy(_))
    }
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Permitted(by) => write!(f, "permitted by condition {}", by.join(", ")),
            Self::Forbidden(by) => write!(f, "forbidden by condition {}", by.join(", ")),
            Self::NotPermitted => f.write_str("permitted by no condition"),
            Self::NotPermittedBy(ancestor) => write!(f, "permitted by no condition of {ancestor}"),
            Self::Failed(why) => write!(f, "a condition could not be evaluated: {why}"),
            Self::Unanswered(why) => write!(f, "the conditions could not be asked: {why}"),
        }
    }
}

/// An answer, for whoever is about to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What the conditions say.
    pub ruling: Ruling,
    /// Whether they are held to. Where they are learnt from, what they would deny is done.
    pub enforced: bool,
}

impl Said {
    /// A denial, because there is no answer; whatever the mode, of which nobody knows.
    pub(crate) fn nothing(why: impl Into<String>) -> Self {
        Self {
            ruling: Ruling::Unanswered(why.into()),
            enforced: true,
        }
    }

    /// Whether the act may be done.
    pub fn allows(&self) -> bool {
        self.ruling.is_permitted() || !self.enforced
    }
}
