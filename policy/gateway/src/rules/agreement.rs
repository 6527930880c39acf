//! What `bulkhead why` answers by the table of a partition's grants, and what its gateway and
//! its proxy do: any grants and denials, and the same flows and requests.

use super::*;
use bulkhead_capability::table::{Moment, Request, Table, Verdict};
use bulkhead_capability::{Capability, Constraints, Grant, Grants};
use bulkhead_network::http::HttpRule;
use bulkhead_network::{Fd, Jail};
use bulkhead_proxy::policy::Treatment;
use bulkhead_proxy::secrets::Secrets;
use bulkhead_proxy::{Flow, Policy};
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

fn capability(rule: &str) -> Capability {
    format!("net.connect:{rule}").parse().unwrap()
}

/// A rule, and what of web requests it is for, where it is not for all bytes.
fn web_rule() -> impl Strategy<Value = (String, Option<HttpRule>)> {
    let http = (
        prop::sample::subsequence(vec!["GET", "POST"], 0..=2),
        prop::sample::subsequence(vec!["/v1/**", "/x"], 0..=2),
    );
    let http = http.prop_map(|(methods, paths)| HttpRule {
        methods: methods
            .iter()
            .map(|method| method.parse().unwrap())
            .collect(),
        paths: paths.iter().map(|path| path.parse().unwrap()).collect(),
    });
    let http = http.prop_filter("it narrows nothing", |http| {
        !(http.methods.is_empty() && http.paths.is_empty())
    });
    (rule(), prop::option::of(http)).prop_map(|(rule, http)| {
        let http = http.filter(|_| rule.starts_with("tcp"));
        (rule, http)
    })
}

/// What a flow is for.
#[derive(Clone, Copy)]
struct Wish<'w> {
    protocol: Protocol,
    to: Ipv4Addr,
    port: u16,
    /// Method and path of a request.
    http: Option<(&'w str, &'w str)>,
}

struct Both {
    config: Config,
    rules: Rules,
    web: Policy,
    table: Table,
}

impl Both {
    fn new(allow: &[(String, Option<HttpRule>)], deny: &[String]) -> Self {
        let mut description = NetworkDescription::new("t", Fd(3), [2, 0, 0, 0, 0, 1], Jail::None);
        // Before there are rules that take an authority for TLS, which nobody asks for here.
        let config = Config::new(&description).unwrap();
        let connect = |(rule, http): &(String, Option<HttpRule>)| Connect {
            http: http.clone(),
            ..rule.parse().unwrap()
        };
        description.allow = allow.iter().map(connect).collect();
        description.deny.connect = deny.iter().map(|rule| rule.parse().unwrap()).collect();
        let grant = |(rule, http): &(String, Option<HttpRule>)| {
            let constraints = Constraints {
                http: http.clone(),
                ..Constraints::default()
            };
            Grant::new(capability(rule), constraints).unwrap()
        };
        let grants: Grants = allow.iter().map(grant).collect();
        let grants = grants.denying(deny.iter().map(|rule| capability(rule)));
        let quotas = Quotas::new(&description.quotas);
        Self {
            config,
            rules: Rules::new(&description, quotas.clone()),
            web: Policy::new(
                description.allow.clone(),
                description.deny.clone(),
                quotas,
                Secrets::default(),
            ),
            table: Table::compile(&grants),
        }
    }

    fn why(&self, wish: Wish<'_>, name: Option<&str>) -> bool {
        let request = Request::Connect {
            protocol: wish.protocol,
            name,
            address: Some(wish.to),
            port: wish.port,
            http: wish.http,
        };
        let moment = Moment {
            now: Duration::ZERO,
            age: Duration::ZERO,
        };
        self.table.decide(&request, moment).verdict == Verdict::Allowed
    }

    /// Whether it comes through, where it is said to be for `host`.
    fn goes(&self, wish: Wish<'_>, host: &str) -> bool {
        let Wish {
            protocol,
            to,
            port,
            http,
        } = wish;
        let route = self
            .rules
            .outbound(&self.config, Instant::ZERO, protocol, to, port);
        let Ok(route) = route else {
            return false;
        };
        if !route.web {
            return true;
        }
        let flow = Flow {
            to: route.to,
            port,
            address: Some(to),
            by_address: route.by_address,
            names: route.names.unwrap_or_default(),
            pinned: route.pinned,
        };
        match http {
            Some((method, path)) => self.web.request(&flow, host, method, path).is_ok(),
            None => matches!(self.web.plain(&flow), Treatment::Tunnel(_)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_why_says_of_a_flow_is_what_the_gateway_does(
        allow in prop::collection::vec(web_rule(), 0..4),
        deny in prop::collection::vec(rule(), 0..3),
        names in prop::sample::subsequence(NAMES.to_vec(), 0..=2),
        to in prop::sample::select(ADDRESSES.to_vec()),
        tcp in any::<bool>(),
        port in prop::sample::select(vec![80, 443, 8080]),
        http in prop::option::of((
            prop::sample::select(vec!["GET", "POST", "PUT"]),
            prop::sample::select(vec!["/v1/a", "/x", "/x/..", "/"]),
        )),
    ) {
        let to = Ipv4Addr::from(to);
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let wish = Wish { protocol, to, port, http: http.filter(|_| tcp) };
        let mut both = Both::new(&allow, &deny);
        for name in &names {
            both.rules.learn(Instant::ZERO, name, to, 60);
        }
        let address = to.to_string();
        // Names never stand for the host itself or what is set apart, and open nothing there.
        let stands = range::is_reachable(to) && !range::is_set_apart(to);
        let (names, idle) = if stands { (names, Vec::new()) } else { (Vec::new(), names) };
        for name in idle {
            prop_assert!(both.goes(wish, name) || !both.why(wish, Some(name)));
        }
        match names.as_slice() {
            [] => prop_assert_eq!(both.goes(wish, &address), both.why(wish, None)),
            [name] => prop_assert_eq!(both.goes(wish, name), both.why(wish, Some(name))),
            // One that is denied denies what an address alone would be granted.
            names => {
                for name in names {
                    let why = both.why(wish, Some(name));
                    let others = names.iter().any(|name| both.why(wish, Some(name)));
                    // Bytes that nobody looks into are for whoever may have them.
                    let looked_into = both.goes(Wish { http: None, ..wish }, name);
                    prop_assert!(why || !both.goes(wish, name) || (looked_into && others));
                }
            }
        }
    }
}
