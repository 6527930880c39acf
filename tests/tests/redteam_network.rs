//! Red team: a guest on its network. It reaches for the host and for other partitions, carries data out by
//! every way there is, and uses up what it can. What is granted works all the while; the servers
//! themselves say what has reached them.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod lab {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::{Write, stderr};
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::house::House;
    use bulkhead_tests::mcp::Mcp;
    use bulkhead_tests::{guest, library};
    use serde_json::{Value, json};

    /// Until something has happened: it only keeps a hang from stopping the suite.
    const PATIENCE: Duration = Duration::from_secs(900);
    /// What the attacker carries.
    const BOOTY: &str = "booty-4f1d0c";
    /// The lab's own servers: those that are granted, and the attacker's.
    const ADDRESSES: [&str; 3] = ["192.0.2.77", "192.0.2.78", "192.0.2.66"];
    const RESOLV_CONF: &str = "/etc/resolv.conf";

    /// A house in a world of servers.
    struct World {
        house: House,
        servers: Child,
        resolvers: Option<Vec<u8>>,
    }

    impl World {
        fn new() -> Self {
            let house = House::new("");
            for address in ADDRESSES {
                ip(&["address", "add", &format!("{address}/32"), "dev", "lo"]);
            }
            // The host's resolver is one of these servers, too.
            let resolvers = fs::read(RESOLV_CONF).ok();
            fs::write(RESOLV_CONF, "nameserver 127.0.0.1\n").unwrap();
            let seen = house.scratch.path().join("seen");
            fs::create_dir(&seen).unwrap();
            let mut command = Command::new(house.bulkhead.library("tests/attacker"));
            let servers = command.arg("serve").arg(&seen).spawn().unwrap();
            let end = Instant::now() + PATIENCE;
            while !seen.join("ready").exists() {
                assert!(Instant::now() < end, "the servers do not start");
                thread::sleep(Duration::from_millis(50));
            }
            Self {
                house,
                servers,
                resolvers,
            }
        }

        fn place(&self, name: &str) -> PathBuf {
            self.house.scratch.path().join(name)
        }

        /// Starts a guest that does this.
        fn start(&self, order: &str, grants: &str, more: &str) {
            let script = format!(
                "bb=/bin/busybox\n$bb ip link set lo up\n$bb ip address add 10.0.2.15/24 dev eth0\n\
                 $bb ip link set eth0 up\n$bb ip route add default via 10.0.2.2\n\
                 exec /bin/attacker {order}\n"
            );
            let script = self.house.scratch.file("script", script);
            let attacker = self.house.bulkhead.library("tests/attacker");
            let system = format!(
                r#"
                name = "red"
                [[partition]]
                name = "guest"
                kernel = "linux"
                command = ["/bin/busybox", "sh", "/script"]
                grants = ["console", "entropy", "time", {grants}]
                mounts = [
                    {{ source = "/bin/busybox", target = "/bin/busybox" }},
                    {{ source = "{attacker}", target = "/bin/attacker" }},
                    {{ source = "{script}", target = "/script" }},
                    {{ source = "{servers}", target = "/ca.pem" }},
                ]
                {more}
                "#,
                attacker = attacker.display(),
                script = script.display(),
                servers = self.place("seen/ca.pem").display(),
            );
            let system = self.house.scratch.file("red.toml", system);
            let up = ["up", "--detach", system.to_str().unwrap()];
            self.house.run(&up).expect_status(0);
        }

        fn logs(&self) -> String {
            self.house.run(&["logs", "red/guest"]).stdout()
        }

        /// Waits until the guest is done; what it said.
        #[track_caller]
        fn done(&self) -> String {
            let end = Instant::now() + PATIENCE;
            loop {
                let logs = self.logs();
                if logs.contains("attacker: done") {
                    return logs;
                }
                let runs = self.house.run(&["ps"]).stdout().contains("running");
                let over = !runs && !self.logs().contains("attacker: done");
                assert!(!over && Instant::now() < end, "it is not done:\n{logs}");
                thread::sleep(Duration::from_secs(3));
            }
        }

        /// What the servers saw, a line for each thing.
        fn seen(&self) -> String {
            fs::read_to_string(self.place("seen/seen")).unwrap()
        }

        /// Records of what the guest did and was refused.
        fn acts(&self) -> Vec<Value> {
            let records = self.house.records().into_iter();
            let entries = records.map(|record| record["entry"].clone());
            entries
                .filter(|entry| entry["actor"] == "red/guest")
                .collect()
        }

        fn end(mut self) {
            self.house.run(&["down", "--all"]).expect_status(0);
            self.house.run(&["ledger", "verify"]).expect_status(0);
            let _ = self.servers.kill();
            let _ = self.servers.wait();
            for address in ADDRESSES {
                ip(&["address", "del", &format!("{address}/32"), "dev", "lo"]);
            }
            let _ = match &self.resolvers {
                Some(bytes) => fs::write(RESOLV_CONF, bytes),
                None => fs::remove_file(RESOLV_CONF),
            };
            self.house.census.expect_nothing_new();
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = self.servers.kill();
            let _ = self.servers.wait();
        }
    }

    fn ip(args: &[&str]) {
        let status = Command::new("ip").args(args).status().unwrap();
        assert!(status.success(), "ip {args:?}");
    }

    /// All that was granted worked, nothing else did; how many attacks there were.
    #[track_caller]
    fn judge(logs: &str) -> usize {
        let (mut attacks, mut allowed) = (0, 0);
        for line in logs.lines() {
            if line.contains("attack ") {
                // Past the harness, so that all of them are seen.
                let _ = writeln!(stderr(), "{line}");
                attacks += 1;
            }
            allowed += usize::from(line.contains("allowed "));
        }
        let through: Vec<&str> = logs
            .lines()
            .filter(|line| line.contains(": GOT THROUGH"))
            .collect();
        assert!(through.is_empty(), "{through:#?}");
        let failed: Vec<&str> = logs
            .lines()
            .filter(|line| line.contains(": FAILED"))
            .collect();
        assert!(failed.is_empty() && allowed > 0, "{failed:#?}\n{logs}");
        attacks
    }

    /// A partition of somebody else's, with tools, and with what it may reach.
    fn neighbour(world: &World, port: u16) {
        let kernel = library::with(
            &world.house.bulkhead,
            &world.house.scratch,
            "kernel",
            &guest::sleeps(),
        );
        let shared = world.place("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("file"), "of the neighbour\n").unwrap();
        let system = format!(
            r#"
            name = "next"
            [[partition]]
            name = "door"
            kernel = "native"
            program = "@examples/hello-native"
            grants = [
                {{ capability = "vsock", cid = 4 }}, "net.listen:127.0.0.1:{port}=80",
                "net.connect:tcp:192.0.2.78:443", "fs.read:{}", "tool.call:fs.*",
            ]
            "#,
            shared.display()
        );
        let system = world.house.scratch.file("next.toml", system);
        let bulkhead = world.house.bulkhead.clone().env("BULKHEAD_LIB", kernel);
        bulkhead
            .run(["up", "--detach", system.to_str().unwrap()])
            .expect_status(0);
    }

    #[test]
    fn a_guest_reaches_neither_the_host_nor_its_neighbours() {
        let world = World::new();
        neighbour(&world, 8022);
        let next = UnixListener::bind(world.place("s/next/door/vsock.sock_2001")).unwrap();
        next.set_nonblocking(true).unwrap();
        world.start(
            "wander 8099 2201 8022 53",
            "\"vsock\", \"net.loopback:tcp:80=8099\", \"net.connect:tcp:*.rebind.example.org:*\"",
            "",
        );
        let own = UnixListener::bind(world.place("s/red/guest/vsock.sock_2000")).unwrap();
        let logs = world.done();
        let attacks = judge(&logs);
        assert!(attacks > 100, "{attacks}\n{logs}");
        assert!(own.accept().is_ok(), "its own port is reached");
        assert!(
            next.accept().is_err(),
            "a port of the neighbour's was reached"
        );
        let seen = world.seen();
        // What was granted was asked for once; what was not, never.
        assert_eq!(
            seen.matches("127.0.0.1:8099 is connected").count(),
            1,
            "{seen}"
        );
        for never in ["127.0.0.1:2201", "192.0.2.66", "192.0.2.78"] {
            assert!(!seen.contains(never), "{never}: {seen}");
        }
        // The names were asked for, so it is not for want of an answer that nothing was reached.
        for name in ["loop", "meta", "private", "router", "flip"] {
            let asked = format!("asked for {name}.rebind.example.org");
            assert!(seen.contains(&asked), "{asked}: {seen}");
        }
        let acts = world.acts();
        let refused = acts.iter().filter(|act| act["verdict"] == "denied").count();
        assert!(refused > 5, "{acts:?}");
        world.end();
    }

    #[test]
    fn data_leaves_by_no_way_that_was_not_granted() {
        let world = World::new();
        let ca = world.place("seen/ca.pem");
        world.start(
            "exfiltrate",
            "{ capability = \"net.connect:tcp:api.example.org:443\", methods = [\"GET\"], paths = [\"/v1/**\"] }, \
             { capability = \"net.connect:tcp:plain.example.org:80\", methods = [\"GET\"], paths = [\"/v1/**\"] }, \
             \"net.connect:tcp:free.example.org:443\"",
            &format!("network = {{ trust = [\"{}\"] }}", ca.display()),
        );
        let logs = world.done();
        let seen = world.seen();
        let attacks = judge(&logs);
        assert!(attacks > 150, "{attacks}\n{logs}");
        // Nobody saw any of it: not the attacker's servers, not the granted ones, not the resolver.
        assert!(!seen.contains(BOOTY), "{seen}");
        assert!(!seen.contains("192.0.2.66"), "{seen}");
        for line in seen
            .lines()
            .filter_map(|line| line.strip_prefix("asked for "))
        {
            let name = line.split(' ').next().unwrap();
            let granted = ["api.example.org", "plain.example.org", "free.example.org"];
            assert!(granted.contains(&name), "{line}");
        }
        // The granted servers did see what was granted.
        for request in ["GET /v1/ok", "GET /anything", "GET /v1/redirect"] {
            assert!(seen.contains(request), "{request}: {seen}");
        }
        let acts = world.acts();
        let of = |verdict: &str| acts.iter().filter(|act| act["verdict"] == verdict).count();
        assert!(of("allowed") >= 4 && of("denied") >= 10, "{acts:?}");
        world.end();
    }

    #[test]
    fn a_guest_that_uses_up_what_it_can_harms_itself_alone() {
        let world = World::new();
        neighbour(&world, 8022);
        let before = size(&world.place("data/ledger"));
        world.start(
            "exhaust",
            "\"net.connect:tcp:plain.example.org:80\", \"net.connect:tcp:192.0.2.77:22\", \
             \"net.connect:udp:192.0.2.77:9\"",
            "memory = \"128MiB\"",
        );
        // The neighbour's tools answer all the while, and its supervisor does.
        let stop = AtomicBool::new(false);
        let logs = thread::scope(|scope| {
            let served = scope.spawn(|| {
                let (mut served, mut peak) = (0, BTreeMap::new());
                let mut mcp = Mcp::connect(&world.place("s/next/door/vsock.sock_1024"));
                let file = world.place("shared/file");
                // Its own limit is 60 in a minute.
                while !stop.load(Ordering::Relaxed) {
                    mcp.call("fs.read", &json!({ "path": file })).unwrap();
                    world.house.run(&["stats", "next"]).expect_status(0);
                    served += 1;
                    for program in ["bulkhead-gateway", "bulkhead-vmm"] {
                        let most = peak.entry(program).or_insert(0);
                        *most = resident_mib(program).max(*most);
                    }
                    thread::sleep(Duration::from_secs(3));
                }
                (served, peak)
            });
            let logs = world.done();
            stop.store(true, Ordering::Relaxed);
            let (served, peak) = served.join().expect("the neighbour is served");
            let _ = writeln!(stderr(), "served {served} times; MiB at most: {peak:?}");
            assert!(served > 0);
            assert!(peak["bulkhead-gateway"] < 256, "{peak:?}");
            assert!((64..128 + 64).contains(&peak["bulkhead-vmm"]), "{peak:?}");
            logs
        });
        judge(&logs);
        for line in logs.lines().filter(|line| line.contains("count ")) {
            let _ = writeln!(stderr(), "{line}");
        }
        let count = |what: &str| -> usize {
            let line = logs
                .lines()
                .find_map(|line| line.split_once(&format!("count {what}: ")));
            let (_, count) = line.unwrap_or_else(|| panic!("{what}: {logs}"));
            count.split(' ').next().unwrap().parse().unwrap()
        };
        // As many as there are places, and every one that is not granted is refused.
        assert!((1..=1024).contains(&count("connections")), "{logs}");
        assert_eq!(count("refusals"), 300, "{logs}");
        assert!(
            logs.contains("count memory: its process ended: true"),
            "{logs}"
        );
        // What was allowed is on record, twice; refusals are told as often as a person could read.
        let grown = size(&world.place("data/ledger")) - before;
        let _ = writeln!(stderr(), "the ledger has grown by {} KiB", grown / 1024);
        assert!(grown < 32 << 20, "{grown}");
        let acts = world.acts();
        let denied = acts.iter().filter(|act| act["verdict"] == "denied").count();
        let _ = writeln!(
            stderr(),
            "{} records, {denied} of them refusals",
            acts.len()
        );
        assert!((1..1000).contains(&denied), "{denied}");
        world.end();
    }

    fn size(directory: &Path) -> u64 {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.metadata().unwrap().len()).sum()
    }

    /// What the largest process of that program has of the host's memory.
    fn resident_mib(program: &str) -> u64 {
        let mut most = 0;
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
            // It may be gone again.
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.split_whitespace().next());
            if exe.file_name().is_some_and(|name| name == program)
                && let Some(kib) = kib
            {
                most = most.max(kib.parse::<u64>().unwrap() / 1024);
            }
        }
        most
    }
}
