//! What the guest may reach. Asked before every connection, flow and query; nothing else decides.

pub(crate) mod pins;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use bulkhead_network::{Host, Loopback, NetworkDescription, Protocol, Rule};
use smoltcp::time::Instant;

use crate::config::Config;
use pins::Pins;

/// The rules of the description, and the addresses that names stand for.
#[derive(Debug)]
pub(crate) struct Rules {
    allow: Vec<Rule>,
    loopback: Vec<Loopback>,
    pins: Pins,
}

/// Why a flow is refused, for the line on standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No rule speaks of it. With the name the guest found it under, where it asked for one.
    NoRule {
        /// Of the flow.
        protocol: Protocol,
        /// Where to.
        to: Ipv4Addr,
        /// Which port.
        port: u16,
        /// The name that was resolved.
        name: Option<String>,
    },
    /// The router's address, and no loopback service at that port.
    NoService {
        /// Of the flow.
        protocol: Protocol,
        /// Which port.
        port: u16,
    },
    /// An address that no rule can allow.
    Unreachable {
        /// The address.
        to: Ipv4Addr,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule {
                protocol,
                to,
                port,
                name,
            } => {
                write!(f, "refused {protocol} to {to}:{port}")?;
                match name {
                    Some(name) => write!(f, " ({name}): the rule {protocol}:{name}:{port}"),
                    None => write!(f, ": the rule {protocol}:{to}:{port}"),
                }?;
                f.write_str(" would allow it")
            }
            Self::NoService { protocol, port } => write!(
                f,
                "refused {protocol} to the host's port {port}: the loopback service \
                 {protocol}:{port} would allow it"
            ),
            Self::Unreachable { to } => write!(f, "refused a flow to {to}: no rule can allow it"),
        }
    }
}

impl Rules {
    /// The rules of `description`.
    pub(crate) fn new(description: &NetworkDescription) -> Self {
        Self {
            allow: description.allow.clone(),
            loopback: description.loopback.clone(),
            pins: Pins::default(),
        }
    }

    /// Where a flow of the guest to `to` goes.
    ///
    /// # Errors
    /// Nowhere.
    pub(crate) fn outbound(
        &self,
        config: &Config,
        now: Instant,
        protocol: Protocol,
        to: Ipv4Addr,
        port: u16,
    ) -> Result<SocketAddr, Refusal> {
        if to == config.router {
            let service = self
                .loopback
                .iter()
                .find(|service| service.protocol == protocol && service.port == port);
            return match service {
                Some(service) => Ok((Ipv4Addr::LOCALHOST, service.host_port).into()),
                None => Err(Refusal::NoService { protocol, port }),
            };
        }
        if config.is_inside(to) || !is_unicast(to) || port == 0 {
            return Err(Refusal::Unreachable { to });
        }
        let allows = |rule: &Rule| {
            let host = match &rule.host {
                Host::Any => !to.is_link_local(),
                // A subnet of everything does not speak of the cloud's metadata service.
                Host::Subnet { address, .. } => {
                    rule.host.holds(to) && (!to.is_link_local() || address.is_link_local())
                }
                Host::Name(_) | Host::Below(_) => {
                    self.pins.of(to, now).any(|name| rule.host.names(name))
                }
            };
            host && rule.protocol == protocol && rule.ports.contains(port)
        };
        if self.allow.iter().any(allows) {
            return Ok((to, port).into());
        }
        Err(Refusal::NoRule {
            protocol,
            to,
            port,
            name: self.pins.of(to, now).next().map(str::to_owned),
        })
    }

    /// Whether the guest may resolve `name`, in lower case without the final dot.
    pub(crate) fn resolves(&self, name: &str) -> bool {
        self.allow.iter().any(|rule| rule.host.names(name))
    }

    /// `name` stands for `address`, a resolver says, and will for `ttl` seconds.
    pub(crate) fn learn(&mut self, now: Instant, name: &str, address: Ipv4Addr, ttl: u32) {
        // A name must not open the host's own services, nor the cloud's metadata.
        if is_unicast(address) && !address.is_link_local() {
            self.pins.add(now, name, address, ttl);
        }
    }
}

/// Whether a packet to this address can leave the host, or reach it, other than by loopback.
fn is_unicast(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

#[cfg(test)]
mod tests;
