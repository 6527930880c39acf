//! What a guest may connect to and how: a rule, what it narrows requests to, and how much.

use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Fd;
use crate::http::{HttpRule, PathPattern};
use crate::rule::{Host, ParseRuleError, Protocol, Rule};

/// Where the guest may connect or send to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// The hosts and ports.
    pub rule: Rule,
    /// Only web requests, and of those only these; absent: any bytes. Of TCP, and only with
    /// [`NetworkDescription::web`](crate::NetworkDescription::web).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRule>,
    /// What its use is counted against: places in
    /// [`NetworkDescription::quotas`](crate::NetworkDescription::quotas).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quotas: Vec<usize>,
    /// Seconds after the gateway's start from which on it is void; what was begun goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u64>,
    /// Each use takes a person's consent: each connection or flow, or request where those are looked into.
    /// Of TCP only with [`NetworkDescription::web`](crate::NetworkDescription::web).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
}

/// Names that resolve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// A name, or all below one.
    pub name: Host,
    /// As in [`Connect`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quotas: Vec<usize>,
    /// As in [`Connect`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u64>,
}

/// What is refused, whatever else allows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deny {
    /// Hosts and ports: each address of a subnet, and each name under its name.
    #[serde(default)]
    pub connect: Vec<Rule>,
    /// Names that do not resolve.
    #[serde(default)]
    pub resolve: Vec<Host>,
}

impl Deny {
    /// Whether a flow to this address is refused under every name.
    pub fn denies_address(&self, protocol: Protocol, address: Ipv4Addr, port: u16) -> bool {
        self.rules(protocol, port).any(|rule| match &rule.host {
            Host::Any => true,
            Host::Subnet { .. } => rule.host.holds(address),
            Host::Name(_) | Host::Below(_) => false,
        })
    }

    /// Whether a flow to the host of this name is refused.
    pub fn denies_name(&self, protocol: Protocol, name: &str, port: u16) -> bool {
        self.rules(protocol, port).any(|rule| rule.host.names(name))
    }

    fn rules(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = &Rule> {
        let of_flow = move |rule: &&Rule| rule.protocol == protocol && rule.ports.contains(port);
        self.connect.iter().filter(of_flow)
    }
}

/// An amount that grants share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// For messages: the grant that it was written on.
    pub name: String,
    /// Requests or connections in any minute, at least 1; absent: not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<u32>,
    /// Bytes both ways together while the gateway runs; absent: not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What the gateway needs to look into web requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Web {
    /// The partition's own authority: its certificate and its private key, in PEM. The guest has to
    /// trust the certificate.
    pub authority: Fd,
    /// Certificates, in PEM, of authorities that servers are trusted by beside the host's own.
    #[serde(default)]
    pub trust: Vec<Fd>,
}

/// A secret that a request may use and the guest never sees: the guest says `placeholder`, the
/// server gets the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Its name, for messages and records.
    pub name: String,
    /// What the guest holds instead: at least 16 printable characters that mean nothing else.
    pub placeholder: String,
    /// The value, to be read to the end.
    pub value: Fd,
    /// The one host that gets it, by TLS or as a loopback service with that name.
    pub host: String,
    /// The one port there.
    pub port: u16,
    /// The one header that it may stand in, in lower case.
    pub header: String,
    /// The paths that it may be sent to; empty: all that rules allow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathPattern>,
}

impl From<Rule> for Connect {
    /// The rule without any narrowing.
    fn from(rule: Rule) -> Self {
        Self {
            rule,
            http: None,
            quotas: Vec::new(),
            lifetime: None,
            approval: false,
        }
    }
}

impl FromStr for Connect {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Rule::from_str(text)?.into())
    }
}

impl Connect {
    /// Whether the proxy takes what it allows.
    pub fn is_narrowed(&self) -> bool {
        self.http.is_some() || !self.quotas.is_empty() || self.approval
    }

    /// Whether it is void after this many seconds.
    pub fn is_over(&self, seconds: u64) -> bool {
        self.lifetime.is_some_and(|lifetime| lifetime <= seconds)
    }
}
