//! What the guest may reach. Asked before every connection, flow and query; nothing else decides.

pub(crate) mod pins;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use bulkhead_conditions::Ruling;
use bulkhead_network::{
    Connect, Deny, Forward, Host, Loopback, MODEL_PORT, NetworkDescription, Protocol, Resolve,
    range,
};
use bulkhead_proxy::conditions::{Connection, Question};
use bulkhead_proxy::quota::{Exhausted, Quotas};
use smoltcp::time::Instant;

use crate::config::Config;
use pins::Pins;

/// The rules of the description, and the addresses that names stand for.
pub(crate) struct Rules {
    allow: Vec<Connect>,
    resolve: Vec<Resolve>,
    deny: Deny,
    loopback: Vec<Loopback>,
    /// There are models at the router's address.
    models: bool,
    /// Hosts that secrets are bound to.
    secret_hosts: Vec<String>,
    /// What was used; the proxy counts in the same.
    quotas: Quotas,
    /// The place of what everything counts against, where there is such an amount.
    budget: Option<usize>,
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
        /// The router's address.
        to: Ipv4Addr,
        /// Which port.
        port: u16,
    },
    /// An address that no rule can allow.
    Unreachable {
        /// The address.
        to: Ipv4Addr,
    },
    /// The partition is denied it, whatever else allows it.
    Denied {
        /// Of the flow.
        protocol: Protocol,
        /// Where to.
        to: Ipv4Addr,
        /// Which port.
        port: u16,
    },
    /// An amount is used up.
    Exhausted {
        /// Of the flow.
        protocol: Protocol,
        /// Where to.
        to: Ipv4Addr,
        /// Which port.
        port: u16,
        /// Which.
        what: Exhausted,
    },
    /// It takes a person's consent, and there was none.
    NoConsent {
        /// Of the flow.
        protocol: Protocol,
        /// Where to.
        to: Ipv4Addr,
        /// Which port.
        port: u16,
        /// Why not.
        why: String,
    },
    /// The rules allow it, and the conditions do not.
    Condition {
        /// Of the flow.
        protocol: Protocol,
        /// Where to.
        to: Ipv4Addr,
        /// Which port.
        port: u16,
        /// What they say.
        ruling: Ruling,
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
    /// Rules that speak of the address count, and not only those that speak of a name.
    pub by_address: bool,
    /// All names that stand for the address.
    pub pinned: Names,
    /// The address itself is granted.
    pub granted: bool,
    /// The proxy takes it, which looks into it further.
    pub web: bool,
    /// It is a request for a model.
    pub models: bool,
    /// What its bytes are counted against, where the proxy does not.
    pub quotas: Vec<usize>,
    /// It takes a person's consent, which the proxy does not ask for.
    pub approval: bool,
    /// Seconds after the start for which that holds, if there is an end.
    pub lifetime: Option<u64>,
    /// What allows it, for records.
    pub grant: String,
}

/// Names for which an address was granted.
pub(crate) type Names = Box<[String]>;

impl Route {
    /// What conditions are asked about a flow on it, which the guest sends there.
    pub(crate) fn question(&self, protocol: Protocol, address: Ipv4Addr, port: u16) -> Question {
        let names = match (self.granted, &self.names) {
            (false, Some(names)) => names,
            _ => &self.pinned,
        };
        let connection = Connection {
            protocol,
            address: Some(address),
            port,
            names: names.to_vec(),
            claimed: Vec::new(),
            by_address: self.granted,
            http: None,
        };
        Question {
            connection: Some(connection),
            acts: Vec::new(),
        }
    }
}

/// A flow that the guest wants.
#[derive(Clone, Copy)]
struct Wanted {
    protocol: Protocol,
    to: Ipv4Addr,
    port: u16,
    now: Instant,
}

impl Wanted {
    /// Whether the grant is for such flows, to whomever.
    fn is_meant_by(self, grant: &Connect) -> bool {
        grant.rule.protocol == self.protocol && grant.rule.ports.contains(self.port)
    }
}

impl Refusal {
    /// What was refused, for records.
    pub(crate) fn object(&self) -> String {
        match self {
            Self::NoRule {
                protocol, to, port, ..
            }
            | Self::NoService { protocol, to, port }
            | Self::Denied { protocol, to, port }
            | Self::Exhausted {
                protocol, to, port, ..
            }
            | Self::NoConsent {
                protocol, to, port, ..
            }
            | Self::Condition {
                protocol, to, port, ..
            } => format!("{protocol} {to}:{port}"),
            Self::Unreachable { to } => to.to_string(),
            Self::ServerName { to, port, .. } => format!("tcp {to}:{port}"),
        }
    }
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
            Self::NoService { protocol, port, .. } => write!(
                f,
                "refused {protocol} to the host's port {port}: the loopback service \
                 {protocol}:{port} would allow it"
            ),
            Self::Unreachable { to } => write!(f, "refused a flow to {to}: no rule can allow it"),
            Self::Denied { protocol, to, port } => {
                write!(
                    f,
                    "refused {protocol} to {to}:{port}: the partition is denied it"
                )
            }
            Self::Exhausted {
                protocol,
                to,
                port,
                what,
            } => write!(f, "refused {protocol} to {to}:{port}: {what}"),
            Self::NoConsent {
                protocol,
                to,
                port,
                why,
            } => write!(
                f,
                "refused {protocol} to {to}:{port}: it takes a person's consent, and there was \
                 none: {why}"
            ),
            Self::Condition {
                protocol,
                to,
                port,
                ruling,
            } => write!(f, "refused {protocol} to {to}:{port}: {ruling}"),
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
    /// The rules of `description`, which count in `quotas`.
    pub(crate) fn new(description: &NetworkDescription, quotas: Quotas) -> Self {
        let secrets = description.secrets.iter();
        Self {
            allow: description.allow.clone(),
            resolve: description.resolve.clone(),
            deny: description.deny.clone(),
            loopback: description.loopback.clone(),
            models: description.models.is_some(),
            secret_hosts: secrets.map(|secret| secret.host.clone()).collect(),
            quotas,
            budget: description.budget,
            pins: Pins::default(),
        }
    }

    /// Counts bytes of a flow, against the partition's budget as well.
    ///
    /// # Errors
    /// What is used up.
    pub(crate) fn spend(&self, quotas: &[usize], bytes: u64) -> Result<(), Exhausted> {
        self.quotas.bytes(self.budget.as_slice(), bytes)?;
        self.quotas.bytes(quotas, bytes)
    }

    /// Has what was used kept to the byte, since the process ends.
    pub(crate) fn settle(&self) {
        self.quotas.settle();
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
        let wanted = Wanted {
            protocol,
            to,
            port,
            now,
        };
        let left = self.spend(&[], 0);
        left.map_err(|what| Refusal::Exhausted {
            protocol,
            to,
            port,
            what,
        })?;
        if to != config.router {
            return self.to_address(config, wanted);
        }
        match self.models && (protocol, port) == (Protocol::Tcp, MODEL_PORT) {
            true => Ok(Route {
                to: (to, port).into(),
                names: None,
                by_address: false,
                pinned: Names::default(),
                granted: false,
                web: false,
                models: true,
                quotas: Vec::new(),
                approval: false,
                lifetime: None,
                grant: "model.chat".to_owned(),
            }),
            false => self.to_service(config, wanted),
        }
    }

    /// To a service on the host's loopback, which rules with one of its names narrow.
    fn to_service(&self, config: &Config, wanted: Wanted) -> Result<Route, Refusal> {
        let Wanted {
            protocol, to, port, ..
        } = wanted;
        let service = self
            .loopback
            .iter()
            .find(|service| service.protocol == protocol && service.port == port);
        let Some(service) = service else {
            return Err(Refusal::NoService { protocol, to, port });
        };
        let named: Vec<(&String, Vec<&Connect>)> = config
            .hosts
            .iter()
            .map(|name| (name, self.by_name(wanted, name)))
            .filter(|(_, grants)| !grants.is_empty())
            .collect();
        let names: Names = named.iter().map(|(name, _)| (*name).clone()).collect();
        let grants: Vec<&Connect> = named.into_iter().flat_map(|(_, grants)| grants).collect();
        // A rule that narrowed the service and is over, or denied, has not opened it.
        let spoke = |grant: &Connect| {
            let rule = &grant.rule;
            let names = config.hosts.iter().any(|name| rule.host.names(name));
            names && rule.host != Host::Any && wanted.is_meant_by(grant)
        };
        if grants.is_empty() && self.allow.iter().any(spoke) {
            return Err(Refusal::Denied { protocol, to, port });
        }
        let socket = (Ipv4Addr::LOCALHOST, service.host_port).into();
        self.route(
            wanted,
            socket,
            &grants,
            (!names.is_empty()).then_some(names),
        )
    }

    /// To an address, as one or under the names that stand for it.
    fn to_address(&self, config: &Config, wanted: Wanted) -> Result<Route, Refusal> {
        let Wanted {
            protocol,
            to,
            port,
            now,
        } = wanted;
        if config.is_inside(to) || !range::is_reachable(to) || port == 0 {
            return Err(Refusal::Unreachable { to });
        }
        if self.deny.denies_address(protocol, to, port) {
            return Err(Refusal::Denied { protocol, to, port });
        }
        let pinned = || self.pins.of(to, now);
        // Whoever is denied a name is denied where it leads.
        let denied = pinned().any(|name| self.deny.denies_name(protocol, name, port));
        let mut all: Vec<&Connect> = Vec::new();
        if !denied {
            let grants = self.grants(wanted);
            all.extend(grants.filter(|grant| grant.rule.host.allows(to)));
        }
        let by_address = all.iter().any(|grant| grant.http.is_none());
        let mut names = Vec::new();
        for name in pinned() {
            let grants = self.by_name(wanted, name);
            if !grants.is_empty() {
                names.push(name.to_owned());
                all.extend(grants);
            }
        }
        if all.is_empty() {
            return Err(match denied {
                true => Refusal::Denied { protocol, to, port },
                false => Refusal::NoRule {
                    protocol,
                    to,
                    port,
                    name: pinned().next().map(str::to_owned),
                },
            });
        }
        let mut route = self.route(wanted, (to, port).into(), &all, Some(names.into()))?;
        route.by_address = !denied;
        route.pinned = pinned().map(str::to_owned).collect();
        route.granted = by_address;
        if by_address && !route.web {
            route.names = None;
        }
        Ok(route)
    }

    /// The grants for this port that are not over.
    fn grants(&self, wanted: Wanted) -> impl Iterator<Item = &Connect> {
        let meant = move |grant: &&Connect| {
            wanted.is_meant_by(grant) && !is_over(grant.lifetime, wanted.now)
        };
        self.allow.iter().filter(meant)
    }

    /// Those of them that speak of `name`, which is not denied.
    fn by_name(&self, wanted: Wanted, name: &str) -> Vec<&Connect> {
        if self.deny.denies_name(wanted.protocol, name, wanted.port) {
            return Vec::new();
        }
        let speaks = |grant: &&Connect| grant.rule.host != Host::Any && grant.rule.host.names(name);
        self.grants(wanted).filter(speaks).collect()
    }

    /// The way that `grants` open to `socket`, counted where the proxy does not count.
    fn route(
        &self,
        wanted: Wanted,
        socket: SocketAddr,
        grants: &[&Connect],
        names: Option<Names>,
    ) -> Result<Route, Refusal> {
        let Wanted {
            protocol, to, port, ..
        } = wanted;
        let secret = |name: &String| self.secret_hosts.contains(name);
        let has_secret = names.iter().flatten().any(secret);
        let web = protocol == Protocol::Tcp
            && (has_secret || grants.iter().any(|grant| grant.is_narrowed()));
        // Of grants that allow the same, one that has something left; first those that ask nobody.
        let mut grants = grants.to_vec();
        grants.sort_by_key(|grant| grant.approval);
        let mut chosen = grants.first().copied();
        let mut quotas = Vec::new();
        if !web && let Some(first) = grants.first() {
            let mut counted = grants.iter().map(|grant| self.quotas.call(&grant.quotas));
            if let Some(at) = counted.position(|counted| counted.is_ok()) {
                chosen = grants.get(at).copied();
                quotas = chosen.unwrap_or(first).quotas.clone();
            } else {
                let what = self.quotas.call(&first.quotas);
                what.map_err(|what| Refusal::Exhausted {
                    protocol,
                    to,
                    port,
                    what,
                })?;
            }
        }
        let grant = match chosen {
            Some(grant) => format!("net.connect:{}", grant.rule),
            None => format!("net.loopback:{protocol}:{port}"),
        };
        Ok(Route {
            to: socket,
            pinned: names.clone().unwrap_or_default(),
            granted: names.is_none(),
            names,
            by_address: false,
            web,
            models: false,
            quotas,
            approval: !web && chosen.is_some_and(|grant| grant.approval),
            lifetime: chosen.and_then(|grant| grant.lifetime),
            grant,
        })
    }

    /// Whether a connection may come in at `now`, which is counted.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn admits(&self, now: Instant, forward: &Forward) -> Result<(), String> {
        if is_over(forward.lifetime, now) {
            return Err("its grant is over".to_owned());
        }
        let left = self.spend(&[], 0);
        let counted = left.and_then(|()| self.quotas.call(&forward.quotas));
        counted.map_err(|what| what.to_string())
    }

    /// What lets the guest resolve `name`, in lower case without the final dot, at `now`.
    pub(crate) fn resolves(&self, now: Instant, name: &str) -> Option<String> {
        if self.deny.resolve.iter().any(|host| host.names(name)) {
            return None;
        }
        let connect =
            |grant: &Connect| grant.rule.host.names(name) && !is_over(grant.lifetime, now);
        let resolve = |grant: &Resolve| {
            grant.name.names(name)
                && !is_over(grant.lifetime, now)
                && self.quotas.call(&grant.quotas).is_ok()
        };
        let connects = self.allow.iter().find(|grant| connect(grant));
        let granted = connects.map(|grant| format!("net.connect:{}", grant.rule));
        granted.or_else(|| {
            let resolves = self.resolve.iter().find(|grant| resolve(grant))?;
            Some(format!("dns.resolve:{}", resolves.name))
        })
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

/// Whether a grant with this `lifetime` is void at `now`.
pub(crate) fn is_over(lifetime: Option<u64>, now: Instant) -> bool {
    let seconds = u64::try_from(now.secs()).unwrap_or(u64::MAX);
    lifetime.is_some_and(|lifetime| lifetime <= seconds)
}

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod tests;
