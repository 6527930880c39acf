//! Red team: a partition that floods what is there for all of them: people with questions, the ledger
//! with refusals, the disk with back-ups, its tools with connections. Each has a bound, and another
//! partition is served all the while.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::fs;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::house::House;
    use bulkhead_tests::mcp::{Mcp, outcome};
    use bulkhead_tests::{guest, library};
    use serde_json::{Value, json};

    /// So that a hang ends.
    const PATIENCE: Duration = Duration::from_secs(300);
    /// The most questions of a partition that wait at a time.
    const MOST_QUESTIONS: usize = 5;

    /// Two systems with tools: the one that floods, and another.
    struct Two {
        house: House,
    }

    impl Two {
        fn new(grants: &str, limits: &str) -> Self {
            let mut house = House::new("");
            house.scratch.file("config/tools.toml", limits);
            let kernel = library::with(&house.bulkhead, &house.scratch, "kernel", &guest::sleeps());
            house.bulkhead = house.bulkhead.clone().env("BULKHEAD_LIB", kernel);
            let two = Self { house };
            for name in ["flood", "quiet"] {
                fs::create_dir(two.directory(name)).unwrap();
                let grants = grants.replace("OWN", two.directory(name).to_str().unwrap());
                let system = format!(
                    "name = \"{name}\"\n[[partition]]\nname = \"agent\"\nkernel = \"native\"\n\
                     program = \"@examples/hello-native\"\ngrants = [{grants}]\n",
                );
                let system = two.house.scratch.file(&format!("{name}.toml"), system);
                let up = ["up", "--detach", system.to_str().unwrap()];
                two.house.run(&up).expect_status(0);
            }
            two
        }

        fn directory(&self, name: &str) -> PathBuf {
            self.house.scratch.path().join(format!("of-{name}"))
        }

        fn socket(&self, name: &str) -> PathBuf {
            let socket = format!("s/{name}/agent/vsock.sock_1024");
            self.house.scratch.path().join(socket)
        }

        /// Writes a file of this system's; needs a person's consent where its grants say so.
        fn write(&self, name: &str, file: &str) -> Value {
            let path = self.directory(name).join(file);
            let arguments = json!({ "path": path, "content": "x" });
            json!({ "name": "fs.write", "arguments": arguments })
        }

        /// Questions of this system that wait, by their IDs.
        fn questions(&self, name: &str) -> Vec<String> {
            let told = self.house.run(&["approvals", "ls", "--format", "json"]);
            let told: Value = serde_json::from_str(&told.expect_status(0).stdout()).unwrap();
            let all = told.as_array().unwrap().iter();
            let ids = all.map(|question| question["id"].as_str().unwrap().to_owned());
            ids.filter(|id| id.starts_with(name)).collect()
        }

        /// Waits for at least so many of them.
        fn wait_for_questions(&self, name: &str, count: usize) -> Vec<String> {
            let end = Instant::now() + PATIENCE;
            loop {
                let questions = self.questions(name);
                assert!(questions.len() <= MOST_QUESTIONS, "{questions:?}");
                if questions.len() >= count {
                    return questions;
                }
                assert!(Instant::now() < end, "{questions:?}");
                thread::sleep(Duration::from_millis(20));
            }
        }

        fn end(self) {
            self.house.run(&["down", "--all"]).expect_status(0);
            self.house.run(&["ledger", "verify"]).expect_status(0);
            self.house.census.expect_nothing_new();
        }
    }

    #[test]
    fn a_flood_of_questions_buries_nobody_elses() {
        let two = Two::new(
            "\"vsock\", \"fs.write:OWN\", { capability = \"tool.call:fs.write\", approval = true }, \
             \"tool.call:fs.read\"",
            "",
        );
        let mut asking: Vec<(Mcp, u64)> = (0..8)
            .map(|n| {
                let mut mcp = Mcp::connect(&two.socket("flood"));
                let id = mcp.send("tools/call", &two.write("flood", &format!("file-{n}")));
                (mcp, id)
            })
            .collect();
        // The sixth, and each after it, is denied at once.
        two.wait_for_questions("flood", MOST_QUESTIONS);
        // Somebody else asks, is heard, and is allowed.
        let mut quiet = Mcp::connect(&two.socket("quiet"));
        let id = quiet.send("tools/call", &two.write("quiet", "file"));
        let question = two.wait_for_questions("quiet", 1).remove(0);
        two.house
            .run(&["approvals", "approve", &question])
            .expect_status(0);
        let answer = quiet.hear().unwrap();
        assert_eq!(answer["id"], id);
        outcome(&answer).unwrap();
        assert!(two.directory("quiet").join("file").exists());
        // A person is tired of it: whatever is asked is denied, until nothing is asked any more.
        let end = Instant::now() + PATIENCE;
        let mut denied = 0;
        while denied < MOST_QUESTIONS {
            for question in two.wait_for_questions("flood", 1) {
                // Its time may be over just now.
                let deny = two.house.run(&["approvals", "deny", &question]);
                denied += usize::from(deny.status() == 0);
            }
            assert!(Instant::now() < end, "{denied}");
        }
        for (mcp, id) in &mut asking {
            let answer = mcp.hear().unwrap();
            assert_eq!(answer["id"], *id);
            let why = outcome(&answer).expect_err("nobody allowed it");
            assert!(why.contains("nobody allowed it"), "{why}");
        }
        let written = fs::read_dir(two.directory("flood")).unwrap().count();
        assert_eq!(written, 0, "what was denied was done");
        two.end();
    }

    #[test]
    fn a_flood_of_calls_fills_neither_ledger_nor_disk() {
        let two = Two::new("\"vsock\", \"fs.write:OWN\", \"tool.call:fs.*\"", "");
        let before = two.house.records().len();
        let begin = Instant::now();
        let mut mcp = Mcp::connect(&two.socket("flood"));
        let mut quiet = Mcp::connect(&two.socket("quiet"));
        let file = two.directory("quiet").join("file");
        fs::write(&file, "of the quiet one").unwrap();
        let mut refused = 0;
        for round in 0..3000 {
            let outcome = mcp.call("fs.read", &json!({ "path": "/etc/shadow" }));
            refused += usize::from(outcome.is_err());
            if round % 300 == 0 {
                quiet.call("fs.read", &json!({ "path": file })).unwrap();
            }
        }
        assert_eq!(refused, 3000);
        let minutes = begin.elapsed().as_secs() as usize / 60 + 1;
        let grown = two.house.records().len() - before;
        // 60 in a minute are looked at, and the first refusal after them is told; and 20 records of
        // what the quiet one did.
        assert!(
            (60..=61 * minutes + 20).contains(&grown),
            "{grown} in {minutes} minutes"
        );
        two.end();
    }

    #[test]
    fn backups_have_a_bound_and_the_oldest_go_first() {
        let limits = "[all]\ncalls = 100000\nwrites = 100000\n\
                      [partition]\ncalls = 100000\nwrites = 100000\n";
        let two = Two::new("\"vsock\", \"fs.write:OWN\", \"tool.call:*\"", limits);
        // Each call keeps all of a file of 8 MiB: 800 MiB in all, where 256 are kept.
        let file = two.directory("flood").join("file");
        fs::write(&file, vec![b'a'; 8 << 20]).unwrap();
        let mut mcp = Mcp::connect(&two.socket("flood"));
        let kept = two.house.scratch.path().join("data/tools/flood");
        let mut most = 0;
        for _ in 0..100 {
            let append = json!({ "path": file, "content": "b" });
            mcp.call("fs.append", &append).unwrap();
            most = most.max(size(&kept));
        }
        assert!(
            (64 << 20..=264 << 20).contains(&most),
            "{most} bytes were kept"
        );
        let calls = mcp.call("tool.calls", &json!({})).unwrap();
        let calls = calls["structuredContent"]["calls"]
            .as_array()
            .unwrap()
            .clone();
        assert!((8..=64).contains(&calls.len()), "{}", calls.len());
        // What is kept is good.
        let last = calls.last().unwrap();
        mcp.call("tool.rollback", &json!({ "call": last["call"] }))
            .unwrap();
        assert_eq!(fs::metadata(&file).unwrap().len(), (8 << 20) + 99);
        two.end();
    }

    #[test]
    fn connections_without_end_hold_up_their_own_partition_alone() {
        let two = Two::new("\"vsock\", \"fs.write:OWN\", \"tool.call:fs.*\"", "");
        let socket = two.socket("flood");
        // Until the queue of the socket is full: it takes no more, and nobody waits for it.
        let mut open = Vec::new();
        for _ in 0..500 {
            let stream = rustix::net::socket_with(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC,
                None,
            )
            .unwrap();
            let address = rustix::net::SocketAddrUnix::new(&socket).unwrap();
            if rustix::net::connect(&stream, &address).is_ok() {
                open.push(stream);
            }
        }
        assert!(open.len() >= 8, "{}", open.len());
        let file = two.directory("quiet").join("file");
        fs::write(&file, "of the quiet one").unwrap();
        for _ in 0..20 {
            let mut quiet = Mcp::connect(&two.socket("quiet"));
            quiet.call("fs.read", &json!({ "path": file })).unwrap();
            two.house.run(&["stats", "flood"]).expect_status(0);
        }
        // When they are gone, it is served itself.
        drop(open);
        let own = two.directory("flood").join("file");
        let mut mcp = Mcp::connect(&socket);
        mcp.call("fs.write", &json!({ "path": own, "content": "x" }))
            .unwrap();
        drop(UnixStream::connect(&socket));
        two.end();
    }

    fn size(directory: &Path) -> u64 {
        let mut total = 0;
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            // It may be gone again.
            let Ok(data) = entry.metadata() else { continue };
            total += match data.is_dir() {
                true => size(&entry.path()),
                false => data.len(),
            };
        }
        total
    }
}
