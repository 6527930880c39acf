//! Conditions: what is refused before anything runs, and what is decided then.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use bulkhead_capability::table::{Moment, Verdict};
use bulkhead_capability::{Capability, Constraints, Grant, Grants, http_rule};
use bulkhead_decision::{
    Act, ActDraft, Circumstances, Conditions, ConditionsError, Family, Policy, Ruling, World,
    propose,
};
use proptest::prelude::*;
use std::path::PathBuf;
use std::time::Duration;

fn grants() -> Grants {
    let all = [
        "net.connect:*.example.org:443",
        "net.connect:203.0.113.0/24:80",
        "dns.resolve:example.net",
        "tool.call:fs.*",
        "tool.call:git.log",
        "secret.use:key",
        "model.chat:gpt-*",
        "partition.spawn:worker=4",
        "exec:/usr/bin/*",
        "fs.read:/srv",
    ];
    all.into_iter()
        .map(|text| text.parse::<Capability>().unwrap())
        .collect()
}

fn parse(text: &str) -> Result<Conditions, ConditionsError> {
    let grants = grants();
    let world = World {
        partitions: vec![("web", &grants)],
    };
    Conditions::parse(text, &world)
}

fn who(time: u64) -> Circumstances {
    Circumstances {
        system: "shop".to_owned(),
        partition: "web".to_owned(),
        lineage: vec!["root".to_owned()],
        moment: Moment {
            now: Duration::from_secs(time),
            age: Duration::from_secs(10),
        },
        bytes: Some(100),
    }
}

fn web(host: &str, method: &str, path: &str) -> Act {
    let draft = ActDraft {
        net: Some(host.to_owned()),
        method: Some(method.to_owned()),
        path: Some(path.to_owned()),
        ..ActDraft::default()
    };
    draft.try_into().unwrap()
}

fn tool(name: &str, paths: &[&str]) -> Act {
    Act::Tool(name.to_owned(), paths.iter().map(PathBuf::from).collect())
}

#[test]
fn what_can_never_hold_is_refused() {
    for (text, says) in [
        ("permit(principal, action, resource", "no Cedar"),
        (
            "permit(principal == ?principal, action, resource);",
            "templates",
        ),
        (
            r#"permit(principal, action == Action::"net.conect", resource);"#,
            "net.conect",
        ),
        (
            r#"permit(principal == User::"x", action, resource);"#,
            "User",
        ),
        (
            r#"@id("late") permit(principal, action == Action::"tool.call", resource) when { context.method == "GET" };"#,
            "condition `late`",
        ),
        (
            r#"permit(principal, action == Action::"net.connect", resource) when { context.method == "GET" };"#,
            "method",
        ),
        (
            r#"permit(principal, action == Action::"net.connect", resource) when { context.port == "443" };"#,
            "condition `policy0`",
        ),
        (
            r#"permit(principal, action == Action::"tool.call", resource == Host::"a.example.org");"#,
            "condition `policy0`",
        ),
        (
            r#"permit(principal, action, resource == Tool::"fs.red");permit(principal, action, resource == Tool::"gti.log");"#,
            "`gti.log`, which no grant is about",
        ),
        (
            r#"permit(principal, action, resource in ToolFamily::"process");"#,
            "ToolFamily `process`",
        ),
        (
            r#"permit(principal, action, resource == Secret::"kye");"#,
            "Secret `kye`",
        ),
        (
            r#"permit(principal, action, resource == Model::"claude");"#,
            "Model `claude`",
        ),
        (
            r#"permit(principal, action, resource == Host::"example.com");"#,
            "Host `example.com`",
        ),
        (
            r#"permit(principal, action, resource == Host::"10.0.0.1");"#,
            "Host `10.0.0.1`",
        ),
        (
            r#"permit(principal, action, resource in Domain::"com");"#,
            "Domain `com`",
        ),
        (
            r#"permit(principal, action, resource == Role::"king");"#,
            "Role `king`",
        ),
        (
            r#"permit(principal == Partition::"wbe", action, resource);"#,
            "no partition",
        ),
        (
            r#"permit(principal, action, resource in Directory::"srv");"#,
            "no absolute path",
        ),
        (
            r#"forbid(principal, action, resource) when { resource == Tool::"hg.log" };"#,
            "Tool `hg.log`",
        ),
    ] {
        let error = parse(text)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(error.contains(says), "{text}: {error}");
    }
    let long = "//".repeat(1024 * 1024);
    assert!(matches!(parse(&long), Err(ConditionsError::TooLong(_))));
}

#[test]
fn conditions_on_requests_need_somebody_who_looks_into_them() {
    let narrowed = Constraints {
        http: Some(http_rule(Vec::new(), vec!["/**".parse().unwrap()])),
        ..Constraints::default()
    };
    let api = "net.connect:api.example.org:443".parse().unwrap();
    let narrowed: Grants = [Grant::new(api, narrowed).unwrap()].into_iter().collect();
    let plain = |text: &str| text.parse::<Capability>().unwrap();
    let bare: Grants = [
        plain("net.connect:ssh.example.net:22"),
        plain("net.connect:udp:*:53"),
    ]
    .into_iter()
    .collect();
    let world = World {
        partitions: vec![("web", &narrowed), ("ops", &bare)],
    };
    let get = r#"context has method && context.method == "GET""#;
    let on = |scope: &str, rest: &str| format!(r#"@id("x") {scope}, {rest};"#);
    let connect = r#"action == Action::"net.connect", resource"#;
    for (text, holds) in [
        (
            on("forbid(principal", &format!("{connect}) when {{ {get} }}")),
            false,
        ),
        (
            on(
                "forbid(principal",
                &format!("{connect}) when {{ context.port == 80 }}"),
            ),
            true,
        ),
        (
            on(
                r#"forbid(principal == Partition::"web""#,
                &format!("{connect}) when {{ {get} }}"),
            ),
            true,
        ),
        // Its children too, whatever they are granted.
        (
            on(
                r#"forbid(principal in Partition::"web""#,
                &format!("{connect}) when {{ {get} }}"),
            ),
            false,
        ),
        (
            on(
                r#"forbid(principal == Partition::"ops""#,
                &format!("{connect}) when {{ {get} }}"),
            ),
            false,
        ),
        (
            on(
                "forbid(principal",
                &format!(r#"{connect} in Domain::"example.org") unless {{ {get} }}"#),
            ),
            true,
        ),
        (
            on(
                "forbid(principal",
                &format!(r#"{connect} in Domain::"example.net") unless {{ {get} }}"#),
            ),
            false,
        ),
        (
            on(
                "forbid(principal",
                &format!(r#"{connect} == Host::"api.example.org") when {{ {get} }}"#),
            ),
            true,
        ),
        // All of it has to hold, so without a request nothing is permitted.
        (
            on("permit(principal", &format!("{connect}) when {{ {get} }}")),
            true,
        ),
        (
            on(
                "permit(principal",
                &format!("{connect}) unless {{ {get} }}"),
            ),
            false,
        ),
        (
            on(
                "permit(principal",
                &format!("{connect}) when {{ !(context has path) }}"),
            ),
            false,
        ),
        (
            on(
                "permit(principal",
                &format!("{connect}) when {{ context.port == 1 || ({get}) }}"),
            ),
            false,
        ),
    ] {
        let found = Conditions::parse_to_hold(&text, &world);
        let refused = matches!(found, Err(ConditionsError::NotLookedInto { .. }));
        assert_eq!(
            (found.is_ok(), refused),
            (holds, !holds),
            "{text}: {found:?}"
        );
        assert!(
            Conditions::parse(&text, &world).is_ok(),
            "it can be tried all the same"
        );
    }
}

#[test]
fn what_nobody_tells_of_a_running_partition_cannot_be_held_to() {
    let grants = grants();
    let world = World {
        partitions: vec![("web", &grants)],
    };
    let text = r#"@id("big") forbid(principal, action == Action::"model.chat", resource)
        when { context has bytes && context.bytes > 9 };"#;
    let refused = Conditions::parse_to_hold(text, &world).unwrap_err();
    assert!(refused.to_string().contains("condition `big`"), "{refused}");
    assert!(Conditions::parse(text, &world).is_ok());
}

#[test]
fn forbid_wins_and_nothing_is_permitted_by_silence() {
    let conditions = parse(
        r#"
        @id("reads") permit(principal, action == Action::"net.connect", resource in Domain::"example.org")
            when { context has method && ["GET", "HEAD"].contains(context.method) };
        @id("writes by day") permit(principal, action == Action::"net.connect", resource == Host::"api.example.org")
            when { context has method && context.method == "POST" && context.hour >= 8 && context.hour < 18
                && context.weekday <= 5 && context has bytes && context.bytes <= 1000 };
        @id("not the admin's") forbid(principal, action == Action::"net.connect", resource)
            when { context has path && context.path like "/admin*" };
        @id("tools") permit(principal == Partition::"web", action == Action::"tool.call", resource in ToolFamily::"fs")
            unless { context.paths.contains("/srv/secret") };
        @id("children") forbid(principal, action, resource) when { principal.lineage.contains("untrusted") };
        "#,
    )
    .unwrap();
    // 2026-11-27, a Friday, at noon and at night; the day after at noon.
    let (noon, night, weekend) = (1_795_780_800, 1_795_827_600, 1_795_867_200);
    let permitted = |by: &str| Ruling::Permitted(vec![by.to_owned()]);
    let forbidden = |by: &str| Ruling::Forbidden(vec![by.to_owned()]);
    for (act, time, ruling) in [
        (
            web("api.example.org:443", "GET", "/"),
            noon,
            permitted("reads"),
        ),
        (
            web("a.b.example.org:443", "HEAD", "/"),
            night,
            permitted("reads"),
        ),
        (
            web("api.example.org:443", "GET", "/admin/x"),
            noon,
            forbidden("not the admin's"),
        ),
        (
            web("api.example.org:443", "POST", "/"),
            noon,
            permitted("writes by day"),
        ),
        (
            web("api.example.org:443", "POST", "/"),
            night,
            Ruling::NotPermitted,
        ),
        (
            web("api.example.org:443", "POST", "/"),
            weekend,
            Ruling::NotPermitted,
        ),
        (
            web("www.example.org:443", "POST", "/"),
            noon,
            Ruling::NotPermitted,
        ),
        (tool("fs.read", &["/srv/a"]), noon, permitted("tools")),
        (
            tool("fs.read", &["/srv/a", "/srv/secret"]),
            noon,
            Ruling::NotPermitted,
        ),
        (tool("git.log", &[]), noon, Ruling::NotPermitted),
        (Act::Secret("key".to_owned()), noon, Ruling::NotPermitted),
    ] {
        assert_eq!(conditions.ask(&act, &who(time)), ruling, "{act:?}");
    }
    let mut child = who(noon);
    child.lineage.push("untrusted".to_owned());
    let ruling = conditions.ask(&web("api.example.org:443", "GET", "/"), &child);
    assert_eq!(ruling, forbidden("children"));
    let mut many = who(noon);
    many.bytes = Some(1001);
    let post = web("api.example.org:443", "POST", "/");
    assert_eq!(conditions.ask(&post, &many), Ruling::NotPermitted);
}

#[test]
fn a_child_is_in_its_ancestors_and_is_none_of_them() {
    let conditions = parse(
        r#"@id("all") permit(principal in Partition::"web", action, resource);
           @id("own") forbid(principal == Partition::"web", action, resource == Secret::"key");"#,
    )
    .unwrap();
    let mut child = who(0);
    child.partition = "helper".to_owned();
    let key = Act::Secret("key".to_owned());
    assert_eq!(conditions.ask(&key, &child), Ruling::NotPermitted);
    child.lineage = vec!["web".to_owned(), "root".to_owned()];
    let all = Ruling::Permitted(vec!["all".to_owned()]);
    assert_eq!(conditions.ask(&key, &child), all);
    let own = Ruling::Forbidden(vec!["own".to_owned()]);
    assert_eq!(conditions.ask(&key, &who(0)), own);
}

#[test]
fn a_condition_that_fails_permits_nothing() {
    // The sum overflows, and Cedar would go on without the forbid.
    let conditions = parse(
        r#"permit(principal, action, resource);
           forbid(principal, action == Action::"model.chat", resource)
               when { context has bytes && context.bytes + 9223372036854775807 > 0 };"#,
    )
    .unwrap();
    let act = Act::Model("gpt-5".to_owned());
    assert!(matches!(conditions.ask(&act, &who(0)), Ruling::Failed(_)));
}

#[test]
fn conditions_narrow_grants_and_never_widen_them() {
    let grants = grants();
    let parse = |text| Family::from(parse(text).unwrap());
    let all = parse("permit(principal, action, resource);");
    let none = parse("forbid(principal, action, resource);");
    for (act, granted) in [
        (web("api.example.org:443", "GET", "/"), true),
        (web("api.example.com:443", "GET", "/"), false),
        (tool("fs.read", &[]), true),
        (tool("git.push", &[]), false),
        (Act::Secret("other".to_owned()), false),
        (Act::Exec("/usr/bin/git".to_owned()), true),
        (Act::Exec("/bin/sh".to_owned()), false),
        (Act::Spawn("worker".to_owned(), 4), true),
        (Act::Spawn("worker".to_owned(), 5), false),
        (Act::Resolve("example.net".to_owned()), true),
        (
            Act::File {
                path: "/srv/a".into(),
                write: false,
            },
            true,
        ),
        (
            Act::File {
                path: "/srv/a".into(),
                write: true,
            },
            false,
        ),
    ] {
        let decide = |conditions| {
            Policy::new(&grants, conditions)
                .decide(&act, &who(0))
                .verdict
        };
        let expected = if granted {
            Verdict::Allowed
        } else {
            Verdict::Denied
        };
        assert_eq!(decide(None), expected, "{act:?}");
        assert_eq!(decide(Some(&all)), expected, "{act:?}");
        assert_eq!(decide(Some(&none)), Verdict::Denied, "{act:?}");
    }
}

#[test]
fn what_is_proposed_allows_what_was_denied_and_no_more() {
    let none = Grants::none();
    let policy = Policy::new(&none, None);
    let acts = [
        web("api.example.org:443", "GET", "/v1/x"),
        web("api.example.org:443", "POST", "/v1/y"),
        tool("fs.read", &["/srv/a"]),
        Act::Secret("key".to_owned()),
    ];
    let at = who(0);
    let denied: Vec<_> = acts
        .iter()
        .map(|act| (act, policy.decide(act, &at)))
        .collect();
    let (lines, conditions) = propose("web", &denied);
    assert_eq!(
        lines,
        [
            r#"{ capability = "net.connect:tcp:api.example.org:443", methods = ["GET", "POST"], paths = ["/v1/x", "/v1/y"] }"#,
            r#""secret.use:key""#,
            r#"{ capability = "tool.call:fs.read", below = ["/srv/a"] }"#,
        ]
    );
    assert!(conditions.is_empty());

    let grants = grants();
    let silent = parse(r#"forbid(principal, action == Action::"exec", resource);"#);
    let silent = Family::from(silent.unwrap());
    let policy = Policy::new(&grants, Some(&silent));
    let acts = [
        web("api.example.org:443", "GET", "/v1/x"),
        tool("fs.read", &[]),
        Act::Resolve("Example.NET.".to_owned()),
    ];
    // What is forbidden no permit mends.
    let forbidden = Act::Exec("/usr/bin/git".to_owned());
    let said = policy.decide(&forbidden, &at);
    assert!(matches!(said.ruling, Some(Ruling::Forbidden(_))));
    assert_eq!(propose("web", &[(&forbidden, said)]), (vec![], vec![]));
    let denied: Vec<_> = acts
        .iter()
        .map(|act| (act, policy.decide(act, &at)))
        .collect();
    let (lines, conditions) = propose("web", &denied);
    assert!(lines.is_empty());
    let learned = Family::from(parse(&conditions.join("\n")).unwrap());
    let policy = Policy::new(&grants, Some(&learned));
    for act in &acts {
        assert_eq!(policy.decide(act, &at).verdict, Verdict::Allowed, "{act:?}");
    }
    for act in [
        web("api.example.org:443", "POST", "/v1/x"),
        web("api.example.org:443", "GET", "/v1/z"),
        tool("fs.write", &[]),
    ] {
        assert_eq!(policy.decide(&act, &at).verdict, Verdict::Denied, "{act:?}");
    }
}

#[test]
fn they_are_asked_where_there_is_little_stack() {
    let small = std::thread::Builder::new().stack_size(64 * 1024);
    let asked = small.spawn(|| {
        let conditions = parse("permit(principal, action, resource);")?;
        Ok::<_, ConditionsError>(conditions.ask(&web("api.example.org:443", "GET", "/"), &who(0)))
    });
    let ruling = asked.unwrap().join().unwrap().unwrap();
    assert!(ruling.is_permitted(), "{ruling}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn text_from_a_partition_is_never_syntax(text in "\\PC{0,40}", path in "(/[^/]{0,8}){0,200}") {
        let conditions = parse(
            r#"permit(principal, action, resource == Tool::"fs.read");
               permit(principal, action == Action::"exec", resource in Directory::"/usr/bin");"#,
        )
        .unwrap();
        let ruling = conditions.ask(&tool(&text, &[&path]), &who(0));
        prop_assert_eq!(ruling.is_permitted(), text == "fs.read");
        let file = Act::Exec(path.clone());
        let inside = std::path::Path::new(&path).ancestors().skip(1).any(|up| up == std::path::Path::new("/usr/bin"));
        prop_assert_eq!(conditions.ask(&file, &who(0)).is_permitted(), inside);
        // What is proposed for any act is Cedar.
        let act = Act::Secret(text.clone());
        let secret: Option<Grants> = format!("secret.use:{text}").parse::<Capability>().ok().map(|c| [c].into_iter().collect());
        if let Some(grants) = secret {
            let world = World { partitions: vec![("web", &grants)] };
            let none = Family::from(Conditions::parse("", &world).unwrap());
            let policy = Policy::new(&grants, Some(&none));
            let (_, lines) = propose("web", &[(&act, policy.decide(&act, &who(0)))]);
            let learned = Conditions::parse(&lines.join("\n"), &world).unwrap();
            prop_assert!(learned.ask(&act, &who(0)).is_permitted());
        }
    }
}
