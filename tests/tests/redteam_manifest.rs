//! Red team: privileges by a forged, replayed or widened manifest. Each attempt is refused by the
//! rule that stands against it, creates nothing, and is a record. Beside each kind of attempt stands
//! the honest manifest that it was made from, which runs.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::fs;
    use std::path::{Path, PathBuf};

    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use bulkhead_places::Place;
    use bulkhead_signature::{Envelope, KeyStore};
    use bulkhead_tests::house::House;
    use bulkhead_tests::{guest, library};
    use serde_json::{Value, json};

    const TYPE: &str = "application/vnd.bulkhead.partition+json";

    const MANIFEST: &str = r#"grants = ["console", "time", "fs.read:SHARE"]
deny = ["net.connect:tcp:b.example.org:443"]
[identity]
name = "agent"
role = "coder"
[boot]
kernel = "native"
program = "@examples/hello-native"
[resources]
memory = "16MiB"
[lifetime]
max = "1h"
"#;

    /// A partition that may have children.
    const BOSS: &str = r#"grants = ["console", "time", "net.connect:tcp:*.example.org:443"]
deny = ["net.connect:tcp:b.example.org:443"]
[identity]
name = "boss"
role = "coder"
[boot]
kernel = "native"
program = "@examples/hello-native"
[resources]
memory = "64MiB"
[lifetime]
max = "1h"
[spawn]
roles = ["coder=1"]
count = 1
"#;

    const ROLE: &str = r#"
grants = [
    "console", "time", "fs.read:SHARE", "net.connect:tcp:*.example.org:443",
    "partition.spawn:coder=2",
]
deny = ["net.connect:tcp:b.example.org:443"]
files = ["/bin/busybox", "/usr/bin/busybox"]
[resources]
memory = "64MiB"
vcpus = 1
[lifetime]
max = "8h"
[spawn]
count = 2
depth = 1
"#;

    /// What is done to a document.
    type Edit = fn(&mut Value);

    /// A house, with a directory that a coder may read.
    struct Target {
        house: House,
        honest: String,
    }

    impl Target {
        fn new() -> Self {
            let house = House::new("");
            let share = house.scratch.path().join("share");
            fs::create_dir(&share).unwrap();
            let share = share.to_str().unwrap();
            house.role("coder", &ROLE.replace("SHARE", share));
            let honest = MANIFEST.replace("SHARE", share);
            Self { house, honest }
        }

        /// Everything of Bulkhead's that a start could have made: running systems, directories of
        /// state, what lasts beside the ledger.
        fn there_is(&self) -> Vec<PathBuf> {
            let mut found = Vec::new();
            for place in ["s", "data"] {
                walk(&self.house.scratch.path().join(place), &mut found);
            }
            found.retain(|path| !path.starts_with(self.house.scratch.path().join("data/ledger")));
            found.sort();
            found
        }

        /// `file` is refused by `rule`, nothing comes of it, and one record says so.
        #[track_caller]
        fn fails(&self, attempt: &str, file: &str, rule: &str) {
            let (before, there_was) = (self.house.records().len(), self.there_is());
            let ended = self.house.start(file);
            let said = ended.stderr();
            assert_eq!(ended.status(), 125, "{attempt} GOT THROUGH\n{said}");
            assert!(
                said.contains(&format!("error[{rule}")) && ended.stdout().is_empty(),
                "{attempt}: not {rule}\n{said}"
            );
            let records = self.house.records();
            let new = &records[before..];
            assert_eq!(new.len(), 1, "{attempt}: {new:?}");
            let entry = &new[0]["entry"];
            assert_eq!(entry["kind"], "refusal", "{attempt}: {entry}");
            assert_eq!(entry["verdict"], "denied", "{attempt}: {entry}");
            assert_eq!(entry["action"], "partition.admit", "{attempt}: {entry}");
            let recorded = entry["detail"]["rule"].as_str().unwrap();
            assert!(
                recorded == rule || rule.starts_with("manifest-") && recorded == "rule-schema",
                "{attempt}: {entry}"
            );
            assert_eq!(
                self.there_is(),
                there_was,
                "{attempt} left something behind"
            );
        }

        /// The honest manifest runs: what is refused is so for what was done to it.
        #[track_caller]
        fn honest_runs(&self) {
            let file = self.house.signed(&self.honest, &["alice"]);
            self.house.start(&file).expect_status(0);
        }

        fn envelope(&self, text: &str, key: &str) -> Value {
            let file = self.house.signed(text, &[key]);
            serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
        }

        fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
            let path = self.house.scratch.file(name, content);
            path.to_str().unwrap().to_owned()
        }

        /// The boss, running as `family`, and its envelope.
        fn family(&self) -> String {
            let boss = self.house.signed(BOSS, &["alice"]);
            let file = self.file("boss.json", fs::read(boss).unwrap());
            let system = "name = \"family\"\n[[partition]]\nmanifest = \"boss.json\"\n";
            let system = self.file("system.toml", system);
            self.stays(&system);
            file
        }

        /// Starts a system of native partitions that run until somebody ends them: their kernel sleeps.
        fn stays(&self, system: &str) {
            let bulkhead = &self.house.bulkhead;
            let kernel = self.house.scratch.path().join("lib-kernel");
            if !kernel.exists() {
                library::with(bulkhead, &self.house.scratch, "kernel", &guest::sleeps());
            }
            let bulkhead = bulkhead.clone().env("BULKHEAD_LIB", kernel);
            bulkhead.run(["up", "--detach", system]).expect_status(0);
        }

        /// Alice's key on what no tool of ours would sign.
        fn signed_anyway(&self, edit: Edit) -> String {
            let honest = self.envelope(&self.honest, "alice");
            let payload = STANDARD.decode(changed(&honest, edit)).unwrap();
            let place = Place::at(&self.house.scratch.path().join("config")).unwrap();
            let (alice, _) = KeyStore::new(&place).private("alice").unwrap();
            let signed = Envelope::sign(TYPE, payload, &alice).unwrap();
            self.file("attempt.json", signed.to_json())
        }

        fn end(self) {
            self.house.run(&["ledger", "verify"]).expect_status(0);
            self.house.census.expect_nothing_new();
        }
    }

    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            found.push(entry.path());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), found);
            }
        }
    }

    /// The document in `envelope`, changed.
    fn changed(envelope: &Value, change: impl FnOnce(&mut Value)) -> String {
        let payload = STANDARD.decode(envelope["payload"].as_str().unwrap());
        let mut document: Value = serde_json::from_slice(&payload.unwrap()).unwrap();
        change(&mut document);
        // Canonical for what these documents have: sorted keys and no spaces.
        let sorted = sort(&document);
        STANDARD.encode(serde_json::to_vec(&sorted).unwrap())
    }

    /// The same value with sorted keys, whatever this build of serde_json does by itself.
    fn sort(value: &Value) -> Value {
        match value {
            Value::Array(values) => values.iter().map(sort).collect(),
            Value::Object(map) => {
                let mut pairs: Vec<_> = map.iter().collect();
                pairs.sort_by_key(|(key, _)| key.as_str());
                let sorted = pairs
                    .into_iter()
                    .map(|(key, value)| (key.clone(), sort(value)));
                Value::Object(sorted.collect())
            }
            other => other.clone(),
        }
    }

    #[test]
    fn an_envelope_that_was_changed_or_forged_starts_nothing() {
        let target = Target::new();
        target.honest_runs();
        let envelope = target.envelope(&target.honest, "alice");
        let wide = target.honest.replace("16MiB", "32MiB");
        let attempt = |name: &str, envelope: &Value, rule: &str| {
            let file = target.file("attempt.json", envelope.to_string());
            target.fails(name, &file, rule);
        };

        // The payload was edited after it was signed: each of its parts.
        let edits: [(&str, Edit); 5] = [
            ("more memory", |d| d["resources"]["memory"] = json!("32MiB")),
            ("a grant more", |d| {
                let grants = d["grants"].as_array_mut().unwrap();
                grants.push(json!("net.connect:tcp:a.example.org:443"));
            }),
            ("no denial", |d| d["deny"] = json!([])),
            ("another identity", |d| {
                d["identity"]["name"] = json!("root")
            }),
            ("longer life", |d| d["lifetime"]["max"] = json!("2h")),
        ];
        for (name, edit) in edits {
            let mut edited = envelope.clone();
            edited["payload"] = json!(changed(&envelope, edit));
            attempt(name, &edited, "rule-signature");
        }

        // Signed, but by somebody whom nobody trusts: under her own name, and under Alice's.
        let mallorys = target.envelope(&wide, "mallory");
        attempt("an untrusted key", &mallorys, "rule-signature");
        let mut posing = mallorys.clone();
        posing["signatures"][0]["keyid"] = envelope["signatures"][0]["keyid"].clone();
        attempt(
            "an untrusted key under a trusted name",
            &posing,
            "rule-signature",
        );
        // Alice's signature of another payload, alone and beside a good one of Mallory's.
        let mut moved = mallorys.clone();
        moved["signatures"] = envelope["signatures"].clone();
        attempt("a signature of something else", &moved, "rule-signature");
        let both = [&mallorys["signatures"][0], &envelope["signatures"][0]];
        moved["signatures"] = json!(both);
        attempt(
            "a signature of something else beside another",
            &moved,
            "rule-signature",
        );

        // Alice's key did sign it, as something other than a manifest.
        let place = Place::at(&target.house.scratch.path().join("config")).unwrap();
        let (alice, _) = KeyStore::new(&place).private("alice").unwrap();
        let payload = STANDARD
            .decode(envelope["payload"].as_str().unwrap())
            .unwrap();
        for (name, of) in [
            ("another type", "application/vnd.example.note+json"),
            (
                "nearly the type",
                "application/vnd.bulkhead.partition+json ",
            ),
            (
                "a type in capitals",
                "application/vnd.bulkhead.partition+JSON",
            ),
        ] {
            let signed = Envelope::sign(of, payload.clone(), &alice).unwrap();
            let mut signed: Value = serde_json::from_str(&signed.to_json()).unwrap();
            attempt(name, &signed, "rule-signature");
            // And now it says that it is one.
            signed["payloadType"] = json!(TYPE);
            attempt(name, &signed, "rule-signature");
        }

        // Signed in a form that two readers could read in two ways.
        let twice = r#"{"boot":{"kernel":"native","kernel":"linux"},"identity":{}}"#;
        for (name, payload) in [
            ("a key twice", twice.as_bytes().to_vec()),
            ("a space", [b" ", &payload[..]].concat()),
            ("something behind it", [&payload[..], b"{}"].concat()),
            ("nothing", Vec::new()),
        ] {
            let signed = Envelope::sign(TYPE, payload, &alice).unwrap();
            let file = target.file("attempt.json", signed.to_json());
            target.fails(name, &file, "manifest-form");
        }

        // Envelopes that two readers could read in two ways.
        let text = envelope.to_string();
        let other = mallorys["payload"].as_str().unwrap();
        for (name, text) in [
            (
                "a second payload",
                text.replacen('{', &format!("{{\"payload\":\"{other}\","), 1),
            ),
            ("a field more", text.replacen('{', "{\"unsigned\":true,", 1)),
            ("nobody's signature", {
                let mut bare = envelope.clone();
                bare["signatures"] = json!([]);
                bare.to_string()
            }),
            ("one signature twice", {
                let mut doubled = envelope.clone();
                let one = &envelope["signatures"][0];
                doubled["signatures"] = json!([one, one]);
                doubled.to_string()
            }),
        ] {
            let file = target.file("attempt.json", text);
            target.fails(name, &file, "manifest-form");
        }

        // The same bytes in the other base64 are the same document, and nothing else.
        let mut url = envelope.clone();
        url["payload"] = json!(URL_SAFE.encode(&payload));
        let file = target.file("attempt.json", url.to_string());
        target.house.start(&file).expect_status(0);
        target.honest_runs();
        target.end();
    }

    #[test]
    fn a_text_beside_its_envelope_changes_nothing() {
        let target = Target::new();
        let file = target.house.signed(&target.honest, &["alice"]);
        // Whoever can write the text cannot write the envelope: what runs is what was signed.
        let wide = target.honest.replace("16MiB", "32MiB");
        let text = target.file("agent.toml", &wide);
        target.house.start(&file).expect_status(0);
        target.fails("the text", &text, "rule-signature");
        // Texts that look alike and are not: each signs as what it is read as, or not at all.
        let honest = fs::read(&file).unwrap();
        let same = |text: &str| fs::read(target.house.signed(text, &["alice"])).unwrap();
        let commented = format!("# a comment\n{}\n", target.honest.replace(" = ", "  =  "));
        assert_eq!(same(&commented), honest);
        for (name, text) in [
            ("a key twice", format!("{}max = \"8h\"\n", target.honest)),
            ("a section twice", format!("{}[resources]\n", target.honest)),
            (
                "a dotted key over it",
                format!("resources.memory = \"1GiB\"\n{}", target.honest),
            ),
            (
                "an unknown key",
                target
                    .honest
                    .replace("[lifetime]", "[lifetime]\nMax = \"9h\""),
            ),
            (
                "a date for a text",
                target.honest.replace("\"1h\"", "2026-01-01"),
            ),
            (
                "a number for a text",
                target.honest.replace("\"16MiB\"", "1e2"),
            ),
            (
                "a name with another letter",
                target.honest.replace("\"agent\"", "\"ag\u{435}nt\""),
            ),
            (
                "a grant in capitals",
                target.honest.replace("\"time\"", "\"Time\""),
            ),
        ] {
            let text = target.house.scratch.file("odd.toml", text);
            let words = ["manifest", "sign", text.to_str().unwrap(), "--key", "alice"];
            let ended = target.house.run(&words);
            assert_eq!(ended.status(), 125, "{name} GOT THROUGH");
            assert!(!text.with_extension("json").exists(), "{name} was signed");
        }
        target.honest_runs();
        target.end();
    }

    #[test]
    fn what_is_wider_than_role_or_host_allow_starts_nothing() {
        let target = Target::new();
        target.honest_runs();
        let honest = &target.honest;
        let grant = |grant: &str| honest.replace("\"time\"", grant);
        let own = target.house.scratch.path().join("config");
        let data = target.house.scratch.path().join("data");
        let link = target.house.scratch.path().join("share/way");
        std::os::unix::fs::symlink(&data, &link).unwrap();
        for (name, text, rule) in [
            ("a grant of its own", grant("\"entropy\""), "rule-ceiling"),
            (
                "a wider name",
                grant("\"net.connect:tcp:*:443\""),
                "rule-ceiling",
            ),
            (
                "a wider port",
                grant("\"net.connect:tcp:a.example.org:1-443\""),
                "rule-ceiling",
            ),
            (
                "another protocol",
                grant("\"net.connect:udp:a.example.org:443\""),
                "rule-ceiling",
            ),
            (
                "the parent of a directory",
                grant("\"fs.read:/var\""),
                "rule-ceiling",
            ),
            (
                "reading becomes writing",
                honest.replace("fs.read", "fs.write"),
                "rule-ceiling",
            ),
            (
                "no denial",
                honest.replace("deny", "# deny") + "",
                "rule-ceiling",
            ),
            (
                "more memory",
                honest.replace("16MiB", "65MiB"),
                "rule-ceiling",
            ),
            (
                "more CPUs",
                honest.replace("memory", "vcpus = 2\nmemory"),
                "rule-ceiling",
            ),
            (
                "a longer life",
                honest.replace("\"1h\"", "\"9h\""),
                "rule-ceiling",
            ),
            (
                "a life without end",
                honest.replace("max = \"1h\"", "unlimited = true"),
                "rule-ceiling",
            ),
            (
                "children of another role",
                format!("{honest}[spawn]\nroles = [\"root\"]\ncount = 1\n"),
                "rule-ceiling",
            ),
            (
                "more children",
                format!("{honest}[spawn]\nroles = [\"coder\"]\ncount = 3\n"),
                "rule-ceiling",
            ),
            (
                "more children of a role",
                format!("{honest}[spawn]\nroles = [\"coder=3\"]\ncount = 2\n"),
                "rule-ceiling",
            ),
            (
                "grandchildren",
                format!("{honest}[spawn]\nroles = [\"coder\"]\ncount = 1\ndepth = 2\n"),
                "rule-ceiling",
            ),
            (
                "a role that there is not",
                honest.replace("coder", "root"),
                "rule-ceiling",
            ),
            (
                "a file that is not its role's",
                honest.replace("@examples/hello-native", "/etc/passwd"),
                "rule-ceiling",
            ),
        ] {
            assert_ne!(&text, honest, "{name} is no change");
            // A narrowed denial only matters to what it would touch.
            let text = match name {
                "no denial" => text.replace("\"time\"", "\"net.connect:tcp:*.example.org:443\""),
                _ => text,
            };
            let file = target.house.signed(&text, &["alice"]);
            target.fails(name, &file, rule);
        }
        // Nobody may have these, whatever their role says.
        target.house.role("all", &ROLE.replace("\"fs.read:SHARE\"",
            &format!("\"fs.read:/\", \"fs.read:/etc\", \"fs.read:{}\", \"fs.read:{}\", \"fs.read:{}\", \
                      \"net.connect:tcp:169.254.0.0/16:80\"", own.display(), data.display(), link.display())));
        for (name, wanted) in [
            ("the directory of /etc/shadow", "fs.read:/etc".to_owned()),
            ("Bulkhead's keys", format!("fs.read:{}", own.display())),
            ("Bulkhead's ledger", format!("fs.read:{}", data.display())),
            (
                "Bulkhead's ledger by a link",
                format!("fs.read:{}", link.display()),
            ),
            (
                "the cloud's credentials",
                "net.connect:tcp:169.254.169.254:80".to_owned(),
            ),
        ] {
            let text = grant(&format!("\"{wanted}\"")).replace("\"coder\"", "\"all\"");
            let share = target.house.scratch.path().join("share");
            let text = text.replace(&format!(", \"fs.read:{}\"", share.display()), "");
            let file = target.house.signed(&text, &["alice"]);
            target.fails(name, &file, "rule-deny");
        }
        // What `manifest sign` would not sign is refused before anybody looks at whose signature it has.
        let edits: [(&str, Edit, &str); 4] = [
            (
                "everything",
                |d| d["grants"] = json!(["fs.read:/"]),
                "manifest-share",
            ),
            (
                "a role by its path",
                |d| d["identity"]["role"] = json!("../roles/coder"),
                "manifest-identity",
            ),
            (
                "an identity by its path",
                |d| d["identity"]["name"] = json!("../agent"),
                "manifest-name",
            ),
            (
                "a key that nothing reads",
                |d| d["privileged"] = json!(true),
                "manifest-unknown-key",
            ),
        ];
        for (name, edit, code) in edits {
            target.fails(name, &target.signed_anyway(edit), code);
        }
        target
            .house
            .start(&target.signed_anyway(|_| {}))
            .expect_status(0);
        target.honest_runs();
        target.end();
    }

    #[test]
    fn a_child_is_never_wider_than_its_parent_and_an_envelope_is_nobody_elses() {
        let target = Target::new();
        let boss = target.family();
        let child = r#"grants = ["console"]
deny = ["net.connect:tcp:b.example.org:443"]
[identity]
name = "child"
role = "coder"
parent = "boss"
[boot]
kernel = "native"
program = "@examples/hello-native"
[resources]
memory = "16MiB"
[lifetime]
max = "1h"
"#;
        let honest = |target: &Target| {
            let file = target.house.signed(child, &["alice"]);
            target.house.start(&file).expect_status(0);
        };
        honest(&target);
        let share = target.house.scratch.path().join("share");
        let grant =
            |grant: &str| child.replace("\"console\"", &format!("\"console\", \"{grant}\""));
        for (name, text, rule) in [
            // Its role may, and its parent may not.
            (
                "a directory",
                grant(&format!("fs.read:{}", share.display())),
                "rule-parent",
            ),
            (
                "a longer life",
                child.replace("\"1h\"", "\"2h\""),
                "rule-parent",
            ),
            (
                "children of its own",
                format!("{child}[spawn]\nroles = [\"coder\"]\ncount = 1\n"),
                "rule-parent",
            ),
            (
                "no denial",
                grant("net.connect:tcp:*.example.org:443").replace("deny", "# deny"),
                "rule-ceiling",
            ),
            // Its parent may, and its role may not.
            (
                "a wider name",
                grant("net.connect:tcp:*:443"),
                "rule-ceiling",
            ),
            (
                "another's child",
                child.replace("\"boss\"", "\"nobody\""),
                "rule-parent",
            ),
            (
                "its own child",
                child.replace("\"boss\"", "\"child\""),
                "rule-parent",
            ),
        ] {
            let file = target.house.signed(&text, &["alice"]);
            target.fails(name, &file, rule);
        }
        // A narrower grant of its parent's is a grant.
        let narrow = grant("net.connect:tcp:a.example.org:443");
        let file = target.house.signed(&narrow, &["alice"]);
        target.house.start(&file).expect_status(0);

        // One child at a time.
        let elder = child.replace("\"child\"", "\"elder\"");
        let file = target.house.signed(&elder, &["alice"]);
        target.file("elder.json", fs::read(file).unwrap());
        let system = "name = \"children\"\n[[partition]]\nmanifest = \"elder.json\"\n";
        let system = target.file("children.toml", system);
        target.stays(&system);
        let file = target.house.signed(child, &["alice"]);
        target.fails("a child too many", &file, "rule-spawn");
        let grandchild = child.replace("\"boss\"", "\"elder\"");
        let file = target.house.signed(&grandchild, &["alice"]);
        target.fails("a grandchild", &file, "rule-spawn");

        // The envelope of one that runs, once more: as it is, and under another file's name.
        target.fails("a replay", &boss, "rule-identity");
        let replayed = target.file("child.json", fs::read(&boss).unwrap());
        target.fails("a replay under another name", &replayed, "rule-identity");
        // Beside a new name in a system of its own: no key may stand beside a manifest.
        for (name, beside) in [
            ("another name", "name = \"other\""),
            ("more memory", "memory = \"1GiB\""),
            ("a grant", "grants = [\"entropy\"]"),
        ] {
            let system =
                format!("name = \"replay\"\n[[partition]]\nmanifest = \"child.json\"\n{beside}\n");
            let system = target.file("replay.toml", system);
            let there_was = target.there_is();
            let refused = target.house.run(&["up", "--detach", &system]);
            refused.expect_refusal().expect_stderr("manifest-reference");
            assert_eq!(target.there_is(), there_was, "{name} left something behind");
        }
        target.house.run(&["down", "children"]).expect_status(0);
        honest(&target);
        target.house.run(&["down", "family"]).expect_status(0);
        let file = target.house.signed(child, &["alice"]);
        target.fails("an orphan", &file, "rule-parent");
        target.end();
    }
}
