//! How many children of a role a partition may have: `worker=4`.

use super::is_plain_name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// At most so many children of this role at a time. Two grants of one role do not add up: the
/// larger holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Spawn {
    role: String,
    count: u32,
}

/// Why a text is no [`Spawn`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no role and number of children; write ROLE=COUNT, as in worker=4", .0.escape_debug())]
pub struct ParseSpawnError(String);

impl FromStr for Spawn {
    type Err = ParseSpawnError;

    /// Without a number it is one child.
    fn from_str(text: &str) -> Result<Self, ParseSpawnError> {
        let wrong = || ParseSpawnError(text.to_owned());
        let (role, count) = text.split_once('=').unwrap_or((text, "1"));
        let digits = count.bytes().all(|byte| byte.is_ascii_digit());
        let count = count.parse().ok().filter(|count| digits && *count > 0);
        match count {
            Some(count) if is_plain_name(role) => Ok(Self {
                role: role.to_owned(),
                count,
            }),
            _ => Err(wrong()),
        }
    }
}

impl Spawn {
    /// The role.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Most children at a time, at least 1.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// True when `other` allows as many children of the role, or more.
    pub fn is_narrower_or_equal(&self, other: &Self) -> bool {
        self.role == other.role && self.count <= other.count
    }
}

impl fmt::Display for Spawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.role, self.count)
    }
}

super::text_form!(Spawn, ParseSpawnError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_counts() {
        for (text, printed) in [
            ("worker=4", Some("worker=4")),
            ("worker", Some("worker=1")),
            ("worker=0", None),
            ("worker=", None),
            ("worker=+1", None),
            ("worker=4294967296", None),
            ("=1", None),
            ("*=1", None),
        ] {
            let spawn = text.parse::<Spawn>().ok().map(|spawn| spawn.to_string());
            assert_eq!(spawn.as_deref(), printed, "{text}");
        }
    }
}
