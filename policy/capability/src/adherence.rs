//! Whether a partition is held to its conditions, or they are learnt from what it does.

use serde::{Deserialize, Serialize};

/// From the stricter to the laxer: the lesser of two is what both allow. Grants hold whatever it is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Adherence {
    /// What conditions deny is not done.
    #[default]
    Enforce,
    /// What conditions would deny is done, and on record.
    Learn,
}

impl Adherence {
    /// Each by its name.
    pub const ALL: [(&'static str, Self); 2] = [("enforce", Self::Enforce), ("learn", Self::Learn)];

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Learn => "learn",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_learns_is_held_to_less() {
        assert!(Adherence::Enforce < Adherence::Learn);
        assert_eq!(Adherence::default(), Adherence::Enforce);
        for (name, adherence) in Adherence::ALL {
            assert_eq!(adherence.as_str(), name);
            let written = serde_json::to_string(&adherence).unwrap();
            assert_eq!(written, format!("\"{name}\""));
        }
    }
}
