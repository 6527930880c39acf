//! Promise: a running partition can be looked at, stopped where it stands and let go on, and its
//! limits hold and go with it.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::ffi::OsString;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::skip;

    const SYSTEM: &str = r#"
        name = "acts"
        [[partition]]
        name = "one"
        kernel = "linux-abi"
        command = ["/bin/busybox", "sh", "-c", "while :; do echo tick; done"]
        grants = ["console", "time", { capability = "block.read:disk.img", name = "data" }]
        [[partition.mounts]]
        source = "/bin/busybox"
        target = "/bin/busybox"
    "#;

    /// Starts [`SYSTEM`] with further lines in the background.
    fn start(bulkhead: &Bulkhead, scratch: &Scratch, lines: &str) {
        scratch.file("disk.img", vec![0; 1 << 16]);
        let file = scratch.file("system.toml", format!("{SYSTEM}\n{lines}\n"));
        let words = ["up", "--detach"].map(OsString::from);
        bulkhead
            .run(words.into_iter().chain([file.into()]))
            .expect_status(0);
    }

    /// How often the partition has left its guest.
    fn exits(bulkhead: &Bulkhead) -> u64 {
        let stats = bulkhead.run(["stats", "acts/one", "--format", "prometheus"]);
        let stdout = stats.expect_status(0).stdout();
        let line = stdout
            .lines()
            .find(|line| line.contains("device=\"vcpu0\""));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value
            .and_then(|value| value.parse().ok())
            .expect("a counter")
    }

    /// Waits until the partition has gone on.
    #[track_caller]
    fn expect_more(bulkhead: &Bulkhead) {
        let (before, end) = (exits(bulkhead), Instant::now() + Duration::from_secs(60));
        while exits(bulkhead) <= before {
            assert!(Instant::now() < end, "the partition does not go on");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_paused_partition_stands_still_and_goes_on() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let before = Census::take();
        start(&bulkhead, &scratch, "");
        expect_more(&bulkhead);
        bulkhead.run(["pause", "acts/one"]).expect_status(0);
        bulkhead.run(["ps"]).expect_stdout("suspended");
        let stopped = exits(&bulkhead);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(exits(&bulkhead), stopped);
        bulkhead.run(["resume", "acts"]).expect_status(0);
        expect_more(&bulkhead);
        bulkhead.run(["down", "acts"]).expect_status(0);
        before.expect_nothing_new();
    }

    #[test]
    fn counters_are_told_in_every_format() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let before = Census::take();
        start(&bulkhead, &scratch, "");
        expect_more(&bulkhead);
        let stats = |format: &str| bulkhead.run(["stats", "acts", "--format", format]);
        stats("table").expect_status(0).expect_stdout("vcpu0");
        stats("json")
            .expect_status(0)
            .expect_stdout("\"partition\": \"one\"");
        stats("prometheus").expect_status(0).expect_stdout(
            "bulkhead_exits_total{system=\"acts\",partition=\"one\",device=\"vcpu0\"}",
        );
        bulkhead.run(["down", "acts"]).expect_status(0);
        before.expect_nothing_new();
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_changes_nothing() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let before = Census::take();
        start(&bulkhead, &scratch, "");
        let core = scratch.path().join("core");
        let existing = scratch.file("existing", "x");
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let (core_name, existing_name) = (path(&core), path(&existing));
        for words in [
            &["pause", "acts/two"][..],
            &["pause", "nothing/one"],
            &["detach", "acts/one", "nothing"],
            &["attach", "acts/one", "--disk", "/absent"],
            &["attach", "acts/one", "--share", "/:all"],
            &["attach", "acts/one", "--net", "nonsense"],
            &["resize", "acts/one", "--memory", "900GiB"],
            &["resize", "acts/one", "--balloon", "1MiB"],
            &["resize", "acts/one", "--disk", "nothing"],
            &["dump", "acts/one", &existing_name],
            &["stats", "acts/two"],
        ] {
            bulkhead.run(words).expect_refusal();
        }
        expect_more(&bulkhead);
        bulkhead.run(["down", "acts"]).expect_status(0);
        bulkhead
            .run(["dump", "acts/one", &core_name])
            .expect_refusal();
        assert!(!core.exists());
        before.expect_nothing_new();
    }

    #[test]
    fn a_dump_is_a_core_file_with_the_partitions_memory() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let before = Census::take();
        start(&bulkhead, &scratch, "");
        expect_more(&bulkhead);
        let core = scratch.path().join("core");
        let name = core.to_str().unwrap().to_owned();
        bulkhead.run(["dump", "acts/one", &name]).expect_status(0);
        expect_more(&bulkhead);
        bulkhead.run(["down", "acts"]).expect_status(0);
        let bytes = fs::read(&core).unwrap();
        // ELF64, little-endian; a core file, for x86-64.
        assert_eq!(&bytes[..6], b"\x7fELF\x02\x01");
        assert_eq!(&bytes[16..20], &[4, 0, 62, 0]);
        let headers = u16::from_le_bytes([bytes[56], bytes[57]]);
        assert!(headers >= 2, "{headers} program headers");
        // What the guest was told to run is nowhere but in its memory.
        let told = b"while :; do echo tick; done";
        assert!(bytes.windows(told.len()).any(|part| part == told));
        before.expect_nothing_new();
    }

    /// Directories of control groups of our systems.
    fn groups() -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(directory) = left.pop() {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            for entry in entries {
                let Ok(kind) = entry.file_type() else {
                    continue;
                };
                if kind.is_dir() {
                    if entry
                        .file_name()
                        .to_string_lossy()
                        .starts_with("bulkhead-acts-")
                    {
                        found.push(entry.path());
                    }
                    left.push(entry.path());
                }
            }
        }
        found
    }

    #[test]
    fn limits_are_a_group_that_goes_with_the_partition() {
        let (bulkhead, scratch) = (Bulkhead::built(), Scratch::new());
        let before = Census::take();
        let file = scratch.file(
            "probe.toml",
            "name = \"acts-probe\"\n[[partition]]\nname = \"one\"\nkernel = \"native\"\n\
             program = \"@examples/hello-native\"\nlimits = { cpu = \"100%\", \
             memory_overhead = \"64MiB\", pids = 64 }\n",
        );
        let probe = bulkhead.run([OsString::from("up"), file.into()]);
        if probe.stderr().contains("error[limits]") {
            probe.expect_refusal();
            skip("this user may not make control groups");
            return;
        }
        probe.expect_status(0);
        let limits = "[partition.limits]\ncpu = \"100%\"\nmemory_overhead = \"64MiB\"\npids = 64";
        start(&bulkhead, &scratch, limits);
        expect_more(&bulkhead);
        let vmm = bulkhead.run(["ps", "--format", "json"]).stdout();
        let groups_now = groups();
        assert!(!groups_now.is_empty());
        for group in &groups_now {
            let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap();
            // KVM puts a kernel thread beside its VMM; such have no command line.
            let programs: Vec<&str> = (processes.split_whitespace())
                .filter(|pid| {
                    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty())
                })
                .collect();
            assert!(
                programs.len() == 1 && vmm.contains(&format!("\"vmm\": {}", programs[0])),
                "{group:?}: {processes}\n{vmm}"
            );
        }
        bulkhead.run(["down", "acts"]).expect_status(0);
        assert_eq!(groups(), Vec::<PathBuf>::new());
        before.expect_nothing_new();
    }
}
