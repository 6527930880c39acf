//! Promise: a manifest starts what a trusted operator signed, within what its role may have, and
//! nothing else; a refusal names the rule, the field and the line, and leaves nothing behind.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Stdio;

    use bulkhead_tests::bulkhead::Running;
    use bulkhead_tests::house::House;

    const MANIFEST: &str = r#"grants = ["console", "time"]
[identity]
name = "agent"
role = "coder"
[boot]
kernel = "linux-abi"
command = ["/bin/busybox", "sh", "-c", "echo hello from $NAME; read x; exit 7"]
env = { NAME = "agent" }
mounts = [{ source = "/bin/busybox", target = "/bin/busybox" }]
[resources]
memory = "64MiB"
[lifetime]
max = "8h"
"#;

    const ROLE: &str = r#"
grants = ["console", "time"]
files = ["/**"]
[resources]
memory = "64MiB"
vcpus = 1
[lifetime]
unlimited = true
[spawn]
count = 1
depth = 1
"#;

    #[test]
    fn what_alice_signed_runs() {
        let house = House::new(ROLE);
        let file = house.signed(MANIFEST, &["alice"]);
        let ended = house.start(&file);
        ended.expect_status(7).expect_stdout("hello from agent");
        let verified = house.run(&["manifest", "verify", &file]);
        verified
            .expect_status(0)
            .expect_stdout("# signed by alice (");
        // What is printed is a manifest again, of the same document.
        let text = house.scratch.file("again.toml", verified.stdout());
        let again = ["manifest", "sign", text.to_str().unwrap(), "--key", "alice"];
        house.run(&again).expect_status(0);
        let first: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let second = fs::read(text.with_extension("json")).unwrap();
        let second: serde_json::Value = serde_json::from_slice(&second).unwrap();
        assert_eq!(first, second);
        // And what will be enforced of either is the same, byte by byte.
        for format in ["table", "json"] {
            let plan = |file: &str| {
                let ended = house.run(&["manifest", "plan", file, "--format", format]);
                ended.expect_status(0).expect_stdout("agent");
                ended.stdout()
            };
            let signed = plan(&file);
            assert_eq!(signed, plan(&file));
            assert_eq!(signed, plan(text.to_str().unwrap()));
        }
        let same = ["manifest", "diff", file.as_str(), text.to_str().unwrap()];
        house.run(&same).expect_status(0);
        let wider = MANIFEST.replace("64MiB", "65MiB");
        let wider = house.scratch.file("wider.toml", wider);
        let diff = ["manifest", "diff", file.as_str(), wider.to_str().unwrap()];
        let diff = house.run(&diff);
        diff.expect_status(1);
        assert_eq!(diff.stdout(), "more resources.memory: 65 MiB\n");
        house.census.expect_nothing_new();
    }

    #[test]
    fn nothing_runs_that_nobody_trusted_signed() {
        let house = House::new(ROLE);
        let text = house.signed(MANIFEST, &[]);
        house.refused(&text, "error[rule-signature]");
        let mallory = house.signed(MANIFEST, &["mallory"]);
        house.refused(&mallory, "error[rule-signature]");
        // Somebody made Alice's manifest wider.
        let file = house.signed(MANIFEST, &["alice"]);
        let forged = house.signed(
            &MANIFEST.replace("\"time\"", "\"time\", \"entropy\""),
            &["mallory"],
        );
        let mut envelope: serde_json::Value =
            serde_json::from_slice(&fs::read(&forged).unwrap()).unwrap();
        let alices = house.signed(MANIFEST, &["alice"]);
        let alices: serde_json::Value =
            serde_json::from_slice(&fs::read(&alices).unwrap()).unwrap();
        envelope["signatures"] = alices["signatures"].clone();
        fs::write(&file, envelope.to_string()).unwrap();
        house.refused(&file, "it was changed, or forged");
        // Whom nobody trusts any more has signed nothing.
        let file = house.signed(MANIFEST, &["alice"]);
        house.run(&["key", "distrust", "alice"]).expect_status(0);
        house.refused(&file, "error[rule-signature]");
        // An operator may vouch for a text, and is held to the other rules all the same.
        let text = house.scratch.path().join("agent.toml");
        let text = text.to_str().unwrap();
        let vouched = ["run", "--unsigned", "--manifest", text];
        house
            .bulkhead
            .run_with_input(vouched, b"\n")
            .expect_status(7);
        house.census.expect_nothing_new();
    }

    #[test]
    fn a_refusal_names_rule_field_and_line() {
        let house = House::new(ROLE);
        let big = house.signed(&MANIFEST.replace("64MiB", "65MiB"), &["alice"]);
        house.refused(&big, "error[rule-ceiling]");
        house.refused(
            &big,
            "agent.json:30:10: role `coder` allows 64 MiB of memory, not 65",
        );
        let wide = house.signed(&MANIFEST.replace("\"time\"", "\"entropy\""), &["alice"]);
        house.refused(&wide, "role `coder` does not allow `entropy`");
        let shadow = MANIFEST.replace("source = \"/bin/busybox\"", "source = \"/etc/shadow\"");
        let shadow = house.signed(&shadow, &["alice"]);
        house.refused(&shadow, "error[rule-deny]");
        let orphan = MANIFEST.replace("role = \"coder\"", "role = \"coder\"\nparent = \"boss\"");
        let orphan = house.signed(&orphan, &["alice"]);
        house.refused(&orphan, "error[rule-parent]");
        let stranger = house.signed(&MANIFEST.replace("coder", "root"), &["alice"]);
        house.refused(&stranger, "there is no role `root` on this host");
        // Each of them is a record.
        let records = house.run(&["ledger", "tail", "--format", "json"]);
        records.expect_status(0);
        for rule in ["rule-ceiling", "rule-deny", "rule-parent"] {
            records.expect_stdout(rule);
        }
        house.run(&["ledger", "verify"]).expect_status(0);
        house.census.expect_nothing_new();
    }

    #[test]
    fn a_lifetime_without_end_takes_two() {
        let house = House::new(ROLE);
        let text = MANIFEST.replace("max = \"8h\"", "unlimited = true");
        let alone = house.signed(&text, &["alice"]);
        house.refused(&alone, "error[rule-approval]");
        let both = house.signed(&text, &["alice", "bob"]);
        house.start(&both).expect_status(7);
        house.census.expect_nothing_new();
    }

    #[test]
    fn a_lifetime_ends_the_partition() {
        let house = House::new(ROLE);
        let file = house.signed(&MANIFEST.replace("8h", "1s"), &["alice"]);
        let mut command = house.bulkhead.command(["run", "--manifest", &file]);
        // Nobody types, and nobody closes the input.
        let running = Running::start(command.stdin(Stdio::piped()));
        let ended = running.wait();
        ended
            .expect_status(143)
            .expect_stderr("its lifetime is over");
        house.census.expect_nothing_new();
    }

    #[test]
    fn a_family_stays_within_its_parent() {
        let house = House::new(ROLE);
        let role = ROLE.replace("\"time\"", "\"time\", \"partition.spawn:coder=1\"");
        house.role("coder", &role);
        // The parent runs until somebody ends it.
        let parent = MANIFEST
            .replace("\"agent\"\nrole", "\"boss\"\nrole")
            .replace("read x; exit 7", "exec /bin/busybox sleep 100000")
            .replace("\"time\"]", "\"time\"]\ndeny = [\"net.connect:*:*\"]")
            + "[spawn]\nroles = [\"coder\"]\ncount = 1\n";
        let parent = house.signed(&parent, &["alice"]);
        let system = "name = \"family\"\n[[partition]]\nmanifest = \"boss.json\"\n";
        let boss: PathBuf = house.scratch.path().join("boss.json");
        fs::rename(parent, &boss).unwrap();
        let system = house.scratch.file("system.toml", system);
        let up = ["up", "--detach", system.to_str().unwrap()];
        house.run(&up).expect_status(0);
        // Its identity is taken while it runs.
        house.refused(boss.to_str().unwrap(), "error[rule-identity]");
        let child = MANIFEST.replace("role = \"coder\"", "role = \"coder\"\nparent = \"boss\"");
        let longer = house.signed(&child.replace("8h", "9h"), &["alice"]);
        house.refused(&longer, "`boss` does not allow so long a lifetime");
        let other = house.signed(&child.replace("coder", "other"), &["alice"]);
        house.refused(&other, "error[rule-ceiling]");
        let file = house.signed(&child, &["alice"]);
        let why = house.run(&["why", &file, "--net", "a.example:443"]);
        why.expect_status(0)
            .expect_stdout("in the way: parent `boss` does not allow it: denied by net.connect:");
        house.start(&file).expect_status(7);
        house.run(&["down", "family"]).expect_status(0);
        house.refused(&file, "its parent `boss` does not run");
        house.census.expect_nothing_new();
    }

    #[test]
    fn what_nobody_enforces_is_refused_not_ignored() {
        let house = House::new(ROLE);
        let grants = "\"time\", \"secret.use:key\", \"net.connect:a.example:443\"]";
        house.role("coder", &ROLE.replace("\"time\"]", grants));
        let text = MANIFEST
            .replace("\"time\"]", "\"time\", \"net.connect:a.example:443\"]")
            .replace("linux-abi", "native")
            .replace(
                "command = [",
                "program = \"@examples/hello-native\"\nargs = [",
            )
            .replace("env = { NAME = \"agent\" }\n", "");
        let mounts = text.lines().filter(|line| !line.starts_with("mounts"));
        let text: String = mounts.map(|line| format!("{line}\n")).collect();
        let secret = "[[secrets]]\nname = \"key\"\nhost = \"a.example\"\nenv = \"KEY\"\n";
        let file = house.signed(&(text + secret), &["alice"]);
        let said = "error[not-enforced]: nothing enforces `secrets.env of a partition";
        house.refused(&file, said);
        house.census.expect_nothing_new();
    }
}
