use super::*;
use bulkhead_network::{Fd, Jail};
use std::net::SocketAddrV4;

fn rules(allow: &[&str], loopback: &[&str]) -> (Config, Rules) {
    let mut description = NetworkDescription::new("t", Fd(3), [2, 0, 0, 0, 0, 1], Jail::None);
    description.allow = allow.iter().map(|rule| rule.parse().unwrap()).collect();
    description.loopback = loopback.iter().map(|s| s.parse().unwrap()).collect();
    (
        Config::new(&description).unwrap(),
        Rules::new(&description, Quotas::new(&description.quotas)),
    )
}

const NOW: Instant = Instant::ZERO;

fn goes((config, rules): &(Config, Rules), flow: &str) -> Option<String> {
    let (protocol, to) = flow.split_once(':').unwrap();
    let protocol = protocol.parse().unwrap();
    let to: SocketAddrV4 = to.parse().unwrap();
    let verdict = rules.outbound(config, NOW, protocol, *to.ip(), to.port());
    verdict.ok().map(|route| route.to.to_string())
}

#[test]
fn nothing_is_reachable_without_a_rule() {
    let none = rules(&[], &[]);
    for flow in [
        "tcp:192.0.2.1:80",
        "udp:192.0.2.1:53",
        "tcp:10.0.2.2:22",
        "tcp:10.0.2.3:22",
        "tcp:127.0.0.1:22",
    ] {
        assert_eq!(goes(&none, flow), None, "{flow}");
    }
    assert!(none.1.resolves(NOW, "example.org").is_none());
}

#[test]
fn rules_allow_what_they_say() {
    let some = rules(&["tcp:192.0.2.0/25:80-81", "udp:192.0.2.1:53"], &[]);
    for (flow, allowed) in [
        ("tcp:192.0.2.1:80", true),
        ("tcp:192.0.2.127:81", true),
        ("tcp:192.0.2.128:80", false),
        ("tcp:192.0.2.1:82", false),
        ("udp:192.0.2.1:80", false),
        ("udp:192.0.2.1:53", true),
        ("tcp:192.0.2.1:53", false),
    ] {
        assert_eq!(goes(&some, flow).is_some(), allowed, "{flow}");
    }
    assert!(some.1.resolves(NOW, "example.org").is_none());
}

#[test]
fn any_is_any_but_the_host_itself_link_local_and_private_addresses() {
    for rule in ["tcp:*:*", "tcp:0.0.0.0/0:*"] {
        let any = rules(&[rule], &[]);
        for (to, allowed) in [
            ("192.0.2.1", true),
            ("11.0.3.1", true),
            ("10.0.3.1", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("100.64.0.1", false),
            ("10.0.2.2", false),
            ("10.0.2.77", false),
            ("127.0.0.1", false),
            ("127.1.2.3", false),
            ("0.0.0.0", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
        ] {
            let flow = format!("tcp:{to}:80");
            assert_eq!(goes(&any, &flow).is_some(), allowed, "{rule} {to}");
        }
        assert_eq!(goes(&any, "tcp:192.0.2.1:0"), None);
    }
    for flow in [
        "tcp:169.254.169.254:80",
        "tcp:10.0.3.1:80",
        "tcp:192.168.1.1:80",
    ] {
        assert!(goes(&rules(&[flow], &[]), flow).is_some(), "{flow}");
    }
    let own = rules(&["tcp:10.0.0.0/8:*"], &[]);
    assert!(goes(&own, "tcp:10.9.9.9:80").is_some());
    assert_eq!(
        goes(&own, "tcp:10.0.2.77:80"),
        None,
        "the guest's own subnet"
    );
    assert!(
        rules(&["tcp:*:*"], &[])
            .1
            .resolves(NOW, "example.org")
            .is_some()
    );
    assert!(
        rules(&["tcp:0.0.0.0/0:*"], &[])
            .1
            .resolves(NOW, "example.org")
            .is_none()
    );
}

#[test]
fn loopback_services_are_at_the_router() {
    let some = rules(&["tcp:*:*"], &["tcp:80=8080", "udp:53"]);
    let host = |flow| goes(&some, flow);
    assert_eq!(host("tcp:10.0.2.2:80").as_deref(), Some("127.0.0.1:8080"));
    assert_eq!(host("udp:10.0.2.2:53").as_deref(), Some("127.0.0.1:53"));
    assert_eq!(host("tcp:10.0.2.2:8080"), None);
    assert_eq!(host("tcp:10.0.2.2:53"), None);
    assert_eq!(host("tcp:10.0.2.3:80"), None);
}

#[test]
fn names_allow_what_they_resolved_to() {
    let mut named = rules(&["tcp:a.example:80", "tcp:*.b.example:443"], &[]);
    assert!(
        named.1.resolves(NOW, "a.example").is_some()
            && named.1.resolves(NOW, "x.b.example").is_some()
    );
    assert!(
        named.1.resolves(NOW, "b.example").is_none()
            && named.1.resolves(NOW, "c.example").is_none()
    );
    assert_eq!(goes(&named, "tcp:192.0.2.1:80"), None);
    let one = Ipv4Addr::new(192, 0, 2, 1);
    named.1.learn(NOW, "a.example", one, 60);
    assert!(goes(&named, "tcp:192.0.2.1:80").is_some());
    assert_eq!(goes(&named, "tcp:192.0.2.1:443"), None);
    named.1.learn(NOW, "x.b.example", one, 60);
    assert!(goes(&named, "tcp:192.0.2.1:443").is_some());
    let later = NOW + smoltcp::time::Duration::from_secs(300);
    let verdict = named.1.outbound(&named.0, later, Protocol::Tcp, one, 80);
    assert!(verdict.is_err(), "answers end");
}

#[test]
fn names_never_stand_for_the_host_its_metadata_or_its_networks() {
    let mut named = rules(&["tcp:a.example:80"], &[]);
    for address in [
        "127.0.0.1",
        "10.0.2.2",
        "169.254.169.254",
        "10.1.2.3",
        "172.31.0.1",
        "192.168.0.1",
        "100.127.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ] {
        named
            .1
            .learn(NOW, "a.example", address.parse().unwrap(), 60);
        assert_eq!(
            goes(&named, &format!("tcp:{address}:80")),
            None,
            "{address}"
        );
    }
}

#[test]
fn where_a_name_is_what_was_granted_tls_has_to_ask_for_it() {
    let (config, mut rules) = rules(&["tcp:a.example:443", "tcp:*.b.example:*"], &[]);
    let to = Ipv4Addr::new(192, 0, 2, 1);
    for name in ["a.example", "x.b.example", "c.example"] {
        rules.learn(NOW, name, to, 60);
    }
    let names = |rules: &Rules, port| {
        let route = rules.outbound(&config, NOW, Protocol::Tcp, to, port);
        route.unwrap().names.map(Vec::from)
    };
    let both = vec!["a.example".to_owned(), "x.b.example".to_owned()];
    assert_eq!(names(&rules, 443), Some(both));
    assert_eq!(names(&rules, 80), Some(vec!["x.b.example".to_owned()]));
    rules.allow.push("tcp:192.0.2.0/24:443".parse().unwrap());
    assert_eq!(names(&rules, 443), None, "the address was granted");
}

#[test]
fn the_address_of_a_denied_name_is_granted_by_names_alone() {
    let (config, mut rules) = rules(&["tcp:*:443", "tcp:a.example:443"], &[]);
    let to = Ipv4Addr::new(192, 0, 2, 1);
    rules.learn(NOW, "a.example", to, 60);
    let route = |rules: &Rules| rules.outbound(&config, NOW, Protocol::Tcp, to, 443);
    assert!(route(&rules).unwrap().by_address);
    rules.learn(NOW, "evil.example", to, 60);
    rules
        .deny
        .connect
        .push("tcp:evil.example:443".parse().unwrap());
    let narrow = route(&rules).unwrap();
    assert!(!narrow.by_address, "the proxy is told");
    assert_eq!(narrow.names.unwrap().into_vec(), ["a.example"]);
}

#[test]
fn a_loopback_service_can_have_a_name() {
    let (mut config, mut rules) = rules(&["tcp:*:*"], &["tcp:443=8443", "tcp:80"]);
    config.hosts = vec!["a.example".to_owned(), "b.example".to_owned()];
    let router = config.router;
    let names = |rules: &Rules, port| {
        let route = rules.outbound(&config, NOW, Protocol::Tcp, router, port);
        route.unwrap().names.map(Vec::from)
    };
    assert_eq!(names(&rules, 443), None, "no rule speaks of it");
    rules.allow.push("tcp:a.example:443".parse().unwrap());
    assert_eq!(names(&rules, 443), Some(vec!["a.example".to_owned()]));
    assert_eq!(names(&rules, 80), None);
}

#[test]
fn a_rule_that_is_over_or_denied_does_not_open_a_named_service() {
    let (mut config, mut rules) = rules(&["tcp:a.example:443"], &["tcp:443=8443"]);
    config.hosts = vec!["a.example".to_owned()];
    let router = config.router;
    let goes = |rules: &Rules, now| {
        rules
            .outbound(&config, now, Protocol::Tcp, router, 443)
            .is_ok()
    };
    rules.allow[0].lifetime = Some(60);
    assert!(goes(&rules, Instant::from_secs(59)));
    assert!(
        !goes(&rules, Instant::from_secs(60)),
        "its lifetime is over"
    );
    rules
        .deny
        .connect
        .push("tcp:a.example:443".parse().unwrap());
    assert!(!goes(&rules, NOW), "it is denied");
}

#[test]
fn a_refusal_names_the_rule_that_is_missing() {
    let (config, mut rules) = rules(&["tcp:a.example:80"], &[]);
    let to = Ipv4Addr::new(192, 0, 2, 1);
    let say = |rules: &Rules, to, port| {
        let refusal = rules.outbound(&config, NOW, Protocol::Tcp, to, port);
        refusal.unwrap_err().to_string()
    };
    assert_eq!(
        say(&rules, to, 22),
        "refused tcp to 192.0.2.1:22: the rule tcp:192.0.2.1:22 would allow it"
    );
    rules.learn(NOW, "a.example", to, 60);
    assert_eq!(
        say(&rules, to, 22),
        "refused tcp to 192.0.2.1:22 (a.example): the rule tcp:a.example:22 would allow it"
    );
    assert_eq!(
        say(&rules, config.router, 22),
        "refused tcp to the host's port 22: the loopback service tcp:22 would allow it"
    );
    assert_eq!(
        say(&rules, Ipv4Addr::LOCALHOST, 22),
        "refused a flow to 127.0.0.1: no rule can allow it"
    );
}
