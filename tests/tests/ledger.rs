//! The ledger: what a partition did is in it before it did it, and nothing runs that cannot be recorded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kvm {
    use std::fs;
    use std::path::PathBuf;
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::bulkhead::{Bulkhead, Running};
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use rustix::process::{Pid, Signal, kill_process};

    const HELLO: &str = "@examples/hello-native";

    /// A command with a ledger of its own.
    fn own() -> (Scratch, Bulkhead) {
        let scratch = Scratch::new();
        let place = |name: &str| scratch.path().join(name);
        let bulkhead = Bulkhead::built()
            .env("BULKHEAD_DATA_DIR", place("data"))
            .env("BULKHEAD_CONFIG_DIR", place("config"));
        (scratch, bulkhead)
    }

    fn segment(scratch: &Scratch) -> PathBuf {
        let ledger = scratch.path().join("data/ledger");
        ledger.join("00000000000000000000.segment")
    }

    fn hello(bulkhead: &Bulkhead) {
        let arguments = [
            "run", "--name", "greeter", "--kernel", "native", "--", HELLO,
        ];
        bulkhead.run(arguments).expect_status(0);
    }

    #[test]
    fn a_partitions_life_is_recorded_verified_and_proven() {
        let (scratch, bulkhead) = own();
        let census = Census::take();
        bulkhead.run(["ledger", "verify"]).expect_refusal();
        hello(&bulkhead);
        let told = bulkhead.run(["ledger", "tail", "-n", "20"]);
        let lines: Vec<String> = (told.expect_status(0).stdout().lines())
            .map(|line| {
                // Index and time come first.
                let words: Vec<&str> = line.split_whitespace().collect();
                words[2..6].join(" ")
            })
            .collect();
        assert_eq!(
            lines,
            [
                "intent allowed greeter/main partition.start",
                "transition done greeter/main partition.state",
                "transition done greeter/main partition.state",
                "transition done greeter/main partition.state",
                "transition done greeter/main partition.state",
                "transition done greeter/main partition.state",
            ]
        );
        told.expect_stdout("partition.state terminated from=running status=0");
        let verified = bulkhead.run(["ledger", "verify"]);
        verified.expect_status(0).expect_stdout("records 6,");
        let exported = bulkhead.run(["ledger", "export"]);
        assert_eq!(exported.expect_status(0).stdout().lines().count(), 6);
        // A proof stands for itself, with the public key beside it.
        let proof = scratch.path().join("proof");
        let proven = bulkhead.run(["ledger", "prove", "5"]);
        fs::write(&proof, proven.expect_status(0).stdout()).unwrap();
        let key = scratch.path().join("config/keys/ledger.pub");
        let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let line = [
            "ledger",
            "verify",
            "--proof",
            &path(&proof),
            "--key",
            &path(&key),
        ];
        let checked = bulkhead.run(line);
        checked.expect_status(0).expect_stdout("terminated");
        let changed = fs::read_to_string(&proof)
            .unwrap()
            .replace("index 5", "index 4");
        fs::write(&proof, changed).unwrap();
        let refused = bulkhead.run(line);
        refused.expect_status(1).expect_stderr("error[ledger-bad]");
        census.expect_nothing_new();
    }

    #[test]
    fn a_changed_record_is_named_and_nothing_starts_on_it() {
        let (scratch, bulkhead) = own();
        hello(&bulkhead);
        let kept = scratch.path().join("kept");
        fs::copy(scratch.path().join("config/checkpoints/checkpoint"), &kept).unwrap();
        let path = segment(&scratch);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let needle = b"validated";
        let at = bytes
            .windows(9)
            .position(|window| window == needle)
            .unwrap();
        bytes[at] = b'V';
        fs::write(&path, bytes).unwrap();
        let verified = bulkhead.run(["ledger", "verify"]);
        verified
            .expect_status(1)
            .expect_stderr("error[ledger-bad]: record 2 is bad");
        let json = bulkhead.run(["ledger", "verify", "--format", "json"]);
        json.expect_status(1)
            .expect_stdout("\"first\":2,\"last\":2");
        let line = ["run", "--kernel", "native", "--", HELLO];
        let refused = bulkhead.run(line);
        refused.expect_refusal().expect_stderr("error[ledger]");
        refused.expect_stderr("record 2 is bad");
        // All of it is gone, and who removed it has thought of the second place.
        fs::remove_dir_all(scratch.path().join("data")).unwrap();
        let refused = bulkhead.run(line);
        refused
            .expect_refusal()
            .expect_stderr("there are 0 records");
        fs::remove_dir_all(scratch.path().join("config/checkpoints")).unwrap();
        hello(&bulkhead);
        bulkhead.run(["ledger", "verify"]).expect_status(0);
        let line = ["ledger", "verify", "--checkpoint", kept.to_str().unwrap()];
        let verified = bulkhead.run(line);
        verified
            .expect_status(1)
            .expect_stderr("is bad: it is not what the checkpoint in");
    }

    #[test]
    fn nothing_runs_where_nothing_can_be_recorded() {
        let (scratch, bulkhead) = own();
        let census = Census::take();
        fs::write(scratch.path().join("data"), "no directory").unwrap();
        let line = ["run", "--kernel", "native", "--", HELLO];
        bulkhead
            .run(line)
            .expect_refusal()
            .expect_stderr("error[place-un");
        census.expect_nothing_new();
    }

    #[test]
    fn without_its_writer_nothing_is_done_to_a_partition() {
        let (scratch, bulkhead) = own();
        let census = Census::take();
        let line = [
            "run",
            "--name",
            "spinner",
            "--",
            "busybox",
            "sh",
            "-c",
            "echo up; sleep 1000",
        ];
        let running = Running::start(&mut bulkhead.command(line));
        let end = Instant::now() + Duration::from_secs(300);
        let is_up = || {
            let told = bulkhead.run(["ledger", "tail"]);
            told.stdout().contains("partition.state running")
        };
        while !is_up() {
            assert!(Instant::now() < end, "it does not run");
            thread::sleep(Duration::from_millis(50));
        }
        bulkhead.run(["pause", "spinner/main"]).expect_status(0);
        kill_process(writer_of(running.id()), Signal::KILL).unwrap();
        let refused = bulkhead.run(["resume", "spinner/main"]);
        refused.expect_refusal().expect_stderr("error[ledger]");
        bulkhead.run(["down", "spinner"]).expect_status(0);
        let ended = running.wait();
        ended.expect_stderr(
            "ledger: the ledger cannot be written: its writer was killed by signal 9",
        );
        bulkhead.run(["ledger", "verify"]).expect_status(0);
        drop(scratch);
        census.expect_nothing_new();
    }

    /// The process that writes the ledger of a supervisor.
    fn writer_of(supervisor: u32) -> Pid {
        let children = format!("/proc/{supervisor}/task/{supervisor}/children");
        let children = fs::read_to_string(children).unwrap();
        let is_writer = |pid: &&str| {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            exe.ends_with("bulkhead-ledger")
        };
        let pid = children.split_whitespace().find(is_writer).unwrap();
        Pid::from_raw(pid.parse().unwrap()).unwrap()
    }
}
