//! The seventh rule: what is denied to everybody.

use super::*;

#[test]
fn rule_7_what_nobody_may_have() {
    let role = ROLE
        .replace("\"console\",", "\"console\", \"fs.read:/etc\", \"fs.read:/etc/shadow\", \"fs.write:/link\", \"fs.read:/etc/shadowy\", \"block.read:/var/lib/bulkhead/vault/v\", \"net.connect:0.0.0.0/0:*\", \"net.connect:*:*\", \"net.connect:udp:169.254.0.0/16:*\", \"net.connect:169.254.0.0/16:*\", \"net.connect:10.0.0.0/8:*\",")
        .replace("/usr/bin/*", "/**");
    let deny = |more: &str| {
        let text = format!("deny = [{more}]");
        let more = parse_deny_list(text.as_bytes(), Path::new("/deny.toml")).unwrap();
        given().deny.and(more)
    };
    let judged = |from: &str, to: &str, more: &str| {
        let given = Given {
            role: &role,
            deny: deny(more),
            ..given()
        };
        judge(&with(from, to), &given)
            .map(drop)
            .map_err(|r| (r.rule, r.field))
    };
    let refused = |field| Err((Rule::Deny, field));
    let net = "api.example.org:443";
    for (from, to, more, expected) in [
        (net, "169.254.169.254:80", "", refused("grants")),
        (net, "169.254.0.0/16:1-80", "", refused("grants")),
        (net, "udp:169.254.169.254:53", "", refused("grants")),
        (net, "0.0.0.0/0:80", "", refused("grants")),
        // `*` is everything but such addresses.
        (net, "*:80", "", Ok(())),
        (
            net,
            "10.0.0.0/8:80",
            "\"net.connect:10.1.0.0/16:*\"",
            refused("grants"),
        ),
        (
            net,
            "api.example.org:443",
            "\"net.connect:*.example.org:443\"",
            refused("grants"),
        ),
        (
            net,
            "api.example.org:443",
            "\"net.connect:*.example.org:80\"",
            Ok(()),
        ),
        ("fs.write:/srv/work", "fs.read:/etc", "", refused("grants")),
        (
            "fs.write:/srv/work",
            "fs.read:/etc/shadow",
            "",
            refused("grants"),
        ),
        // A name that begins alike is another's.
        ("fs.write:/srv/work", "fs.read:/etc/shadowy", "", Ok(())),
        // By the name that a link leads to.
        (
            "fs.write:/srv/work",
            "fs.write:/link",
            "",
            refused("grants"),
        ),
        (
            "\"console\"",
            "\"console\", \"block.read:/var/lib/bulkhead/vault/v\"",
            "",
            refused("grants"),
        ),
        ("/usr/bin/tool", "/etc/shadow", "", refused("boot")),
        ("/usr/bin/tool", "/etc", "", refused("boot")),
        ("/usr/bin/tool", "/link/shadow", "", refused("boot")),
        ("/usr/bin/tool", "/etc/hosts", "", Ok(())),
        (
            "/usr/bin/tool",
            "/etc/hosts",
            "\"fs.read:/etc/hosts\"",
            refused("boot"),
        ),
    ] {
        assert_eq!(judged(from, to, more), expected, "{to} {more}");
    }
    // What the manifest denies itself it does not ask for.
    let own = with(net, "10.0.0.0/8:80");
    let denial = "deny = [\"net.connect:10.1.0.0/16:*\"]";
    let own = own.replace("[identity]", &format!("{denial}\n[identity]"));
    let given = Given {
        role: &role,
        deny: deny("\"net.connect:10.1.0.0/16:80\""),
        ..given()
    };
    judge(&own, &given).unwrap();
    // A file is there as a whole: nobody keeps a part of it from the guest.
    for from in ["/usr/bin/tool", "fs.write:/srv/work"] {
        let to = from
            .replace("/usr/bin/tool", "/etc/shadow")
            .replace("fs.write:/srv/work", "fs.write:/link");
        let denial = "deny = [\"fs.read:/etc/shadow\"]\n[identity]";
        let own = with(from, &to).replace("[identity]", denial);
        let given = Given {
            role: &role,
            ..self::given()
        };
        let found = judge(&own, &given).map(drop).map_err(|r| r.rule);
        assert_eq!(found, Err(Rule::Deny), "{to}");
    }
}

#[test]
fn rule_7_a_deny_list_is_checked_itself() {
    let wrong = parse_deny_list(
        b"deny = [\"nte.connect:*:80\"]\nallow = 1",
        Path::new("d.toml"),
    );
    let codes: Vec<&str> = wrong
        .unwrap_err()
        .diagnostics
        .iter()
        .map(|d| d.code.as_str())
        .collect();
    assert_eq!(codes, ["manifest-grant", "manifest-unknown-key"]);
}
