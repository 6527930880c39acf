//! What a guest may reach, in words people write: `tcp:deb.debian.org:80`, `udp:10.0.0.0/8:*`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::range::{self, Range};

/// One allowed kind of flow out of the partition, in text `protocol:host:ports`, for example
/// `tcp:deb.debian.org:80`, `tcp:*.example.org:443`, `udp:192.0.2.0/24:5000-5999`, `tcp:*:*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// Which protocol.
    pub protocol: Protocol,
    /// To whom.
    pub host: Host,
    /// To which ports.
    pub ports: Ports,
}

/// A protocol that flows through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The host of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    /// `*`: every unicast address except loopback and those that are [set apart](range::SET_APART),
    /// as private ones are; the host's own public addresses are among them. All names resolve.
    Any,
    /// `192.0.2.1` or `192.0.2.0/24`: exactly these; of those that are [set
    /// apart](range::SET_APART), only where the whole subnet is in one such range. Loopback
    /// addresses cannot be written: that is what [`Loopback`] is for.
    Subnet {
        /// Lowest address.
        address: Ipv4Addr,
        /// Length of the prefix, 0 to 32.
        prefix: u8,
    },
    /// `deb.debian.org`: lower case, without the final dot. The name resolves, and what it
    /// resolved to is allowed for as long as the answer lives, at least five minutes. Never
    /// loopback addresses, nor any that are [set apart](range::SET_APART).
    Name(String),
    /// `*.debian.org`: the same for every name below, not for `debian.org` itself.
    Below(String),
}

/// An inclusive range of ports: `80`, `8000-8999`, or `*` for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// Lowest, at least 1.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

/// A service on the host's loopback: the guest's `router:port` is the host's
/// `127.0.0.1:host_port`. In text `protocol:port` or `protocol:port=host_port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Loopback {
    /// Which protocol.
    pub protocol: Protocol,
    /// Port that the guest uses.
    pub port: u16,
    /// Port on the host.
    pub host_port: u16,
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRuleError {
    /// Parts are missing.
    #[error("`{0}` is no network rule; write protocol:host:ports, as in tcp:example.org:443")]
    Form(String),
    /// Not `tcp` or `udp`.
    #[error("unknown protocol `{0}`; write tcp or udp")]
    Protocol(String),
    /// No address, subnet or name.
    #[error(
        "`{0}` is no host; write an IPv4 address, a subnet such as 192.0.2.0/24, a DNS name, \
         *.name, or * for any"
    )]
    Host(String),
    /// The host's loopback.
    #[error(
        "`{0}` is the host's own loopback, which no rule reaches; declare a loopback service such \
         as tcp:8080, which the guest finds at its router's address"
    )]
    LoopbackHost(String),
    /// No port or range.
    #[error("`{0}` is no port; write 1 to 65535, a range such as 8000-8999, or * for all")]
    Ports(String),
    /// Not a loopback service.
    #[error("`{0}` is no loopback service; write protocol:port, as in tcp:8080, or tcp:80=8080")]
    Loopback(String),
}

impl Ports {
    /// All ports.
    pub const ALL: Self = Self {
        first: 1,
        last: u16::MAX,
    };

    /// Whether `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl Host {
    /// Whether `address` is in the subnet; never for other kinds of hosts.
    pub fn holds(&self, address: Ipv4Addr) -> bool {
        match *self {
            Self::Subnet {
                address: first,
                prefix,
            } => Range { first, prefix }.holds(address),
            Self::Any | Self::Name(_) | Self::Below(_) => false,
        }
    }

    /// Whether it allows `address` as an address, whatever names stand for it.
    pub fn allows(&self, address: Ipv4Addr) -> bool {
        range::is_reachable(address)
            && match *self {
                Self::Any => !range::is_set_apart(address),
                Self::Subnet {
                    address: first,
                    prefix,
                } => {
                    let own = Range { first, prefix };
                    let says_so = || range::set_apart(own).is_some();
                    own.holds(address) && (!range::is_set_apart(address) || says_so())
                }
                Self::Name(_) | Self::Below(_) => false,
            }
    }

    /// Whether the rule speaks of `name`, which is in lower case, without the final dot.
    pub fn names(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Subnet { .. } => false,
            Self::Name(own) => own == name,
            Self::Below(parent) => name
                .strip_suffix(parent.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty()),
        }
    }
}

/// The netmask of a prefix of 0 to 32 bits.
pub(crate) fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32_u32.saturating_sub(prefix.into()))
        .unwrap_or(0)
}

impl FromStr for Protocol {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(ParseRuleError::Protocol(text.to_owned())),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Host {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseRuleError::Host(text.to_owned());
        if text == "*" {
            return Ok(Self::Any);
        }
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, prefix_length(prefix).ok_or_else(wrong)?),
            None => (text, 32),
        };
        if let Ok(address) = address.parse::<Ipv4Addr>() {
            if address.is_loopback() {
                return Err(ParseRuleError::LoopbackHost(text.to_owned()));
            }
            // Bits beyond the prefix are a slip of somebody who means a single host.
            if address.to_bits() & !mask(prefix) != 0 {
                return Err(wrong());
            }
            return Ok(Self::Subnet { address, prefix });
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match is_name(&name) {
            true if below => Ok(Self::Below(name)),
            true => Ok(Self::Name(name)),
            false => Err(wrong()),
        }
    }
}

/// 0 to 32 in decimal digits without a sign.
fn prefix_length(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let length = text.parse().ok().filter(|length| *length <= 32)?;
    digits.then_some(length)
}

/// Whether `name` is a host name (RFC 1123, section 2.1), with `_` too, in lower case. The last
/// label is not a number, so that a mistyped address is not taken for a name.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        let byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(byte)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.split('.').all(label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Subnet {
                address,
                prefix: 32,
            } => write!(f, "{address}"),
            Self::Subnet { address, prefix } => write!(f, "{address}/{prefix}"),
            Self::Name(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

/// A port in decimal digits without a sign, 1 to 65535.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| *port != 0)?;
    digits.then_some(port)
}

impl FromStr for Ports {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" {
            return Ok(Self::ALL);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(ParseRuleError::Ports(text.to_owned())),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("*"),
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

impl FromStr for Rule {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(protocol), Some(host), Some(ports), None) => Ok(Self {
                protocol: protocol.parse()?,
                host: host.parse()?,
                ports: ports.parse()?,
            }),
            _ => Err(ParseRuleError::Form(text.to_owned())),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.protocol, self.host, self.ports)
    }
}

impl FromStr for Loopback {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseRuleError::Loopback(text.to_owned());
        let (protocol, ports) = text.split_once(':').ok_or_else(wrong)?;
        let (inside, outside) = ports.split_once('=').unwrap_or((ports, ports));
        Ok(Self {
            protocol: protocol.parse()?,
            port: port(inside).ok_or_else(wrong)?,
            host_port: port(outside).ok_or_else(wrong)?,
        })
    }
}

impl fmt::Display for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.protocol, self.port)?;
        match self.port == self.host_port {
            true => Ok(()),
            false => write!(f, "={}", self.host_port),
        }
    }
}

macro_rules! text_form {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = ParseRuleError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

text_form!(Rule, Host, Loopback);

#[cfg(test)]
mod tests;
