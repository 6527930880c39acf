//! Promise: an agent in a partition does what it does outside by calling tools, on vsock; what it may
//! not do it is refused, what takes a person's consent waits for it, what it did it can take back, and
//! all of it is on record.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

/// The guest itself does nothing: the tests are at the end of its connections.
mod kvm {
    use std::fs;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::house::House;
    use bulkhead_tests::mcp::Mcp;
    use bulkhead_tests::{guest, library, skip};
    use serde_json::{Value, json};

    /// No limit of a promise: it only ends a hang, in the lab too.
    const HANG: Duration = Duration::from_secs(300);

    /// A partition with tools and a directory.
    struct Shop {
        house: House,
    }

    impl Shop {
        /// `lines` are further ones of its partition.
        fn new(grants: &str, lines: &str) -> Self {
            let house = House::new("");
            let mut shop = Self { house };
            shop.furnish();
            shop.up(&format!(
                "name = \"shop\"\n[[partition]]\nname = \"agent\"\nkernel = \"native\"\n\
                 program = \"@examples/hello-native\"\n\
                 grants = [\"vsock\", \"fs.write:{}\", {grants}]\n{lines}\n",
                shop.data().display()
            ));
            shop
        }

        /// Under a signed manifest that allows all tools of files and ends with `lines`, with these
        /// files beside it.
        fn signed(lines: &str, files: &[(&str, &str)]) -> Self {
            let shop = Self::unmanned();
            for (name, text) in files {
                shop.house.scratch.file(name, text);
            }
            shop.sign("agent", "", lines);
            shop.up("name = \"shop\"\n[[partition]]\nmanifest = \"agent.json\"\n");
            shop
        }

        /// With a directory and a role, and no partition yet.
        fn unmanned() -> Self {
            let mut shop = Self {
                house: House::new(""),
            };
            shop.furnish();
            let role = format!(
                "grants = [\"vsock\", \"fs.write:{}\", \"tool.call:fs.*\", \"partition.spawn:coder=1\"]\n\
                 [resources]\nmemory = \"1GiB\"\nvcpus = 1\n[lifetime]\nmax = \"1h\"\n\
                 [spawn]\ncount = 1\ndepth = 1\n",
                shop.data().display()
            );
            shop.house.role("coder", &role);
            shop
        }

        /// Signs a manifest of this name, with `identity` among its identity and `lines` after its tools.
        fn sign(&self, name: &str, identity: &str, lines: &str) {
            let manifest = format!(
                "grants = [\"vsock\", \"fs.write:{}\"]\n\
                 [identity]\nname = \"{name}\"\nrole = \"coder\"\n{identity}\n\
                 [boot]\nkernel = \"native\"\nprogram = \"@examples/hello-native\"\n\
                 [lifetime]\nmax = \"1h\"\n[tools]\nallow = [\"fs.*\"]\n{lines}",
                self.data().display()
            );
            let file = self.house.signed(&manifest, &["alice"]);
            let own = Path::new(&file).with_file_name(format!("{name}.json"));
            fs::rename(file, own).unwrap();
        }

        fn furnish(&mut self) {
            let house = &mut self.house;
            let kernel = library::with(&house.bulkhead, &house.scratch, "kernel", &guest::sleeps());
            house.bulkhead = house.bulkhead.clone().env("BULKHEAD_LIB", kernel);
            fs::create_dir(self.data()).unwrap();
            fs::write(self.path("file"), "of the host").unwrap();
        }

        fn up(&self, system: &str) {
            let system = self.house.scratch.file("system.toml", system);
            let up = ["up", "--detach", system.to_str().unwrap()];
            self.house.run(&up).expect_status(0);
        }

        /// The directory.
        fn data(&self) -> PathBuf {
            self.house.scratch.path().join("shared")
        }

        fn path(&self, name: &str) -> PathBuf {
            self.data().join(name)
        }

        /// Where the guest's connections to its tools arrive.
        fn socket(&self) -> PathBuf {
            let socket = "s/shop/agent/vsock.sock_1024";
            self.house.scratch.path().join(socket)
        }

        fn connect(&self) -> Mcp {
            Mcp::connect(&self.socket())
        }

        fn down(self) {
            self.house.run(&["down", "shop"]).expect_status(0);
            wait("the socket to go", || !self.socket().exists());
            self.house.run(&["ledger", "verify"]).expect_status(0);
            self.house.census.expect_nothing_new();
        }
    }

    fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + HANG;
        while !is_so() {
            assert!(Instant::now() < end, "waited for {what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn tools_come_and_go_with_their_partition_and_record_what_they_do() {
        let shop = Shop::new(
            "\"tool.call:fs.*\", \"tool.call:tool.*\"",
            "deny = [\"tool.call:fs.delete\"]",
        );
        let mut agent = shop.connect();
        let listed = agent.ask("tools/list", &json!({}));
        let listed = listed["result"]["tools"].as_array().unwrap();
        let has = |name: &str| listed.iter().any(|tool| tool["name"] == name);
        assert!(has("fs.edit") && !has("fs.delete") && !has("process.run"));
        let file = shop.path("file");
        let edit = json!({ "path": file, "old": "host", "new": "agent" });
        let edited = agent.call("fs.edit", &edit).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"of the agent");
        let unknown = agent.call("fs.delete", &json!({ "path": file }));
        assert!(unknown.unwrap_err().contains("unknown tool"));
        let refused = agent.call("fs.read", &json!({ "path": "/etc/passwd" }));
        assert_eq!(
            refused.unwrap_err(),
            "it takes a grant of fs.read:/etc/passwd"
        );
        let number = edited["_meta"]["bulkhead/call"].as_u64().unwrap();
        let back = json!({ "call": number });
        agent.call("tool.rollback", &back).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"of the host");
        let records = shop.house.records();
        let of = |tool: &str, kind: &str| {
            let is = |record: &&Value| {
                record["entry"]["object"] == tool && record["entry"]["kind"] == kind
            };
            records.iter().filter(is).count()
        };
        for tool in ["fs.edit", "tool.rollback"] {
            assert_eq!((of(tool, "intent"), of(tool, "outcome")), (1, 1), "{tool}");
        }
        for tool in ["fs.delete", "fs.read"] {
            assert_eq!((of(tool, "refusal"), of(tool, "intent")), (1, 0), "{tool}");
        }
        shop.down();
    }

    #[test]
    fn a_supervised_agent_waits_for_a_person_before_it_destroys() {
        let shop = Shop::new("\"tool.call:fs.*\"", "autonomy = \"supervised\"");
        let mut agent = shop.connect();
        let (file, new) = (shop.path("file"), shop.path("new"));
        agent
            .call("fs.write", &json!({ "path": new, "content": "x" }))
            .unwrap();
        for (answer, exists) in [("deny", true), ("approve", false)] {
            let call = json!({ "name": "fs.delete", "arguments": { "path": file } });
            agent.send("tools/call", &call);
            let mut question = String::new();
            wait("a question", || {
                let listed = shop.house.run(&["approvals", "ls", "--format", "json"]);
                let listed: Value = serde_json::from_str(&listed.stdout()).unwrap();
                question = listed[0]["id"].as_str().unwrap_or_default().to_owned();
                !question.is_empty()
            });
            assert!(file.exists(), "nothing is done before the answer");
            let answered = shop.house.run(&["approvals", answer, &question]);
            answered.expect_status(0);
            let heard = agent.hear().unwrap();
            assert_eq!(heard["result"]["isError"], exists, "{heard}");
            assert_eq!(file.exists(), exists, "{answer}");
        }
        shop.down();
    }

    #[test]
    fn a_question_shows_from_whom_its_partition_descends() {
        let shop = Shop::unmanned();
        shop.sign("boss", "", "[spawn]\nroles = [\"coder\"]\ncount = 1\n");
        shop.sign("agent", "parent = \"boss\"", "autonomy = \"supervised\"\n");
        let one = |name: &str| format!("[[partition]]\nmanifest = \"{name}.json\"\n");
        let both = one("boss") + &one("agent");
        shop.up(&format!("name = \"shop\"\n{both}"));
        let mut agent = shop.connect();
        let call = json!({ "name": "fs.delete", "arguments": { "path": shop.path("file") } });
        agent.send("tools/call", &call);
        let mut asked = Value::Null;
        wait("a question", || {
            let listed = shop.house.run(&["approvals", "ls", "--format", "json"]);
            let listed: Value = serde_json::from_str(&listed.stdout()).unwrap();
            asked = listed[0].clone();
            !asked.is_null()
        });
        assert_eq!(asked["lineage"], json!(["boss"]));
        let listed = shop.house.run(&["approvals", "ls"]);
        listed.expect_stdout("shop/agent, child of boss");
        let id = asked["id"].as_str().unwrap();
        let answered = shop.house.run(&["approvals", "approve", id]);
        answered.expect_status(0);
        agent.hear().unwrap();
        let records = shop.house.records();
        let is_approval = |record: &&Value| record["entry"]["kind"] == "approval";
        let approvals: Vec<&Value> = records.iter().filter(is_approval).collect();
        assert_eq!(approvals.len(), 2, "the question and the answer");
        let with_lineage = |record: &&Value| record["entry"]["detail"]["lineage"] == "boss";
        assert!(approvals.iter().all(with_lineage), "{approvals:?}");
        shop.down();
    }

    #[test]
    fn limits_of_a_manifest_narrow_those_of_the_host() {
        let own = "[partition]\ncalls = 900\n[tool.\"fs.write\"]\nper-minute = 5\n\
                   [tool.\"fs.stat\"]\nper-minute = 2\n";
        let host = "[partition]\ncalls = 8\n[tool.\"fs.write\"]\nper-minute = 1\n";
        let files = [("own.toml", own), ("config/tools.toml", host)];
        let shop = Shop::signed("limits = \"own.toml\"\n", &files);
        // What becomes of the file does not matter any more.
        shop.house.scratch.file("own.toml", "[tool]\n");
        let mut agent = shop.connect();
        let (file, new) = (shop.path("file"), shop.path("new"));
        let write = json!({ "path": new, "content": "x" });
        agent.call("fs.write", &write).unwrap();
        let refused = agent.call("fs.write", &write).unwrap_err();
        assert!(
            refused.contains("1 times a minute"),
            "the host's: {refused}"
        );
        let stat = json!({ "path": file });
        agent.call("fs.stat", &stat).unwrap();
        agent.call("fs.stat", &stat).unwrap();
        let refused = agent.call("fs.stat", &stat).unwrap_err();
        assert!(refused.contains("2 times a minute"), "its own: {refused}");
        for _ in 5..8 {
            agent.call("fs.read", &stat).unwrap();
        }
        let refused = agent.call("fs.read", &stat).unwrap_err();
        assert!(
            refused.contains("too many calls of a partition"),
            "{refused}"
        );
        let records = shop.house.records();
        let is_start = |record: &&Value| record["entry"]["action"] == "partition.start";
        let start = records.iter().find(is_start).unwrap();
        let digest = start["entry"]["detail"]["limits"].as_str().unwrap();
        assert!(digest.len() == 64, "{start}");
        shop.down();
    }

    #[test]
    fn a_budget_of_calls_ends_them() {
        let shop = Shop::signed("[budget]\ncalls = 5\n", &[]);
        let mut agent = shop.connect();
        let stat = json!({ "path": shop.path("file") });
        // What no grant covers spends nothing.
        let other = json!({ "path": "/etc/passwd" });
        agent.call("fs.stat", &other).unwrap_err();
        for _ in 0..5 {
            agent.call("fs.stat", &stat).unwrap();
        }
        // For who connects anew as well.
        for mut agent in [agent, shop.connect()] {
            let refused = agent.call("fs.stat", &stat).unwrap_err();
            assert!(refused.contains("the 5 calls of its budget"), "{refused}");
        }
        let records = shop.house.records();
        let with = |key: &str, value: &str| {
            let is = |record: &&Value| record["entry"][key] == value;
            records.iter().filter(is).count()
        };
        assert_eq!(with("action", "tool.budget"), 1);
        // The path that was not granted, and the first beyond the budget.
        assert_eq!(with("kind", "refusal"), 2);
        shop.down();
    }

    /// A web server on the host's loopback, and what it was asked.
    fn server() -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heard = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                heard.lock().unwrap().push(head);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
            }
        });
        (port, asked)
    }

    #[test]
    fn requests_of_tools_go_by_way_of_the_gateway_and_are_on_record() {
        if !Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
            return skip("the host trusts no certificate authority");
        }
        let (port, asked) = server();
        let grants = format!(
            "\"tool.call:http.*\", \"net.loopback:tcp:80={port}\", \
             {{ capability = \"net.connect:tcp:web.example:80\", methods = [\"GET\"], paths = [\"/a/**\"] }}"
        );
        let shop = Shop::new(&grants, "network = { hosts = [\"web.example\"] }");
        let mut agent = shop.connect();
        let mut get = |url: &str| agent.call("http.get", &json!({ "url": url }));
        let got = get("http://web.example/a/x").unwrap();
        assert_eq!(got["structuredContent"]["text"], "hello", "{got}");
        for url in [
            "http://web.example/b",
            "http://web.example:8080/a/x",
            "http://other.example/a/x",
            "http://127.0.0.1/a/x",
            "http://10.0.2.2/a/x",
        ] {
            get(url).unwrap_err();
        }
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert!(asked[0].starts_with("GET /a/x HTTP/1.1\r\n"), "{asked:?}");
        drop(asked);
        let records = shop.house.records();
        let intents = |action: &str| {
            let is = |record: &&Value| {
                record["entry"]["action"] == action && record["entry"]["kind"] == "intent"
            };
            records.iter().filter(is).count()
        };
        // Of the tool, and of the gateway.
        assert_eq!((intents("tool.call"), intents("net.connect")), (1, 1));
        shop.down();
    }

    /// Whether a program with this argument runs.
    fn runs(marker: &str) -> bool {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.any(|line| {
            let mut arguments = line.split(|byte| *byte == 0);
            arguments.any(|argument| argument == marker.as_bytes())
        })
    }

    #[test]
    fn programs_of_tools_end_with_an_emergency_stop_and_with_the_partition() {
        let shop = Shop::new("\"tool.call:process.*\", \"exec:/bin/busybox\"", "");
        let directory = shop.house.scratch.path().join("shared");
        let mut agent = shop.connect();
        let mut start = |marker: &str| {
            let arguments = json!({
                "program": "/bin/busybox", "arguments": ["sleep", marker],
                "directory": directory,
            });
            let started = agent.call("process.start", &arguments).unwrap();
            wait("a program", || runs(marker));
            started["structuredContent"]["job"].as_u64().unwrap()
        };
        let job = start("100631");
        shop.house.run(&["stop", "--all", "--now"]).expect_status(0);
        wait("its end", || !runs("100631"));
        shop.house.run(&["resume", "--all"]).expect_status(0);
        start("100632");
        let ended = agent.call("process.output", &json!({ "job": job }));
        assert_eq!(ended.unwrap()["structuredContent"]["status"], 128 + 9);
        shop.house.run(&["down", "shop"]).expect_status(0);
        wait("its end", || !runs("100632"));
        shop.house.census.expect_nothing_new();
    }
}

mod lab {
    use std::fs;

    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;

    /// What the guest runs: a client of MCP that knows nothing but lines.
    const SCRIPT: &str = r#"
busybox mkdir -p /dev /proc
ask() {
    busybox cat - <<END | /bin/peer ask 1024 | busybox tail -n 1
{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"agent","version":"1"}}}
{"jsonrpc":"2.0","method":"notifications/initialized"}
{"jsonrpc":"2.0","id":1,"method":"$1","params":$2}
END
}
call() {
    ask tools/call "{\"name\":\"$1\",\"arguments\":$2}"
}
ask tools/list '{}' | busybox grep -q '"fs.delete"' && busybox echo 'delete is listed'
ask tools/list '{}' | busybox grep -q '"fs.edit"' && busybox echo 'edit is listed'
call fs.read '{"path":"DATA/file"}' | busybox grep -q 'of the host' && busybox echo 'read'
edited=$(call fs.edit '{"path":"DATA/file","old":"the host","new":"the agent"}')
call fs.read '{"path":"DATA/file"}' | busybox grep -q 'of the agent' && busybox echo 'edited'
number=$(busybox echo "$edited" | busybox sed -n 's/.*"bulkhead\/call":\([0-9]*\).*/\1/p')
call tool.rollback "{\"call\":$number}" | busybox grep -q '"isError":false' && busybox echo 'rolled back'
call fs.read '{"path":"DATA/file"}' | busybox grep -q 'of the host' && busybox echo 'as before'
call fs.write '{"path":"DATA/new","content":"by the agent"}' >/dev/null
call fs.delete '{"path":"DATA/new"}' | busybox grep -q 'unknown tool' && busybox echo 'delete is unknown'
call fs.read '{"path":"DATA/../secret"}' | busybox grep -q '"isError":true' && busybox echo 'no way up'
call fs.read '{"path":"/etc/passwd"}' | busybox grep -q 'it takes a grant of fs.read:/etc/passwd' && busybox echo 'named'
"#;

    #[test]
    fn an_agent_works_with_its_tools_and_all_of_it_is_recorded() {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let scratch = Scratch::new();
        let data = scratch.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("file"), "a file of the host\n").unwrap();
        scratch.file("secret", "secret");
        let script = SCRIPT.replace("DATA", data.to_str().unwrap());
        let script = scratch.file("script", &script);
        let peer = bulkhead.library("tests/vsock-peer");
        let manifest = format!(
            r#"
                name = "tools"
                [[partition]]
                name = "agent"
                kernel = "linux"
                image = "@linux/vmlinuz"
                command = ["/bin/busybox", "sh", "/script"]
                grants = [
                    "console", "vsock", "fs.write:{data}",
                    "tool.call:fs.*", "tool.call:tool.*",
                ]
                deny = ["tool.call:fs.delete"]
                [[partition.mounts]]
                source = "/bin/busybox"
                target = "/bin/busybox"
                [[partition.mounts]]
                source = "{peer}"
                target = "/bin/peer"
                [[partition.mounts]]
                source = "{script}"
                target = "/script"
            "#,
            data = data.display(),
            peer = peer.display(),
            script = script.display(),
        );
        let manifest = scratch.file("system.toml", &manifest);
        let ended = bulkhead.run(["up".as_ref(), manifest.as_os_str()]);
        ended.expect_status(0);
        for said in [
            "edit is listed",
            "read",
            "edited",
            "rolled back",
            "as before",
            "delete is unknown",
            "no way up",
            "named",
        ] {
            ended.expect_stdout(said);
        }
        assert!(!ended.stdout().contains("delete is listed"));
        assert_eq!(
            fs::read(data.join("file")).unwrap(),
            b"a file of the host\n"
        );
        assert_eq!(fs::read(data.join("new")).unwrap(), b"by the agent");
        before.expect_nothing_new();
    }
}
