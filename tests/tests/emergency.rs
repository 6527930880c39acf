//! Promise: the emergency stop halts every partition of this user, helpful or not, and nothing
//! starts until somebody lets it go on.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::thread;
    use std::time::{Duration, Instant};

    use bulkhead_tests::bulkhead::Bulkhead;
    use bulkhead_tests::leftovers::Census;
    use bulkhead_tests::scratch::Scratch;
    use bulkhead_tests::{in_lab, skip};
    use rustix::process::{Pid, Signal, kill_process};

    /// No limit of the promise, which is a second: it only ends a hang, in the lab too.
    const HANG: Duration = Duration::from_secs(300);

    /// With a state directory and a ledger of the test's own: the stop is for all of a user's.
    struct House {
        bulkhead: Bulkhead,
        scratch: Scratch,
        census: Census,
    }

    impl House {
        fn new() -> Self {
            let scratch = Scratch::new();
            let bulkhead = Bulkhead::built()
                .env("BULKHEAD_STATE_DIR", scratch.path().join("s"))
                .env("BULKHEAD_CONFIG_DIR", scratch.path().join("config"))
                .env("BULKHEAD_DATA_DIR", scratch.path().join("data"));
            let census = Census::take();
            Self {
                bulkhead,
                scratch,
                census,
            }
        }

        /// Starts a system of partitions that never rest.
        fn start(&self, name: &str, partitions: usize) {
            let partition = |number| {
                format!(
                    "[[partition]]\nname = \"p{number}\"\nkernel = \"linux-abi\"\n\
                     command = [\"/bin/busybox\", \"sh\", \"-c\", \"while :; do echo tick; done\"]\n\
                     grants = [\"console\"]\n[[partition.mounts]]\n\
                     source = \"/bin/busybox\"\ntarget = \"/bin/busybox\"\n"
                )
            };
            let text: String = (0..partitions).map(partition).collect();
            let file = self.scratch.file(
                &format!("{name}.toml"),
                format!("name = \"{name}\"\n{text}"),
            );
            let started = self
                .bulkhead
                .run(["up", "--detach", &file.to_string_lossy()]);
            started.expect_status(0);
        }

        /// Process ids of a system's supervisor and of its VMMs.
        fn processes(&self, name: &str) -> (u32, Vec<u32>) {
            let json = self
                .bulkhead
                .run(["ps", "--format", "json"])
                .expect_status(0)
                .stdout();
            let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
            let row = rows
                .as_array()
                .unwrap()
                .iter()
                .find(|row| row["system"] == name)
                .expect(name);
            let number =
                |value: &serde_json::Value| u32::try_from(value.as_u64().unwrap()).unwrap();
            let vmms = row["partitions"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| number(&one["vmm"]));
            (number(&row["supervisor"]), vmms.collect())
        }

        fn down(self) {
            self.bulkhead.run(["down", "--all"]).expect_status(0);
            drop(self.scratch);
            self.census.expect_nothing_new();
        }
    }

    /// Ticks of CPU time, or nothing when it has ended.
    fn ticks(pid: u32) -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields = stat.rsplit_once(") ")?.1.split_whitespace();
        let times = fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok());
        Some(times.sum())
    }

    /// Waits until every process has used CPU time: their guests are at work.
    fn expect_work(pids: &[u32]) {
        let before: Vec<_> = pids.iter().map(|pid| ticks(*pid)).collect();
        let end = Instant::now() + HANG;
        while pids
            .iter()
            .zip(&before)
            .any(|(pid, before)| ticks(*pid) <= *before)
        {
            assert!(Instant::now() < end, "not all of {pids:?} are at work");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn everything_stands_still_until_it_is_let_go_on() {
        let house = House::new();
        house.start("one", 3);
        house.start("two", 2);
        let all = || [house.processes("one").1, house.processes("two").1].concat();
        let pids = all();
        assert_eq!(pids.len(), 5);
        expect_work(&pids);
        let begun = Instant::now();
        let stopped = house.bulkhead.run(["stop", "--all", "--now"]);
        let took = begun.elapsed();
        if in_lab() && stopped.stdout().contains("killed") {
            house.bulkhead.run(["resume", "--all"]).expect_status(0);
            house.down();
            return skip("an emulated host does not answer within the second that is given");
        }
        let lines = stopped.expect_status(0).stdout();
        eprintln!(
            "5 partitions of 2 systems halted in {} ms",
            took.as_millis()
        );
        for system in ["one", "two"] {
            let halted = lines
                .lines()
                .any(|line| line.split_whitespace().eq([system, "halted"]));
            assert!(halted, "{lines}");
        }
        let still: Vec<_> = pids.iter().map(|pid| ticks(*pid)).collect();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(
            pids.iter().map(|pid| ticks(*pid)).collect::<Vec<_>>(),
            still
        );
        house.bulkhead.run(["ps"]).expect_stdout("halted");
        for refused in [
            &["resume", "one/p0"][..],
            &["stats", "one/p0"],
            &["run", "--", "busybox", "true"],
        ] {
            house
                .bulkhead
                .run(refused)
                .expect_refusal()
                .expect_stderr("error[halted]");
        }
        house.bulkhead.run(["resume", "--all"]).expect_status(0);
        assert_eq!(all(), pids, "they are the same, and not others");
        expect_work(&pids);
        house
            .bulkhead
            .run(["resume", "--all"])
            .expect_refusal()
            .expect_stderr("error[not-halted]");
        house.down();
    }

    #[test]
    fn a_system_whose_supervisor_does_not_answer_is_killed() {
        let house = House::new();
        house.start("deaf", 2);
        let (supervisor, vmms) = house.processes("deaf");
        expect_work(&vmms);
        let pid = Pid::from_raw(i32::try_from(supervisor).unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        let begun = Instant::now();
        let stopped = house.bulkhead.run(["stop", "--all", "--now"]);
        stopped.expect_status(0).expect_stdout("killed");
        eprintln!(
            "a system that did not answer was gone in {} ms",
            begun.elapsed().as_millis()
        );
        let end = Instant::now() + HANG;
        while vmms.iter().any(|pid| ticks(*pid).is_some()) {
            assert!(Instant::now() < end, "{vmms:?} outlive their supervisor");
            thread::sleep(Duration::from_millis(5));
        }
        house
            .bulkhead
            .run(["run", "--", "busybox", "true"])
            .expect_refusal()
            .expect_stderr("error[halted]");
        house.bulkhead.run(["resume", "--all"]).expect_status(0);
        house.down();
    }

    #[test]
    fn what_is_halted_can_be_ended_and_dies_with_its_supervisor() {
        let house = House::new();
        house.start("ended", 1);
        house.start("orphaned", 1);
        let (supervisor, vmms) = house.processes("orphaned");
        house
            .bulkhead
            .run(["stop", "--all", "--now"])
            .expect_status(0);
        house.bulkhead.run(["down", "ended"]).expect_status(0);
        let pid = Pid::from_raw(i32::try_from(supervisor).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        let end = Instant::now() + HANG;
        while vmms.iter().any(|pid| ticks(*pid).is_some()) {
            assert!(Instant::now() < end, "{vmms:?} outlive their supervisor");
            thread::sleep(Duration::from_millis(5));
        }
        house.bulkhead.run(["resume", "--all"]).expect_status(0);
        house.down();
    }

    #[test]
    fn without_a_ledger_everything_is_halted_and_stays_so() {
        let house = House::new();
        house.start("one", 1);
        let ledger = house.scratch.path().join("data/ledger");
        fs::create_dir_all(&ledger).unwrap();
        for private in ["data", "data/ledger"] {
            let path = house.scratch.path().join(private);
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&ledger, open).unwrap();
        let stopped = house.bulkhead.run(["stop", "--all", "--now"]);
        stopped
            .expect_status(125)
            .expect_stderr("only the record is missing");
        house.bulkhead.run(["ps"]).expect_stdout("halted");
        let refused = house.bulkhead.run(["resume", "--all"]);
        refused
            .expect_refusal()
            .expect_stderr("error[place-unsafe]");
        house.bulkhead.run(["ps"]).expect_stdout("halted");
        fs::set_permissions(&ledger, fs::Permissions::from_mode(0o700)).unwrap();
        house.bulkhead.run(["resume", "--all"]).expect_status(0);
        house.down();
    }

    #[test]
    fn it_takes_both_words() {
        let house = House::new();
        for words in [
            &["stop"][..],
            &["stop", "--all"],
            &["stop", "--now"],
            &["resume"],
            &["resume", "one", "--all"],
        ] {
            house
                .bulkhead
                .run(words)
                .expect_refusal()
                .expect_stderr("error[usage]");
        }
        house
            .bulkhead
            .run(["stop", "--all", "--now"])
            .expect_status(0);
        house.bulkhead.run(["resume", "--all"]).expect_status(0);
        let records = house.bulkhead.run(["ledger", "tail"]);
        records
            .expect_status(0)
            .expect_stdout("emergency.stop")
            .expect_stdout("emergency.resume");
        house.down();
    }
}
