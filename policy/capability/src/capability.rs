//! One grant: a name and, where the name has one, its object.

use crate::name::{CapabilityName, ObjectKind, UnknownName};
use crate::object::is_plain_name;
use crate::object::network::{
    Listen, ParseDnsNameError, ParseListenError, host_is_narrower_or_equal, intersect_hosts,
    intersect_rules, parse_dns_name, parse_loopback, parse_rule, rule_is_denied_by,
    rule_is_narrower_or_equal,
};
use crate::object::pattern::{NamePattern, ParsePatternError};
use crate::object::pci::{ParsePciError, PciAddress};
use crate::object::ring::{ParseRingError, RingEnd};
use crate::object::spawn::{ParseSpawnError, Spawn};
use bulkhead_network::http::{ParseHttpError, PathPattern};
use bulkhead_network::{Host, Loopback, ParseRuleError, Rule};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest name of a network interface (Linux's `IFNAMSIZ`, less its final NUL).
const MAX_INTERFACE: usize = 15;

/// What a partition is allowed: exactly one device or service, or a kind of requests. Nothing is
/// implied by another variant, except that `.write` includes reading the same object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Capability {
    /// Read the disk at this path.
    BlockRead(PathBuf),
    /// Read and write the disk at this path.
    BlockWrite(PathBuf),
    /// Use the console streams.
    Console,
    /// Use the PCI device at this address of the host.
    DevicePci(PciAddress),
    /// Resolve this name, or those below it. Connecting takes `net.connect`, which resolves too.
    DnsResolve(Host),
    /// Use the host's random source.
    Entropy,
    /// Have tools run the programs at these paths.
    Exec(PathPattern),
    /// Read the directory at this path.
    FsRead(PathBuf),
    /// Read and change the directory at this path.
    FsWrite(PathBuf),
    /// Talk to these models.
    ModelChat(NamePattern),
    /// Connect or send to these hosts and ports.
    NetConnect(Rule),
    /// Be reached through this socket of the host.
    NetListen(Listen),
    /// Use this service on the host's loopback interface.
    NetLoopback(Loopback),
    /// Use the tap interface of this name.
    NetTap(String),
    /// Start partitions of a role.
    PartitionSpawn(Spawn),
    /// Read the file at this path as memory.
    PmemRead(PathBuf),
    /// Read and write the file at this path as memory.
    PmemWrite(PathBuf),
    /// Take from this ring.
    RingReceive(RingEnd),
    /// Put into this ring.
    RingSend(RingEnd),
    /// Have the secret of this name used.
    SecretUse(String),
    /// Read wall-clock time.
    Time,
    /// Call these tools.
    ToolCall(NamePattern),
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
    /// The object is no name to resolve.
    #[error(transparent)]
    DnsName(#[from] ParseDnsNameError),
    /// The object is no name or pattern of names.
    #[error(transparent)]
    Pattern(#[from] ParsePatternError),
    /// The object is no ring.
    #[error(transparent)]
    Ring(#[from] ParseRingError),
    /// The object is no PCI address.
    #[error(transparent)]
    Pci(#[from] ParsePciError),
    /// The object is no role and number.
    #[error(transparent)]
    Spawn(#[from] ParseSpawnError),
    /// The object is no pattern of paths.
    #[error(transparent)]
    Programs(#[from] ParseHttpError),
    /// The object is no name of a secret.
    #[error("`{}` is no name of a secret", .0.escape_debug())]
    Secret(String),
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
            Self::DnsName(_)
            | Self::Pattern(_)
            | Self::Ring(_)
            | Self::Pci(_)
            | Self::Spawn(_)
            | Self::Programs(_) => "docs/capabilities.md has the objects of all names".to_owned(),
            Self::Secret(_) => {
                "a name is 1 to 64 of letters, digits, ., _ and -, and starts with a letter or digit"
                    .to_owned()
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
            N::DevicePci => Self::DevicePci(text.parse()?),
            N::DnsResolve => Self::DnsResolve(parse_dns_name(text)?),
            N::Exec => Self::Exec(text.parse()?),
            N::ModelChat => Self::ModelChat(text.parse()?),
            N::PartitionSpawn => Self::PartitionSpawn(text.parse()?),
            N::RingReceive => Self::RingReceive(text.parse()?),
            N::RingSend => Self::RingSend(text.parse()?),
            N::SecretUse if is_plain_name(text) => Self::SecretUse(text.to_owned()),
            N::SecretUse => return Err(ParseCapabilityError::Secret(text.to_owned())),
            N::ToolCall => Self::ToolCall(text.parse()?),
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
            Self::DevicePci(_) => CapabilityName::DevicePci,
            Self::DnsResolve(_) => CapabilityName::DnsResolve,
            Self::Entropy => CapabilityName::Entropy,
            Self::Exec(_) => CapabilityName::Exec,
            Self::FsRead(_) => CapabilityName::FsRead,
            Self::FsWrite(_) => CapabilityName::FsWrite,
            Self::ModelChat(_) => CapabilityName::ModelChat,
            Self::NetConnect(_) => CapabilityName::NetConnect,
            Self::NetListen(_) => CapabilityName::NetListen,
            Self::NetLoopback(_) => CapabilityName::NetLoopback,
            Self::NetTap(_) => CapabilityName::NetTap,
            Self::PartitionSpawn(_) => CapabilityName::PartitionSpawn,
            Self::PmemRead(_) => CapabilityName::PmemRead,
            Self::PmemWrite(_) => CapabilityName::PmemWrite,
            Self::RingReceive(_) => CapabilityName::RingReceive,
            Self::RingSend(_) => CapabilityName::RingSend,
            Self::SecretUse(_) => CapabilityName::SecretUse,
            Self::Time => CapabilityName::Time,
            Self::ToolCall(_) => CapabilityName::ToolCall,
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
            _ => None,
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
            (Self::DnsResolve(a), Self::DnsResolve(b)) => host_is_narrower_or_equal(a, b),
            (Self::Exec(a), Self::Exec(b)) => a.is_narrower_or_equal(b),
            (Self::ModelChat(a), Self::ModelChat(b)) | (Self::ToolCall(a), Self::ToolCall(b)) => {
                a.is_narrower_or_equal(b)
            }
            (Self::PartitionSpawn(a), Self::PartitionSpawn(b)) => a.is_narrower_or_equal(b),
            _ => self == other,
        }
    }

    /// What both allow; never more than either.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::NetConnect(a), Self::NetConnect(b)) => {
                intersect_rules(a, b).map(Self::NetConnect)
            }
            (Self::DnsResolve(a), Self::DnsResolve(b)) => {
                intersect_hosts(a, b).cloned().map(Self::DnsResolve)
            }
            (Self::Exec(a), Self::Exec(b)) => a.intersect(b).map(Self::Exec),
            _ if self.is_narrower_or_equal(other) => Some(self.clone()),
            _ if other.is_narrower_or_equal(self) => Some(other.clone()),
            _ => None,
        }
    }

    /// True when `self` would allow something that a denial of `denied` forbids. A denied path takes
    /// everything below it along, and whatever is above it, which would show it; a denied `.write`
    /// leaves reading, a denied `.read` leaves nothing; a denied role leaves no number; a denied `*`
    /// or subnet leaves no address of it, private ones included.
    pub fn is_denied_by(&self, denied: &Self) -> bool {
        match (self, denied) {
            (Self::BlockRead(_), Self::BlockWrite(_))
            | (Self::FsRead(_), Self::FsWrite(_))
            | (Self::PmemRead(_), Self::PmemWrite(_)) => false,
            (Self::BlockWrite(a), Self::BlockRead(b))
            | (Self::FsWrite(a), Self::FsRead(b))
            | (Self::PmemWrite(a), Self::PmemRead(b)) => a.starts_with(b) || b.starts_with(a),
            (Self::PartitionSpawn(a), Self::PartitionSpawn(b)) => a.role() == b.role(),
            (Self::NetConnect(a), Self::NetConnect(b)) => rule_is_denied_by(a, b),
            _ => match (self.path(), denied.path()) {
                (Some(a), Some(b)) if self.name() == denied.name() => {
                    a.starts_with(b) || b.starts_with(a)
                }
                _ => self.intersect(denied).is_some(),
            },
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
            Self::DevicePci(address) => write!(f, "{name}:{address}"),
            Self::DnsResolve(host) => write!(f, "{name}:{host}"),
            Self::Exec(programs) => write!(f, "{name}:{programs}"),
            Self::ModelChat(pattern) | Self::ToolCall(pattern) => write!(f, "{name}:{pattern}"),
            Self::PartitionSpawn(spawn) => write!(f, "{name}:{spawn}"),
            Self::RingReceive(ring) | Self::RingSend(ring) => write!(f, "{name}:{ring}"),
            Self::SecretUse(secret) => write!(f, "{name}:{secret}"),
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

crate::object::text_form!(Capability, ParseCapabilityError);

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn objects_of_requests_are_printed_in_full() {
        for (text, printed) in [
            ("device.pci:03:00.0", "device.pci:0000:03:00.0"),
            ("dns.resolve:*.Example.org.", "dns.resolve:*.example.org"),
            ("exec:/usr/bin/*", "exec:/usr/bin/*"),
            ("model.chat:meta/llama3:8b", "model.chat:meta/llama3:8b"),
            ("partition.spawn:worker", "partition.spawn:worker=1"),
            ("ring.send:db/queries", "ring.send:db/queries"),
            ("ring.receive:db/answers", "ring.receive:db/answers"),
            ("secret.use:api-key", "secret.use:api-key"),
            ("tool.call:fs.*", "tool.call:fs.*"),
        ] {
            let capability: Capability = text.parse().unwrap();
            assert_eq!(capability.to_string(), printed);
            assert_eq!(printed.parse(), Ok(capability));
        }
        for wrong in [
            "device.pci:x",
            "dns.resolve:*",
            "dns.resolve:10.0.0.1",
            "exec:git",
            "exec:/usr/../bin/x",
            "model.chat:a*b",
            "partition.spawn:worker=0",
            "ring.send:db",
            "secret.use:../key",
            "secret.use:*",
            "tool.call:",
        ] {
            let error = wrong.parse::<Capability>().unwrap_err();
            assert!(!error.help().is_empty(), "{wrong}");
        }
    }

    #[test]
    fn a_denial_takes_its_part_of_what_is_granted() {
        for (granted, denied, expected) in [
            ("fs.write:/", "fs.write:/etc", true),
            ("fs.write:/etc/nginx", "fs.write:/etc", true),
            ("fs.read:/etc", "fs.write:/etc", false),
            ("fs.write:/etc", "fs.read:/etc", true),
            ("fs.write:/etcetera", "fs.read:/etc", false),
            ("block.read:/dev/sda", "block.write:/dev", false),
            ("block.write:/dev/sda", "block.write:/dev", true),
            ("block.write:/dev/sda", "fs.write:/dev", false),
            ("net.connect:*:1-100", "net.connect:8.0.0.0/8:80", true),
            ("net.connect:*:1-100", "net.connect:10.0.0.0/8:80", false),
            ("net.connect:*:1-79", "net.connect:8.0.0.0/8:80", false),
            ("net.connect:a.org:80", "net.connect:10.0.0.0/8:80", false),
            ("tool.call:fs.*", "tool.call:fs.delete", true),
            ("tool.call:fs.delete", "tool.call:fs.*", true),
            ("tool.call:git.*", "tool.call:fs.*", false),
            ("exec:/usr/bin/*", "exec:/usr/bin/curl", true),
            ("partition.spawn:worker=4", "partition.spawn:worker=1", true),
            ("secret.use:a", "secret.use:b", false),
            ("vsock", "vsock", true),
        ] {
            let of = |text: &str| text.parse::<Capability>().unwrap();
            assert_eq!(
                of(granted).is_denied_by(&of(denied)),
                expected,
                "{granted} {denied}"
            );
        }
    }
}
