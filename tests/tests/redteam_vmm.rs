//! Red team: a VMM that its guest has taken over. A program of ours stands in the VMM's place; a real
//! supervisor starts it with a VMM's descriptors, it enters the VMM's jail by the VMM's own code, and
//! attacks from there. It gets to no network, no secret, no record and nobody else's partition.
//!
//! Three depths: what the supervisor hands over (before the jail, when no guest has run yet), what
//! the layers of the jail hold without the filter of system calls, and what both hold.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
    use std::path::{Path, PathBuf};
    use std::thread;

    use bulkhead_tests::bulkhead::{Bulkhead, Ended};
    use bulkhead_tests::house::House;
    use bulkhead_tests::{guest, library, skip};
    use rustix::io::{FdFlags, fcntl_setfd};

    const ROLE: &str = r#"
grants = ["console", "vsock", "net.connect:tcp:granted.example:443", "secret.use:token"]
[resources]
memory = "16MiB"
vcpus = 1
[lifetime]
max = "1h"
"#;
    const SECRET: &str = "sk-9d2c55e01f7b4a6688d3";

    /// A house with a partition in it that is none of the rogue's, and a host around it.
    struct Scene {
        house: House,
        /// The command with the rogue in the VMM's place.
        rogue: Bulkhead,
        victims: Vec<u32>,
        tcp: Vec<TcpListener>,
        _abstract: UnixListener,
        name: String,
        /// A key that is open in whoever is started from here, as careless parents leave them.
        _left_open: File,
    }

    impl Scene {
        /// Nothing where this host does not offer every layer of the jail.
        fn new() -> Option<Self> {
            let mut house = House::new(ROLE);
            let key = house
                .scratch
                .file("vault.key", "a passphrase of the suite's own\n");
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
            house.bulkhead = house.bulkhead.clone().env("BULKHEAD_VAULT_KEY_FILE", &key);
            let program = fs::read(house.bulkhead.library("tests/rogue-vmm")).unwrap();
            let rogue = library::with(&house.bulkhead, &house.scratch, "bulkhead-vmm", &program);
            let rogue = house.bulkhead.clone().env("BULKHEAD_LIB", rogue);
            let tried = run(&rogue, "loop", &["rest"]);
            if tried.stderr().contains("error[jail-layer]") {
                skip(tried.stderr().lines().next().unwrap());
                return None;
            }
            tried.expect_status(0).expect_stdout("gaps: \ndone\n");

            let set = ["secret", "set", "token"];
            let set = house.bulkhead.run_with_input(set, SECRET.as_bytes());
            set.expect_status(0);
            let shared = house.scratch.path().join("shared");
            fs::create_dir(&shared).unwrap();
            let sleeps = library::with(&house.bulkhead, &house.scratch, "kernel", &guest::sleeps());
            let system = format!(
                r#"
                name = "victim"
                [[partition]]
                name = "victim"
                kernel = "native"
                program = "@examples/hello-native"
                grants = [
                    "vsock", "net.connect:tcp:granted.example:443", "tool.call:fs.*", "fs.read:{}",
                ]
                "#,
                shared.display()
            );
            let system = house.scratch.file("victim.toml", system);
            let victim = house.bulkhead.clone().env("BULKHEAD_LIB", sleeps);
            let up = ["up", "--detach", system.to_str().unwrap()];
            victim.run(up).expect_status(0);
            let name = format!("bulkhead-test-red-team-{}", std::process::id());
            let address = UnixAddr::from_abstract_name(&name).unwrap();
            let left_open = File::open(house.scratch.path().join("config/keys/alice")).unwrap();
            fcntl_setfd(&left_open, FdFlags::empty()).unwrap();
            let own = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let tcp = own.map(|ip| TcpListener::bind(SocketAddr::new(ip, 0)));
            let mut scene = Self {
                house,
                rogue,
                victims: Vec::new(),
                // A host may have no IPv6.
                tcp: tcp.into_iter().flatten().collect(),
                _abstract: UnixListener::bind_addr(&address).unwrap(),
                name,
                _left_open: left_open,
            };
            scene.victims = scene.processes();
            // Supervisor, writer of the ledger, VMM, gateway, tools and the server of the directory.
            assert_eq!(scene.victims.len(), 6, "{:?}", scene.victims);
            Some(scene)
        }

        /// The processes of the victim.
        fn processes(&self) -> Vec<u32> {
            let told = self.house.run(&["ps", "--format", "json"]);
            let told: serde_json::Value = serde_json::from_str(&told.stdout()).unwrap();
            let rows = told.as_array().unwrap();
            let victim = rows.iter().find(|row| row["system"] == "victim");
            let supervisor = victim.expect("it runs")["supervisor"].as_u64().unwrap();
            let mut found = vec![u32::try_from(supervisor).unwrap()];
            let parent = format!("PPid:\t{supervisor}\n");
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let status = fs::read_to_string(entry.path().join("status"));
                if status.is_ok_and(|status| status.contains(&parent)) {
                    found.push(entry.file_name().to_string_lossy().parse().unwrap());
                }
            }
            found.sort_unstable();
            found
        }

        /// Everything that there is to get, as the rogue's orders say it.
        fn targets(&self) -> Vec<String> {
            let mut targets = vec![format!("abstract={}", self.name)];
            targets.extend(self.victims.iter().map(|pid| format!("pid={pid}")));
            for listener in &self.tcp {
                targets.push(format!("tcp={}", listener.local_addr().unwrap()));
            }
            let place = |name: &str| self.house.scratch.path().join(name);
            for file in [
                "vault.key",
                "data/vault/secrets",
                "data/ledger/00000000000000000000.segment",
                "config/keys/alice",
                "config/keys/ledger.key",
                "s/victim/system.json",
            ] {
                let path = place(file);
                assert!(path.is_file(), "{}", path.display());
                targets.push(format!("file={}", path.display()));
            }
            for socket in ["s/victim/control.sock", "s/victim/victim/vsock.sock"] {
                let path = place(socket);
                assert!(path.exists(), "{}", path.display());
                targets.push(format!("socket={}", path.display()));
            }
            targets
        }

        fn attack(&self, stage: &str, order: &str) -> Ended {
            let targets = self.targets();
            let mut words = vec![order];
            words.extend(targets.iter().map(String::as_str));
            run(&self.rogue, stage, &words)
        }

        /// Nobody else has come to harm, and the ledger is what it was and more.
        #[track_caller]
        fn end(self) {
            assert_eq!(self.processes(), self.victims, "somebody was killed");
            let answers = ["stats", "victim"];
            self.house.run(&answers).expect_status(0);
            self.house.run(&["ledger", "verify"]).expect_status(0);
            for record in self.house.records() {
                let entry = &record["entry"];
                assert!(!entry.to_string().contains("forged"), "{entry}");
            }
            self.house.run(&["down", "victim"]).expect_status(0);
            self.house.census.expect_nothing_new();
        }
    }

    fn run(rogue: &Bulkhead, stage: &str, words: &[&str]) -> Ended {
        let start = [
            "run",
            "--name",
            "rogue",
            "--jail",
            "full",
            "--kernel",
            "native",
            "--",
            "@examples/hello-native",
            stage,
        ];
        rogue.run(start.iter().chain(words))
    }

    /// The attacks that were told of, each with what it came to.
    fn attacks(ended: &Ended) -> Vec<(String, String)> {
        let told = ended.stdout();
        let lines = told.lines().filter_map(|line| line.strip_prefix("attack "));
        let parts = lines.map(|line| line.split_once(": ").expect("a name and an outcome"));
        parts
            .map(|(name, outcome)| (name.to_owned(), outcome.to_owned()))
            .collect()
    }

    fn through(outcome: &str) -> bool {
        outcome.starts_with("GOT THROUGH")
    }

    #[test]
    fn layers_beneath_the_filter_hold_by_themselves() {
        let Some(scene) = Scene::new() else { return };
        // These do succeed where there is no jail: the targets are there to be had. No guest has run by
        // then, and the VMM has the rights of whoever started it.
        let free = scene.attack("free", "harmless");
        free.expect_status(0);
        for (name, outcome) in attacks(&free) {
            let possible = match name.as_str() {
                "use what was left open"
                | "read a file"
                | "connect to a socket of the host"
                | "connect to an abstract socket"
                | "connect by TCP"
                | "execute a descriptor" => true,
                // As the host's own rules for tracing have it.
                _ => continue,
            };
            assert_eq!(through(&outcome), possible, "{name}: {outcome}");
        }
        let jailed = scene.attack("layers", "everything");
        jailed.expect_status(0).expect_stdout("done\n");
        let told = attacks(&jailed);
        assert_eq!(told.len(), 32, "{told:?}");
        for (name, outcome) in told {
            println!("{name}: {outcome}");
            assert!(!through(&outcome), "{name}: {outcome}");
        }
        scene.end();
    }

    #[test]
    fn with_the_filter_each_attack_is_refused_or_the_last() {
        let Some(scene) = Scene::new() else { return };
        let names = run(&scene.rogue, "free", &["names"]);
        let names = names.expect_status(0).stdout();
        let names: Vec<&str> = names
            .lines()
            .filter_map(|line| line.strip_prefix("name: "))
            .collect();
        assert_eq!(names.len(), 35);
        for (stage, end) in [("loop", 0), ("vcpu", 125)] {
            // A vCPU cannot even tell the supervisor that it ends.
            let rest = run(&scene.rogue, stage, &["rest"]);
            rest.expect_status(end).expect_stdout("done\n");
            assert!(!rest.stderr().contains("signal"), "{}", rest.stderr());
            for name in &names {
                let ended = scene.attack(stage, name);
                let told = attacks(&ended);
                let through = told.iter().any(|(_, outcome)| through(outcome));
                assert!(!through, "{told:?}");
                // All but one take a call that no VMM makes.
                match *name == "use what was left open" {
                    true => assert_eq!(told.len(), 1, "{}", ended.stderr()),
                    false => {
                        ended.expect_status(125);
                        ended.expect_stderr("was killed by signal 31");
                        assert!(told.is_empty(), "{told:?}");
                    }
                }
            }
        }
        scene.end();
    }

    #[test]
    fn a_supervisor_hands_over_what_was_granted_and_no_secret() {
        let Some(scene) = Scene::new() else { return };
        let manifest = |order: &str, secret: &str| {
            let backwards: String = secret.chars().rev().collect();
            let text = format!(
                r#"grants = ["console", "vsock", "net.connect:tcp:granted.example:443"]
[identity]
name = "rogue"
role = "coder"
[boot]
kernel = "native"
program = "@examples/hello-native"
args = ["free", "{order}", "secret={backwards}", "file=a-canary-to-find"]
[resources]
memory = "16MiB"
[lifetime]
max = "1h"
[[secrets]]
name = "token"
host = "granted.example"
"#
            );
            let file = scene.house.signed(&text, &["alice"]);
            scene
                .rogue
                .run(["run", "--jail", "full", "--manifest", &file])
        };
        let looked = manifest("look", SECRET);
        looked.expect_status(0).expect_stdout("done\n");
        let told = attacks(&looked);
        assert_eq!(told.len(), 4, "{told:?}");
        for (name, outcome) in told {
            assert!(!through(&outcome), "{name}: {outcome}");
        }
        // What is there, it finds.
        let canary = manifest("look", "a-canary-to-find");
        for (name, outcome) in attacks(&canary) {
            let there = matches!(
                name.as_str(),
                "a secret in the description" | "a secret in memory"
            );
            assert_eq!(through(&outcome), there, "{name}: {outcome}");
        }
        // What careless parents leave open is closed by the VMM itself, first of all.
        looked.expect_stdout("config/keys/alice");
        let library = fs::canonicalize(scene.house.bulkhead.library("")).unwrap();
        let lines = looked.stdout();
        let descriptors: Vec<&str> = (lines.lines())
            .filter_map(|line| line.strip_prefix("descriptor ")?.split_once(": "))
            .map(|(_, what)| what)
            .collect();
        assert!(descriptors.len() > 8, "{descriptors:?}");
        for what in &descriptors {
            let known = matches!(*what, "/dev/kvm" | "/dev/null" | "a Unix socket")
                || ["pipe:", "net:", "/memfd:"]
                    .iter()
                    .any(|kind| what.starts_with(kind))
                || Path::new(what).starts_with(&library);
            assert!(known, "{what} among {descriptors:?}");
        }
        // The control socket, the way to the gateway, and the two of vsock.
        let sockets = descriptors.iter().filter(|what| **what == "a Unix socket");
        assert_eq!(sockets.count(), 4, "{descriptors:?}");
        scene.end();
    }

    #[test]
    fn frames_of_its_own_reach_nobody_who_was_not_granted() {
        let Some(scene) = Scene::new() else { return };
        let listener = |answer: &'static str| {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut request = [0; 512];
                    // A client that is gone is the test's to notice.
                    let _ = stream.read(&mut request);
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
            port
        };
        let granted = listener("HTTP/1.0 200 granted\r\n\r\n");
        let secret = listener("HTTP/1.0 200 secret\r\n\r\n");
        let own = own_address();
        let mut args = vec![
            "loop".to_owned(),
            "network".into(),
            "tcp=10.0.2.2:80".into(),
        ];
        let elsewhere: Vec<String> = [
            format!("10.0.2.2:{secret}"),
            format!("10.0.2.2:{granted}"),
            format!("10.0.2.3:{secret}"),
            format!("127.0.0.1:{secret}"),
            format!("0.0.0.0:{secret}"),
            "169.254.169.254:80".into(),
            "192.168.0.1:80".into(),
            "192.0.2.1:80".into(),
        ]
        .into_iter()
        .chain(own.map(|ip| format!("{ip}:{secret}")))
        .collect();
        args.extend(elsewhere.iter().map(|address| format!("tcp={address}")));
        let names = [
            "granted.example",
            "other.example",
            "x.granted.example",
            "localhost",
        ];
        args.extend(names.map(|name| format!("name={name}")));
        let system = scene.house.scratch.file(
            "rogue.toml",
            format!(
                r#"
                name = "net"
                [[partition]]
                name = "rogue"
                kernel = "native"
                program = "@examples/hello-native"
                args = {args:?}
                grants = [
                    "console", "net.connect:tcp:granted.example:80", "net.loopback:tcp:80={granted}",
                ]
                network = {{ hosts = ["granted.example"] }}
                "#
            ),
        );
        let ended = scene.rogue.run(["up", system.to_str().unwrap()]);
        ended.expect_status(0);
        let told: Vec<(String, String)> = ended
            .stdout()
            .lines()
            .filter_map(|line| line.split_once("attack ")?.1.split_once(": "))
            .map(|(name, outcome)| (name.to_owned(), outcome.to_owned()))
            .collect();
        // Each address as a web server and as a DNS server, each name, and frames of others.
        assert_eq!(
            told.len(),
            2 * (elsewhere.len() + 1) + names.len() + 1,
            "{told:?}"
        );
        for (name, outcome) in &told {
            println!("{name}: {outcome}");
            let granted = matches!(name.as_str(), "connect to 10.0.2.2:80" | "resolve granted.example")
                // The gateway's own server, asked for the name that was granted.
                || name == "ask 10.0.2.3";
            assert_eq!(through(outcome), granted, "{name}: {outcome}");
        }
        let all: String = told.iter().map(|(_, outcome)| outcome.as_str()).collect();
        assert!(
            all.contains("200 granted") && !all.contains("200 secret"),
            "{told:?}"
        );
        // What it did and what it was refused are on record, as its own acts.
        let records = scene.house.records();
        let connects: Vec<_> = (records.iter().map(|record| &record["entry"]))
            .filter(|entry| entry["action"] == "net.connect")
            .collect();
        assert!(
            connects.iter().all(|entry| entry["actor"] == "net/rogue"),
            "{connects:?}"
        );
        let of = |verdict: &str| connects.iter().filter(|e| e["verdict"] == verdict).count();
        assert!(of("allowed") >= 1 && of("denied") >= 5, "{connects:?}");
        scene.end();
    }

    /// The address by which this host would be reached from outside, if it has one.
    fn own_address() -> Option<std::net::IpAddr> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
        // Sends nothing: it only asks for the way.
        socket.connect("192.0.2.1:9").ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    }

    #[test]
    fn lies_harm_nobody_else() {
        let Some(scene) = Scene::new() else { return };
        // Somebody listens, for another partition.
        let other = scene
            .house
            .scratch
            .path()
            .join("s/victim/victim/vsock.sock_2000");
        let _other: (UnixListener, PathBuf) = (UnixListener::bind(&other).unwrap(), other);
        let start = [
            "run",
            "--name",
            "rogue",
            "--jail",
            "full",
            "--kernel",
            "native",
            "--vsock",
            "--net",
            "granted.example:443",
            "--",
            "@examples/hello-native",
            "loop",
            "lie",
            "port=2000",
        ];
        let ended = scene.rogue.run(start);
        let told = attacks(&ended);
        assert_eq!(told.len(), 1, "{told:?} {}", ended.stderr());
        assert!(!through(&told[0].1), "{told:?}");
        ended.expect_stdout("lied\n");
        scene.end();
    }
}
