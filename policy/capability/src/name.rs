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
    /// `device.pci`: one PCI device of the host.
    DevicePci,
    /// `dns.resolve`: learn the addresses of a name, without connecting to them.
    DnsResolve,
    /// `entropy`: the host's random source.
    Entropy,
    /// `exec`: have tools run programs.
    Exec,
    /// `fs.read`: read one directory of the host.
    FsRead,
    /// `fs.write`: read and change one directory of the host.
    FsWrite,
    /// `model.chat`: talk to language models.
    ModelChat,
    /// `net.connect`: connect or send to where one rule says, through the user-mode network.
    NetConnect,
    /// `net.listen`: be reached on one address and port of the host.
    NetListen,
    /// `net.loopback`: use one service on the host's loopback interface.
    NetLoopback,
    /// `net.tap`: one tap interface of the host, and whatever network it is on.
    NetTap,
    /// `partition.spawn`: start partitions of a role.
    PartitionSpawn,
    /// `pmem.read`: one file as memory that is only read.
    PmemRead,
    /// `pmem.write`: one file as memory.
    PmemWrite,
    /// `ring.receive`: take what another partition puts into a ring.
    RingReceive,
    /// `ring.send`: put something into a ring that another partition reads.
    RingSend,
    /// `secret.use`: have a secret used in one's name, without seeing it.
    SecretUse,
    /// `time`: wall-clock time.
    Time,
    /// `tool.call`: call tools.
    ToolCall,
    /// `vhost_user.block`: the disk that a process of the host serves on one socket.
    VhostUserBlock,
    /// `vhost_user.net`: the network interface that a process of the host serves on one socket.
    VhostUserNet,
    /// `vsock`: sockets between the partition and processes of the host.
    Vsock,
}

/// What the object of a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// It has none.
    None,
    /// A path of the host; the text says of what.
    Path(&'static str),
    /// A [`bulkhead_network::Rule`].
    Rule,
    /// A [`crate::Listen`].
    Listen,
    /// A [`bulkhead_network::Loopback`].
    Loopback,
    /// The name of a network interface.
    Interface,
    /// A DNS name, or all below one.
    DnsName,
    /// A [`crate::RingEnd`].
    Ring,
    /// A [`crate::PciAddress`].
    Pci,
    /// The name of a secret.
    Secret,
    /// A [`crate::NamePattern`] of tools or models; the text says of which.
    Pattern(&'static str),
    /// A [`crate::Spawn`].
    Spawn,
    /// A [`bulkhead_network::http::PathPattern`] of programs.
    Programs,
}

/// Who sees to it that a partition does no more than its grants say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enforcer {
    /// The machine: without the grant there is no device, and the VMM has no descriptor.
    Machine,
    /// The partition's gateway, through which its network and web requests pass.
    Gateway,
    /// The partition's process of tools.
    Tools,
    /// The supervisor.
    Supervisor,
    /// Nobody yet, so that a manifest with such a grant is refused.
    Nobody,
}

impl ObjectKind {
    /// An object of this kind, for a sentence.
    pub(crate) fn phrase(self) -> String {
        match self {
            Self::None => "no object".to_owned(),
            Self::Path(what) => format!("the path of a {what}"),
            Self::Rule => "a network rule".to_owned(),
            Self::Listen => "a socket to listen on".to_owned(),
            Self::Loopback => "a port of the host".to_owned(),
            Self::Interface => "the name of a tap interface".to_owned(),
            Self::DnsName => "a DNS name".to_owned(),
            Self::Ring => "a partition and a ring".to_owned(),
            Self::Pci => "a PCI address".to_owned(),
            Self::Secret => "the name of a secret".to_owned(),
            Self::Pattern(what) => format!("the name of a {what}, or a pattern"),
            Self::Spawn => "a role".to_owned(),
            Self::Programs => "the path of a program, or a pattern".to_owned(),
        }
    }
}

impl CapabilityName {
    /// Every name, in alphabetical order.
    pub const ALL: [Self; 25] = [
        Self::BlockRead,
        Self::BlockWrite,
        Self::Console,
        Self::DevicePci,
        Self::DnsResolve,
        Self::Entropy,
        Self::Exec,
        Self::FsRead,
        Self::FsWrite,
        Self::ModelChat,
        Self::NetConnect,
        Self::NetListen,
        Self::NetLoopback,
        Self::NetTap,
        Self::PartitionSpawn,
        Self::PmemRead,
        Self::PmemWrite,
        Self::RingReceive,
        Self::RingSend,
        Self::SecretUse,
        Self::Time,
        Self::ToolCall,
        Self::VhostUserBlock,
        Self::VhostUserNet,
        Self::Vsock,
    ];

    /// The name as people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlockRead => "block.read",
            Self::BlockWrite => "block.write",
            Self::Console => "console",
            Self::DevicePci => "device.pci",
            Self::DnsResolve => "dns.resolve",
            Self::Entropy => "entropy",
            Self::Exec => "exec",
            Self::FsRead => "fs.read",
            Self::FsWrite => "fs.write",
            Self::ModelChat => "model.chat",
            Self::NetConnect => "net.connect",
            Self::NetListen => "net.listen",
            Self::NetLoopback => "net.loopback",
            Self::NetTap => "net.tap",
            Self::PartitionSpawn => "partition.spawn",
            Self::PmemRead => "pmem.read",
            Self::PmemWrite => "pmem.write",
            Self::RingReceive => "ring.receive",
            Self::RingSend => "ring.send",
            Self::SecretUse => "secret.use",
            Self::Time => "time",
            Self::ToolCall => "tool.call",
            Self::VhostUserBlock => "vhost_user.block",
            Self::VhostUserNet => "vhost_user.net",
            Self::Vsock => "vsock",
        }
    }

    /// What its object is.
    pub fn object(self) -> ObjectKind {
        match self {
            Self::BlockRead | Self::BlockWrite => ObjectKind::Path("disk"),
            Self::FsRead | Self::FsWrite => ObjectKind::Path("directory"),
            Self::PmemRead | Self::PmemWrite => ObjectKind::Path("file"),
            Self::VhostUserBlock | Self::VhostUserNet => ObjectKind::Path("socket"),
            Self::NetConnect => ObjectKind::Rule,
            Self::NetListen => ObjectKind::Listen,
            Self::NetLoopback => ObjectKind::Loopback,
            Self::NetTap => ObjectKind::Interface,
            Self::DnsResolve => ObjectKind::DnsName,
            Self::RingReceive | Self::RingSend => ObjectKind::Ring,
            Self::DevicePci => ObjectKind::Pci,
            Self::SecretUse => ObjectKind::Secret,
            Self::ToolCall => ObjectKind::Pattern("tool"),
            Self::ModelChat => ObjectKind::Pattern("model"),
            Self::PartitionSpawn => ObjectKind::Spawn,
            Self::Exec => ObjectKind::Programs,
            Self::Console | Self::Entropy | Self::Time | Self::Vsock => ObjectKind::None,
        }
    }

    /// An object for an example.
    pub(crate) fn example(self) -> &'static str {
        match self {
            Self::BlockRead | Self::BlockWrite => "disk.img",
            Self::FsRead | Self::FsWrite => "/srv/data",
            Self::PmemRead | Self::PmemWrite => "memory.img",
            Self::VhostUserBlock | Self::VhostUserNet => "/run/backend.sock",
            Self::NetConnect => "deb.debian.org:80",
            Self::NetListen => "127.0.0.1:8080=80",
            Self::NetLoopback => "tcp:5432",
            Self::NetTap => "tap0",
            Self::DnsResolve => "example.org",
            Self::RingReceive | Self::RingSend => "db/queries",
            Self::DevicePci => "0000:03:00.0",
            Self::SecretUse => "api-key",
            Self::ToolCall => "fs.*",
            Self::ModelChat => "gpt-*",
            Self::PartitionSpawn => "worker=4",
            Self::Exec => "/usr/bin/git",
            Self::Console | Self::Entropy | Self::Time | Self::Vsock => "",
        }
    }

    /// The constraints that mean something to it, by their keys in a manifest.
    pub fn constraints(self) -> &'static [&'static str] {
        match self {
            Self::NetConnect => &[
                "methods", "paths", "expires", "lifetime", "calls", "bytes", "approval",
            ],
            Self::ToolCall => &["below", "expires", "lifetime", "calls", "approval"],
            Self::ModelChat => &["expires", "lifetime", "calls", "approval"],
            Self::DnsResolve | Self::NetListen => &["expires", "lifetime", "calls"],
            Self::Exec => &["expires", "lifetime", "approval"],
            // A device is there or is not. What may be done with a secret is bound by [[secrets]] and by
            // the requests that it is in; whether a child may start, by conditions.
            _ => &[],
        }
    }

    /// Who sees to it that nothing beyond the grant is done.
    pub fn enforcer(self) -> Enforcer {
        match self {
            Self::BlockRead
            | Self::BlockWrite
            | Self::Console
            | Self::Entropy
            | Self::FsRead
            | Self::FsWrite
            | Self::NetTap
            | Self::PmemRead
            | Self::PmemWrite
            | Self::Time
            | Self::VhostUserBlock
            | Self::VhostUserNet
            | Self::Vsock => Enforcer::Machine,
            Self::DnsResolve
            | Self::ModelChat
            | Self::NetConnect
            | Self::NetListen
            | Self::NetLoopback
            | Self::SecretUse => Enforcer::Gateway,
            Self::Exec | Self::ToolCall => Enforcer::Tools,
            Self::PartitionSpawn => Enforcer::Supervisor,
            Self::DevicePci | Self::RingReceive | Self::RingSend => Enforcer::Nobody,
        }
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

impl fmt::Display for Enforcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "machine",
            Self::Gateway => "gateway",
            Self::Tools => "tools",
            Self::Supervisor => "supervisor",
            Self::Nobody => "nobody",
        })
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

/// The first name of the namespace `name`, else the known name within two edits of it, else the
/// first of its namespace.
fn closest(name: &str) -> Option<CapabilityName> {
    // A disk has one name, whatever it is on.
    if matches!(name, "device.block" | "disk") {
        return Some(CapabilityName::BlockRead);
    }
    // Comparing costs the product of both lengths, and the name comes from outside.
    if name.len() > 32 {
        return None;
    }
    let namespace = name.split('.').next().unwrap_or(name);
    let by_namespace = CapabilityName::ALL
        .into_iter()
        .find(|known| known.as_str().split('.').next() == Some(namespace));
    let by_edits = CapabilityName::ALL
        .into_iter()
        .map(|known| (strsim::levenshtein(known.as_str(), name), known))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, known)| known);
    if namespace == name {
        by_namespace.or(by_edits)
    } else {
        by_edits.or(by_namespace)
    }
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
            ("net.conect", Some(CapabilityName::NetConnect)),
            ("vhost_user", Some(CapabilityName::VhostUserBlock)),
            ("device.block", Some(CapabilityName::BlockRead)),
            ("device.usb", Some(CapabilityName::DevicePci)),
            ("ring.recieve", Some(CapabilityName::RingReceive)),
            ("tool", Some(CapabilityName::ToolCall)),
            ("camera", None),
            ("", None),
        ] {
            let refused = wrong.parse::<CapabilityName>().unwrap_err();
            assert_eq!(refused.suggestion, right, "{wrong}");
            assert_eq!(refused.name, wrong);
        }
        assert!("x".repeat(10_000).parse::<CapabilityName>().is_err());
    }
}
