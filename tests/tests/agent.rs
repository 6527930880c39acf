//! Promise: an agent in a partition does what its signed manifest grants and nothing else, with a secret
//! that is nowhere in its memory, and the ledger has each step. The agent is docs/examples/agent,
//! unmodified but for the places of this host.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::bulkhead::Ended;
    use bulkhead_tests::debian::Chroot;
    use bulkhead_tests::house::House;
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

    /// A house with the example in it, and the secret in its vault.
    struct Agent(House);

    impl Agent {
        fn new(chroot: &Chroot, example: &Path) -> Self {
            let mut house = House::new("");
            let key = (house.scratch).file("vault.key", "a passphrase of the suite's own\n");
            fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
            house.bulkhead = house.bulkhead.clone().env("BULKHEAD_VAULT_KEY_FILE", &key);
            let place = house.scratch.path().to_owned();
            fs::rename(repository(chroot), place.join("workspace")).unwrap();
            fs::copy(chroot.shared().join("ca.pem"), place.join("ca.pem")).unwrap();
            let usr = chroot.path("usr");
            let text = |file: &str| {
                let text = fs::read_to_string(example.join(file)).unwrap();
                text.replace("fs.read:/usr", &format!("fs.read:{}", usr.display()))
                    .replace("/srv/agent", place.to_str().unwrap())
            };
            for file in ["agent.py", "start.sh", "policy.cedar"] {
                house.scratch.file(file, text(file));
            }
            house.role("coder", &text("coder.toml"));
            let set = ["secret", "set", "api-token"];
            let set = house.bulkhead.run_with_input(set, SECRET.as_bytes());
            set.expect_status(0);
            let manifest = house.signed(&text("partition.toml"), &["alice"]);
            let system = format!("name = \"agents\"\n[[partition]]\nmanifest = {manifest:?}\n");
            house.scratch.file("system.toml", system);
            Self(house)
        }

        /// The ledger has each step of the agent, in their order, and proves it to whoever has its key.
        fn proves_each_step(&self) {
            self.run(&["ledger", "verify"]).expect_status(0);
            let records = self.0.records();
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
            let proof = self.path("proof");
            let proven = self.run(&["ledger", "prove", &index.to_string()]);
            fs::write(&proof, proven.expect_status(0).stdout()).unwrap();
            let key = self.path("config/keys/ledger.pub");
            let [proof, key] = [&proof, &key].map(|path| path.to_str().unwrap());
            let verify = ["ledger", "verify", "--proof", proof, "--key", key];
            self.run(&verify).expect_status(0);
        }

        /// The path of a file of the house.
        fn path(&self, name: &str) -> PathBuf {
            self.0.scratch.path().join(name)
        }

        fn run(&self, words: &[&str]) -> Ended {
            self.0.run(words)
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
        let service = Service::start(&chroot, example);
        let agent = Agent::new(&chroot, example);
        let file = agent.path("system.toml");
        let up = ["up", "--detach", file.to_str().unwrap()];
        agent.run(&up).expect_status(0);

        agent.until_said("agent: asks a person");
        let question = agent.until("a question", || {
            let asked = agent.run(&["approvals", "ls", "--format", "json"]).stdout();
            let asked: Value = serde_json::from_str(&asked).unwrap();
            Some(asked[0]["id"].as_str()?.to_owned())
        });
        let notes = agent.path("workspace/notes.txt");
        assert!(notes.exists(), "nobody has allowed it");
        // While it waits: it has the placeholder in its memory, and the secret nowhere.
        let core = chroot.shared().join("core");
        let dump = ["dump", "agents/agent", core.to_str().unwrap()];
        agent.run(&dump).expect_status(0);
        let held = [PLACEHOLDER, SECRET].map(|text| count(&chroot, "/mnt/core", text));
        fs::remove_file(&core).unwrap();
        assert!(held[0] > 0, "the dump is one of the agent's memory");
        assert_eq!(held[1], 0, "the secret is in the agent's memory");
        let approve = ["approvals", "approve", &question];
        agent.run(&approve).expect_status(0);
        agent.until_said("agent: deleted: True");
        assert!(!notes.exists());
        let logs = agent.logs();
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
        agent.until("the end", || {
            let last = agent.0.records().pop()?;
            (last["entry"]["object"] == "terminated").then_some(())
        });
        agent.proves_each_step();
        // Nor is it on a disk, but for the vault, where it is sealed.
        let mut grep = Command::new("grep");
        grep.args(["-r", "-l", SECRET]).arg(agent.path(""));
        let found = grep.output().unwrap();
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        assert_eq!(found, "", "the secret is in a file");
        drop(service);
        agent.0.census.expect_nothing_new();
    }
}
