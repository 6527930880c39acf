//! Decisions and the reasons that are given for them.

use super::*;
use bulkhead_network::Protocol;
use std::path::Path;

const MOMENT: Moment = Moment {
    now: Duration::from_secs(1_000),
    age: Duration::from_secs(10),
};

/// Grants as JSON, denials as text.
fn table(grants: &str, deny: &[&str]) -> Table {
    let grants: Vec<Grant> = serde_json::from_str(grants).unwrap();
    let deny = deny.iter().map(|text| text.parse().unwrap());
    Table::compile(&grants.into_iter().collect::<Grants>().denying(deny))
}

fn connect<'r>(name: &'r str, port: u16, http: Option<(&'r str, &'r str)>) -> Request<'r> {
    Request::Connect {
        protocol: Protocol::Tcp,
        name: Some(name),
        address: None,
        port,
        http,
    }
}

#[test]
fn the_grant_that_decides_is_named() {
    let table = table(
        r#"[
            {"capability": "net.connect:api.example.org:443",
             "constraints": {"http": {"methods": ["GET"], "paths": ["/v1/**"]}}},
            {"capability": "net.connect:*.example.org:443", "constraints": {"approval": true}},
            {"capability": "net.connect:old.example.net:80", "constraints": {"expires": 1000}},
            {"capability": "tool.call:fs.*", "constraints": {"below": ["/srv/repo"]}},
            {"capability": "tool.call:fs.list", "constraints": {"lifetime": 10}},
            {"capability": "exec:/usr/bin/*"},
            {"capability": "partition.spawn:worker=2"},
            {"capability": "secret.use:key"},
            {"capability": "model.chat:gpt-*"},
            {"capability": "dns.resolve:*.example.org"},
            {"capability": "fs.write:/srv/repo"},
            {"capability": "fs.read:/srv"}
        ]"#,
        &[
            "tool.call:fs.delete",
            "exec:/usr/bin/curl",
            "fs.write:/srv/repo/.git",
        ],
    );
    let (inside, outside) = (Path::new("/srv/repo/a"), Path::new("/srv/a"));
    let upwards = Path::new("/srv/repo/../a");
    let paths = |paths: &[&Path]| {
        paths
            .iter()
            .map(|path| path.to_path_buf())
            .collect::<Vec<_>>()
    };
    let (one, two, up) = (
        paths(&[inside]),
        paths(&[inside, outside]),
        paths(&[upwards]),
    );
    for (request, verdict, reason) in [
        (
            connect("API.example.org.", 443, Some(("GET", "/v1/x"))),
            Verdict::Allowed,
            "granted by net.connect:tcp:api.example.org:443, methods GET, paths /v1/**",
        ),
        (
            connect("api.example.org", 443, Some(("POST", "/v1/x"))),
            Verdict::Ask,
            "granted by net.connect:tcp:*.example.org:443, with approval",
        ),
        (
            connect("api.example.org", 80, None),
            Verdict::Denied,
            "no grant speaks of it",
        ),
        (
            connect("example.org", 443, None),
            Verdict::Denied,
            "no grant speaks of it",
        ),
        (
            connect("old.example.net", 80, None),
            Verdict::Denied,
            "granted by net.connect:tcp:old.example.net:80, until 1000 seconds after 1970, but its time is over",
        ),
        (
            Request::Tool("fs.read", &one),
            Verdict::Allowed,
            "granted by tool.call:fs.*, below /srv/repo",
        ),
        (
            Request::Tool("fs.read", &two),
            Verdict::Denied,
            "granted by tool.call:fs.*, below /srv/repo, but a path lies outside of its directories",
        ),
        (
            Request::Tool("fs.list", &up),
            Verdict::Denied,
            "granted by tool.call:fs.*, below /srv/repo, but a path lies outside of its directories",
        ),
        (
            Request::Tool("fs.delete", &[]),
            Verdict::Denied,
            "denied by tool.call:fs.delete",
        ),
        (
            Request::Exec("/usr/bin/git"),
            Verdict::Allowed,
            "granted by exec:/usr/bin/*",
        ),
        (
            Request::Exec("/usr/bin/curl"),
            Verdict::Denied,
            "denied by exec:/usr/bin/curl",
        ),
        (
            Request::Exec("/usr/bin/../bin/curl"),
            Verdict::Denied,
            "no grant speaks of it",
        ),
        (
            Request::Spawn("worker", 2),
            Verdict::Allowed,
            "granted by partition.spawn:worker=2",
        ),
        (
            Request::Spawn("worker", 3),
            Verdict::Denied,
            "no grant speaks of it",
        ),
        (
            Request::Secret("key"),
            Verdict::Allowed,
            "granted by secret.use:key",
        ),
        (
            Request::Secret("Key"),
            Verdict::Denied,
            "no grant speaks of it",
        ),
        (
            Request::Model("gpt-5"),
            Verdict::Allowed,
            "granted by model.chat:gpt-*",
        ),
        (
            Request::Model("gpt"),
            Verdict::Denied,
            "no grant speaks of it",
        ),
        (
            Request::Resolve("a.b.example.org"),
            Verdict::Allowed,
            "granted by dns.resolve:*.example.org",
        ),
        (
            Request::Resolve("api.example.net"),
            Verdict::Denied,
            "no grant speaks of it",
        ),
        (
            Request::File {
                path: inside,
                write: true,
            },
            Verdict::Allowed,
            "granted by fs.write:/srv/repo",
        ),
        (
            Request::File {
                path: outside,
                write: true,
            },
            Verdict::Denied,
            "no grant speaks of it",
        ),
        (
            Request::File {
                path: outside,
                write: false,
            },
            Verdict::Allowed,
            "granted by fs.read:/srv",
        ),
        (
            Request::File {
                path: upwards,
                write: true,
            },
            Verdict::Denied,
            "no grant can be about it",
        ),
        (
            Request::File {
                path: Path::new("/srv/repo/.git/config"),
                write: true,
            },
            Verdict::Denied,
            "denied by fs.write:/srv/repo/.git",
        ),
        (
            Request::File {
                path: Path::new("/srv/repo/.git/config"),
                write: false,
            },
            Verdict::Allowed,
            "granted by fs.write:/srv/repo",
        ),
    ] {
        let decision = table.decide(&request, MOMENT);
        assert_eq!(decision.verdict, verdict, "{request}");
        assert_eq!(decision.reason.to_string(), reason, "{request}");
    }
}

#[test]
fn web_requests_are_told_what_is_missing() {
    let table = table(
        r#"[{"capability": "net.connect:a.org:443",
             "constraints": {"http": {"methods": ["GET"], "paths": ["/v1/**"]}}}]"#,
        &[],
    );
    for (http, hindrance) in [
        (None, Hindrance::NotWeb),
        (Some(("POST", "/v1/x")), Hindrance::Method),
        (Some(("GET", "/v2")), Hindrance::Path),
        (Some(("GET", "/v1/../v2")), Hindrance::Path),
        (Some(("CONNECT", "/v1/x")), Hindrance::Method),
    ] {
        let request = connect("a.org", 443, http);
        let decision = table.decide(&request, MOMENT);
        assert!(
            matches!(decision.reason, Reason::Constrained(_, found) if found == hindrance),
            "{request}: {decision:?}"
        );
    }
}

#[test]
fn names_and_addresses_are_decided_together() {
    let table = table(
        r#"[{"capability": "net.connect:*:443"}, {"capability": "net.connect:10.1.0.0/16:443"}]"#,
        &[
            "net.connect:evil.org:*",
            "net.connect:10.1.2.0/24:*",
            "net.connect:203.0.113.0/24:*",
        ],
    );
    for (name, address, verdict) in [
        (Some("a.org"), None, Verdict::Allowed),
        (Some("a.org"), Some([8, 8, 8, 8]), Verdict::Allowed),
        (Some("a.org"), Some([203, 0, 113, 9]), Verdict::Denied),
        (Some("evil.org"), Some([8, 8, 8, 8]), Verdict::Denied),
        (None, Some([8, 8, 8, 8]), Verdict::Allowed),
        (None, Some([10, 1, 1, 1]), Verdict::Allowed),
        (None, Some([10, 1, 2, 1]), Verdict::Denied),
        (None, Some([10, 9, 9, 9]), Verdict::Denied),
        (None, Some([127, 0, 0, 1]), Verdict::Denied),
        // A name that somebody points at a private address; the address itself is granted apart.
        (Some("a.org"), Some([192, 168, 0, 1]), Verdict::Denied),
        (Some("a.org"), Some([10, 1, 1, 1]), Verdict::Allowed),
        (None, None, Verdict::Denied),
    ] {
        let request = Request::Connect {
            protocol: Protocol::Tcp,
            name,
            address: address.map(std::net::Ipv4Addr::from),
            port: 443,
            http: None,
        };
        assert_eq!(table.decide(&request, MOMENT).verdict, verdict, "{request}");
    }
}

#[test]
fn what_is_used_up_falls_to_the_next_grant() {
    let table = table(
        r#"[{"capability": "tool.call:fs.read"}, {"capability": "tool.call:fs.*"},
            {"capability": "tool.call:*", "constraints": {"approval": true}}]"#,
        &[],
    );
    let request = Request::Tool("fs.read", &[]);
    let with = |used: &[&str]| {
        let is_left = |grant: &Grant| !used.contains(&grant.capability().to_string().as_str());
        let decision = table.decide_among(&request, MOMENT, is_left);
        (decision.verdict, decision.reason.to_string())
    };
    assert_eq!(with(&[]).1, "granted by tool.call:fs.read");
    assert_eq!(with(&["tool.call:fs.read"]).1, "granted by tool.call:fs.*");
    let two = ["tool.call:fs.read", "tool.call:fs.*"];
    assert_eq!(with(&two).0, Verdict::Ask);
    let all = ["tool.call:fs.read", "tool.call:fs.*", "tool.call:*"];
    let (verdict, reason) = with(&all);
    assert_eq!(verdict, Verdict::Denied);
    assert_eq!(reason, "granted by tool.call:fs.read, but it is used up");
}

#[test]
fn what_would_allow_a_request_can_be_written_down() {
    for (request, text) in [
        (
            connect("a.org", 443, None),
            Some("net.connect:tcp:a.org:443"),
        ),
        (connect("not a name", 443, None), None),
        (Request::Tool("fs.read", &[]), Some("tool.call:fs.read")),
        (
            Request::Spawn("worker", 3),
            Some("partition.spawn:worker=3"),
        ),
        (
            Request::File {
                path: Path::new("/srv/a/b"),
                write: false,
            },
            Some("fs.read:/srv/a"),
        ),
        (Request::Exec("git"), None),
    ] {
        let capability = request
            .capability()
            .map(|capability| capability.to_string());
        assert_eq!(capability.as_deref(), text);
        let Some(capability) = request.capability() else {
            continue;
        };
        let table = Table::compile(&[capability].into_iter().collect());
        assert_eq!(table.decide(&request, MOMENT).verdict, Verdict::Allowed);
    }
}
