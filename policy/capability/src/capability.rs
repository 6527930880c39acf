//! One grant: a name and, where the name has one, its object.

use crate::name::{CapabilityName, UnknownName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What a partition is allowed: exactly one device or service. Nothing is implied by another
/// variant, except that `block.write` includes reading the same disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Capability {
    /// Read the disk at this path.
    BlockRead(PathBuf),
    /// Read and write the disk at this path.
    BlockWrite(PathBuf),
    /// Use the console streams.
    Console,
    /// Use the host's random source.
    Entropy,
    /// Read wall-clock time.
    Time,
}

/// Why a text is no capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCapabilityError {
    /// Nobody knows the name.
    #[error(transparent)]
    Unknown(#[from] UnknownName),
    /// The name needs a path.
    #[error("capability `{0}` needs the path of a disk")]
    NeedsPath(CapabilityName),
    /// The name takes no path.
    #[error("capability `{0}` takes no path")]
    TakesNoPath(CapabilityName),
}

impl ParseCapabilityError {
    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            Self::Unknown(unknown) => unknown.help(),
            Self::NeedsPath(name) => {
                format!(
                    "write `{name}:disk.img`, or in a manifest {{ capability = \"{name}\", path = \"disk.img\" }}"
                )
            }
            Self::TakesNoPath(name) => format!("write `{name}` alone"),
        }
    }
}

impl Capability {
    /// Builds a capability from its two parts.
    ///
    /// # Errors
    /// An object is missing, empty, or given to a name that takes none.
    pub fn new(name: CapabilityName, path: Option<&Path>) -> Result<Self, ParseCapabilityError> {
        let path = path.filter(|path| !path.as_os_str().is_empty());
        match (name, path) {
            (CapabilityName::BlockRead, Some(path)) => Ok(Self::BlockRead(path.to_owned())),
            (CapabilityName::BlockWrite, Some(path)) => Ok(Self::BlockWrite(path.to_owned())),
            (CapabilityName::BlockRead | CapabilityName::BlockWrite, None) => {
                Err(ParseCapabilityError::NeedsPath(name))
            }
            (_, Some(_)) => Err(ParseCapabilityError::TakesNoPath(name)),
            (CapabilityName::Console, None) => Ok(Self::Console),
            (CapabilityName::Entropy, None) => Ok(Self::Entropy),
            (CapabilityName::Time, None) => Ok(Self::Time),
        }
    }

    /// The name without its object.
    pub fn name(&self) -> CapabilityName {
        match self {
            Self::BlockRead(_) => CapabilityName::BlockRead,
            Self::BlockWrite(_) => CapabilityName::BlockWrite,
            Self::Console => CapabilityName::Console,
            Self::Entropy => CapabilityName::Entropy,
            Self::Time => CapabilityName::Time,
        }
    }

    /// The disk, of a `block.*` capability.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::BlockRead(path) | Self::BlockWrite(path) => Some(path),
            Self::Console | Self::Entropy | Self::Time => None,
        }
    }

    /// True when whoever holds `other` may already do all that `self` allows. Paths are compared
    /// by their components: two names of one file are two objects.
    pub fn is_narrower_or_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::BlockRead(a), Self::BlockRead(b) | Self::BlockWrite(b)) => a == b,
            _ => self == other,
        }
    }

    /// What both allow: the narrower of two comparable capabilities, nothing of two others.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if self.is_narrower_or_equal(other) {
            Some(self.clone())
        } else if other.is_narrower_or_equal(self) {
            Some(other.clone())
        } else {
            None
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path() {
            Some(path) => write!(f, "{}:{}", self.name(), path.display()),
            None => write!(f, "{}", self.name()),
        }
    }
}

impl FromStr for Capability {
    type Err = ParseCapabilityError;

    /// Parses `name` or `name:path`.
    fn from_str(text: &str) -> Result<Self, ParseCapabilityError> {
        let (name, path) = match text.split_once(':') {
            Some((name, path)) => (name, Some(Path::new(path))),
            None => (text, None),
        };
        let name: CapabilityName = name.parse()?;
        if path.is_some() && !name.takes_path() {
            return Err(ParseCapabilityError::TakesNoPath(name));
        }
        Self::new(name, path)
    }
}

impl TryFrom<String> for Capability {
    type Error = ParseCapabilityError;

    fn try_from(text: String) -> Result<Self, ParseCapabilityError> {
        text.parse()
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> Self {
        capability.to_string()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any capability over a handful of disks, so that objects coincide often.
    pub(crate) fn any_capability() -> impl Strategy<Value = Capability> {
        let path = prop::sample::select(vec!["a.img", "b.img", "dir/a.img", "/dev/sdx", "a:b"]);
        (prop::sample::select(CapabilityName::ALL.to_vec()), path).prop_map(|(name, path)| {
            Capability::new(name, name.takes_path().then_some(Path::new(path))).unwrap()
        })
    }

    #[test]
    fn parses_names_and_objects() {
        for (text, capability) in [
            ("console", Capability::Console),
            ("entropy", Capability::Entropy),
            ("time", Capability::Time),
            (
                "block.read:disk.img",
                Capability::BlockRead("disk.img".into()),
            ),
            (
                "block.write:/dev/sda",
                Capability::BlockWrite("/dev/sda".into()),
            ),
            (
                "block.read:odd:name",
                Capability::BlockRead("odd:name".into()),
            ),
        ] {
            assert_eq!(text.parse(), Ok(capability), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_incomplete_or_too_much() {
        for (text, error) in [
            (
                "block.read",
                ParseCapabilityError::NeedsPath(CapabilityName::BlockRead),
            ),
            (
                "block.write:",
                ParseCapabilityError::NeedsPath(CapabilityName::BlockWrite),
            ),
            (
                "console:x",
                ParseCapabilityError::TakesNoPath(CapabilityName::Console),
            ),
            (
                "time:",
                ParseCapabilityError::TakesNoPath(CapabilityName::Time),
            ),
        ] {
            assert_eq!(text.parse::<Capability>(), Err(error), "{text}");
        }
        assert!(matches!(
            "*".parse::<Capability>(),
            Err(ParseCapabilityError::Unknown(_))
        ));
    }

    #[test]
    fn reading_is_narrower_than_writing_the_same_disk_only() {
        let read: Capability = "block.read:a.img".parse().unwrap();
        let write: Capability = "block.write:a.img".parse().unwrap();
        let other: Capability = "block.write:b.img".parse().unwrap();
        assert!(read.is_narrower_or_equal(&write));
        assert!(!write.is_narrower_or_equal(&read));
        assert!(!read.is_narrower_or_equal(&other));
        assert_eq!(write.intersect(&read), Some(read));
        assert_eq!(write.intersect(&other), None);
    }

    proptest! {
        #[test]
        fn prints_and_parses_back(capability in any_capability()) {
            prop_assert_eq!(capability.to_string().parse(), Ok(capability));
        }

        #[test]
        fn narrower_is_a_partial_order(
            a in any_capability(), b in any_capability(), c in any_capability()
        ) {
            prop_assert!(a.is_narrower_or_equal(&a));
            if a.is_narrower_or_equal(&b) && b.is_narrower_or_equal(&a) {
                prop_assert_eq!(&a, &b);
            }
            if a.is_narrower_or_equal(&b) && b.is_narrower_or_equal(&c) {
                prop_assert!(a.is_narrower_or_equal(&c));
            }
        }

        #[test]
        fn intersection_is_the_greatest_lower_bound(
            a in any_capability(), b in any_capability(), c in any_capability()
        ) {
            let both = a.intersect(&b);
            prop_assert_eq!(&both, &b.intersect(&a));
            if let Some(both) = &both {
                prop_assert!(both.is_narrower_or_equal(&a) && both.is_narrower_or_equal(&b));
            }
            let below_both = c.is_narrower_or_equal(&a) && c.is_narrower_or_equal(&b);
            prop_assert_eq!(below_both, both.is_some_and(|both| c.is_narrower_or_equal(&both)));
        }

        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,64}") {
            if let Ok(capability) = text.parse::<Capability>() {
                prop_assert_eq!(capability.to_string(), text);
            }
        }
    }
}
