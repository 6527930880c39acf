//! `bulkhead policy` and `bulkhead why`: what a manifest and its conditions say, before anything runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::tempdir;

const SYSTEM: &str = r#"
    name = "shop"
    [[partition]]
    name = "web"
    kernel = "linux"
    command = ["/bin/agent"]
    grants = [
        { capability = "net.connect:api.example.org:443", methods = ["GET", "POST"], paths = ["/v1/**"] },
        "tool.call:fs.*", "secret.use:key", "fs.write:/srv/work",
    ]
    deny = ["tool.call:fs.delete"]
    [[partition]]
    name = "db"
    kernel = "linux"
    command = ["/bin/db"]
"#;

const CONDITIONS: &str = r#"
    permit(principal, action, resource);
    @id("by day") forbid(principal, action == Action::"net.connect", resource)
        when { context has method && context.method == "POST" && context.hour < 8 };
"#;

const CASES: &str = r#"
    manifest = "system.toml"
    partition = "web"
    [[case]]
    expect = "allow"
    act = { net = "api.example.org:443", method = "GET", path = "/v1/x" }
    [[case]]
    name = "no posts at night"
    time = 3600
    expect = "deny"
    act = { net = "api.example.org:443", method = "POST", path = "/v1/x" }
    [[case]]
    time = 36000
    expect = "allow"
    act = { net = "api.example.org:443", method = "POST", path = "/v1/x" }
    [[case]]
    expect = "deny"
    act = { tool = "fs.delete" }
    [[case]]
    partition = "db"
    expect = "deny"
    act = { secret = "key" }
"#;

fn bulkhead(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    for place in ["STATE", "CONFIG", "DATA", "CHECKPOINT"] {
        let own = directory.join(place.to_lowercase());
        command.env(format!("BULKHEAD_{place}_DIR"), own);
    }
    let command = command.args(args).current_dir(directory);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A directory with these files.
fn place(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

#[test]
fn cases_are_tried_and_the_wrong_ones_named() {
    let files = [
        ("system.toml", SYSTEM),
        ("policy.cedar", CONDITIONS),
        ("cases.toml", CASES),
    ];
    let place = place(&files);
    let tried = bulkhead(place.path(), &["policy", "test", "cases.toml"]);
    assert_eq!(tried.status.code(), Some(0), "{tried:?}");
    assert_eq!(
        text(&tried.stdout),
        "ok      net.connect tcp:api.example.org:443 GET /v1/x\n\
         ok      no posts at night\n\
         ok      net.connect tcp:api.example.org:443 POST /v1/x\n\
         ok      tool.call fs.delete\n\
         ok      secret.use key\n"
    );
    // Without the conditions one of them is wrong.
    fs::remove_file(place.path().join("policy.cedar")).unwrap();
    let tried = bulkhead(place.path(), &["policy", "test", "cases.toml"]);
    assert_eq!(tried.status.code(), Some(1));
    assert!(text(&tried.stdout).contains(
        "FAILED  no posts at night: allow instead of deny: granted by net.connect:tcp:api.example.org:443, \
         methods GET POST, paths /v1/**\n"
    ));
    assert!(text(&tried.stderr).contains("error[policy-test]: 1 of 5 cases failed"));
}

#[test]
fn conditions_that_can_never_hold_are_refused() {
    let wrong = r#"permit(principal, action, resource == Tool::"fs.red");
                   forbid(principal, action, resource == Secret::"kye");"#;
    let place = place(&[
        ("system.toml", SYSTEM),
        ("policy.cedar", wrong),
        ("cases.toml", CASES),
    ]);
    for args in [
        &["policy", "test", "cases.toml"][..],
        &["policy", "explain"],
        &[
            "why",
            "system.toml",
            "--partition",
            "web",
            "--secret",
            "key",
        ],
    ] {
        let refused = bulkhead(place.path(), args);
        assert_eq!(refused.status.code(), Some(125));
        let said = text(&refused.stderr);
        assert!(said.contains("error[conditions]: policy.cedar: "), "{said}");
        assert!(said.contains("`kye`, which no grant is about"), "{said}");
    }
}

#[test]
fn nothing_starts_with_conditions_that_are_refused() {
    let wrong = r#"permit(principal, action, resource == Secret::"kye");"#;
    let place = place(&[("system.toml", SYSTEM), ("policy.cedar", wrong)]);
    let refused = bulkhead(place.path(), &["up"]);
    assert_eq!(refused.status.code(), Some(125));
    let said = text(&refused.stderr);
    assert!(said.contains("error[conditions]: policy.cedar: "), "{said}");
}

/// An unreadable file was taken for an absent one.
#[test]
fn conditions_that_cannot_be_read_are_not_taken_for_absent() {
    let place = place(&[("system.toml", SYSTEM), ("cases.toml", CASES)]);
    let other = "name = \"other\"\n[[partition]]\nmanifest = \"../system.toml\"\n";
    fs::create_dir(place.path().join("systems")).unwrap();
    fs::write(place.path().join("systems/other.toml"), other).unwrap();
    let conditions = place.path().join("policy.cedar");
    let refuse = |why: &str| {
        for args in [
            &["up"][..],
            &["up", "systems/other.toml"],
            &["run", "--manifest", "system.toml"],
            &["policy", "explain"],
            &["policy", "test", "cases.toml"],
            &[
                "why",
                "system.toml",
                "--partition",
                "web",
                "--secret",
                "key",
            ],
        ] {
            let refused = bulkhead(place.path(), args);
            assert_eq!(refused.status.code(), Some(125), "{why}: {args:?}");
            let said = text(&refused.stderr);
            assert!(
                said.contains("error[policy-unreadable]"),
                "{why}: {args:?}: {said}"
            );
        }
    };
    fs::create_dir(&conditions).unwrap();
    refuse("a directory");
    fs::remove_dir(&conditions).unwrap();
    std::os::unix::fs::symlink("nowhere", &conditions).unwrap();
    refuse("a link that leads nowhere");
    fs::remove_file(&conditions).unwrap();
    std::os::unix::fs::symlink("policy.cedar", &conditions).unwrap();
    refuse("a link to itself");
    fs::remove_file(&conditions).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(&conditions)
        .status();
    assert!(made.unwrap().success());
    refuse("a pipe");
    fs::remove_file(&conditions).unwrap();
    fs::write(&conditions, b"\xff").unwrap();
    refuse("no text");
    // Root reads whatever its mode is.
    if !rustix::process::geteuid().is_root() {
        fs::set_permissions(&conditions, PermissionsExt::from_mode(0o000)).unwrap();
        refuse("nobody may");
    }
}

#[test]
fn why_names_the_rule_and_what_would_allow_it() {
    let place = place(&[("system.toml", SYSTEM), ("policy.cedar", CONDITIONS)]);
    let why = |args: &[&str]| {
        let target = ["why", "system.toml", "--partition", "web", "--time", "3600"];
        let asked = bulkhead(place.path(), &[&target, args].concat());
        assert_eq!(asked.status.code(), Some(0), "{asked:?}");
        text(&asked.stdout)
    };
    let web = |method, path| {
        why(&[
            "--net",
            "api.example.org:443",
            "--method",
            method,
            "--path",
            path,
        ])
    };
    assert_eq!(
        web("GET", "/v1/x"),
        "allow: net.connect tcp:api.example.org:443 GET /v1/x, of shop/web\n  \
         granted by net.connect:tcp:api.example.org:443, methods GET POST, paths /v1/**, permitted by \
         condition policy0\n"
    );
    assert_eq!(
        web("DELETE", "/v1/x"),
        "deny: net.connect tcp:api.example.org:443 DELETE /v1/x, of shop/web\n  \
         granted by net.connect:tcp:api.example.org:443, methods GET POST, paths /v1/**, but it has other \
         methods\n  would allow it: { capability = \"net.connect:tcp:api.example.org:443\", methods = \
         [\"DELETE\"], paths = [\"/v1/x\"] }\n"
    );
    assert!(web("POST", "/v1/x").contains("\n  forbidden by condition by day\n"));
    let denied = why(&["--tool", "fs.delete"]);
    // No grant mends a denial.
    assert!(
        denied.ends_with("\n  denied by tool.call:fs.delete\n"),
        "{denied}"
    );
    assert!(why(&["--file", "/srv/work/a", "--write"]).starts_with("allow: "));
    assert!(why(&["--file", "/srv/a"]).contains("would allow it: \"fs.read:/srv\""));
    assert!(why(&["--dns", "a.org"]).contains("would allow it: \"dns.resolve:a.org\""));
    let json = why(&["--secret", "key", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["verdict"], "allow");
    assert_eq!(json["partition"], "shop/web");

    let file = place.path();
    for (args, code) in [
        (
            &["why", "system.toml", "--secret", "key"][..],
            "no-such-partition",
        ),
        (
            &["why", "system.toml", "--partition", "x", "--secret", "key"],
            "no-such-partition",
        ),
        (&["why", "system.toml", "--partition", "web"], "usage"),
        (
            &[
                "why",
                "system.toml",
                "--partition",
                "web",
                "--secret",
                "a",
                "--tool",
                "b",
            ],
            "usage",
        ),
        (
            &["why", "system.toml", "--partition", "web", "--net", "*:443"],
            "usage",
        ),
        (&["why", "shop/web", "--secret", "key"], "no-such-system"),
    ] {
        let refused = bulkhead(file, args);
        assert_eq!(refused.status.code(), Some(125), "{args:?}");
        let said = text(&refused.stderr);
        assert!(said.contains(&format!("error[{code}]")), "{args:?}: {said}");
    }
}

#[test]
fn why_names_who_is_in_the_way() {
    let manifest = r#"
grants = ["net.connect:a.example:443", "net.connect:b.example:443"]
[identity]
name = "agent"
role = "coder"
[boot]
kernel = "linux"
command = ["/bin/agent"]
[resources]
memory = "128MiB"
[lifetime]
max = "8h"
"#;
    let role = r#"
grants = ["net.connect:a.example:443", "net.connect:tcp:169.254.169.254:80"]
deny = ["secret.use:key"]
[resources]
memory = "128MiB"
vcpus = 1
[lifetime]
max = "8h"
"#;
    let place = place(&[("agent.toml", manifest)]);
    let why = |act: &[&str]| {
        let asked = bulkhead(place.path(), &[&["why", "agent.toml"], act].concat());
        assert_eq!(asked.status.code(), Some(0), "{asked:?}");
        text(&asked.stdout)
    };
    let nowhere = "  in the way: role `coder` is described nowhere on this host\n";
    assert!(why(&["--net", "a.example:443"]).ends_with(nowhere));

    let roles = place.path().join("config/roles");
    let mut private = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
    private.recursive(true).create(&roles).unwrap();
    fs::write(roles.join("coder.toml"), role).unwrap();
    let denied = r#"deny = ["net.connect:a.example:443"]"#;
    fs::write(place.path().join("config/deny.toml"), denied).unwrap();
    for (host, way) in [
        (
            "a.example:443",
            "`net.connect:tcp:a.example:443` is denied to everybody on this host",
        ),
        (
            "b.example:443",
            "role `coder` does not allow it: no grant speaks of it",
        ),
        (
            "169.254.169.254:80",
            "`net.connect:tcp:169.254.0.0/16:*` is denied to everybody on this host",
        ),
    ] {
        let said = why(&["--net", host]);
        assert!(
            said.ends_with(&format!("\n  in the way: {way}\n")),
            "{said}"
        );
        assert_eq!(said.matches("in the way").count(), 1, "{said}");
    }
    let secret = why(&["--secret", "key"]);
    assert!(secret.contains("would allow it: \"secret.use:key\""));
    assert!(secret.contains("role `coder` does not allow it: denied by secret.use:key"));
    let json = why(&["--net", "b.example:443", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["in_the_way"].as_array().unwrap().len(), 1);
}

#[test]
fn what_is_learned_makes_the_cases_pass() {
    let cases = r#"
        manifest = "system.toml"
        partition = "db"
        [[case]]
        expect = "allow"
        act = { net = "api.example.org:443", method = "GET", path = "/v2/x" }
        [[case]]
        expect = "allow"
        act = { tool = "git.log", paths = ["/srv/a"] }
    "#;
    let place = place(&[("system.toml", SYSTEM), ("cases.toml", cases)]);
    let test = || {
        bulkhead(place.path(), &["policy", "test", "cases.toml"])
            .status
            .code()
    };
    assert_eq!(test(), Some(1));
    let learned = bulkhead(place.path(), &["policy", "learn", "cases.toml"]);
    let learned = text(&learned.stdout);
    assert!(
        learned.starts_with("# grants of partition db:\ngrants = [\n"),
        "{learned}"
    );
    fs::write(
        place.path().join("system.toml"),
        format!("{SYSTEM}\n{learned}"),
    )
    .unwrap();
    assert_eq!(test(), Some(0));
    let nothing = bulkhead(place.path(), &["policy", "learn", "cases.toml"]);
    assert_eq!(text(&nothing.stdout), "# nothing is denied\n");
}

#[test]
fn a_policy_is_explained() {
    let place = place(&[("system.toml", SYSTEM), ("policy.cedar", CONDITIONS)]);
    let explained = bulkhead(place.path(), &["policy", "explain"]);
    let explained = text(&explained.stdout);
    for line in [
        "shop/web\n  grants net.connect:tcp:api.example.org:443, methods GET POST, paths /v1/** (gateway)\n",
        "\n  grants tool.call:fs.* (tools)\n",
        "\n  denies tool.call:fs.delete\n",
        "\nshop/db\n  grants nothing\n",
        "\ncondition by day forbids\n",
    ] {
        assert!(explained.contains(line), "{line}: {explained}");
    }
    let manifest = "grants = [\"secret.use:key\"]\n[identity]\nname = \"a\"\nrole = \"r\"\n\
                    [boot]\nkernel = \"linux\"\ncommand = [\"/x\"]\n[lifetime]\nmax = \"1h\"\n";
    fs::write(place.path().join("partition.toml"), manifest).unwrap();
    fs::remove_file(place.path().join("policy.cedar")).unwrap();
    let explained = bulkhead(place.path(), &["policy", "explain", "partition.toml"]);
    assert_eq!(
        text(&explained.stdout),
        "a/a\n  grants secret.use:key (gateway)\n",
        "{explained:?}"
    );
}

#[test]
fn a_partition_that_learns_is_explained_as_one() {
    let system = SYSTEM.replacen("kernel =", "conditions = \"learn\"\n    kernel =", 1);
    let cases = r#"
        manifest = "system.toml"
        partition = "web"
        [[case]]
        act = { net = "api.example.org:443", method = "POST", path = "/v1/x" }
    "#;
    let files = [
        ("system.toml", system.as_str()),
        ("policy.cedar", CONDITIONS),
        ("cases.toml", cases),
    ];
    let place = place(&files);
    let explained = text(&bulkhead(place.path(), &["policy", "explain"]).stdout);
    let learns = "learns: what conditions would deny is done, and on record";
    assert_eq!(explained.matches(learns).count(), 1, "{explained}");
    let words = "why system.toml --partition web --net api.example.org:443 --method POST \
                 --path /v1/x --time 3600 --format json";
    let words: Vec<&str> = words.split_whitespace().collect();
    let why = text(&bulkhead(place.path(), &words).stdout);
    assert!(why.contains("\"verdict\": \"allow\""), "{why}");
    let reason = "; it learns, and else it would be forbidden by condition by day";
    assert!(why.contains(reason), "{why}");
    // A file of cases is about the conditions themselves, and a forbid is not mended by a permit.
    let learned = text(&bulkhead(place.path(), &["policy", "learn", "cases.toml"]).stdout);
    let told = "# no permit mends it: net.connect tcp:api.example.org:443 POST /v1/x: forbidden by \
                condition by day\n";
    assert_eq!(learned, told);
}

#[test]
fn the_ledger_is_asked_in_the_place_of_a_file() {
    let place = place(&[("cases.toml", CASES)]);
    for (words, status, said) in [
        ("policy learn", 125, "error[usage]"),
        ("policy learn cases.toml --ledger", 125, "error[usage]"),
        (
            "policy learn cases.toml --partition shop",
            125,
            "error[usage]",
        ),
    ] {
        let words: Vec<&str> = words.split_whitespace().collect();
        let ended = bulkhead(place.path(), &words);
        let stderr = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}
