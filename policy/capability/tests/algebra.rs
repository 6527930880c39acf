//! What delegation rests on: the intersection of two sets of grants allows a request exactly when
//! both do. Requests are concrete, and what a grant means for one is said here a second time, in
//! the plainest way.
//!
//! Two sets are equal here when each is narrower than or equal to the other: they allow the same
//! requests in the same amounts. Which grants say so, and in which order, may differ.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use bulkhead_capability::table::{self, Table};
use bulkhead_capability::{
    Capability, CapabilityName, Constraints, Grant, Grants, ObjectKind, Quota,
};
use bulkhead_network::{Host, Protocol};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATHS: [&str; 6] = ["/a", "/a/b", "/a/b/c", "/ab", "/", "a:b"];
const RULES: [&str; 18] = [
    "tcp:*:*",
    "*:80",
    "a.org:80-90",
    "a.org:85-443",
    "*.org:80-443",
    "*.a.org:80",
    "*.a.org:*",
    "x.a.org:80",
    "udp:a.org:80-90",
    "udp:*:53",
    "10.0.0.0/8:80-90",
    "10.1.0.0/16:1-85",
    "10.1.2.3:*",
    "0.0.0.0/0:80",
    "0.0.0.0/1:1-90",
    "169.254.0.0/16:*",
    "169.254.169.254:80",
    "168.0.0.0/7:80",
];
const LISTENS: [&str; 4] = [
    "0.0.0.0:80=80",
    "127.0.0.1:80=80",
    "127.0.0.1:80=81",
    "[::]:80=80",
];
const LOOPBACKS: [&str; 3] = ["tcp:80", "tcp:80=81", "udp:80"];
const DNS_NAMES: [&str; 5] = ["a.org", "*.a.org", "*.org", "x.a.org", "b.net"];
const PATTERNS: [&str; 6] = ["*", "fs.*", "fs.read", "fs.read*", "git.push", "fs.r*"];
const SPAWNS: [&str; 4] = ["worker=1", "worker=4", "worker=9", "editor=2"];
const PROGRAMS: [&str; 6] = [
    "/usr/bin/git",
    "/usr/bin/*",
    "/usr/**",
    "/**",
    "/*/bin/git",
    "/opt/x",
];
const METHODS: [&[&str]; 5] = [&[], &["GET"], &["GET", "POST"], &["POST", "PUT"], &["HEAD"]];
const WEB_PATHS: [&[&str]; 6] = [
    &[],
    &["/v1/**"],
    &["/v1/models", "/v1/*"],
    &["/*/models"],
    &["/v1/chat/**", "/health"],
    &["/**"],
];
const BELOW: [&[&str]; 5] = [
    &["/"],
    &["/srv"],
    &["/srv/a", "/home"],
    &["/srv/a/b", "/srv/c"],
    &[],
];

/// The objects that `name` is tried with.
fn objects(name: CapabilityName) -> &'static [&'static str] {
    match name.object() {
        ObjectKind::None => &[""],
        ObjectKind::Path(_) => &PATHS,
        ObjectKind::Rule => &RULES,
        ObjectKind::Listen => &LISTENS,
        ObjectKind::Loopback => &LOOPBACKS,
        ObjectKind::Interface => &["tap0", "tap1"],
        ObjectKind::DnsName => &DNS_NAMES,
        ObjectKind::Ring => &["db/queries", "db/answers", "web/queries"],
        ObjectKind::Pci => &["0000:03:00.0", "0000:03:00.1"],
        ObjectKind::Secret => &["key", "token"],
        ObjectKind::Pattern(_) => &PATTERNS,
        ObjectKind::Spawn => &SPAWNS,
        ObjectKind::Programs => &PROGRAMS,
    }
}

fn any_capability_of(name: CapabilityName) -> impl Strategy<Value = Capability> {
    prop::sample::select(objects(name)).prop_map(move |object| {
        let object = Some(object).filter(|object| !object.is_empty());
        Capability::new(name, object).unwrap()
    })
}

/// Any capability; what is narrowed by more than its object comes up more often.
fn any_capability() -> impl Strategy<Value = Capability> {
    use CapabilityName::{Exec, FsRead, FsWrite, NetConnect, ToolCall};
    let often = [
        NetConnect, NetConnect, NetConnect, ToolCall, ToolCall, FsRead, FsWrite, Exec,
    ];
    let names: Vec<CapabilityName> = CapabilityName::ALL.into_iter().chain(often).collect();
    prop::sample::select(names).prop_flat_map(any_capability_of)
}

fn any_quota() -> impl Strategy<Value = Option<Quota>> {
    let amount = || prop::option::weighted(0.5, 1_u64..5);
    let quota = (amount(), amount()).prop_map(|(calls_per_minute, bytes)| Quota {
        calls_per_minute,
        bytes,
    });
    prop::option::weighted(0.4, quota)
}

/// Constraints, those that mean something to `capability`.
fn any_constraints(capability: &Capability) -> impl Strategy<Value = Constraints> + use<> {
    let name = capability.to_string();
    let fits = capability.name().constraints();
    let is_tcp =
        !matches!(capability, Capability::NetConnect(rule) if rule.protocol != Protocol::Tcp);
    let web = (
        prop::sample::select(&METHODS[..]),
        prop::sample::select(&WEB_PATHS[..]),
    );
    let below = prop::sample::select(&BELOW[..]);
    let times = (prop::option::of(1_u64..5), prop::option::of(1_u64..5));
    let web = prop::option::weighted(0.5, web);
    let below = prop::option::weighted(0.5, below);
    (web, below, times, any_quota(), prop::bool::weighted(0.3)).prop_map(
        move |(web, below, (expires, lifetime), quota, approval)| {
            let fits = |key: &str| fits.contains(&key);
            let http = web.map(|(methods, paths)| {
                bulkhead_capability::http_rule(
                    methods
                        .iter()
                        .map(|method| method.parse().unwrap())
                        .collect(),
                    paths.iter().map(|path| path.parse().unwrap()).collect(),
                )
            });
            let quota = quota.map(|quota| Quota {
                calls_per_minute: quota.calls_per_minute.filter(|_| fits("calls")),
                bytes: quota.bytes.filter(|_| fits("bytes")),
            });
            Constraints {
                http: http.filter(|_| fits("methods") && is_tcp),
                below: below
                    .filter(|_| fits("below"))
                    .map(|below| below.iter().map(PathBuf::from).collect()),
                expires: expires.filter(|_| fits("expires")),
                lifetime: lifetime.filter(|_| fits("lifetime")),
                quotas: quota
                    .filter(|quota| *quota != Quota::default())
                    .map(|quota| (name.clone(), quota))
                    .into_iter()
                    .collect(),
                approval: approval && fits("approval"),
            }
        },
    )
}

fn any_grant() -> impl Strategy<Value = Grant> {
    any_capability().prop_flat_map(|capability| {
        any_constraints(&capability)
            .prop_map(move |constraints| Grant::new(capability.clone(), constraints).unwrap())
    })
}

fn any_grants() -> impl Strategy<Value = Grants> {
    let grants = prop::collection::vec(any_grant(), 0..6);
    let deny = prop::collection::vec(any_capability(), 0..3);
    (grants, deny).prop_map(|(grants, deny)| grants.into_iter().collect::<Grants>().denying(deny))
}

/// One thing that a partition may want to do, at one moment.
#[derive(Clone, Debug)]
struct Request {
    act: Act,
    now: u64,
    age: u64,
    /// A person consents.
    consent: bool,
    /// Calls of the last minute and bytes so far, on every counter.
    used: u64,
}

#[derive(Clone, Debug)]
enum Act {
    /// To a name or an address; over HTTP or not.
    Connect(
        bool,
        Result<Ipv4Addr, &'static str>,
        u16,
        Option<(&'static str, &'static str)>,
    ),
    Resolve(&'static str),
    Accept(SocketAddr, u16),
    /// A path, and whether it is written.
    Path(CapabilityName, &'static str, bool),
    Tool(&'static str, Option<&'static str>),
    Model(&'static str),
    Exec(&'static str),
    Spawn(&'static str, u32),
    /// Exactly this, one of [`SINGLE`].
    Same(Capability),
}

/// Capabilities that allow one thing each.
const SINGLE: [CapabilityName; 12] = [
    CapabilityName::Console,
    CapabilityName::DevicePci,
    CapabilityName::Entropy,
    CapabilityName::NetLoopback,
    CapabilityName::NetTap,
    CapabilityName::RingReceive,
    CapabilityName::RingSend,
    CapabilityName::SecretUse,
    CapabilityName::Time,
    CapabilityName::VhostUserBlock,
    CapabilityName::VhostUserNet,
    CapabilityName::Vsock,
];

fn any_request() -> impl Strategy<Value = Request> {
    let names = ["a.org", "x.a.org", "y.x.a.org", "b.org", "org", "b.net"];
    let addresses = [
        Ipv4Addr::new(10, 1, 2, 3),
        Ipv4Addr::new(10, 1, 9, 9),
        Ipv4Addr::new(10, 9, 9, 9),
        Ipv4Addr::new(8, 8, 8, 8),
        Ipv4Addr::new(200, 0, 0, 1),
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(169, 1, 0, 1),
    ];
    let host = prop_oneof![
        prop::sample::select(names.to_vec()).prop_map(Err),
        prop::sample::select(addresses.to_vec()).prop_map(Ok),
    ];
    let methods = prop::sample::select(vec!["GET", "POST", "HEAD", "CONNECT"]);
    let paths = prop::sample::select(vec![
        "/v1/models",
        "/v1/chat/x",
        "/v2/models",
        "/",
        "/v1/../x",
    ]);
    let web = prop::option::of((methods, paths));
    let ports = prop::sample::select(vec![80_u16, 85, 90, 443, 53]);
    let connect = (any::<bool>(), host, ports, web)
        .prop_map(|(tcp, host, port, web)| Act::Connect(tcp, host, port, web.filter(|_| tcp)));
    let tools = vec!["fs.read", "fs.read_dir", "fs.write", "git.push"];
    let files = vec!["/srv", "/srv/a/b/x", "/srv/ab", "/home/x", "/etc"];
    let tool = (
        prop::sample::select(tools.clone()),
        prop::option::of(prop::sample::select(files)),
    );
    let path_names = [
        CapabilityName::BlockRead,
        CapabilityName::FsRead,
        CapabilityName::PmemRead,
    ];
    let path = (
        prop::sample::select(path_names.to_vec()),
        prop::sample::select(PATHS.to_vec()),
        any::<bool>(),
    );
    let programs = vec![
        "/usr/bin/git",
        "/usr/bin/x",
        "/usr/x",
        "/opt/bin/git",
        "/opt/x",
    ];
    let sockets = vec!["127.0.0.1:80", "10.0.0.1:80", "[::1]:80", "127.0.0.1:81"];
    let act = prop_oneof![
        4 => connect,
        2 => tool.prop_map(|(tool, file)| Act::Tool(tool, file)),
        1 => prop::sample::select(names.to_vec()).prop_map(Act::Resolve),
        1 => (prop::sample::select(sockets), prop::sample::select(vec![80_u16, 81]))
            .prop_map(|(socket, port)| Act::Accept(socket.parse().unwrap(), port)),
        2 => path.prop_map(|(name, path, write)| Act::Path(name, path, write)),
        1 => prop::sample::select(tools).prop_map(Act::Model),
        1 => prop::sample::select(programs).prop_map(Act::Exec),
        1 => (prop::sample::select(vec!["worker", "editor"]), 1_u32..10)
            .prop_map(|(role, count)| Act::Spawn(role, count)),
        2 => prop::sample::select(SINGLE.to_vec()).prop_flat_map(any_capability_of)
            .prop_map(Act::Same),
    ];
    (act, 0_u64..6, 0_u64..6, any::<bool>(), 0_u64..6).prop_map(|(act, now, age, consent, used)| {
        Request {
            act,
            now,
            age,
            consent,
            used,
        }
    })
}

fn holds(first: Ipv4Addr, prefix: u8, address: Ipv4Addr) -> bool {
    let mask = if prefix == 0 {
        0
    } else {
        u32::MAX << (32 - prefix)
    };
    address.to_bits() & mask == first.to_bits()
}

/// The range that takes a rule of its own, of those among the addresses here.
fn apart(address: Ipv4Addr) -> Option<(Ipv4Addr, u8)> {
    let ranges = [
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
    ];
    ranges
        .into_iter()
        .find(|(first, prefix)| holds(*first, *prefix, address))
}

/// Whether the capability speaks of the act.
fn matches(capability: &Capability, act: &Act) -> bool {
    let is_pattern = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    };
    match (capability, act) {
        (Capability::NetConnect(rule), Act::Connect(tcp, host, port, _)) => {
            let host = match (&rule.host, host) {
                (Host::Any, Ok(to)) => apart(*to).is_none(),
                (Host::Any, Err(_)) => true,
                (Host::Subnet { address, prefix }, Ok(to)) => {
                    let says_so = apart(*address).is_some_and(|apart| apart.1 <= *prefix);
                    holds(*address, *prefix, *to) && (apart(*to).is_none() || says_so)
                }
                (Host::Name(name), Err(to)) => name == to,
                (Host::Below(parent), Err(to)) => to.ends_with(&format!(".{parent}")),
                _ => false,
            };
            (rule.protocol == Protocol::Tcp) == *tcp
                && host
                && rule.ports.first <= *port
                && *port <= rule.ports.last
        }
        (Capability::DnsResolve(Host::Name(name)), Act::Resolve(to)) => name == to,
        (Capability::DnsResolve(Host::Below(parent)), Act::Resolve(to)) => {
            to.ends_with(&format!(".{parent}"))
        }
        (Capability::NetListen(listen), Act::Accept(socket, port)) => {
            let any = match (listen.address.ip(), socket.ip()) {
                (IpAddr::V4(own), IpAddr::V4(_)) => own.is_unspecified(),
                (IpAddr::V6(own), IpAddr::V6(_)) => own.is_unspecified(),
                _ => false,
            };
            listen.guest_port == *port
                && listen.address.port() == socket.port()
                && (any || listen.address.ip() == socket.ip())
        }
        (granted, Act::Path(name, path, write)) => {
            use CapabilityName as N;
            let writes = match (granted.name(), name) {
                (N::BlockRead, N::BlockRead)
                | (N::FsRead, N::FsRead)
                | (N::PmemRead, N::PmemRead) => false,
                (N::BlockWrite, N::BlockRead)
                | (N::FsWrite, N::FsRead)
                | (N::PmemWrite, N::PmemRead) => true,
                _ => return false,
            };
            granted.path() == Some(Path::new(path)) && (writes || !write)
        }
        (Capability::ToolCall(pattern), Act::Tool(tool, _)) => {
            is_pattern(&pattern.to_string(), tool)
        }
        (Capability::ModelChat(pattern), Act::Model(model)) => {
            is_pattern(&pattern.to_string(), model)
        }
        (Capability::Exec(pattern), Act::Exec(program)) => pattern.matches(program),
        (Capability::PartitionSpawn(spawn), Act::Spawn(role, count)) => {
            spawn.role() == *role && spawn.count() >= *count
        }
        (granted, Act::Same(wanted)) => granted == wanted,
        _ => false,
    }
}

/// Whether the denial speaks of the act: of a path with all below and above it, of a role whatever
/// the number.
fn denies(denied: &Capability, act: &Act) -> bool {
    match (denied, act) {
        (denied, Act::Path(name, path, write)) => {
            let is_read = denied.name() == *name;
            let family = |name: CapabilityName| name.as_str().split('.').next();
            let near = denied
                .path()
                .is_some_and(|own| own.starts_with(path) || Path::new(path).starts_with(own));
            family(denied.name()) == family(*name) && near && (is_read || *write)
        }
        (Capability::PartitionSpawn(spawn), Act::Spawn(role, _)) => spawn.role() == *role,
        (Capability::NetConnect(rule), Act::Connect(tcp, Ok(to), port, _)) => {
            let host = match rule.host {
                Host::Any => true,
                Host::Subnet { address, prefix } => holds(address, prefix, *to),
                _ => false,
            };
            let tcp = (rule.protocol == Protocol::Tcp) == *tcp;
            host && tcp && rule.ports.contains(*port)
        }
        (denied, Act::Same(wanted)) => match (denied.path(), wanted.path()) {
            (Some(a), Some(b)) => {
                denied.name() == wanted.name() && (a.starts_with(b) || b.starts_with(a))
            }
            _ => denied == wanted,
        },
        _ => matches(denied, act),
    }
}

fn grant_allows(grant: &Grant, request: &Request) -> bool {
    let constraints = grant.constraints();
    let http = match (&constraints.http, &request.act) {
        (Some(rule), Act::Connect(_, _, _, Some((method, path)))) => rule.allows(method, path),
        (Some(_), _) => false,
        (None, _) => true,
    };
    let below = match (&constraints.below, &request.act) {
        (Some(below), Act::Tool(_, Some(file))) => {
            below.iter().any(|below| Path::new(file).starts_with(below))
        }
        _ => true,
    };
    let seconds = Duration::from_secs;
    let amounts = constraints.quotas.values().all(|quota| {
        quota
            .calls_per_minute
            .is_none_or(|most| request.used < most)
            && quota.bytes.is_none_or(|most| request.used < most)
    });
    matches(grant.capability(), &request.act)
        && http
        && below
        && amounts
        && !constraints.is_over(seconds(request.now), seconds(request.age))
        && (request.consent || !constraints.approval)
}

fn allows(grants: &Grants, request: &Request) -> bool {
    grants.iter().any(|grant| grant_allows(grant, request))
        && !grants.denied().any(|denied| denies(denied, &request.act))
}

fn are_equal(a: &Grants, b: &Grants) -> bool {
    a.is_narrower_or_equal(b) && b.is_narrower_or_equal(a)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn prints_and_parses_back(capability in any_capability()) {
        prop_assert_eq!(capability.to_string().parse(), Ok(capability));
    }

    #[test]
    fn any_text_parses_or_is_refused(
        name in prop::sample::select(CapabilityName::ALL.to_vec()), text in ".{0,40}"
    ) {
        for text in [format!("{name}:{text}"), text] {
            if let Ok(capability) = text.parse::<Capability>() {
                prop_assert_eq!(capability.to_string().parse(), Ok(capability));
            }
        }
    }

    #[test]
    fn narrower_is_a_partial_order_of_capabilities(
        (a, b, c) in prop::sample::select(CapabilityName::ALL.to_vec()).prop_flat_map(|name| (
            any_capability_of(name), any_capability_of(name), any_capability_of(name)
        ))
    ) {
        prop_assert!(a.is_narrower_or_equal(&a));
        if a.is_narrower_or_equal(&b) && b.is_narrower_or_equal(&a) {
            prop_assert_eq!(&a, &b);
        }
        if a.is_narrower_or_equal(&b) && b.is_narrower_or_equal(&c) {
            prop_assert!(a.is_narrower_or_equal(&c));
        }
    }

    #[test]
    fn the_intersection_of_grants_is_their_greatest_lower_bound(
        (a, b, c) in any_capability().prop_flat_map(|capability| {
            let of = move || any_capability_of(capability.name()).prop_flat_map(|capability| {
                any_constraints(&capability)
                    .prop_map(move |all| Grant::new(capability.clone(), all).unwrap())
            });
            (of(), of(), of())
        })
    ) {
        let both = a.intersect(&b);
        let below_both = c.is_narrower_or_equal(&a) && c.is_narrower_or_equal(&b);
        prop_assert_eq!(below_both, both.as_ref().is_some_and(|both| c.is_narrower_or_equal(both)));
        if let Some(both) = both {
            prop_assert!(both.is_narrower_or_equal(&a) && both.is_narrower_or_equal(&b));
            prop_assert!(Grant::new(both.capability().clone(), both.constraints().clone()).is_ok());
        }
    }

    #[test]
    fn the_intersection_allows_exactly_what_both_allow(
        a in any_grants(), b in any_grants(), requests in prop::collection::vec(any_request(), 40)
    ) {
        let both = a.intersect(&b);
        for request in requests {
            let expected = allows(&a, &request) && allows(&b, &request);
            prop_assert_eq!(allows(&both, &request), expected, "{:?}", request);
        }
    }

    #[test]
    fn a_table_decides_as_the_grants_say(
        a in any_grants(), requests in prop::collection::vec(any_request(), 40)
    ) {
        let table = Table::compile(&a);
        for request in requests {
            let act = &request.act;
            let paths: Vec<PathBuf> = match act {
                Act::Tool(_, path) => path.iter().map(PathBuf::from).collect(),
                _ => Vec::new(),
            };
            let asked = match act {
                Act::Connect(tcp, host, port, http) => table::Request::Connect {
                    protocol: if *tcp { Protocol::Tcp } else { Protocol::Udp },
                    name: host.err(),
                    address: host.ok(),
                    port: *port,
                    http: *http,
                },
                Act::Resolve(name) => table::Request::Resolve(name),
                Act::Tool(tool, _) => table::Request::Tool(tool, &paths),
                Act::Model(model) => table::Request::Model(model),
                Act::Exec(program) => table::Request::Exec(program),
                Act::Spawn(role, count) => table::Request::Spawn(role, *count),
                Act::Same(Capability::SecretUse(name)) => table::Request::Secret(name),
                Act::Accept(..) | Act::Path(..) | Act::Same(_) => continue,
            };
            let seconds = Duration::from_secs;
            let moment = table::Moment { now: seconds(request.now), age: seconds(request.age) };
            let is_left = |grant: &Grant| {
                let quota = grant.constraints().quota();
                let most = [quota.calls_per_minute, quota.bytes];
                most.into_iter().flatten().all(|most| request.used < most)
            };
            let decision = table.decide_among(&asked, moment, is_left);
            let verdicts = [true, false].map(|consent| {
                allows(&a, &Request { consent, ..request.clone() })
            });
            let expected = match verdicts {
                [_, true] => table::Verdict::Allowed,
                [true, false] => table::Verdict::Ask,
                [false, false] => table::Verdict::Denied,
            };
            prop_assert_eq!(decision.verdict, expected, "{:?} {:?}", request, decision);
        }
    }

    #[test]
    fn a_narrower_set_allows_no_more(
        a in any_grants(), b in any_grants(), requests in prop::collection::vec(any_request(), 40)
    ) {
        // Two sets taken at random are hardly ever comparable: the second is widened until they are.
        let mut wider: Vec<Grant> = b.iter().cloned().collect();
        wider.extend(a.iter().map(|grant| Grant::from(grant.capability().clone())));
        let wider: Grants = wider.into_iter().collect();
        let wider = wider.denying(b.denied().cloned());
        for (a, b) in [(&a, &b), (&a, &wider), (&b, &wider)] {
            if a.is_narrower_or_equal(b) {
                for request in &requests {
                    prop_assert!(!allows(a, request) || allows(b, request), "{:?}", request);
                }
            }
        }
    }

    #[test]
    fn intersection_never_widens_and_is_commutative_and_idempotent(
        a in any_grants(), b in any_grants()
    ) {
        let both = a.intersect(&b);
        prop_assert!(both.is_narrower_or_equal(&a) && both.is_narrower_or_equal(&b));
        prop_assert!(are_equal(&both, &b.intersect(&a)));
        prop_assert!(are_equal(&a, &a.intersect(&a)));
        prop_assert!(are_equal(&both, &both.intersect(&a)));
        prop_assert!(are_equal(&Grants::none(), &Grants::none().intersect(&a)));
    }

    #[test]
    fn intersection_is_associative(a in any_grants(), b in any_grants(), c in any_grants()) {
        prop_assert!(are_equal(&a.intersect(&b).intersect(&c), &a.intersect(&b.intersect(&c))));
    }

    #[test]
    fn a_chain_of_eight_delegations_never_widens(
        chain in prop::collection::vec(any_grants(), 8),
        requests in prop::collection::vec(any_request(), 20),
    ) {
        let mut held = chain[0].clone();
        let mut ancestors = vec![held.clone()];
        for asked in &chain[1..] {
            // Each asks for all its parent has, and for more of its own.
            let asked: Grants = held.iter().chain(asked.iter()).cloned().collect();
            held = held.intersect(&asked);
            for ancestor in &ancestors {
                prop_assert!(held.is_narrower_or_equal(ancestor));
                for request in &requests {
                    prop_assert!(!allows(&held, request) || allows(ancestor, request));
                }
            }
            ancestors.push(held.clone());
        }
    }
}
