//! Promise: what conditions take away from a partition it does not do, unless they are being learnt; others
//! take their place while it runs, and never more permissive ones without a word; a child is held to those of its
//! parent; all of it is on record.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

/// The guest itself does nothing: the tests are at the end of its connection to its tools.
mod kvm {
    use std::fs;
    use std::path::{Path, PathBuf};

    use bulkhead_tests::bulkhead::Ended;
    use bulkhead_tests::house::House;
    use bulkhead_tests::mcp::Mcp;
    use bulkhead_tests::{guest, library};
    use serde_json::{Value, json};

    const FILES: &str = r#"
        @id("tools") permit(principal, action == Action::"tool.call", resource in ToolFamily::"fs");
        @id("reads") permit(principal, action == Action::"fs.read", resource);
    "#;
    const WRITES: &str =
        r#"@id("writes") permit(principal, action == Action::"fs.write", resource);"#;
    const NO_DELETION: &str =
        r#"@id("no deletion") forbid(principal, action, resource == Tool::"fs.delete");"#;

    /// A partition with tools, a directory and conditions.
    struct Shop(House);

    impl Shop {
        /// `lines` are further ones of its partition.
        fn new(conditions: &[&str], lines: &str) -> Self {
            let mut house = House::new("");
            let kernel = library::with(&house.bulkhead, &house.scratch, "kernel", &guest::sleeps());
            house.bulkhead = house.bulkhead.clone().env("BULKHEAD_LIB", kernel);
            let data = house.scratch.path().join("shared");
            fs::create_dir(&data).unwrap();
            house.scratch.file("policy.cedar", conditions.concat());
            let system = format!(
                "name = \"shop\"\n[[partition]]\nname = \"agent\"\nkernel = \"native\"\n\
                 program = \"@examples/hello-native\"\n\
                 grants = [\"vsock\", \"fs.write:{}\", \"tool.call:fs.*\"]\n{lines}\n",
                data.display()
            );
            house.scratch.file("system.toml", system);
            Self(house)
        }

        fn up(&self) -> Ended {
            let system = self.0.scratch.path().join("system.toml");
            self.0.run(&["up", "--detach", system.to_str().unwrap()])
        }

        fn agent(&self) -> Mcp {
            let socket = "s/shop/agent/vsock.sock_1024";
            Mcp::connect(&self.0.scratch.path().join(socket))
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.scratch.path().join("shared").join(name)
        }

        /// Has the agent write a file; why not, if it may not.
        fn write(&self, agent: &mut Mcp, name: &str) -> Result<(), String> {
            let file = json!({ "path": self.path(name), "content": "x" });
            let written = agent.call("fs.write", &file).map(drop);
            assert_eq!(self.path(name).exists(), written.is_ok(), "{written:?}");
            written
        }

        fn reload(&self, conditions: &[&str], more: &[&str]) -> Ended {
            let file = self.0.scratch.file("new.cedar", conditions.concat());
            let words = ["policy", "reload", "shop/agent", file.to_str().unwrap()];
            self.0.run(&[&words[..], more].concat())
        }

        /// What `why` says of a call of this tool.
        fn why(&self, tool: &str) -> Value {
            let words = ["why", "shop/agent", "--tool", tool, "--format", "json"];
            let said = self.0.run(&words).expect_status(0).stdout();
            serde_json::from_str(&said).unwrap()
        }

        /// What the ledger has of this action.
        fn records(&self, action: &str) -> Vec<Value> {
            let records = self.0.records().into_iter();
            let entries = records.map(|record| record["entry"].clone());
            entries.filter(|entry| entry["action"] == action).collect()
        }

        fn down(self) {
            self.0.run(&["down", "shop"]).expect_status(0);
            self.0.run(&["ledger", "verify"]).expect_status(0);
            self.0.census.expect_nothing_new();
        }
    }

    #[test]
    fn other_conditions_narrow_a_running_partition_at_once_and_widen_it_only_when_told_to() {
        let shop = Shop::new(&[FILES, WRITES], "");
        shop.up().expect_status(0);
        let mut agent = shop.agent();
        shop.write(&mut agent, "before").unwrap();
        assert_eq!(shop.why("fs.delete")["verdict"], "allow");

        let narrowed = shop.reload(&[FILES, NO_DELETION], &[]);
        let narrow = narrowed.expect_status(0).stdout();
        assert_eq!(narrow.trim_end().len(), 64, "{narrow}");
        let why = shop.write(&mut agent, "narrow").unwrap_err();
        assert!(why.contains("permitted by no condition"), "{why}");
        let delete = json!({ "path": shop.path("before") });
        let why = agent.call("fs.delete", &delete).unwrap_err();
        assert!(why.contains("forbidden by condition no deletion"), "{why}");
        let why = shop.why("fs.delete");
        assert_eq!(why["verdict"], "deny");
        assert_eq!(why["reason"], "forbidden by condition no deletion");

        let wider = shop.reload(&[FILES, WRITES], &[]);
        wider.expect_status(125).expect_stderr(
            "error[conditions-wider]: the new conditions may permit more: permit `writes` is new, \
             forbid `no deletion` is gone; those that held still hold",
        );
        let broken = shop.reload(&["permit(principal"], &["--widen"]);
        broken
            .expect_status(125)
            .expect_stderr("error[conditions]: ");
        shop.write(&mut agent, "still").unwrap_err();

        let widened = shop.reload(&[FILES, WRITES, NO_DELETION], &["--widen"]);
        widened
            .expect_status(0)
            .expect_stderr("permit `writes` is new");
        shop.write(&mut agent, "after").unwrap();
        agent.call("fs.delete", &delete).unwrap_err();

        let records = shop.records("policy.reload");
        let of = |record: &Value, name: &str| record["detail"][name].as_str().map(str::to_owned);
        let verdicts: Vec<&str> = records
            .iter()
            .map(|record| record["verdict"].as_str().unwrap())
            .collect();
        let expected = [
            "allowed", "done", "allowed", "failed", "allowed", "failed", "allowed", "done",
        ];
        assert_eq!(verdicts, expected);
        let widened = records.iter().map(|record| of(record, "widened"));
        let widened: Vec<String> = widened.flatten().collect();
        assert_eq!(widened, ["no", "permit `writes` is new"]);
        // What held at the start, and after each: an unbroken line.
        let start = &shop.records("partition.start")[0];
        assert_eq!(of(start, "conditions"), of(&records[0], "old"));
        assert_eq!(of(&records[1], "new").as_deref(), Some(narrow.trim_end()));
        for record in &records[2..] {
            assert_eq!(of(record, "old").as_deref(), Some(narrow.trim_end()));
        }
        shop.down();
    }

    /// What the ledger has learnt of the agent.
    fn learnt(shop: &Shop) -> Value {
        let words = [
            "policy",
            "learn",
            "--ledger",
            "--partition",
            "shop",
            "--format",
            "json",
        ];
        let learnt = shop.0.run(&words).expect_status(0).stdout();
        let mut learnt: Value = serde_json::from_str(&learnt).unwrap();
        assert_eq!(learnt[0]["partition"], "shop/agent");
        learnt[0].take()
    }

    #[test]
    fn a_partition_that_learns_is_let_through_and_told_what_it_needs() {
        let shop = Shop::new(&[NO_DELETION], "conditions = \"learn\"");
        let up = shop.up();
        up.expect_status(0)
            .expect_stderr("partition `agent` LEARNS");
        shop.0.run(&["ps"]).expect_stdout("running, learns");
        let mut agent = shop.agent();
        shop.write(&mut agent, "learnt").unwrap();
        let delete = json!({ "path": shop.path("learnt") });
        agent.call("fs.delete", &delete).unwrap();
        // Grants hold all the same.
        let passwd = json!({ "path": "/etc/passwd" });
        let why = agent.call("fs.read", &passwd).unwrap_err();
        assert_eq!(why, "it takes a grant of fs.read:/etc/passwd");
        let why = shop.why("fs.delete");
        assert_eq!(why["verdict"], "allow");
        let reason = why["reason"].as_str().unwrap();
        assert!(
            reason.contains("it learns, and else it would be forbidden by"),
            "{reason}"
        );
        let start = &shop.records("partition.start")[0];
        assert_eq!(start["detail"]["adherence"], "learn");

        let learnt = learnt(&shop);
        let permits = learnt["permits"].as_array().unwrap();
        let permits: Vec<&str> = permits.iter().map(|one| one.as_str().unwrap()).collect();
        let forbidden = learnt["forbidden"].as_array().unwrap();
        assert_eq!(forbidden.len(), 1, "{learnt}");
        let act = forbidden[0]["act"].as_str().unwrap();
        assert!(act.starts_with("tool.call fs.delete /"), "{act}");
        assert_eq!(forbidden[0]["why"], "forbidden by condition no deletion");
        shop.0.run(&["down", "shop"]).expect_status(0);

        // Held to what was learnt it does that, and nothing else.
        let file = shop.0.scratch.path().join("system.toml");
        let system = fs::read_to_string(&file).unwrap();
        fs::write(&file, system.replace("\"learn\"", "\"enforce\"")).unwrap();
        let learnt = [&permits.join("\n"), NO_DELETION].concat();
        shop.0.scratch.file("policy.cedar", learnt);
        shop.up().expect_status(0);
        let mut agent = shop.agent();
        shop.write(&mut agent, "learnt").unwrap();
        shop.write(&mut agent, "another").unwrap_err();
        agent.call("fs.delete", &delete).unwrap_err();
        shop.down();
    }

    #[test]
    fn who_learns_has_something_to_learn_for() {
        let shop = Shop::new(&[], "conditions = \"learn\"");
        fs::remove_file(shop.0.scratch.path().join("policy.cedar")).unwrap();
        let refused = shop.up();
        refused
            .expect_status(125)
            .expect_stderr("error[conditions]: partition `agent` learns, and has no conditions");
    }

    #[test]
    fn who_was_started_without_conditions_is_given_none() {
        let shop = Shop::new(&[], "");
        fs::remove_file(shop.0.scratch.path().join("policy.cedar")).unwrap();
        shop.up().expect_status(0);
        let refused = shop.reload(&[FILES], &["--widen"]);
        refused.expect_status(125).expect_stderr(
            "error[no-conditions]: partition `agent` was started without conditions",
        );
        shop.write(&mut shop.agent(), "all the same").unwrap();
        assert!(shop.records("policy.reload").is_empty());
        shop.down();
    }

    /// The boss may delete nothing, start one worker at a time, and no more of a worker is different.
    const OF_BOSS: &str = r#"
        @id("no deletion") forbid(principal in Partition::"boss", action, resource == Tool::"fs.delete");
        @id("one worker") permit(principal == Partition::"boss", action == Action::"partition.spawn", resource)
            when { context.count <= 1 };
    "#;

    /// A manifest of a partition with tools in `data`, and the role that it has.
    fn manifest(name: &str, data: &Path, more: &str) -> String {
        format!(
            "grants = [\"vsock\", \"fs.write:{}\", \"tool.call:fs.*\"]\n\
             [boot]\nkernel = \"native\"\nprogram = \"@examples/hello-native\"\n\
             [resources]\nmemory = \"64MiB\"\n[lifetime]\nmax = \"1h\"\n\
             [identity]\nname = \"{name}\"\nrole = \"coder\"\n{more}",
            data.display()
        )
    }

    const PARENT: &str = "parent = \"boss\"\n";
    const SPAWN: &str = "[spawn]\nroles = [\"coder=2\"]\ncount = 2\n";

    /// Describes the role of [`manifest`]; `more` is said of it as well.
    fn role(shop: &Shop, more: &str) {
        let data = shop.0.scratch.path().join("shared");
        let role = format!(
            "{more}\n\
             grants = [\"vsock\", \"fs.write:{}\", \"tool.call:fs.*\", \"partition.spawn:coder=2\"]\n\
             files = [\"/**\"]\n[resources]\nmemory = \"64MiB\"\nvcpus = 1\n\
             [lifetime]\nmax = \"1h\"\n[spawn]\ncount = 2\ndepth = 1\n",
            data.display()
        );
        shop.0.role("coder", &role);
    }

    /// Starts a system of one partition of this name, in a directory of its own, with conditions beside its
    /// manifest where there are some.
    fn start(shop: &Shop, name: &str, manifest: &str, conditions: Option<&str>) -> Ended {
        let house = &shop.0;
        let own = house.scratch.path().join(name);
        fs::create_dir(&own).unwrap();
        let signed = house.signed(manifest, &["alice"]);
        fs::rename(signed, own.join("own.json")).unwrap();
        if let Some(conditions) = conditions {
            fs::write(own.join("policy.cedar"), conditions).unwrap();
        }
        let system = format!("name = \"{name}\"\n[[partition]]\nmanifest = \"own.json\"\n");
        fs::write(own.join("system.toml"), system).unwrap();
        let system = own.join("system.toml");
        house.run(&["up", "--detach", system.to_str().unwrap()])
    }

    #[test]
    fn a_child_is_held_to_the_conditions_of_its_parent() {
        let shop = Shop::new(&[], "");
        let (house, data) = (&shop.0, shop.0.scratch.path().join("shared"));
        role(&shop, "");
        let of_boss = [FILES, WRITES, OF_BOSS].concat();
        let boss = manifest("boss", &data, SPAWN);
        start(&shop, "boss", &boss, Some(&of_boss)).expect_status(0);
        let child = |name: &str| start(&shop, name, &manifest(name, &data, PARENT), None);
        child("first").expect_status(0);
        let spawned = shop.records("partition.spawn");
        assert_eq!(spawned.len(), 1, "{spawned:?}");
        assert_eq!(spawned[0]["actor"], "boss/boss");
        assert_eq!(spawned[0]["object"], "first");
        let by = spawned[0]["detail"]["conditions"].as_str().unwrap();
        assert!(by.ends_with("one worker"), "{by}");
        let mut first = Mcp::connect(&house.scratch.path().join("s/first/first/vsock.sock_1024"));
        shop.write(&mut first, "by the first").unwrap();
        let delete = json!({ "path": shop.path("by the first") });
        let why = first.call("fs.delete", &delete).unwrap_err();
        assert!(
            why.contains("forbidden by condition no deletion of boss"),
            "{why}"
        );
        let why = ["why", "first", "--tool", "fs.delete"];
        house
            .run(&why)
            .expect_status(0)
            .expect_stdout("forbidden by condition no deletion of boss");

        child("second")
            .expect_status(125)
            .expect_stderr("error[rule-spawn]: ");
        let refused = shop.records("partition.admit");
        let refused = refused.iter().find(|record| record["verdict"] == "denied");
        let refused = refused.expect("it is on record");
        assert_eq!(refused["detail"]["rule"], "rule-spawn");
        let reason = refused["reason"].as_str().unwrap();
        assert!(reason.ends_with("permitted by no condition"), "{reason}");
        assert_eq!(shop.records("partition.spawn").len(), 1);

        // Other conditions of the parent hold for the child from then on.
        let read_only = house.scratch.file("boss.cedar", [FILES, OF_BOSS].concat());
        let reload = ["policy", "reload", "boss", read_only.to_str().unwrap()];
        house.run(&reload).expect_status(0);
        let why = shop.write(&mut first, "no more").unwrap_err();
        assert!(why.contains("permitted by no condition of boss"), "{why}");
        let reloads = shop.records("policy.reload");
        let of: Vec<_> = (reloads.iter())
            .filter(|record| record["kind"] == "intent")
            .map(|record| (&record["actor"], &record["detail"]["of"]))
            .collect();
        assert_eq!(of[0], (&json!("boss/boss"), &Value::Null));
        assert_eq!(of[1..], [(&json!("first/first"), &json!("boss"))]);
        let wider = house.scratch.file("boss.cedar", &of_boss);
        let reload = ["policy", "reload", "boss", wider.to_str().unwrap()];
        house
            .run(&reload)
            .expect_status(125)
            .expect_stderr("error[conditions-wider]");
        assert!(shop.write(&mut first, "no more").is_err());
        house
            .run(&[&reload[..], &["--widen"]].concat())
            .expect_status(0);
        shop.write(&mut first, "again").unwrap();

        for system in ["first", "boss"] {
            house.run(&["down", system]).expect_status(0);
        }
        house.run(&["ledger", "verify"]).expect_status(0);
        house.census.expect_nothing_new();
    }

    #[test]
    fn a_parent_that_learns_is_told_what_it_needs_for_its_children() {
        let shop = Shop::new(&[], "");
        let (house, data) = (&shop.0, shop.0.scratch.path().join("shared"));
        role(&shop, "conditions = \"learn\"");
        let boss = manifest("boss", &data, SPAWN);
        let boss = format!("conditions = \"learn\"\n{boss}");
        start(&shop, "boss", &boss, Some(FILES)).expect_status(0);
        let child = manifest("first", &data, PARENT);
        start(&shop, "first", &child, None).expect_status(0);
        let spawned = shop.records("partition.spawn");
        assert_eq!(
            spawned[0]["detail"]["would-deny"],
            "permitted by no condition"
        );
        let learn = ["policy", "learn", "--ledger", "--partition", "boss/boss"];
        house.run(&learn).expect_status(0).expect_stdout(
            "permit(principal == Partition::\"boss\", action == Action::\"partition.spawn\", \
             resource == Role::\"coder\");",
        );
        for system in ["first", "boss"] {
            house.run(&["down", system]).expect_status(0);
        }
        house.census.expect_nothing_new();
    }
}
