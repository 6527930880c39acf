//! What the guest may reach. Asked before every connection, flow and query; nothing else decides.

pub(crate) mod pins;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use bulkhead_network::{Host, Loopback, NetworkDescription, Protocol, Rule, range};
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
    /// A TLS connection to where a name stands for the address, and that asks for another server.
    ServerName {
        /// Where to.
        to: Ipv4Addr,
        /// Which port.
        port: u16,
        /// Whom it asks for.
        asked: Asked,
    },
}

/// Whom a TLS connection asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A server that no rule grants at this address.
    Other(String),
    /// Nobody in particular.
    Nobody,
    /// Its beginning is malformed.
    Unreadable,
}

/// A way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The socket of the host's side.
    pub to: SocketAddr,
    /// Which servers a TLS connection may ask for; `None` where the address itself is granted.
    pub names: Option<Names>,
}

/// Names for which an address was granted.
pub(crate) type Names = Box<[String]>;

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
            Self::ServerName { to, port, asked } => {
                write!(f, "refused tcp to {to}:{port}: ")?;
                match asked {
                    Asked::Other(name) => write!(
                        f,
                        "its TLS asks for {name}, which did not resolve to this address under a \
                         rule such as tcp:{name}:{port}"
                    ),
                    Asked::Nobody => write!(
                        f,
                        "its TLS names no server; the rule tcp:{to}:{port} would allow it"
                    ),
                    Asked::Unreadable => f.write_str("what begins like TLS is malformed"),
                }
            }
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
    ) -> Result<Route, Refusal> {
        let rules = || {
            let of_flow = |rule: &&Rule| rule.protocol == protocol && rule.ports.contains(port);
            self.allow.iter().filter(of_flow)
        };
        let granted = |name: &str| {
            let by_name = |rule: &Rule| rule.host != Host::Any && rule.host.names(name);
            rules().any(by_name)
        };
        if to == config.router {
            let service = self
                .loopback
                .iter()
                .find(|service| service.protocol == protocol && service.port == port);
            let Some(service) = service else {
                return Err(Refusal::NoService { protocol, port });
            };
            let names = config.hosts.iter().filter(|name| granted(name));
            let names: Names = names.cloned().collect();
            return Ok(Route {
                to: (Ipv4Addr::LOCALHOST, service.host_port).into(),
                names: (!names.is_empty()).then_some(names),
            });
        }
        if config.is_inside(to) || !range::is_reachable(to) || port == 0 {
            return Err(Refusal::Unreachable { to });
        }
        let route = |names| Route {
            to: (to, port).into(),
            names,
        };
        if rules().any(|rule| rule.host.allows(to)) {
            return Ok(route(None));
        }
        let names = self.pins.of(to, now).filter(|name| granted(name));
        let names: Names = names.map(str::to_owned).collect();
        match names.is_empty() {
            true => Err(Refusal::NoRule {
                protocol,
                to,
                port,
                name: self.pins.of(to, now).next().map(str::to_owned),
            }),
            false => Ok(route(Some(names))),
        }
    }

    /// Whether the guest may resolve `name`, in lower case without the final dot.
    pub(crate) fn resolves(&self, name: &str) -> bool {
        self.allow.iter().any(|rule| rule.host.names(name))
    }

    /// `name` stands for `address`, a resolver says, and will for `ttl` seconds.
    pub(crate) fn learn(&mut self, now: Instant, name: &str, address: Ipv4Addr, ttl: u32) {
        // A name must open neither the host's own services, nor the cloud's metadata, nor the
        // networks around the host, to whoever answers for it.
        if range::is_reachable(address) && !range::is_set_apart(address) {
            self.pins.add(now, name, address, ttl);
        }
    }
}

#[cfg(test)]
mod tests;
