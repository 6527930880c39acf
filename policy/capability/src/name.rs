//! The clear names of capabilities: `namespace.action`, or a bare namespace with one action.

use std::fmt;
use std::str::FromStr;

/// A name that Bulkhead knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CapabilityName {
    /// `block.read`: read one disk image or block device.
    BlockRead,
    /// `block.write`: read and write one disk image or block device.
    BlockWrite,
    /// `console`: the partition's input, output and error streams.
    Console,
    /// `entropy`: the host's random source.
    Entropy,
    /// `time`: wall-clock time.
    Time,
}

impl CapabilityName {
    /// Every name, in alphabetical order.
    pub const ALL: [Self; 5] = [
        Self::BlockRead,
        Self::BlockWrite,
        Self::Console,
        Self::Entropy,
        Self::Time,
    ];

    /// The name as people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlockRead => "block.read",
            Self::BlockWrite => "block.write",
            Self::Console => "console",
            Self::Entropy => "entropy",
            Self::Time => "time",
        }
    }

    /// True when the name needs an object: the path of a disk.
    pub fn takes_path(self) -> bool {
        matches!(self, Self::BlockRead | Self::BlockWrite)
    }

    /// All names for a sentence: `block.read, block.write, ...`.
    pub fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that Bulkhead does not know. It grants nothing; the caller refuses it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability `{name}`")]
pub struct UnknownName {
    /// What was written.
    pub name: String,
    /// The known name that looks most like it, if one does.
    pub suggestion: Option<CapabilityName>,
}

impl UnknownName {
    /// What to do about it.
    pub fn help(&self) -> String {
        match self.suggestion {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("known capabilities: {}", CapabilityName::list()),
        }
    }
}

impl FromStr for CapabilityName {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let known = Self::ALL.into_iter().find(|known| known.as_str() == name);
        known.ok_or_else(|| UnknownName {
            name: name.to_owned(),
            suggestion: closest(name),
        })
    }
}

/// The known name within two edits of `name`, or the first of its namespace.
fn closest(name: &str) -> Option<CapabilityName> {
    // Comparing costs the product of both lengths, and the name comes from outside.
    if name.len() > 32 {
        return None;
    }
    let by_edits = CapabilityName::ALL
        .into_iter()
        .map(|known| (strsim::levenshtein(known.as_str(), name), known))
        .filter(|(distance, _)| *distance <= 2)
        .min();
    let namespace = name.split('.').next().unwrap_or(name);
    by_edits.map(|(_, known)| known).or_else(|| {
        CapabilityName::ALL
            .into_iter()
            .find(|known| known.as_str().split('.').next() == Some(namespace))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for name in CapabilityName::ALL {
            assert_eq!(name.as_str().parse(), Ok(name));
        }
    }

    #[test]
    fn unknown_names_are_refused_with_a_suggestion() {
        for (wrong, right) in [
            ("consle", Some(CapabilityName::Console)),
            ("block.raed", Some(CapabilityName::BlockRead)),
            ("block", Some(CapabilityName::BlockRead)),
            ("Time", Some(CapabilityName::Time)),
            ("net.connect", None),
            ("", None),
        ] {
            let refused = wrong.parse::<CapabilityName>().unwrap_err();
            assert_eq!(refused.suggestion, right, "{wrong}");
            assert_eq!(refused.name, wrong);
        }
        assert!("x".repeat(10_000).parse::<CapabilityName>().is_err());
    }
}
