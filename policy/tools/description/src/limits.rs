//! How often tools may be called: the policy file `tools.toml`, and what holds without one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::Risk;

/// Most tools that a file may limit one by one.
const MAX_TOOLS: usize = 256;
/// Longest text of a policy file in bytes.
pub const MAX_LIMITS_BYTES: usize = 256 * 1024;

/// Limits of the calls of tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Of all partitions of this user together.
    pub all: Rates,
    /// Of each partition.
    pub partition: Rates,
    /// Of single tools, in each partition, by their names.
    pub tool: BTreeMap<String, ToolLimit>,
    /// Calls of these risks wait for a person who allows them.
    pub confirm: BTreeSet<Risk>,
}

/// Most calls in any 60 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Of any kind, those that are refused among them.
    pub calls: u32,
    /// With the risk `write`, or `destructive`.
    pub writes: u32,
    /// With the risk `destructive`.
    pub destructive: u32,
    /// With the risk `network`.
    pub network: u32,
}

/// The limit of one tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ToolLimit {
    /// Most calls in any 60 seconds.
    pub per_minute: Option<u32>,
    /// Seconds that have to pass between two calls.
    pub cooldown: Option<u32>,
}

/// Why a text is no policy file for tools.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseLimitsError {
    /// It is not TOML of this shape.
    #[error("{0}")]
    Toml(String),
    /// It limits more tools than anybody has.
    #[error("more than {MAX_TOOLS} tools are limited")]
    TooMany,
    /// It is longer than anybody would write.
    #[error("it is longer than {MAX_LIMITS_BYTES} bytes")]
    TooLong,
}

/// A policy file as it is written: what it does not name it leaves.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    all: WrittenRates,
    partition: WrittenRates,
    tool: BTreeMap<String, ToolLimit>,
    confirm: BTreeSet<Risk>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenRates {
    calls: Option<u32>,
    writes: Option<u32>,
    destructive: Option<u32>,
    network: Option<u32>,
}

impl WrittenRates {
    fn over(&self, rates: Rates) -> Rates {
        Rates {
            calls: self.calls.unwrap_or(rates.calls),
            writes: self.writes.unwrap_or(rates.writes),
            destructive: self.destructive.unwrap_or(rates.destructive),
            network: self.network.unwrap_or(rates.network),
        }
    }
}

impl Rates {
    /// No limit.
    const NONE: Self = Self {
        calls: u32::MAX,
        writes: u32::MAX,
        destructive: u32::MAX,
        network: u32::MAX,
    };

    fn narrowed(self, other: Self) -> Self {
        Self {
            calls: self.calls.min(other.calls),
            writes: self.writes.min(other.writes),
            destructive: self.destructive.min(other.destructive),
            network: self.network.min(other.network),
        }
    }
}

impl ToolLimit {
    fn narrowed(self, other: Self) -> Self {
        let per_minute = [self.per_minute, other.per_minute];
        Self {
            per_minute: per_minute.into_iter().flatten().min(),
            // Absent is less than any time.
            cooldown: self.cooldown.max(other.cooldown),
        }
    }
}

/// What holds where operators have written nothing.
impl Default for Limits {
    fn default() -> Self {
        Self {
            all: Rates {
                calls: 300,
                writes: 60,
                destructive: 10,
                network: 120,
            },
            partition: Rates {
                calls: 60,
                writes: 20,
                destructive: 5,
                network: 30,
            },
            tool: BTreeMap::new(),
            confirm: BTreeSet::new(),
        }
    }
}

impl Limits {
    /// Reads the text of an operator's policy file: for what it does not name the defaults hold.
    ///
    /// # Errors
    /// It has an unknown key, or a value of the wrong kind.
    pub fn parse(text: &str) -> Result<Self, ParseLimitsError> {
        Self::read(text, Self::default())
    }

    /// Reads the text of a file that narrows the limits of others ([`Limits::narrowed`]): what it
    /// does not name it does not limit.
    ///
    /// # Errors
    /// See [`Limits::parse`].
    pub fn parse_narrowing(text: &str) -> Result<Self, ParseLimitsError> {
        let unlimited = Self {
            all: Rates::NONE,
            partition: Rates::NONE,
            ..Self::default()
        };
        Self::read(text, unlimited)
    }

    fn read(text: &str, otherwise: Self) -> Result<Self, ParseLimitsError> {
        if text.len() > MAX_LIMITS_BYTES {
            return Err(ParseLimitsError::TooLong);
        }
        let written: Written = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
            ParseLimitsError::Toml(format!("line {line}: {}", error.message()))
        })?;
        if written.tool.len() > MAX_TOOLS {
            return Err(ParseLimitsError::TooMany);
        }
        Ok(Self {
            all: written.all.over(otherwise.all),
            partition: written.partition.over(otherwise.partition),
            tool: written.tool,
            confirm: written.confirm,
        })
    }

    /// What both allow: of each limit the narrower, and of what waits for a person all.
    #[must_use]
    pub fn narrowed(&self, other: &Self) -> Self {
        let mut tool = self.tool.clone();
        for (name, limit) in &other.tool {
            let own = tool.entry(name.clone()).or_default();
            *own = own.narrowed(*limit);
        }
        Self {
            all: self.all.narrowed(other.all),
            partition: self.partition.narrowed(other.partition),
            tool,
            confirm: &self.confirm | &other.confirm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;

    #[test]
    fn without_a_file_the_defaults_hold() {
        let limits = Limits::parse("").unwrap();
        assert_eq!(limits, Limits::default());
        let of = |rates: Rates| (rates.calls, rates.writes, rates.destructive, rates.network);
        assert_eq!(of(limits.all), (300, 60, 10, 120));
        assert_eq!(of(limits.partition), (60, 20, 5, 30));
        assert!(limits.confirm.is_empty());
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let text = "confirm = [\"destructive\"]\n[all]\nwrites = 7\n[tool.\"fs.delete\"]\nper-minute = 2\ncooldown = 5\n";
        let limits = Limits::parse(text).unwrap();
        assert_eq!(limits.all.writes, 7);
        assert_eq!(limits.all.calls, 300);
        assert_eq!(limits.confirm, BTreeSet::from([Risk::Destructive]));
        let delete = limits.tool["fs.delete"];
        assert_eq!((delete.per_minute, delete.cooldown), (Some(2), Some(5)));
    }

    #[test]
    fn a_file_that_narrows_leaves_what_it_does_not_name() {
        let host = Limits::parse("[partition]\ncalls = 500\nwrites = 3\n").unwrap();
        assert_eq!(
            host.narrowed(&Limits::parse_narrowing("").unwrap()),
            host,
            "where the host allows more than the defaults too"
        );
        let own = "[partition]\ncalls = 900\nwrites = 1\n[tool.\"fs.delete\"]\ncooldown = 5\n";
        let both = host.narrowed(&Limits::parse_narrowing(own).unwrap());
        assert_eq!((both.partition.calls, both.partition.writes), (500, 1));
        assert_eq!(both.tool["fs.delete"].cooldown, Some(5));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let line = |text: &str| Limits::parse(text).unwrap_err().to_string();
        assert!(line("[all]\nwrite = 7\n").starts_with("line 2: unknown field `write`"));
        assert!(line("[all]\ncalls = -1\n").starts_with("line 2: "));
        assert!(line("\n\nconfirm = [\"reading\"]").starts_with("line 3: "));
        let many: String = (0..=MAX_TOOLS)
            .map(|n| format!("[tool.t{n}]\ncooldown = 1\n"))
            .collect();
        assert_eq!(Limits::parse(&many), Err(ParseLimitsError::TooMany));
        let long = "#".repeat(MAX_LIMITS_BYTES + 1);
        assert_eq!(Limits::parse(&long), Err(ParseLimitsError::TooLong));
    }

    fn rates() -> impl Strategy<Value = Rates> {
        let number = || prop_oneof![0_u32..9, Just(u32::MAX)];
        (number(), number(), number(), number()).prop_map(
            |(calls, writes, destructive, network)| Rates {
                calls,
                writes,
                destructive,
                network,
            },
        )
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let number = || proptest::option::of(0_u32..9);
        let limit = (number(), number()).prop_map(|(per_minute, cooldown)| ToolLimit {
            per_minute,
            cooldown,
        });
        let risks = [Risk::Read, Risk::Write, Risk::Destructive, Risk::Network];
        let risk = proptest::sample::select(risks.to_vec());
        let tool = btree_map("[abc]", limit, 0..3);
        (rates(), rates(), tool, btree_set(risk, 0..4)).prop_map(
            |(all, partition, tool, confirm)| Limits {
                all,
                partition,
                tool,
                confirm,
            },
        )
    }

    /// True when whatever `own` lets through, and without asking, `other` does as well.
    fn is_within(own: &Limits, other: &Limits) -> bool {
        let fewer = |own: Rates, other: Rates| {
            own.calls <= other.calls
                && own.writes <= other.writes
                && own.destructive <= other.destructive
                && own.network <= other.network
        };
        let tool = other.tool.iter().all(|(name, most)| {
            let own = own.tool.get(name).copied().unwrap_or_default();
            let rate = |limit: ToolLimit| limit.per_minute.unwrap_or(u32::MAX);
            rate(own) <= rate(*most) && own.cooldown.unwrap_or(0) >= most.cooldown.unwrap_or(0)
        });
        fewer(own.all, other.all)
            && fewer(own.partition, other.partition)
            && tool
            && own.confirm.is_superset(&other.confirm)
    }

    proptest! {
        #[test]
        fn what_is_narrowed_is_never_wider_than_either(a in limits(), b in limits()) {
            let both = a.narrowed(&b);
            prop_assert!(is_within(&both, &a) && is_within(&both, &b));
            // Nor narrower than it has to be: what was narrow enough stays.
            prop_assert_eq!(both.narrowed(&a), both.clone());
            prop_assert_eq!(a.narrowed(&Limits::parse_narrowing("").unwrap()), a);
        }

        #[test]
        fn neither_order_nor_repetition_matters(a in limits(), b in limits(), c in limits()) {
            prop_assert_eq!(a.narrowed(&b), b.narrowed(&a));
            prop_assert_eq!(a.narrowed(&a), a.clone());
            prop_assert_eq!(a.narrowed(&b).narrowed(&c), a.narrowed(&b.narrowed(&c)));
        }
    }
}
