//! Ranges of IPv4 addresses that mean more than a place in the Internet: what no rule reaches, and
//! what only a rule reaches that says so. Whoever decides on addresses asks here.

use std::net::Ipv4Addr;

use crate::rule::mask;

/// A range of addresses with a common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The lowest.
    pub first: Ipv4Addr,
    /// Length of the prefix, 0 to 32.
    pub prefix: u8,
}

const fn range(a: u8, b: u8, c: u8, prefix: u8) -> Range {
    Range {
        first: Ipv4Addr::new(a, b, c, 0),
        prefix,
    }
}

/// What no rule reaches: this network, loopback, and multicast with what is reserved behind it.
pub const UNREACHABLE: [Range; 3] = [range(0, 0, 0, 8), range(127, 0, 0, 8), range(224, 0, 0, 3)];

/// What `*`, names and wider subnets leave out: link-local addresses, where clouds keep their
/// credentials, and the networks of houses, companies and providers (RFC 6890).
pub const SET_APART: [Range; 7] = [
    range(169, 254, 0, 16),
    range(10, 0, 0, 8),
    range(172, 16, 0, 12),
    range(192, 168, 0, 16),
    range(100, 64, 0, 10),
    range(192, 0, 0, 24),
    range(198, 18, 0, 15),
];

impl Range {
    /// Whether `address` is one of them.
    pub fn holds(self, address: Ipv4Addr) -> bool {
        (self.first.to_bits() ^ address.to_bits()) & mask(self.prefix) == 0
    }

    /// Whether all of `other` is in it.
    pub fn contains(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.holds(other.first)
    }

    /// Whether the two have an address in common: the wider then holds the start of the other.
    pub fn meets(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }
}

/// Whether a rule can allow `address` at all.
pub fn is_reachable(address: Ipv4Addr) -> bool {
    !UNREACHABLE.iter().any(|range| range.holds(address))
}

/// The range of [`SET_APART`] that all of `range` is in.
pub fn set_apart(range: Range) -> Option<Range> {
    SET_APART.into_iter().find(|apart| apart.contains(range))
}

/// Whether `address` takes a rule that says so.
pub fn is_set_apart(address: Ipv4Addr) -> bool {
    SET_APART.iter().any(|range| range.holds(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_whole_and_have_nothing_in_common() {
        let all: Vec<Range> = UNREACHABLE.into_iter().chain(SET_APART).collect();
        for (n, range) in all.iter().enumerate() {
            let beyond = range.first.to_bits() & !mask(range.prefix);
            assert_eq!(beyond, 0, "{range:?}");
            for other in &all[n + 1..] {
                assert!(!range.meets(*other), "{range:?} {other:?}");
            }
        }
    }

    #[test]
    fn addresses_are_where_the_registry_says() {
        for (address, reachable, apart) in [
            ("0.1.2.3", false, false),
            ("1.1.1.1", true, false),
            ("10.255.0.1", true, true),
            ("11.0.0.0", true, false),
            ("100.63.255.255", true, false),
            ("100.64.0.1", true, true),
            ("127.1.2.3", false, false),
            ("169.254.169.254", true, true),
            ("172.15.0.1", true, false),
            ("172.31.255.255", true, true),
            ("192.0.0.192", true, true),
            ("192.0.2.1", true, false),
            ("192.168.0.1", true, true),
            ("198.19.0.1", true, true),
            ("223.255.255.255", true, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
        ] {
            let parsed = address.parse().unwrap();
            assert_eq!(is_reachable(parsed), reachable, "{address}");
            assert_eq!(is_set_apart(parsed), apart, "{address}");
        }
    }
}
