//! How often tools may be called: the policy file `tools.toml`, and what holds without one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Risk;

/// Most tools that a file may limit one by one.
const MAX_TOOLS: usize = 256;

/// Limits of the calls of tools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Of all partitions of this user together.
    pub all: All,
    /// Of each partition.
    pub partition: Each,
    /// Of single tools, in each partition, by their names.
    pub tool: BTreeMap<String, ToolLimit>,
    /// Calls of these risks wait for a person who allows them.
    pub confirm: Vec<Risk>,
}

/// Most calls in any 60 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

macro_rules! rates {
    ($name:ident, $what:literal, $calls:literal, $writes:literal, $destructive:literal, $network:literal) => {
        #[doc = $what]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct $name {
            /// See [`Rates::calls`].
            pub calls: u32,
            /// See [`Rates::writes`].
            pub writes: u32,
            /// See [`Rates::destructive`].
            pub destructive: u32,
            /// See [`Rates::network`].
            pub network: u32,
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    calls: $calls,
                    writes: $writes,
                    destructive: $destructive,
                    network: $network,
                }
            }
        }

        impl $name {
            /// The numbers alone.
            pub fn rates(self) -> Rates {
                let Self {
                    calls,
                    writes,
                    destructive,
                    network,
                } = self;
                Rates {
                    calls,
                    writes,
                    destructive,
                    network,
                }
            }
        }
    };
}

rates!(
    All,
    "Most calls of all partitions in any 60 seconds.",
    300,
    60,
    10,
    120
);
rates!(
    Each,
    "Most calls of one partition in any 60 seconds.",
    60,
    20,
    5,
    30
);

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
}

impl Limits {
    /// Reads the text of a policy file.
    ///
    /// # Errors
    /// It has an unknown key, or a value of the wrong kind.
    pub fn parse(text: &str) -> Result<Self, ParseLimitsError> {
        let limits: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
            ParseLimitsError::Toml(format!("line {line}: {}", error.message()))
        })?;
        match limits.tool.len() > MAX_TOOLS {
            true => Err(ParseLimitsError::TooMany),
            false => Ok(limits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_the_defaults_hold() {
        let limits = Limits::parse("").unwrap();
        assert_eq!(limits, Limits::default());
        let of = |rates: Rates| (rates.calls, rates.writes, rates.destructive, rates.network);
        assert_eq!(of(limits.all.rates()), (300, 60, 10, 120));
        assert_eq!(of(limits.partition.rates()), (60, 20, 5, 30));
        assert!(limits.confirm.is_empty());
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let text = "confirm = [\"destructive\"]\n[all]\nwrites = 7\n[tool.\"fs.delete\"]\nper-minute = 2\ncooldown = 5\n";
        let limits = Limits::parse(text).unwrap();
        assert_eq!(limits.all.writes, 7);
        assert_eq!(limits.all.calls, 300);
        assert_eq!(limits.confirm, [Risk::Destructive]);
        let delete = limits.tool["fs.delete"];
        assert_eq!((delete.per_minute, delete.cooldown), (Some(2), Some(5)));
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
    }
}
