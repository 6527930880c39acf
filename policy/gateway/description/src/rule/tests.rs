use super::*;
use proptest::prelude::*;

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

#[test]
fn rules_read_and_print_the_same() {
    for text in [
        "tcp:deb.debian.org:80",
        "tcp:*.example.org:443",
        "udp:192.0.2.0/24:5000-5999",
        "tcp:192.0.2.1:22",
        "tcp:*:*",
        "udp:0.0.0.0/0:53",
        "tcp:_service.example:1-65534",
    ] {
        assert_eq!(rule(text).to_string(), text);
        let json = serde_json::to_string(&rule(text)).unwrap();
        assert_eq!(json, format!("{text:?}"));
        assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule(text));
    }
    assert_eq!(
        rule("tcp:DEB.debian.org.:80").to_string(),
        "tcp:deb.debian.org:80"
    );
    assert_eq!(rule("tcp:a:1-65535").to_string(), "tcp:a:*");
}

#[test]
fn what_is_no_rule_is_refused() {
    let form = |text: &str| ParseRuleError::Form(text.to_owned());
    let host = |text: &str| ParseRuleError::Host(text.to_owned());
    let ports = |text: &str| ParseRuleError::Ports(text.to_owned());
    for (text, error) in [
        ("", form("")),
        ("tcp:a", form("tcp:a")),
        ("tcp:a:1:2", form("tcp:a:1:2")),
        ("tcp:::1:80", form("tcp:::1:80")),
        ("sctp:a:1", ParseRuleError::Protocol("sctp".into())),
        ("tcp::1", host("")),
        (
            "tcp:127.0.0.1:1",
            ParseRuleError::LoopbackHost("127.0.0.1".into()),
        ),
        (
            "tcp:127.0.0.0/8:1",
            ParseRuleError::LoopbackHost("127.0.0.0/8".into()),
        ),
        ("tcp:localhost/8:1", host("localhost/8")),
        ("tcp:300.1.1.1:1", host("300.1.1.1")),
        ("tcp:10.0.0.1/8:1", host("10.0.0.1/8")),
        ("tcp:10.0.0.0/33:1", host("10.0.0.0/33")),
        ("tcp:10.0.0.0/+8:1", host("10.0.0.0/+8")),
        ("tcp:10.0.0.0/:1", host("10.0.0.0/")),
        ("tcp:a..b:1", host("a..b")),
        ("tcp:-a:1", host("-a")),
        ("tcp:*.*.a:1", host("*.*.a")),
        ("tcp:a*:1", host("a*")),
        ("tcp:*.:1", host("*.")),
        ("tcp:a b:1", host("a b")),
        ("tcp:a:0", ports("0")),
        ("tcp:a:65536", ports("65536")),
        ("tcp:a:+1", ports("+1")),
        ("tcp:a:2-1", ports("2-1")),
        ("tcp:a:1-", ports("1-")),
        ("tcp:a:", ports("")),
    ] {
        assert_eq!(text.parse::<Rule>(), Err(error), "{text}");
    }
    assert!(
        format!("tcp:{}:1", "a.".repeat(127) + "a")
            .parse::<Rule>()
            .is_err()
    );
    assert!(format!("tcp:{}:1", "a".repeat(64)).parse::<Rule>().is_err());
}

#[test]
fn loopback_services_read_and_print_the_same() {
    for text in ["tcp:8080", "udp:53=5353"] {
        let service: Loopback = text.parse().unwrap();
        assert_eq!(service.to_string(), text);
    }
    let twice: Loopback = "tcp:80=80".parse().unwrap();
    assert_eq!(twice.to_string(), "tcp:80");
    for text in [
        "tcp",
        "tcp:",
        "tcp:0",
        "tcp:1=0",
        "tcp:1=2=3",
        "icmp:1",
        "tcp:+1",
    ] {
        assert!(text.parse::<Loopback>().is_err(), "{text}");
    }
}

#[test]
fn hosts_allow_the_addresses_they_speak_of() {
    for (host, inside, outside) in [
        ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("128.0.0.0/1", "223.0.0.1", "224.0.0.1"),
        ("*", "1.1.1.1", "127.0.0.1"),
        ("*", "1.1.1.1", "169.254.169.254"),
        ("*", "11.0.0.1", "10.0.0.1"),
        ("0.0.0.0/0", "1.1.1.1", "192.168.0.1"),
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
        ("192.168.1.1", "192.168.1.1", "192.168.1.2"),
        ("192.168.0.0/15", "192.169.0.1", "192.168.0.1"),
        ("100.64.0.0/10", "100.64.0.1", "100.128.0.0"),
    ] {
        let parsed: Host = host.parse().unwrap();
        assert!(parsed.allows(inside.parse().unwrap()), "{host} {inside}");
        assert!(!parsed.allows(outside.parse().unwrap()), "{host} {outside}");
    }
    let name: Host = "a.example".parse().unwrap();
    assert!(!name.allows(Ipv4Addr::new(192, 0, 2, 1)), "not by address");
}

#[test]
fn names_are_whole_or_below() {
    let names = |host: &str, name| host.parse::<Host>().unwrap().names(name);
    assert!(names("a.example", "a.example"));
    assert!(!names("a.example", "b.a.example"));
    assert!(!names("a.example", "xa.example"));
    assert!(names("*.example", "a.example"));
    assert!(names("*.example", "b.a.example"));
    assert!(!names("*.example", "example"));
    assert!(!names("*.example", "anexample"));
    assert!(!names("*.example", ".example"));
    assert!(names("*", "anything"));
    assert!(!names("0.0.0.0/0", "anything"));
}

proptest! {
    #[test]
    fn any_text_is_a_rule_that_reads_the_same_again_or_refused(text in ".{0,60}") {
        if let Ok(rule) = text.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        if let Ok(service) = text.parse::<Loopback>() {
            prop_assert_eq!(service.to_string().parse(), Ok(service));
        }
    }

    #[test]
    fn likely_text_too(text in "(tcp|udp):[*.a-c0-9/-]{1,12}:[0-9*-]{1,6}") {
        if let Ok(rule) = text.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }
    }
}
