//! How much of what it is granted a partition does without asking a person.

use serde::{Deserialize, Serialize};

/// From the one that asks most to the one that asks least: the lesser of two is what both allow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Autonomy {
    /// Whatever does more than read waits for a person.
    Manual,
    /// What destroys, or reaches other machines, waits for a person.
    Supervised,
    /// Nothing waits, but what a grant or an operator says.
    #[default]
    Full,
}

impl Autonomy {
    /// Each by its name.
    pub const ALL: [(&'static str, Self); 3] = [
        ("full", Self::Full),
        ("supervised", Self::Supervised),
        ("manual", Self::Manual),
    ];

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Supervised => "supervised",
            Self::Full => "full",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_more_is_less_autonomous() {
        use Autonomy::{Full, Manual, Supervised};
        assert!(Manual < Supervised && Supervised < Full);
        assert_eq!(Autonomy::default(), Full);
        for (name, autonomy) in Autonomy::ALL {
            assert_eq!(autonomy.as_str(), name);
            let written = serde_json::to_string(&autonomy).unwrap();
            assert_eq!(written, format!("\"{name}\""));
        }
    }
}
