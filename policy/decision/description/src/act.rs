//! An act of a partition, as it is about to be done, or as people ask about it.

use bulkhead_capability::table::Request;
use bulkhead_network::Protocol;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// One act of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Act {
    /// Connect or send somewhere.
    Connect {
        /// Over this.
        protocol: Protocol,
        /// To a name,
        name: Option<String>,
        /// or an address, or a name that stands for the address.
        address: Option<Ipv4Addr>,
        /// The port.
        port: u16,
        /// Method and path of a web request.
        http: Option<(String, String)>,
    },
    /// Resolve a name.
    Resolve(String),
    /// Have a secret used.
    Secret(String),
    /// Talk to a model.
    Model(String),
    /// Call a tool with these paths.
    Tool(String, Vec<PathBuf>),
    /// Run a program.
    Exec(String),
    /// Start a partition of a role, the so manieth of it.
    Spawn(String, u32),
    /// Read or change a file.
    File {
        /// Which.
        path: PathBuf,
        /// It is changed.
        write: bool,
    },
}

impl Act {
    /// The act as a table is asked.
    pub fn request(&self) -> Request<'_> {
        match self {
            Self::Connect {
                protocol,
                name,
                address,
                port,
                http,
            } => Request::Connect {
                protocol: *protocol,
                name: name.as_deref(),
                address: *address,
                port: *port,
                http: http
                    .as_ref()
                    .map(|(method, path)| (method.as_str(), path.as_str())),
            },
            Self::Resolve(name) => Request::Resolve(name),
            Self::Secret(name) => Request::Secret(name),
            Self::Model(name) => Request::Model(name),
            Self::Tool(name, paths) => Request::Tool(name, paths),
            Self::Exec(program) => Request::Exec(program),
            Self::Spawn(role, count) => Request::Spawn(role, *count),
            Self::File { path, write } => Request::File {
                path,
                write: *write,
            },
        }
    }
}
