//! Objects of `net.*` and `dns.resolve`, and the order "narrower than" of network rules.
//!
//! The rules themselves are [`bulkhead_network::Rule`]; what follows from one rule for another is
//! decided here.

use bulkhead_network::range::{self, Range};
use bulkhead_network::{Host, Loopback, ParseRuleError, Ports, Rule};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// A socket of the host whose connections become connections to the guest: `127.0.0.1:8080=80`.
/// `127.0.0.1:80` means the same port on both sides, `8080=80` an address of 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen {
    /// Where the host listens: TCP, never port 0.
    pub address: SocketAddr,
    /// Port in the guest, never 0.
    pub guest_port: u16,
}

/// Why a text is no [`Listen`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no listening socket; write ADDRESS:PORT=GUEST-PORT, as in 127.0.0.1:8080=80")]
pub struct ParseListenError(String);

impl FromStr for Listen {
    type Err = ParseListenError;

    fn from_str(text: &str) -> Result<Self, ParseListenError> {
        let wrong = || ParseListenError(text.to_owned());
        let port = |text: &str| -> Option<u16> {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|port| digits && *port != 0)
        };
        let (outside, inside) = match text.split_once('=') {
            Some((outside, inside)) => (outside, Some(port(inside).ok_or_else(wrong)?)),
            None => (text, None),
        };
        let address = match port(outside) {
            Some(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            None => outside.parse().map_err(|_| wrong())?,
        };
        match address {
            // A flow label or scope would be lost in the printed form.
            SocketAddr::V6(v6) if v6.scope_id() != 0 => Err(wrong()),
            _ if address.port() == 0 => Err(wrong()),
            _ => Ok(Self {
                address,
                guest_port: inside.unwrap_or(address.port()),
            }),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.address, self.guest_port)
    }
}

super::text_form!(Listen, ParseListenError);

impl Listen {
    /// True when `other` is reached by everybody who reaches `self`: the same socket, or the
    /// same port on all addresses.
    pub(crate) fn is_narrower_or_equal(&self, other: &Self) -> bool {
        let covers = match (self.address.ip(), other.address.ip()) {
            (IpAddr::V4(_), IpAddr::V4(all)) => all.is_unspecified(),
            (IpAddr::V6(_), IpAddr::V6(all)) => all.is_unspecified(),
            _ => false,
        };
        let same_ports =
            self.address.port() == other.address.port() && self.guest_port == other.guest_port;
        self == other || (covers && same_ports)
    }
}

/// Parses a rule; without a protocol it is TCP: `deb.debian.org:80`.
pub(crate) fn parse_rule(text: &str) -> Result<Rule, ParseRuleError> {
    match text.split(':').count() {
        2 => format!("tcp:{text}").parse(),
        _ => text.parse(),
    }
}

/// Parses a loopback service; without a protocol it is TCP: `5432`.
pub(crate) fn parse_loopback(text: &str) -> Result<Loopback, ParseRuleError> {
    match text.contains(':') {
        true => text.parse(),
        false => format!("tcp:{text}").parse(),
    }
}

/// True when everything that `a` allows `b` allows too.
pub(crate) fn rule_is_narrower_or_equal(a: &Rule, b: &Rule) -> bool {
    a.protocol == b.protocol
        && b.ports.first <= a.ports.first
        && a.ports.last <= b.ports.last
        && host_is_narrower_or_equal(&a.host, &b.host)
}

/// Parses the object of `dns.resolve`: a name, or `*.name` for all below it.
pub(crate) fn parse_dns_name(text: &str) -> Result<Host, ParseDnsNameError> {
    match text.parse() {
        Ok(host @ (Host::Name(_) | Host::Below(_))) => Ok(host),
        _ => Err(ParseDnsNameError(text.to_owned())),
    }
}

/// Why a text is no name to resolve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no DNS name; write one such as example.org, or *.example.org for all below it", .0.escape_debug())]
pub struct ParseDnsNameError(String);

/// What both allow. Hosts contain each other or share nothing; ranges of ports may overlap in part.
pub(crate) fn intersect_rules(a: &Rule, b: &Rule) -> Option<Rule> {
    let first = a.ports.first.max(b.ports.first);
    let last = a.ports.last.min(b.ports.last);
    let host = intersect_hosts(&a.host, &b.host)?;
    (a.protocol == b.protocol && first <= last).then(|| Rule {
        protocol: a.protocol,
        host: host.clone(),
        ports: Ports { first, last },
    })
}

/// The narrower of two hosts, where one contains the other.
pub(crate) fn intersect_hosts<'h>(a: &'h Host, b: &'h Host) -> Option<&'h Host> {
    if host_is_narrower_or_equal(a, b) {
        Some(a)
    } else if host_is_narrower_or_equal(b, a) {
        Some(b)
    } else {
        None
    }
}

pub(crate) fn host_is_narrower_or_equal(a: &Host, b: &Host) -> bool {
    match (a, b) {
        (Host::Any | Host::Name(_) | Host::Below(_), Host::Any) => true,
        // `*` leaves out what is set apart, and so does a subnet that is wider than it; what else
        // `*` leaves out no rule reaches.
        (Host::Subnet { address, prefix }, Host::Any) => {
            range::set_apart(subnet(*address, *prefix)).is_none()
        }
        (
            Host::Subnet { address, prefix },
            Host::Subnet {
                address: other,
                prefix: wider,
            },
        ) => {
            let (own, other) = (subnet(*address, *prefix), subnet(*other, *wider));
            let speaks = range::set_apart(own).is_none_or(|apart| apart.contains(other));
            other.contains(own) && speaks
        }
        (Host::Name(name), Host::Name(_) | Host::Below(_)) => b.names(name),
        (Host::Below(parent), Host::Below(other)) => parent == other || b.names(parent),
        // A subnet does not let names resolve, and a name may lead anywhere.
        (Host::Any, _)
        | (Host::Name(_) | Host::Below(_), Host::Subnet { .. })
        | (Host::Subnet { .. }, Host::Name(_) | Host::Below(_))
        | (Host::Below(_), Host::Name(_)) => false,
    }
}

/// True when `a` would allow something that a denial of `b` forbids. A denial means what it says:
/// also what is set apart, which `*` and wide subnets do not grant.
pub(crate) fn rule_is_denied_by(a: &Rule, b: &Rule) -> bool {
    let ports = a.ports.first <= b.ports.last && b.ports.first <= a.ports.last;
    let hosts = match (&a.host, &b.host) {
        (_, Host::Any) => true,
        (
            Host::Subnet { address, prefix },
            Host::Subnet {
                address: other,
                prefix: wider,
            },
        ) => subnet(*address, *prefix).meets(subnet(*other, *wider)),
        (Host::Any, Host::Subnet { address, prefix }) => {
            range::set_apart(subnet(*address, *prefix)).is_none()
        }
        (a, b) => intersect_hosts(a, b).is_some(),
    };
    a.protocol == b.protocol && ports && hosts
}

fn subnet(first: Ipv4Addr, prefix: u8) -> Range {
    Range { first, prefix }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        parse_rule(text).unwrap()
    }

    #[test]
    fn listening_sockets() {
        for (text, printed) in [
            ("127.0.0.1:8080=80", Some("127.0.0.1:8080=80")),
            ("8080=80", Some("127.0.0.1:8080=80")),
            ("8080", Some("127.0.0.1:8080=8080")),
            ("0.0.0.0:22", Some("0.0.0.0:22=22")),
            ("[::1]:8080=80", Some("[::1]:8080=80")),
            ("0", None),
            ("1.2.3.4:0", None),
            ("8080=0", None),
            ("8080=", None),
            ("=80", None),
            ("localhost:80", None),
            ("+80", None),
            ("65536", None),
            ("[fe80::1%2]:80", None),
            ("", None),
        ] {
            let listen = text.parse::<Listen>();
            assert_eq!(
                listen.ok().map(|l| l.to_string()),
                printed.map(str::to_owned),
                "{text}"
            );
        }
    }

    #[test]
    fn all_addresses_include_one() {
        let narrower = |a: &str, b: &str| {
            let listen = |text: &str| text.parse::<Listen>().unwrap();
            listen(a).is_narrower_or_equal(&listen(b))
        };
        assert!(narrower("127.0.0.1:80", "0.0.0.0:80"));
        assert!(narrower("[::1]:80", "[::]:80"));
        assert!(!narrower("0.0.0.0:80", "127.0.0.1:80"));
        assert!(!narrower("127.0.0.1:80", "0.0.0.0:81"));
        assert!(!narrower("127.0.0.1:80=1", "0.0.0.0:80=2"));
        assert!(!narrower("127.0.0.1:80", "[::]:80"));
    }

    #[test]
    fn hosts_contain_what_they_say() {
        for (a, b, expected) in [
            ("a.org:80", "*:*", true),
            ("a.org:80", "a.org:80-90", true),
            ("a.org:80-90", "a.org:80", false),
            ("a.org:80", "udp:a.org:80", false),
            ("x.a.org:80", "*.a.org:80", true),
            ("a.org:80", "*.a.org:80", false),
            ("*.x.a.org:80", "*.a.org:80", true),
            ("*.a.org:80", "*.a.org:80", true),
            ("*.ba.org:80", "*.a.org:80", false),
            ("10.1.0.0/16:80", "10.0.0.0/8:80", true),
            ("10.0.0.0/8:80", "10.1.0.0/16:80", false),
            ("11.0.0.0/8:80", "*:80", true),
            ("10.0.0.0/8:80", "*:80", false),
            ("192.168.1.1:80", "*:80", false),
            ("100.64.0.0/16:80", "*:80", false),
            ("169.254.1.1:80", "0.0.0.0/0:80", false),
            ("10.1.2.3:80", "8.0.0.0/6:80", false),
            ("8.0.0.0/7:80", "8.0.0.0/6:80", true),
            ("169.254.1.1:80", "*:80", false),
            ("169.254.0.0/16:80", "*:80", false),
            ("169.254.169.254:80", "0.0.0.0/0:80", false),
            ("169.254.169.254:80", "169.0.0.0/8:80", false),
            ("169.254.169.254:80", "169.254.0.0/16:80", true),
            ("0.0.0.0/0:80", "*:80", true),
            ("192.0.0.0/2:80", "*:80", true),
            ("223.0.0.0/8:80", "*:80", true),
            ("*:80", "0.0.0.0/0:80", false),
            ("a.org:80", "0.0.0.0/0:80", false),
            ("10.0.0.1:80", "a.org:80", false),
        ] {
            assert_eq!(
                rule_is_narrower_or_equal(&rule(a), &rule(b)),
                expected,
                "{a} {b}"
            );
        }
    }

    #[test]
    fn ports_meet_in_the_middle() {
        let both = intersect_rules(&rule("a.org:80-90"), &rule("*.org:85-100"));
        assert_eq!(both, Some(rule("a.org:85-90")));
        assert_eq!(intersect_rules(&rule("a.org:80"), &rule("a.org:81")), None);
        let all = intersect_rules(&rule("0.0.0.0/0:80"), &rule("*:80"));
        assert_eq!(all, Some(rule("0.0.0.0/0:80")));
        let metadata = rule("169.254.169.254:80");
        assert_eq!(intersect_rules(&rule("0.0.0.0/0:80"), &metadata), None);
    }
}
