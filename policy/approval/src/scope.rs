//! For how long a person's consent counts.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest time that can be said.
const MAX: Duration = Duration::from_secs(30 * 86_400);

/// For what a consent counts beside the question that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// For nothing else.
    Once,
    /// For the same, within the same piece of work.
    Task,
    /// For the same, while the partition lives.
    Session,
    /// For the same, for so long.
    For(Duration),
}

/// What is no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no scope: once, task, session, or a time such as 90s, 15m, 8h, 2d", .0.escape_debug())]
pub struct ParseScopeError(String);

impl FromStr for Scope {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, ParseScopeError> {
        let wrong = || ParseScopeError(text.chars().take(80).collect());
        let unit = match text {
            "once" => return Ok(Self::Once),
            "task" => return Ok(Self::Task),
            "session" => return Ok(Self::Session),
            _ => match text.as_bytes().last() {
                Some(b's') => 1,
                Some(b'm') => 60,
                Some(b'h') => 3600,
                Some(b'd') => 86_400,
                _ => return Err(wrong()),
            },
        };
        let digits = text.get(..text.len() - 1).unwrap_or_default();
        if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(wrong());
        }
        let seconds = digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit));
        let time = seconds
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        time.filter(|time| *time <= MAX)
            .map(Self::For)
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Once => f.write_str("once"),
            Self::Task => f.write_str("task"),
            Self::Session => f.write_str("session"),
            Self::For(time) => write!(f, "{}s", time.as_secs()),
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = ParseScopeError;

    fn try_from(text: String) -> Result<Self, ParseScopeError> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_words_or_times() {
        let time = |seconds| Some(Scope::For(Duration::from_secs(seconds)));
        for (text, scope) in [
            ("once", Some(Scope::Once)),
            ("task", Some(Scope::Task)),
            ("session", Some(Scope::Session)),
            ("1s", time(1)),
            ("15m", time(900)),
            ("8h", time(28_800)),
            ("30d", time(2_592_000)),
            ("31d", None),
            ("0s", None),
            ("s", None),
            ("-1s", None),
            ("+1s", None),
            ("1.5h", None),
            ("1", None),
            ("1w", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
            ("", None),
            ("ü", None),
            ("forever", None),
        ] {
            assert_eq!(text.parse().ok(), scope, "{text}");
            if let Some(scope) = scope {
                assert_eq!(scope.to_string().parse(), Ok(scope));
            }
        }
    }
}
