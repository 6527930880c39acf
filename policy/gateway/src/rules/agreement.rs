//! What `bulkhead why` answers by the table of a partition's grants, and what its gateway does: any
//! grants and denials, and the same flows.

use super::*;
use bulkhead_capability::table::{Moment, Request, Table, Verdict};
use bulkhead_capability::{Capability, Grants};
use bulkhead_network::{Fd, Jail};
use proptest::prelude::*;
use std::time::Duration;

const HOSTS: [&str; 11] = [
    "*",
    "a.example",
    "*.a.example",
    "*.example",
    "b.a.example",
    "192.0.2.1",
    "192.0.2.0/24",
    "0.0.0.0/0",
    "10.1.0.0/16",
    "10.0.0.0/8",
    "169.254.169.254",
];
const NAMES: [&str; 4] = ["a.example", "b.a.example", "c.b.a.example", "other.test"];
const ADDRESSES: [[u8; 4]; 7] = [
    [192, 0, 2, 1],
    [192, 0, 2, 2],
    [198, 51, 100, 1],
    [10, 1, 2, 3],
    [10, 2, 3, 4],
    [169, 254, 169, 254],
    [127, 0, 0, 1],
];

/// A rule's text.
fn rule() -> impl Strategy<Value = String> {
    let parts = (
        prop::sample::select(vec!["tcp", "udp"]),
        prop::sample::select(HOSTS.to_vec()),
        prop::sample::select(vec!["80", "80-443", "*"]),
    );
    parts.prop_map(|(protocol, host, ports)| format!("{protocol}:{host}:{ports}"))
}

fn capabilities(rules: &[String]) -> impl Iterator<Item = Capability> {
    let parsed = rules
        .iter()
        .map(|rule| format!("net.connect:{rule}").parse());
    parsed.map(|parsed| parsed.unwrap())
}

struct Both {
    config: Config,
    rules: Rules,
    table: Table,
}

impl Both {
    fn new(allow: &[String], deny: &[String]) -> Self {
        let mut description = NetworkDescription::new("t", Fd(3), [2, 0, 0, 0, 0, 1], Jail::None);
        description.allow = allow.iter().map(|rule| rule.parse().unwrap()).collect();
        description.deny.connect = deny.iter().map(|rule| rule.parse().unwrap()).collect();
        let grants: Grants = capabilities(allow).collect();
        let grants = grants.denying(capabilities(deny));
        Self {
            config: Config::new(&description).unwrap(),
            rules: Rules::new(&description, Quotas::new(&description.quotas)),
            table: Table::compile(&grants),
        }
    }

    fn why(&self, protocol: Protocol, name: Option<&str>, address: Ipv4Addr, port: u16) -> bool {
        let request = Request::Connect {
            protocol,
            name,
            address: Some(address),
            port,
            http: None,
        };
        let moment = Moment {
            now: Duration::ZERO,
            age: Duration::ZERO,
        };
        self.table.decide(&request, moment).verdict == Verdict::Allowed
    }

    fn goes(&self, protocol: Protocol, to: Ipv4Addr, port: u16) -> bool {
        let route = self
            .rules
            .outbound(&self.config, Instant::ZERO, protocol, to, port);
        route.is_ok()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_why_says_of_a_flow_is_what_the_gateway_does(
        allow in prop::collection::vec(rule(), 0..4),
        deny in prop::collection::vec(rule(), 0..3),
        names in prop::sample::subsequence(NAMES.to_vec(), 0..=2),
        to in prop::sample::select(ADDRESSES.to_vec()),
        tcp in any::<bool>(),
        port in prop::sample::select(vec![80, 443, 8080]),
    ) {
        let to = Ipv4Addr::from(to);
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let mut both = Both::new(&allow, &deny);
        for name in &names {
            both.rules.learn(Instant::ZERO, name, to, 60);
        }
        let goes = both.goes(protocol, to, port);
        // Names never stand for the host itself or what is set apart, and open nothing there.
        let stands = range::is_reachable(to) && !range::is_set_apart(to);
        let (names, idle) = if stands { (names, Vec::new()) } else { (Vec::new(), names) };
        for name in idle {
            prop_assert!(goes || !both.why(protocol, Some(name), to, port));
        }
        match names.as_slice() {
            [] => prop_assert_eq!(goes, both.why(protocol, None, to, port)),
            [name] => prop_assert_eq!(goes, both.why(protocol, Some(name), to, port)),
            // One that is denied denies what an address alone would be granted.
            names => {
                let why = names.iter().any(|name| both.why(protocol, Some(name), to, port));
                prop_assert!(why || !goes);
            }
        }
    }
}
