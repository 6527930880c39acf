//! Promise: an agent in a partition does what its signed manifest grants and nothing else, with a secret
//! that is nowhere in its memory, and the ledger has each step. The agent is docs/examples/agent,
//! unmodified but for the places of this host.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::fs;
    use std::os::unix::fs::DirBuilderExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::bulkhead::{Bulkhead, Ended};
    use bulkhead_tests::debian::Chroot;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use serde_json::Value;

    /// What the agent must never see.
    const SECRET: &str = "sk-3b1f9a6c0d7e42f58a90";
    /// How what it has instead begins.
    const PLACEHOLDER: &str = "bulkhead-secret-";
    /// What the ledger has to have, in this order: kind, action, what is in the object, verdict.
    const STEPS: [(&str, &str, &str, &str); 16] = [
        ("intent", "partition.admit", "agent", "allowed"),
        ("intent", "partition.start", "", "allowed"),
        (
            "intent",
            "net.connect",
            "api.example.org/v1/greeting",
            "allowed",
        ),
        (
            "outcome",
            "net.connect",
            "api.example.org/v1/greeting",
            "done",
        ),
        (
            "refusal",
            "net.connect",
            "api.example.org/v1/private/key",
            "denied",
        ),
        (
            "refusal",
            "net.connect",
            "api.example.org/v2/greeting",
            "denied",
        ),
        ("refusal", "dns.resolve", "elsewhere.example.org", "denied"),
        ("intent", "tool.call", "fs.edit", "allowed"),
        ("outcome", "tool.call", "fs.edit", "done"),
        ("intent", "tool.call", "tool.rollback", "allowed"),
        ("outcome", "tool.call", "tool.rollback", "done"),
        ("approval", "tool.call", "fs.delete", "pending"),
        ("approval", "tool.call", "fs.delete", "allowed"),
        ("intent", "tool.call", "fs.delete", "allowed"),
        ("outcome", "tool.call", "fs.delete", "done"),
        ("transition", "partition.state", "terminated", "done"),
    ];
    /// Until something has happened: it only keeps a hang from stopping the suite.
    const PATIENCE: Duration = Duration::from_secs(900);

    /// The web service that the agent may call, in the lab's Debian.
    struct Service(Child);

    impl Service {
        fn start(chroot: &Chroot, example: &Path) -> Self {
            let here = chroot.shared();
            fs::copy(example.join("server.py"), here.join("server.py")).unwrap();
            // An authority, and a certificate of its for the service.
            openssl(
                chroot,
                "-subj /CN=authority -keyout /mnt/ca.key -out /mnt/ca.pem",
            );
            openssl(
                chroot,
                "-subj /CN=api.example.org -addext subjectAltName=DNS:api.example.org \
                 -addext basicConstraints=critical,CA:FALSE -CA /mnt/ca.pem -CAkey /mnt/ca.key \
                 -keyout /mnt/server.key -out /mnt/server.crt",
            );
            let parts = ["server.key", "server.crt"].map(|part| fs::read(here.join(part)).unwrap());
            fs::write(here.join("server.pem"), parts.concat()).unwrap();
            let mut command = chroot.command("sh");
            command.args(["-c", "cd /mnt && exec python3 server.py \"$0\"", SECRET]);
            Self(command.stdin(Stdio::null()).spawn().unwrap())
        }
    }

    fn openssl(chroot: &Chroot, words: &str) {
        let kind = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30";
        let words = kind.split_whitespace().chain(words.split_whitespace());
        chroot.run("openssl", &words.collect::<Vec<_>>());
    }

    /// The repository that the agent works on.
    fn repository(chroot: &Chroot) -> PathBuf {
        let workspace = chroot.shared().join("workspace");
        fs::create_dir(&workspace).unwrap();
        fs::write(workspace.join("notes.txt"), "a draft of notes\n").unwrap();
        let git = "cd /mnt/workspace && git init --quiet && git add . && \
                   git -c user.name=a -c user.email=a@example.org commit --quiet -m 'first notes'";
        chroot.run("sh", &["-c", git]);
        workspace
    }

    impl Drop for Service {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// An operator's keys, roles and secrets, and the example, in a place of the test's own.
    struct House {
        bulkhead: Bulkhead,
        scratch: Scratch,
    }

    impl House {
        fn new(chroot: &Chroot, scratch: Scratch, example: &Path) -> Self {
            let config = scratch.path().join("config");
            let mut private = fs::DirBuilder::new();
            let roles = config.join("roles");
            private.mode(0o700).recursive(true).create(&roles).unwrap();
            let key = scratch.file("vault.key", "a passphrase of the suite's own\n");
            fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            let bulkhead = Bulkhead::built()
                .env("BULKHEAD_CONFIG_DIR", &config)
                .env("BULKHEAD_DATA_DIR", scratch.path().join("data"))
                .env("BULKHEAD_STATE_DIR", scratch.path().join("s"))
                .env("BULKHEAD_VAULT_KEY_FILE", &key);
            let house = Self { bulkhead, scratch };
            let agent = house.agent();
            fs::create_dir_all(&agent).unwrap();
            fs::rename(repository(chroot), agent.join("workspace")).unwrap();
            fs::copy(chroot.shared().join("ca.pem"), agent.join("ca.pem")).unwrap();
            let usr = chroot.path("usr");
            for file in [
                "agent.py",
                "start.sh",
                "partition.toml",
                "policy.cedar",
                "coder.toml",
            ] {
                let text = fs::read_to_string(example.join(file)).unwrap();
                let text = text
                    .replace("fs.read:/usr", &format!("fs.read:{}", usr.display()))
                    .replace("/srv/agent", agent.to_str().unwrap());
                fs::write(agent.join(file), text).unwrap();
            }
            fs::rename(agent.join("coder.toml"), roles.join("coder.toml")).unwrap();
            house
        }

        /// Does what an operator does: keys, the secret, and a signature.
        fn operator(&self) {
            let public = self.scratch.path().join("alice.pub");
            self.run(&["key", "new", "alice"]).expect_status(0);
            fs::write(&public, self.run(&["key", "export", "alice"]).stdout()).unwrap();
            let trust = ["key", "trust", public.to_str().unwrap()];
            self.run(&trust).expect_status(0);
            let set = ["secret", "set", "api-token"];
            let set = self.bulkhead.run_with_input(set, SECRET.as_bytes());
            set.expect_status(0);
            let manifest = self.agent().join("partition.toml");
            let manifest = manifest.to_str().unwrap();
            let sign = ["manifest", "sign", manifest, "--key", "alice"];
            self.run(&sign).expect_status(0);
        }

        /// The ledger has each step of the agent, in their order, and proves it to whoever has its key.
        fn proves_each_step(&self) {
            self.run(&["ledger", "verify"]).expect_status(0);
            let records = self.records();
            let used = |record: &Value| record["entry"]["detail"]["secrets"] == "api-token";
            let requests = records.iter().filter(|record| used(record));
            assert_eq!(requests.count(), 1, "the secret went out with one request");
            let mut from = 0;
            for (kind, action, object, verdict) in STEPS {
                let is = |record: &Value| {
                    let entry = &record["entry"];
                    let object_is = |text: &str| text.contains(object);
                    entry["kind"] == kind
                        && entry["action"] == action
                        && entry["object"].as_str().is_some_and(object_is)
                        && entry["verdict"] == verdict
                };
                let at = records[from..].iter().position(is);
                let list = || {
                    records
                        .iter()
                        .map(|record| format!("{}\n", record["entry"]))
                };
                let step = (kind, action, object, verdict);
                let at = at.unwrap_or_else(|| panic!("{step:?}\n{}", list().collect::<String>()));
                from += at + 1;
                self.proves(from - 1);
            }
        }

        /// A proof of record `index` stands for itself.
        fn proves(&self, index: usize) {
            let proof = self.scratch.path().join("proof");
            let proven = self.run(&["ledger", "prove", &index.to_string()]);
            fs::write(&proof, proven.expect_status(0).stdout()).unwrap();
            let key = self.scratch.path().join("config/keys/ledger.pub");
            let [proof, key] = [&proof, &key].map(|path| path.to_str().unwrap());
            let verify = ["ledger", "verify", "--proof", proof, "--key", key];
            self.run(&verify).expect_status(0);
        }

        /// Where the example's files are.
        fn agent(&self) -> PathBuf {
            self.scratch.path().join("agent")
        }

        fn run(&self, words: &[&str]) -> Ended {
            self.bulkhead.run(words)
        }

        fn logs(&self) -> String {
            self.run(&["logs", "agents/agent"]).stdout()
        }

        /// Looks until `found` finds something.
        #[track_caller]
        fn until<T>(&self, what: &str, found: impl Fn() -> Option<T>) -> T {
            let end = Instant::now() + PATIENCE;
            loop {
                if let Some(found) = found() {
                    return found;
                }
                assert!(Instant::now() < end, "never came: {what}\n{}", self.logs());
                thread::sleep(Duration::from_millis(500));
            }
        }

        /// Waits until the agent has said `text`.
        #[track_caller]
        fn until_said(&self, text: &str) {
            let said = self.until(text, || {
                let alive = self.run(&["ps"]).stdout().contains("running");
                let said = self.logs().contains(text);
                (said || !alive).then_some(said)
            });
            assert!(said, "ended before it said `{text}`\n{}", self.logs());
        }

        /// The records of the ledger.
        fn records(&self) -> Vec<Value> {
            let exported = self.run(&["ledger", "export"]);
            let lines = exported.expect_status(0).stdout();
            let records = lines.lines().map(serde_json::from_str);
            records.collect::<Result<_, _>>().unwrap()
        }
    }

    /// How often `text` is in `file`.
    fn count(chroot: &Chroot, file: &str, text: &str) -> u64 {
        let script = "grep --text --only-matching --fixed-strings -e \"$0\" \"$1\" | wc --lines";
        let counted = chroot.run("sh", &["-c", script, text, file]);
        counted.trim().parse().unwrap()
    }

    #[test]
    fn an_agent_does_what_it_was_granted_and_nothing_else() {
        let example = Path::new("/repo/docs/examples/agent");
        let scratch = Scratch::new();
        let chroot = Chroot::new(&scratch);
        let before = Census::take();
        let service = Service::start(&chroot, example);
        let house = House::new(&chroot, scratch, example);
        house.operator();
        let system = "name = \"agents\"\n[[partition]]\nmanifest = \"partition.json\"\n";
        let file = house.agent().join("system.toml");
        fs::write(&file, system).unwrap();
        let up = ["up", "--detach", file.to_str().unwrap()];
        house.run(&up).expect_status(0);

        house.until_said("agent: asks a person");
        let question = house.until("a question", || {
            let asked = house.run(&["approvals", "ls", "--format", "json"]).stdout();
            let asked: Value = serde_json::from_str(&asked).unwrap();
            Some(asked[0]["id"].as_str()?.to_owned())
        });
        let notes = house.agent().join("workspace/notes.txt");
        assert!(notes.exists(), "nobody has allowed it");
        // While it waits: it has the placeholder in its memory, and the secret nowhere.
        let core = chroot.shared().join("core");
        let dump = ["dump", "agents/agent", core.to_str().unwrap()];
        house.run(&dump).expect_status(0);
        let held = [PLACEHOLDER, SECRET].map(|text| count(&chroot, "/mnt/core", text));
        fs::remove_file(&core).unwrap();
        assert!(held[0] > 0, "the dump is one of the agent's memory");
        assert_eq!(held[1], 0, "the secret is in the agent's memory");
        let approve = ["approvals", "approve", &question];
        house.run(&approve).expect_status(0);
        house.until_said("agent: deleted: True");
        assert!(!notes.exists());
        let logs = house.logs();
        for said in [
            "agent: read: a draft of notes (first notes)",
            "agent: granted: 200 hello, agent",
            "agent: not permitted: 403 ",
            "nothing private",
            "agent: not granted: 403 ",
            "no rule allows GET /v2/greeting at api.example.org:443",
            "agent: elsewhere: ",
            "agent: tools: fs.delete fs.edit fs.read fs.roots net.allowed tool.rollback",
            "agent: elsewhere is allowed: {\"allowed\": false",
            "agent: edited: a final of notes",
            "agent: rolled back: a draft of notes",
        ] {
            assert!(logs.contains(said), "{said}\n{logs}");
        }
        assert!(!logs.contains(SECRET), "{logs}");
        house.until("the end", || {
            let last = house.records().pop()?;
            (last["entry"]["object"] == "terminated").then_some(())
        });
        house.proves_each_step();
        // Nor is it on a disk, but for the vault, where it is sealed.
        let places = ["config", "data", "s", "agent"].map(|name| house.scratch.path().join(name));
        for place in &places {
            let mut grep = Command::new("grep");
            grep.args(["-r", "-l", SECRET]).arg(place);
            let found = grep.output().unwrap();
            let found = String::from_utf8_lossy(&found.stdout).into_owned();
            assert_eq!(found, "", "the secret is in a file");
        }
        drop((service, house, chroot));
        before.expect_nothing_new();
    }
}
