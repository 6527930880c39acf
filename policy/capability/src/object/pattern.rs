//! Names of tools and models, one or all that start alike: `git.commit`, `fs.*`, `*`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest pattern in bytes.
const MAX_PATTERN: usize = 128;

/// One name, or with a final `*` every name that starts so. Two patterns contain each other or
/// share nothing, so what both mean is always one of the two.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    start: String,
    open: bool,
}

/// Why a text is no [`NamePattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no name or pattern of names; write one such as git.commit, fs.* or *", .0.escape_debug())]
pub struct ParsePatternError(String);

impl FromStr for NamePattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, ParsePatternError> {
        let (start, open) = match text.strip_suffix('*') {
            Some(start) => (start, true),
            None => (text, false),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+".contains(&byte);
        if text.is_empty() || text.len() > MAX_PATTERN || !start.bytes().all(plain) {
            return Err(ParsePatternError(text.to_owned()));
        }
        Ok(Self {
            start: start.to_owned(),
            open,
        })
    }
}

impl NamePattern {
    /// Whether `name` is one of those meant.
    pub fn matches(&self, name: &str) -> bool {
        match self.open {
            true => name.starts_with(&self.start),
            false => name == self.start,
        }
    }

    /// What all names that are meant start with; the whole name where it is one.
    pub fn start(&self) -> &str {
        &self.start
    }

    /// The one name that is meant, if it is one.
    pub fn exact(&self) -> Option<&str> {
        (!self.open).then_some(self.start.as_str())
    }

    /// True when every name that `self` means `other` means too.
    pub fn is_narrower_or_equal(&self, other: &Self) -> bool {
        other.matches(&self.start) && (other.open || !self.open)
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.start, if self.open { "*" } else { "" })
    }
}

super::text_form!(NamePattern, ParsePatternError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_a_name_or_a_start() {
        for (pattern, name, expected) in [
            ("fs.read", "fs.read", true),
            ("fs.read", "fs.read_dir", false),
            ("fs.*", "fs.read", true),
            ("fs.*", "fsx", false),
            ("*", "anything", true),
            ("meta/llama3:8b*", "meta/llama3:8b-instruct", true),
        ] {
            let parsed: NamePattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(name), expected, "{pattern} {name}");
            assert_eq!(parsed.to_string(), pattern);
        }
        for wrong in ["", "a*b", "**", "a b", "ä", "a\n", "\"", &"x".repeat(129)] {
            assert!(wrong.parse::<NamePattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn narrower_patterns() {
        for (a, b, expected) in [
            ("a", "a", true),
            ("a", "a*", true),
            ("a*", "a", false),
            ("ab*", "a*", true),
            ("a*", "ab*", false),
            ("a*", "*", true),
            ("a", "b", false),
        ] {
            let (a, b): (NamePattern, NamePattern) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.is_narrower_or_equal(&b), expected, "{a} {b}");
        }
    }
}
