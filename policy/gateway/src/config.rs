//! The description, checked. Built once at the start; everybody reads it.

use std::net::{Ipv4Addr, SocketAddr};

use bulkhead_network::{
    Checksums, Forward, Host, Loopback, MAX_FORWARDS, MAX_HOSTS, MAX_MTU, MAX_RESOLVERS, MAX_RULES,
    MAX_SECRETS, MAX_TRUST, MIN_MTU, MODEL_HOST, MODEL_PORT, NetworkDescription, Protocol, VERSION,
};
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::EthernetAddress;

/// Most TCP connections a description may ask for.
const MAX_CONNECTIONS: u16 = 4096;
/// Shortest placeholder of a secret, which must not stand for anything else by chance.
const MIN_PLACEHOLDER: usize = 16;

/// What the parts need to know of the description.
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The guest's hardware address.
    pub guest_mac: EthernetAddress,
    /// The gateway's hardware address, for the router and the DNS server.
    pub own_mac: EthernetAddress,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// The router's address.
    pub router: Ipv4Addr,
    /// The DNS server's address.
    pub dns: Ipv4Addr,
    /// Largest IP packet.
    pub mtu: u16,
    /// Which checksums are computed and looked at.
    pub checksums: ChecksumCapabilities,
    /// The guest's host name.
    pub hostname: Option<String>,
    /// Resolvers of the host.
    pub resolvers: Vec<SocketAddr>,
    /// Names of the router's address.
    pub hosts: Vec<String>,
    /// Where connections from outside lead, one for each listener.
    pub forwards: Vec<Forward>,
    /// Most TCP connections.
    pub max_connections: usize,
}

/// A description makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Written for another gateway.
    #[error("the network description has version {0}, this gateway reads version {VERSION}")]
    Version(u32),
    /// The MTU is out of bounds.
    #[error("the mtu is {0}; {MIN_MTU} to {MAX_MTU} are possible")]
    Mtu(u16),
    /// The guest's hardware address is not one.
    #[error("the guest's hardware address {0} is no unicast address")]
    Mac(EthernetAddress),
    /// The subnet's prefix is out of bounds.
    #[error("the prefix length is {0}; 8 to 30 are possible")]
    Prefix(u8),
    /// An address is not in the subnet, or is another's.
    #[error("the address {0} is no host of the subnet, or there twice")]
    Address(Ipv4Addr),
    /// The host name is not one.
    #[error("the host name `{0}` is not 1 to 63 letters, digits and -")]
    Hostname(String),
    /// A name of the loopback services is not one.
    #[error("`{0}` is no host name in lower case")]
    Host(String),
    /// Something takes the proxy, and the description has none.
    #[error("{0} takes the proxy, and the description has no `web`")]
    NoWeb(String),
    /// Models and something else at one place, or models and nobody who records.
    #[error("the router's port {MODEL_PORT} is that of the models, which take a ledger")]
    Models,
    /// A rule for web requests is of UDP.
    #[error("the rule {0} is no TCP, and narrowed to web requests")]
    NotTcp(String),
    /// A quota that is not there, or that allows nothing.
    #[error("the quota {0} is not there, or allows no calls at all")]
    Quota(usize),
    /// A secret's placeholder could be taken for something else, or its host is none.
    #[error(
        "the secret {0} has no proper host, header or placeholder of {MIN_PLACEHOLDER} printable \
         characters or more"
    )]
    Secret(String),
    /// Too much of something.
    #[error("{count} {what}; {most} are possible")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are possible.
        most: usize,
    },
    /// A port is 0.
    #[error("a {0} has port 0")]
    Port(&'static str),
}

impl Config {
    /// Checks a description.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(description: &NetworkDescription) -> Result<Self, ConfigError> {
        let d = description;
        let addresses = d.addresses;
        let guest_mac = EthernetAddress(d.guest_mac);
        if d.version != VERSION {
            return Err(ConfigError::Version(d.version));
        }
        if !(MIN_MTU..=MAX_MTU).contains(&d.mtu) {
            return Err(ConfigError::Mtu(d.mtu));
        }
        let [a, b, c, e] = addresses.router.octets();
        // Locally administered, as slirp has it.
        let own_mac = EthernetAddress([0x52, 0x55, a, b, c, e]);
        if !guest_mac.is_unicast() || guest_mac == EthernetAddress([0; 6]) || guest_mac == own_mac {
            return Err(ConfigError::Mac(guest_mac));
        }
        check_addresses(d)?;
        if let Some(name) = &d.hostname {
            let byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if !(1..=63).contains(&name.len()) || !name.bytes().all(byte) {
                return Err(ConfigError::Hostname(name.clone()));
            }
        }
        for (what, count, most) in [
            ("rules", d.allow.len(), MAX_RULES),
            ("loopback services", d.loopback.len(), MAX_RULES),
            ("names of loopback services", d.hosts.len(), MAX_HOSTS),
            ("names that resolve", d.resolve.len(), MAX_RULES),
            ("denied flows", d.deny.connect.len(), MAX_RULES),
            ("denied names", d.deny.resolve.len(), MAX_RULES),
            ("quotas", d.quotas.len(), MAX_RULES),
            ("secrets", d.secrets.len(), MAX_SECRETS),
            (
                "files of certificates",
                d.web.as_ref().map_or(0, |web| web.trust.len()),
                MAX_TRUST,
            ),
            ("forwards", d.forwards.len(), MAX_FORWARDS),
            ("resolvers", d.resolvers.len(), MAX_RESOLVERS),
            (
                "connections",
                d.max_connections.into(),
                MAX_CONNECTIONS.into(),
            ),
        ] {
            if count > most {
                return Err(ConfigError::TooMany { what, count, most });
            }
        }
        let is_name = |name: &&String| name.parse() == Ok(Host::Name(name.to_string()));
        if let Some(name) = d.hosts.iter().find(|name| !is_name(name)) {
            return Err(ConfigError::Host(name.clone()));
        }
        check_web(d)?;
        check_models(d)?;
        if d.forwards.iter().any(|forward| forward.guest_port == 0) {
            return Err(ConfigError::Port("forward"));
        }
        if d.resolvers.iter().any(|resolver| resolver.port() == 0) {
            return Err(ConfigError::Port("resolver"));
        }
        let mut checksums = ChecksumCapabilities::default();
        let transport = match d.checksums {
            Checksums::Computed => Checksum::Tx,
            Checksums::Omitted => Checksum::None,
        };
        checksums.tcp = transport;
        checksums.udp = transport;
        Ok(Self {
            guest: addresses.guest,
            guest_mac,
            own_mac,
            prefix: addresses.prefix,
            router: addresses.router,
            dns: addresses.dns,
            mtu: d.mtu,
            checksums,
            hostname: d.hostname.clone(),
            resolvers: d.resolvers.clone(),
            hosts: {
                let models = d.models.iter().map(|_| MODEL_HOST.to_owned());
                d.hosts.iter().cloned().chain(models).collect()
            },
            forwards: d.forwards.clone(),
            max_connections: usize::from(d.max_connections.max(1)),
        })
    }

    /// Whether `address` lies in the subnet of the guest.
    pub fn is_inside(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.router.to_bits()) & self.netmask().to_bits() == 0
    }

    /// The subnet's mask.
    pub fn netmask(&self) -> Ipv4Addr {
        netmask(self.prefix)
    }

    /// Largest payload of a UDP datagram to the guest.
    pub fn max_datagram(&self) -> usize {
        usize::from(self.mtu).saturating_sub(28)
    }
}

/// Checks what concerns the proxy.
fn check_web(d: &NetworkDescription) -> Result<(), ConfigError> {
    for grant in &d.allow {
        let tcp = grant.rule.protocol == Protocol::Tcp;
        if !tcp && grant.http.is_some() {
            return Err(ConfigError::NotTcp(grant.rule.to_string()));
        }
        if tcp && d.web.is_none() && grant.is_narrowed() {
            return Err(ConfigError::NoWeb(format!("the rule {}", grant.rule)));
        }
    }
    let allow = d.allow.iter().flat_map(|grant| &grant.quotas);
    let resolve = d.resolve.iter().flat_map(|grant| &grant.quotas);
    let forwards = d.forwards.iter().flat_map(|forward| &forward.quotas);
    let mut used = allow.chain(resolve).chain(forwards).chain(&d.budget);
    let is_missing = |place: &&usize| {
        let quota = d.quotas.get(**place);
        quota.is_none_or(|quota| quota.calls_per_minute == Some(0))
    };
    if let Some(place) = used.find(is_missing) {
        return Err(ConfigError::Quota(*place));
    }
    if d.tools.is_some() && d.web.is_none() {
        return Err(ConfigError::NoWeb("the socket of the tools".to_owned()));
    }
    for secret in &d.secrets {
        if d.web.is_none() {
            return Err(ConfigError::NoWeb(format!("the secret {}", secret.name)));
        }
        let host = secret.host.parse() == Ok(Host::Name(secret.host.clone()));
        let placeholder = secret.placeholder.len() >= MIN_PLACEHOLDER
            && secret
                .placeholder
                .bytes()
                .all(|byte| byte.is_ascii_graphic());
        let header = !secret.header.is_empty()
            && secret
                .header
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !host || !placeholder || !header {
            return Err(ConfigError::Secret(secret.name.clone()));
        }
    }
    Ok(())
}

/// Checks what concerns models.
fn check_models(d: &NetworkDescription) -> Result<(), ConfigError> {
    let here =
        |service: &&Loopback| (service.protocol, service.port) == (Protocol::Tcp, MODEL_PORT);
    match &d.models {
        Some(_) if d.ledger.is_none() || d.loopback.iter().any(|service| here(&service)) => {
            Err(ConfigError::Models)
        }
        Some(models) if models.ports.len() > MAX_RULES => Err(ConfigError::TooMany {
            what: "ports of models",
            count: models.ports.len(),
            most: MAX_RULES,
        }),
        _ => Ok(()),
    }
}

fn netmask(prefix: u8) -> Ipv4Addr {
    let host_bits = 32_u32.saturating_sub(prefix.into());
    Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

fn check_addresses(description: &NetworkDescription) -> Result<(), ConfigError> {
    let addresses = description.addresses;
    if !(8..=30).contains(&addresses.prefix) {
        return Err(ConfigError::Prefix(addresses.prefix));
    }
    let mask = netmask(addresses.prefix).to_bits();
    let net = addresses.guest.to_bits() & mask;
    let all = [addresses.guest, addresses.router, addresses.dns];
    for address in all {
        let bits = address.to_bits();
        let is_host = bits & mask == net && bits != net && bits != net | !mask;
        let unicast = !address.is_loopback()
            && !address.is_multicast()
            && !address.is_link_local()
            && address.octets() < [240, 0, 0, 0]
            && address.octets() >= [1, 0, 0, 0];
        let once = all.iter().filter(|other| **other == address).count() == 1;
        if !is_host || !unicast || !once {
            return Err(ConfigError::Address(address));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_network::{Fd, Forward, Jail};

    fn description() -> NetworkDescription {
        NetworkDescription::new("test", Fd(3), [2, 0, 0, 0, 0, 1], Jail::None)
    }

    fn error(change: impl FnOnce(&mut NetworkDescription)) -> ConfigError {
        let mut description = description();
        change(&mut description);
        Config::new(&description).unwrap_err()
    }

    #[test]
    fn the_defaults_are_fine() {
        let config = Config::new(&description()).unwrap();
        assert!(config.is_inside(Ipv4Addr::new(10, 0, 2, 255)));
        assert!(!config.is_inside(Ipv4Addr::new(10, 0, 3, 0)));
        assert_eq!(config.netmask(), Ipv4Addr::new(255, 255, 255, 0));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(error(|d| d.version = 2), ConfigError::Version(2));
        assert_eq!(error(|d| d.mtu = 575), ConfigError::Mtu(575));
        assert_eq!(error(|d| d.mtu = 65_521), ConfigError::Mtu(65_521));
        for mac in [[0; 6], [1, 0, 0, 0, 0, 1], [0x52, 0x55, 10, 0, 2, 2]] {
            assert_eq!(
                error(|d| d.guest_mac = mac),
                ConfigError::Mac(EthernetAddress(mac))
            );
        }
        assert_eq!(error(|d| d.addresses.prefix = 31), ConfigError::Prefix(31));
        for address in ["10.0.2.2", "10.0.2.3", "10.0.2.0", "10.0.2.255", "10.0.3.1"] {
            let address: Ipv4Addr = address.parse().unwrap();
            let error = error(|d| d.addresses.guest = address);
            assert!(matches!(error, ConfigError::Address(_)), "{address}");
        }
        for name in ["", "a.b", "a b", &"a".repeat(64)] {
            assert_eq!(
                error(|d| d.hostname = Some(name.to_owned())),
                ConfigError::Hostname(name.to_owned())
            );
        }
        for name in ["", "A.example", "a.example.", "*.a.example", "192.0.2.1"] {
            assert_eq!(
                error(|d| d.hosts = vec![name.to_owned()]),
                ConfigError::Host(name.to_owned())
            );
        }
        let models = || {
            let file = Fd(9);
            Some(bulkhead_network::ModelAccess {
                file,
                ports: vec![443],
                spent: Fd(11),
            })
        };
        assert_eq!(error(|d| d.models = models()), ConfigError::Models);
        let both = error(|d| {
            (d.models, d.ledger) = (models(), Some(Fd(10)));
            d.loopback.push("tcp:80=8080".parse().unwrap());
        });
        assert_eq!(both, ConfigError::Models);
        let forward = |guest_port| Forward {
            listener: Fd(4),
            address: (Ipv4Addr::LOCALHOST, 1).into(),
            guest_port,
            quotas: Vec::new(),
            lifetime: None,
        };
        assert_eq!(
            error(|d| d.forwards.push(forward(0))),
            ConfigError::Port("forward")
        );
        assert!(matches!(
            error(|d| d.forwards = vec![forward(1); 65]),
            ConfigError::TooMany { count: 65, .. }
        ));
        assert!(matches!(
            error(|d| d.max_connections = 4097),
            ConfigError::TooMany { count: 4097, .. }
        ));
    }
}
