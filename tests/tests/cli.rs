//! Promise: the command behaves as people who know `docker run` and `docker compose` expect.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::ffi::OsString;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::bulkhead::{Bulkhead, Running};
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::{repository, skip};
    use rustix::process::Signal;

    const SYSTEM: &str = r#"
        name = "demo"
        [[partition]]
        name = "one"
        kernel = "native"
        program = "@examples/hello-native"
        grants = ["console"]
        [[partition]]
        name = "two"
        kernel = "linux-abi"
        command = ["/bin/busybox", "sh", "-c", "echo from two; read x; exit 3"]
        grants = ["console"]
        [[partition.mounts]]
        source = "/bin/busybox"
        target = "/bin/busybox"
    "#;

    fn system(scratch: &Scratch) -> PathBuf {
        scratch.file("system.toml", SYSTEM)
    }

    fn up(options: &[&str], file: &Path) -> Vec<OsString> {
        let mut words = vec![OsString::from("up")];
        words.extend(options.iter().map(OsString::from));
        words.push(file.into());
        words
    }

    /// Waits until `bulkhead ARGS` prints `text`.
    #[track_caller]
    fn until(bulkhead: &Bulkhead, args: &[&str], text: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let ended = bulkhead.run(args);
            if ended.stdout().contains(text) {
                return;
            }
            assert!(Instant::now() < end, "never printed {text:?}: {ended:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn version_and_completions_are_there() {
        let bulkhead = Bulkhead::built();
        let version = bulkhead.run(["version"]);
        version.expect_status(0).expect_stdout("bulkhead ");
        assert_eq!(version.stdout(), bulkhead.run(["--version"]).stdout());
        for shell in ["bash", "zsh", "fish"] {
            let script = bulkhead.run(["completions", shell]);
            script.expect_status(0).expect_stdout("doctor");
        }
    }

    #[test]
    fn why_asks_the_conditions_of_the_example() {
        let manifest = repository("docs/examples/agent/partition.toml");
        let manifest = manifest.to_str().unwrap();
        for (path, verdict, why) in [
            ("/v1/greeting", "allow: ", "net.connect"),
            ("/v1/private/key", "deny: ", "nothing private"),
            ("/v2/greeting", "deny: ", "other paths"),
        ] {
            let act = [
                "--net",
                "api.example.org:443",
                "--method",
                "GET",
                "--path",
                path,
            ];
            let told = Bulkhead::built().run([&["why", manifest][..], &act].concat());
            told.expect_status(0)
                .expect_stdout(verdict)
                .expect_stdout(why);
        }
    }

    #[test]
    fn the_doctor_reports_in_json() {
        let report = Bulkhead::built().run(["doctor", "--format", "json"]);
        report.expect_status(0);
        let report: serde_json::Value = serde_json::from_str(&report.stdout()).unwrap();
        assert!(["native", "interpreted"].contains(&report["kvm"].as_str().unwrap()));
        let verdicts = report["verdicts"].as_array().unwrap();
        let runs = |kind: &str| {
            let verdict = verdicts.iter().find(|verdict| verdict["partition"] == kind);
            verdict.unwrap()["runs"].as_bool().unwrap()
        };
        assert!(runs("native") && runs("linux-abi"), "{report:#}");
        assert_eq!(runs("linux"), report["kvm"] == "native", "{report:#}");
        for finding in report["findings"].as_array().unwrap() {
            let good = finding["level"] == "ok" || finding["remedy"].is_string();
            assert!(good, "a bad finding without a remedy: {finding}");
        }
    }

    #[test]
    fn a_linux_kernel_is_refused_where_it_cannot_run() {
        let bulkhead = Bulkhead::built();
        let report = bulkhead.run(["doctor", "--format", "json"]).stdout();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        if report["kvm"] != "interpreted" {
            skip("this KVM runs guest kernel mode natively: nothing is refused");
            return;
        }
        let before = Census::take();
        bulkhead
            .run(["run", "--kernel", "linux", "--", "/bin/busybox", "true"])
            .expect_refusal()
            .expect_stderr("interprets guest kernel mode")
            .expect_stderr("cargo xtask lab");
        before.expect_nothing_new();
    }

    #[test]
    fn what_cannot_be_run_is_told_apart() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let text = scratch.file("text", "no program\n");
        bulkhead
            .run(["run", "--", "no-such-command"])
            .expect_status(127);
        bulkhead
            .run([OsString::from("run"), "--".into(), text.into()])
            .expect_status(126);
        bulkhead.run(["run", "--no-such-option"]).expect_status(125);
        bulkhead.run(["down", "no-such-system"]).expect_status(125);
    }

    #[test]
    fn interrupt_ends_a_run_with_130() {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let words = ["run", "--name", "waits", "--", "/bin/busybox", "cat"];
        let mut command = bulkhead.command(words);
        // An open pipe: cat waits for it.
        let running = Running::start(command.stdin(Stdio::piped()));
        until(&bulkhead, &["ps"], "running");
        running.signal(Signal::INT);
        running.wait().expect_status(130);
        before.expect_nothing_new();
    }

    #[test]
    fn a_killed_supervisor_takes_its_partitions_along() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let before = Census::take();
        let file = system(&scratch);
        let mut command = bulkhead.command(up(&[], &file));
        let running = Running::start(command.stdin(Stdio::piped()));
        until(&bulkhead, &["ps"], "running");
        running.signal(Signal::KILL);
        running.wait().expect_status(-1);
        // The next command finds and removes what it could not.
        bulkhead.run(["ps"]).expect_status(0);
        before.expect_nothing_new();
    }

    #[test]
    fn up_prefixes_every_line_and_returns_the_first_failure() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let before = Census::take();
        let ended = bulkhead.run(up(&[], &system(&scratch)));
        ended.expect_status(3).expect_stdout("two | from two");
        let lines = ended.stdout();
        assert!(
            lines
                .lines()
                .all(|line| line.starts_with("one | ") || line.starts_with("two | ")),
            "{lines}"
        );
        before.expect_nothing_new();
    }

    #[test]
    fn only_starts_what_it_names() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let file = system(&scratch);
        let ended = bulkhead.run(up(&["--only", "one"], &file));
        ended.expect_status(0).expect_stdout("one | ");
        assert!(!ended.stdout().contains("two | "));
        bulkhead
            .run(up(&["--only", "three"], &file))
            .expect_refusal()
            .expect_stderr("three");
    }

    #[test]
    fn a_detached_system_is_listed_logged_and_taken_down() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let before = Census::take();
        // Its input is empty: it would end at once.
        let manifest = SYSTEM.replace("read x; exit 3", "while true; do :; done");
        let file = scratch.file("system.toml", manifest);
        bulkhead.run(up(&["--detach"], &file)).expect_status(0);
        until(&bulkhead, &["logs", "demo/two"], "from two");
        until(&bulkhead, &["logs", "demo/one"], "hello");
        bulkhead
            .run(["ps"])
            .expect_stdout("demo")
            .expect_stdout("running");
        bulkhead
            .run(up(&[], &file))
            .expect_refusal()
            .expect_stderr("demo");
        bulkhead.run(["down", "demo"]).expect_status(0);
        assert!(!bulkhead.run(["ps"]).stdout().contains("demo"));
        before.expect_nothing_new();
    }

    #[test]
    fn a_relative_disk_is_beside_its_manifest() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        fs::create_dir(scratch.path().join("sub")).unwrap();
        let grant = r#"grants = ["console", { capability = "block.read", path = "d.img" }]"#;
        let manifest = SYSTEM.replacen(r#"grants = ["console"]"#, grant, 1);
        let file = scratch.file("sub/system.toml", manifest);
        bulkhead
            .run(up(&["--only", "one"], &file))
            .expect_refusal()
            .expect_stderr("sub/d.img");
        scratch.file("sub/d.img", vec![0; 4096]);
        bulkhead.run(up(&["--only", "one"], &file)).expect_status(0);
    }
}
