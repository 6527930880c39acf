//! One grant: a name and, where the name has one, its object.

use crate::name::{CapabilityName, ObjectKind, UnknownName};
use crate::network::{
    Listen, ParseListenError, intersect_rules, parse_loopback, parse_rule,
    rule_is_narrower_or_equal,
};
use bulkhead_network::{Loopback, ParseRuleError, Rule};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest name of a network interface (Linux's `IFNAMSIZ`, less its final NUL).
const MAX_INTERFACE: usize = 15;

/// What a partition is allowed: exactly one device or service. Nothing is implied by another
/// variant, except that `.write` includes reading the same object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// Read the directory at this path.
    FsRead(PathBuf),
    /// Read and change the directory at this path.
    FsWrite(PathBuf),
    /// Connect or send to these hosts and ports.
    NetConnect(Rule),
    /// Be reached through this socket of the host.
    NetListen(Listen),
    /// Use this service on the host's loopback interface.
    NetLoopback(Loopback),
    /// Use the tap interface of this name.
    NetTap(String),
    /// Read the file at this path as memory.
    PmemRead(PathBuf),
    /// Read and write the file at this path as memory.
    PmemWrite(PathBuf),
    /// Read wall-clock time.
    Time,
    /// Use the disk served on the socket at this path.
    VhostUserBlock(PathBuf),
    /// Use the network interface served on the socket at this path.
    VhostUserNet(PathBuf),
    /// Exchange sockets with processes of the host.
    Vsock,
}

/// Why a text is no capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCapabilityError {
    /// Nobody knows the name.
    #[error(transparent)]
    Unknown(#[from] UnknownName),
    /// The name needs an object.
    #[error("capability `{0}` needs {phrase}", phrase = .0.object().phrase())]
    NeedsObject(CapabilityName),
    /// The name takes no object.
    #[error("capability `{0}` takes no object")]
    TakesNoObject(CapabilityName),
    /// The object is no network rule.
    #[error(transparent)]
    Rule(#[from] ParseRuleError),
    /// The object is no listening socket.
    #[error(transparent)]
    Listen(#[from] ParseListenError),
    /// The object is no name of a network interface.
    #[error("`{}` is no name of a network interface", .0.escape_debug())]
    Interface(String),
}

impl ParseCapabilityError {
    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            Self::Unknown(unknown) => unknown.help(),
            Self::NeedsObject(name) => match name.object() {
                ObjectKind::Path(_) => format!(
                    "write `{name}:{0}`, or in a manifest {{ capability = \"{name}\", path = \"{0}\" }}",
                    name.example()
                ),
                _ => format!("write `{name}:{}`", name.example()),
            },
            Self::TakesNoObject(name) => format!("write `{name}` alone"),
            Self::Rule(_) | Self::Listen(_) => {
                "docs/manifest.md has all forms of a network grant".to_owned()
            }
            Self::Interface(_) => {
                format!("a name is 1 to {MAX_INTERFACE} bytes without spaces, / and :")
            }
        }
    }
}

impl Capability {
    /// Builds a capability from its two parts.
    ///
    /// # Errors
    /// An object is missing, empty or malformed, or given to a name that takes none.
    pub fn new(name: CapabilityName, object: Option<&str>) -> Result<Self, ParseCapabilityError> {
        use CapabilityName as N;
        let object = object.filter(|object| !object.is_empty());
        let text = match (name.object(), object) {
            (ObjectKind::None, Some(_)) => {
                return Err(ParseCapabilityError::TakesNoObject(name));
            }
            (ObjectKind::None, None) => "",
            (_, None) => return Err(ParseCapabilityError::NeedsObject(name)),
            (_, Some(text)) => text,
        };
        let path = || PathBuf::from(text);
        Ok(match name {
            N::BlockRead => Self::BlockRead(path()),
            N::BlockWrite => Self::BlockWrite(path()),
            N::FsRead => Self::FsRead(path()),
            N::FsWrite => Self::FsWrite(path()),
            N::PmemRead => Self::PmemRead(path()),
            N::PmemWrite => Self::PmemWrite(path()),
            N::VhostUserBlock => Self::VhostUserBlock(path()),
            N::VhostUserNet => Self::VhostUserNet(path()),
            N::NetConnect => Self::NetConnect(parse_rule(text)?),
            N::NetListen => Self::NetListen(text.parse()?),
            N::NetLoopback => Self::NetLoopback(parse_loopback(text)?),
            N::NetTap => Self::NetTap(interface(text)?),
            N::Console => Self::Console,
            N::Entropy => Self::Entropy,
            N::Time => Self::Time,
            N::Vsock => Self::Vsock,
        })
    }

    /// The name without its object.
    pub fn name(&self) -> CapabilityName {
        match self {
            Self::BlockRead(_) => CapabilityName::BlockRead,
            Self::BlockWrite(_) => CapabilityName::BlockWrite,
            Self::Console => CapabilityName::Console,
            Self::Entropy => CapabilityName::Entropy,
            Self::FsRead(_) => CapabilityName::FsRead,
            Self::FsWrite(_) => CapabilityName::FsWrite,
            Self::NetConnect(_) => CapabilityName::NetConnect,
            Self::NetListen(_) => CapabilityName::NetListen,
            Self::NetLoopback(_) => CapabilityName::NetLoopback,
            Self::NetTap(_) => CapabilityName::NetTap,
            Self::PmemRead(_) => CapabilityName::PmemRead,
            Self::PmemWrite(_) => CapabilityName::PmemWrite,
            Self::Time => CapabilityName::Time,
            Self::VhostUserBlock(_) => CapabilityName::VhostUserBlock,
            Self::VhostUserNet(_) => CapabilityName::VhostUserNet,
            Self::Vsock => CapabilityName::Vsock,
        }
    }

    /// The object, of a capability whose object is a path.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::BlockRead(path)
            | Self::BlockWrite(path)
            | Self::FsRead(path)
            | Self::FsWrite(path)
            | Self::PmemRead(path)
            | Self::PmemWrite(path)
            | Self::VhostUserBlock(path)
            | Self::VhostUserNet(path) => Some(path),
            Self::Console
            | Self::Entropy
            | Self::NetConnect(_)
            | Self::NetListen(_)
            | Self::NetLoopback(_)
            | Self::NetTap(_)
            | Self::Time
            | Self::Vsock => None,
        }
    }

    /// True when whoever holds `other` may already do all that `self` allows. Paths are compared
    /// by their components: two names of one file are two objects, and a directory does not
    /// include those below it, since a name below may be a link that leads out of it.
    pub fn is_narrower_or_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::BlockRead(a), Self::BlockWrite(b))
            | (Self::FsRead(a), Self::FsWrite(b))
            | (Self::PmemRead(a), Self::PmemWrite(b)) => a == b,
            (Self::NetConnect(a), Self::NetConnect(b)) => rule_is_narrower_or_equal(a, b),
            (Self::NetListen(a), Self::NetListen(b)) => a.is_narrower_or_equal(b),
            _ => self == other,
        }
    }

    /// What both allow; never more than either. Where no single capability says it, nothing.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::NetConnect(a), Self::NetConnect(b)) => {
                intersect_rules(a, b).map(Self::NetConnect)
            }
            _ if self.is_narrower_or_equal(other) => Some(self.clone()),
            _ if other.is_narrower_or_equal(self) => Some(other.clone()),
            _ => None,
        }
    }
}

/// A name that Linux takes for a network interface.
fn interface(text: &str) -> Result<String, ParseCapabilityError> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    if text.len() > MAX_INTERFACE || matches!(text, "." | "..") || !text.bytes().all(plain) {
        return Err(ParseCapabilityError::Interface(text.to_owned()));
    }
    Ok(text.to_owned())
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::NetConnect(rule) => write!(f, "{name}:{rule}"),
            Self::NetListen(listen) => write!(f, "{name}:{listen}"),
            Self::NetLoopback(loopback) => write!(f, "{name}:{loopback}"),
            Self::NetTap(interface) => write!(f, "{name}:{interface}"),
            _ => match self.path() {
                Some(path) => write!(f, "{name}:{}", path.display()),
                None => write!(f, "{name}"),
            },
        }
    }
}

impl FromStr for Capability {
    type Err = ParseCapabilityError;

    /// Parses `name` or `name:object`.
    fn from_str(text: &str) -> Result<Self, ParseCapabilityError> {
        let (name, object) = match text.split_once(':') {
            Some((name, object)) => (name, Some(object)),
            None => (text, None),
        };
        let name: CapabilityName = name.parse()?;
        if object.is_some() && name.object() == ObjectKind::None {
            return Err(ParseCapabilityError::TakesNoObject(name));
        }
        Self::new(name, object)
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

    /// Any capability over a handful of objects, so that they coincide and overlap often.
    pub(crate) fn any_capability() -> impl Strategy<Value = Capability> {
        any_of(&[
            "tcp:*:*",
            "*:80",
            "a.org:80-90",
            "a.org:85-443",
            "*.org:80-443",
            "*.a.org:80",
            "udp:a.org:80-90",
            "10.0.0.0/8:80-90",
            "10.1.0.0/16:1-85",
            "10.1.2.3:*",
            "udp:*:53",
        ])
    }

    /// The same with subnets of which `*` has only a part.
    fn any_capability_at_all() -> impl Strategy<Value = Capability> {
        any_of(&[
            "*:80",
            "0.0.0.0/0:80",
            "128.0.0.0/1:1-90",
            "169.254.1.1:80",
            "udp:*:80",
        ])
    }

    fn any_of(rules: &'static [&'static str]) -> impl Strategy<Value = Capability> {
        let paths = ["a.img", "b.img", "dir/a.img", "/dev/sdx", "a:b"];
        let listens = [
            "0.0.0.0:80=80",
            "127.0.0.1:80=80",
            "127.0.0.1:80=81",
            "[::]:80=80",
        ];
        let objects = (
            prop::sample::select(paths.to_vec()),
            prop::sample::select(rules),
            prop::sample::select(listens.to_vec()),
            prop::sample::select(vec!["tcp:80", "tcp:80=81", "udp:80"]),
        );
        (prop::sample::select(CapabilityName::ALL.to_vec()), objects).prop_map(
            |(name, (path, rule, listen, loopback))| {
                let object = match name.object() {
                    ObjectKind::None => None,
                    ObjectKind::Path(_) => Some(path),
                    ObjectKind::Rule => Some(rule),
                    ObjectKind::Listen => Some(listen),
                    ObjectKind::Loopback => Some(loopback),
                    ObjectKind::Interface => Some("tap0"),
                };
                Capability::new(name, object).unwrap()
            },
        )
    }

    #[test]
    fn parses_names_and_objects() {
        for (text, capability) in [
            ("console", Capability::Console),
            ("entropy", Capability::Entropy),
            ("time", Capability::Time),
            ("vsock", Capability::Vsock),
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
            ("fs.read:/srv", Capability::FsRead("/srv".into())),
            ("fs.write:data", Capability::FsWrite("data".into())),
            ("pmem.read:m", Capability::PmemRead("m".into())),
            ("pmem.write:m", Capability::PmemWrite("m".into())),
            (
                "vhost_user.block:/s",
                Capability::VhostUserBlock("/s".into()),
            ),
            ("vhost_user.net:/s", Capability::VhostUserNet("/s".into())),
            ("net.tap:tap0", Capability::NetTap("tap0".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(capability), "{text}");
        }
    }

    #[test]
    fn network_objects_are_printed_in_full() {
        for (text, printed) in [
            (
                "net.connect:deb.debian.org:80",
                "net.connect:tcp:deb.debian.org:80",
            ),
            (
                "net.connect:udp:10.0.0.0/8:*",
                "net.connect:udp:10.0.0.0/8:*",
            ),
            ("net.connect:*:443", "net.connect:tcp:*:443"),
            ("net.listen:8080=80", "net.listen:127.0.0.1:8080=80"),
            ("net.loopback:5432", "net.loopback:tcp:5432"),
            ("net.loopback:udp:53=5353", "net.loopback:udp:53=5353"),
        ] {
            let capability: Capability = text.parse().unwrap();
            assert_eq!(capability.to_string(), printed);
            assert_eq!(printed.parse(), Ok(capability));
        }
    }

    #[test]
    fn refuses_what_is_incomplete_or_too_much() {
        use CapabilityName as N;
        use ParseCapabilityError as E;
        for (text, error) in [
            ("block.read", E::NeedsObject(N::BlockRead)),
            ("block.write:", E::NeedsObject(N::BlockWrite)),
            ("net.connect", E::NeedsObject(N::NetConnect)),
            ("net.tap:", E::NeedsObject(N::NetTap)),
            ("console:x", E::TakesNoObject(N::Console)),
            ("time:", E::TakesNoObject(N::Time)),
            ("vsock:3", E::TakesNoObject(N::Vsock)),
            ("net.tap:a/b", E::Interface("a/b".to_owned())),
            (
                "net.tap:sixteen-bytes-xx",
                E::Interface("sixteen-bytes-xx".to_owned()),
            ),
        ] {
            assert_eq!(text.parse::<Capability>(), Err(error), "{text}");
        }
        for text in ["net.connect:x", "net.connect:sctp:a:1", "net.loopback:x"] {
            assert!(
                matches!(text.parse::<Capability>(), Err(E::Rule(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "net.listen:x".parse::<Capability>(),
            Err(E::Listen(_))
        ));
        assert!(matches!("*".parse::<Capability>(), Err(E::Unknown(_))));
    }

    #[test]
    fn reading_is_narrower_than_writing_the_same_object_only() {
        for family in ["block", "fs", "pmem"] {
            let of = |text: String| text.parse::<Capability>().unwrap();
            let read = of(format!("{family}.read:a"));
            let write = of(format!("{family}.write:a"));
            let other = of(format!("{family}.write:a/b"));
            assert!(read.is_narrower_or_equal(&write));
            assert!(!write.is_narrower_or_equal(&read));
            assert!(!read.is_narrower_or_equal(&other) && !other.is_narrower_or_equal(&write));
            assert_eq!(write.intersect(&read), Some(read));
            assert_eq!(write.intersect(&other), None);
        }
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
        fn intersection_never_widens(
            a in any_capability_at_all(), b in any_capability_at_all()
        ) {
            if let Some(both) = a.intersect(&b) {
                prop_assert!(both.is_narrower_or_equal(&a) && both.is_narrower_or_equal(&b));
            }
        }

        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,64}") {
            if let Ok(capability) = text.parse::<Capability>() {
                prop_assert_eq!(capability.to_string().parse(), Ok(capability));
            }
        }
    }
}
