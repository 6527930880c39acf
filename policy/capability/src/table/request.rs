//! One act that a partition wants to do, as whoever enforces a grant describes it.

use crate::capability::Capability;
use crate::name::CapabilityName;
use bulkhead_network::Protocol;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// An act, borrowed from whoever asks. Names of hosts are taken in any case, with or without the
/// final dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'r> {
    /// Connect or send somewhere. Where both name and address are known, a grant of either allows
    /// it, and a denial of either forbids it.
    Connect {
        /// Over this.
        protocol: Protocol,
        /// The name that stands for the address, or that the bytes ask for.
        name: Option<&'r str>,
        /// The address.
        address: Option<Ipv4Addr>,
        /// The port.
        port: u16,
        /// Method and path (without query) of a web request.
        http: Option<(&'r str, &'r str)>,
    },
    /// Resolve a name, and no more.
    Resolve(&'r str),
    /// Have a secret used.
    Secret(&'r str),
    /// Talk to a model.
    Model(&'r str),
    /// Call a tool with these paths among its arguments.
    Tool(&'r str, &'r [PathBuf]),
    /// Run a program.
    Exec(&'r str),
    /// Start a partition of a role, which is the `count`th of it then.
    Spawn(&'r str, u32),
    /// Read a file or directory of the host, or change it.
    File {
        /// Absolute, without `.` and `..`.
        path: &'r Path,
        /// It is changed.
        write: bool,
    },
}

impl Request<'_> {
    /// The name of the capability that it takes.
    pub fn name(&self) -> CapabilityName {
        match self {
            Self::Connect { .. } => CapabilityName::NetConnect,
            Self::Resolve(_) => CapabilityName::DnsResolve,
            Self::Secret(_) => CapabilityName::SecretUse,
            Self::Model(_) => CapabilityName::ModelChat,
            Self::Tool(..) => CapabilityName::ToolCall,
            Self::Exec(_) => CapabilityName::Exec,
            Self::Spawn(..) => CapabilityName::PartitionSpawn,
            Self::File { write: false, .. } => CapabilityName::FsRead,
            Self::File { write: true, .. } => CapabilityName::FsWrite,
        }
    }

    /// The narrowest capability that would allow it, as far as an object can say; `None` if none
    /// can be written.
    pub fn capability(&self) -> Option<Capability> {
        let object = match self {
            Self::Connect {
                protocol,
                name,
                address,
                port,
                ..
            } => {
                let address = address.map(|address| address.to_string());
                let host = name.map(str::to_owned).or(address)?;
                format!("{protocol}:{host}:{port}")
            }
            Self::Resolve(text)
            | Self::Secret(text)
            | Self::Model(text)
            | Self::Tool(text, _)
            | Self::Exec(text) => (*text).to_owned(),
            Self::Spawn(role, count) => format!("{role}={count}"),
            Self::File { path, .. } => path.parent().unwrap_or(path).to_str()?.to_owned(),
        };
        Capability::new(self.name(), Some(&object)).ok()
    }
}

impl fmt::Display for Request<'_> {
    /// `net.connect api.example.org:443 POST /v1/x`, for a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.name())?;
        match self {
            Self::Connect {
                protocol,
                name,
                address,
                port,
                http,
            } => {
                write!(f, "{protocol}:")?;
                match (name, address) {
                    (Some(name), Some(address)) => write!(f, "{name} ({address}):{port}")?,
                    (Some(name), None) => write!(f, "{name}:{port}")?,
                    (None, Some(address)) => write!(f, "{address}:{port}")?,
                    (None, None) => write!(f, "?:{port}")?,
                }
                match http {
                    Some((method, path)) => write!(f, " {method} {path}"),
                    None => Ok(()),
                }
            }
            Self::Resolve(text) | Self::Secret(text) | Self::Model(text) | Self::Exec(text) => {
                f.write_str(text)
            }
            Self::Tool(tool, paths) => {
                f.write_str(tool)?;
                paths
                    .iter()
                    .try_for_each(|path| write!(f, " {}", path.display()))
            }
            Self::Spawn(role, count) => write!(f, "{role}={count}"),
            Self::File { path, .. } => write!(f, "{}", path.display()),
        }
    }
}
