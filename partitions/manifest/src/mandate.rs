//! What a partition is for, and what bounds it as a whole: the sections of a `partition.toml` that are
//! neither its machine nor its grants.

use bulkhead_network::http::PathPattern;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The terms under which a partition runs. Only a `partition.toml` has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mandate {
    /// What it is: its ceiling is that role's.
    pub role: String,
    /// On whose behalf, in words.
    pub owner: Option<String>,
    /// Identity of the running partition that it is a child of.
    pub parent: Option<String>,
    /// Those that it descends from, the nearest first, as they ran when it was judged.
    pub lineage: Vec<String>,
    /// How long it may run: not longer than any of its ancestors.
    pub lifetime: Lifetime,
    /// Secrets that are used in its name. Each has a grant of `secret.use`.
    pub secrets: Vec<SecretBinding>,
    /// The file of limits of its tools.
    pub tool_limits: Option<PathBuf>,
    /// What it may start.
    pub spawn: SpawnBudget,
    /// What it may use while it lives.
    pub budget: Budget,
    /// The whole manifest in canonical JSON, with absolute paths: what its children are held to.
    pub document: Vec<u8>,
    /// Where the names of its files led when it was judged: what is opened by such a name has to be
    /// there still.
    pub leads: BTreeMap<PathBuf, PathBuf>,
}

/// How long a partition may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// This many seconds.
    Seconds(u64),
    /// Until it ends by itself, which takes the approval of a second person.
    Unlimited,
}

impl Lifetime {
    /// The shorter of it and so many seconds, if there is such a bound.
    pub(crate) fn at_most(self, seconds: Option<u64>) -> Self {
        match (self, seconds) {
            (Self::Seconds(own), Some(seconds)) => Self::Seconds(own.min(seconds)),
            (Self::Unlimited, Some(seconds)) => Self::Seconds(seconds),
            (own, None) => own,
        }
    }

    /// True when whoever may run for `other` may run for `self`.
    pub fn is_within(self, other: Self) -> bool {
        match (self, other) {
            (_, Self::Unlimited) => true,
            (Self::Unlimited, Self::Seconds(_)) => false,
            (Self::Seconds(own), Self::Seconds(other)) => own <= other,
        }
    }
}

/// Where a secret of the vault may go. The guest has a placeholder for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretBinding {
    /// Its name in the vault.
    pub name: String,
    /// The one host to which it is sent: a name in lower case.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// The header, in lower case, in which the placeholder is replaced.
    pub header: String,
    /// Requests for which it is; absent: all to that host.
    pub path: Option<PathPattern>,
    /// Environment variable in which the guest finds the placeholder.
    pub env: Option<String>,
    /// Not kept in the vault, but made at the start of the partition, and void at its end.
    pub ephemeral: bool,
}

/// How many partitions a partition may start. Which, its grants of `partition.spawn` say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpawnBudget {
    /// Most at a time, of all roles together.
    pub count: u32,
    /// Generations below it: 1 is children alone.
    pub depth: u32,
}

/// What a partition may use while it lives; what is absent is not limited here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes over the network, both ways together.
    pub bytes: Option<u64>,
    /// Calls of tools.
    pub calls: Option<u64>,
    /// Tokens of models.
    pub tokens: Option<u64>,
    /// Money for models, in millionths of a cent.
    pub money: Option<u64>,
}

impl Budget {
    /// Each amount by its key.
    pub fn amounts(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("bytes", self.bytes),
            ("calls", self.calls),
            ("tokens", self.tokens),
            ("money", self.money),
        ]
    }

    /// The first amount of which it has more than `other`.
    pub fn exceeds(&self, other: &Self) -> Option<&'static str> {
        let pairs = self.amounts().into_iter().zip(other.amounts());
        let more = |own: Option<u64>, other: Option<u64>| match (own, other) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(own), Some(other)) => own > other,
        };
        pairs
            .into_iter()
            .find_map(|((key, own), (_, other))| more(own, other).then_some(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_is_more_than_any_number() {
        let some = |bytes, calls| Budget {
            bytes,
            calls,
            ..Budget::default()
        };
        assert_eq!(some(Some(1), Some(1)).exceeds(&some(Some(1), None)), None);
        assert_eq!(
            some(Some(2), None).exceeds(&some(Some(1), None)),
            Some("bytes")
        );
        assert_eq!(
            some(None, None).exceeds(&some(None, Some(9))),
            Some("calls")
        );
    }

    #[test]
    fn lifetimes() {
        use Lifetime::{Seconds, Unlimited};
        for (own, other, within) in [
            (Seconds(1), Seconds(1), true),
            (Seconds(2), Seconds(1), false),
            (Seconds(u64::MAX), Unlimited, true),
            (Unlimited, Seconds(u64::MAX), false),
            (Unlimited, Unlimited, true),
        ] {
            assert_eq!(own.is_within(other), within, "{own:?} {other:?}");
        }
    }
}
