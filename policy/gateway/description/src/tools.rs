//! What a partition's tools ask of its gateway: connections to web servers, in the partition's name. They
//! have no network of their own.
//!
//! Each packet on the socket ([`NetworkDescription::tools`](crate::NetworkDescription::tools)) is one
//! [`Wanted`] or one [`Answer`], as JSON. With an answer that refuses nothing comes one end of a stream,
//! on which HTTP/1.1 is spoken in the clear, whatever the gateway speaks to the server.

use serde::{Deserialize, Serialize};

/// Longest packet.
pub const MAX_PACKET: usize = 2048;

/// A connection that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// By which the answer is known.
    pub id: u64,
    /// To whom: a name in lower case, without the final dot, or an IPv4 address.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// The server is spoken to by TLS.
    pub tls: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Of what was wanted.
    pub id: u64,
    /// Why there is no connection.
    #[serde(default)]
    pub refused: Option<String>,
}
