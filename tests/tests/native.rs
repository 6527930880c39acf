//! Promise: a native partition boots Bulkhead's microkernel, the same image on every KVM, and runs
//! its program.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::process::Command;

    use bulkhead_tests::bulkhead::{Bulkhead, Ended};
    use bulkhead_tests::in_lab;
    use bulkhead_tests::leftovers::Census;

    fn sha256(path: &std::path::Path) -> String {
        let output = Command::new("sha256sum").arg(path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    }

    #[test]
    fn the_same_kernel_image_runs_here_and_in_the_lab() {
        let bulkhead = Bulkhead::built();
        let hash = sha256(&bulkhead.library("kernel"));
        // The lab is told the hash of the image that this machine's own suites ran.
        match std::env::var("BULKHEAD_KERNEL_SHA256") {
            Ok(expected) => assert_eq!(hash, expected),
            Err(_) => assert!(!in_lab(), "the lab was not told which image to expect"),
        }
        let before = Census::take();
        let program = bulkhead.library("examples/hello-native");
        bulkhead
            .run([
                "run".as_ref(),
                "--kernel".as_ref(),
                "native".as_ref(),
                "--".as_ref(),
                program.as_os_str(),
            ])
            .expect_status(0)
            .expect_stdout("hello");
        before.expect_nothing_new();
    }

    fn conformance(arguments: &[&str]) -> Ended {
        conformance_with(&[], arguments)
    }

    fn conformance_with(options: &[&str], arguments: &[&str]) -> Ended {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let program = bulkhead.library("tests/conformance");
        let start = ["run", "--kernel", "native"].iter().chain(options);
        let program = ["--", program.to_str().unwrap()];
        let ended = bulkhead.run(start.chain(&program).chain(arguments));
        before.expect_nothing_new();
        ended
    }

    #[test]
    fn the_kernel_keeps_its_promises_seen_from_inside() {
        keeps_all(&conformance(&[]));
    }

    /// Then there are more of them.
    #[test]
    fn the_kernel_keeps_its_promises_on_two_cpus() {
        let ended = conformance_with(&["--vcpus", "2"], &[]);
        keeps_all(&ended);
        assert!(!ended.stdout().contains("skipped"), "{}", ended.stdout());
    }

    /// Calls, revocations, retypes and deletions on four CPUs at once, of each other's threads.
    #[test]
    fn cpus_that_disturb_each_other_do_not_stand_still() {
        let options = [
            "--vcpus",
            "4",
            "--memory",
            "64MiB",
            "-e",
            "STRESS_SECONDS=10",
        ];
        let ended = conformance_with(&options, &["stress"]);
        print!("{}", ended.stdout());
        ended.expect_status(0).expect_stdout("nobody stood still");
    }

    fn keeps_all(ended: &Ended) {
        let failures: Vec<String> = (ended.stdout().lines())
            .filter(|line| line.contains("... FAILED"))
            .map(str::to_owned)
            .collect();
        assert!(failures.is_empty(), "{failures:#?}");
        ended.expect_status(0).expect_stdout(" passed, 0 failed");
    }

    /// Devices and their interrupts are those that were granted: none, the default one, and a disk
    /// before which it stands.
    #[test]
    fn a_driver_has_the_devices_that_were_granted() {
        let bulkhead = Bulkhead::built();
        let program = bulkhead.library("tests/conformance");
        let disk = std::env::temp_dir().join(format!("bulkhead-driver-{}", std::process::id()));
        std::fs::write(&disk, [0; 0x10_0000]).unwrap();
        let none = ["--no-default-grants", "--grant", "console"];
        let two = ["--disk", disk.to_str().unwrap()];
        for grants in [&none[..], &[], &two] {
            let before = Census::take();
            let cases = ["I1-granted", "I2-handlers", "I3-registers", "I4-interrupts"];
            let start = ["run", "--kernel", "native"];
            let run = ["--", program.to_str().unwrap()];
            let all = start.iter().chain(grants).chain(&run).chain(&cases);
            let ended = bulkhead.run(all);
            before.expect_nothing_new();
            ended.expect_status(0);
        }
        std::fs::remove_file(disk).unwrap();
    }

    #[test]
    fn statuses_of_programs_pass_through() {
        conformance(&["exit-7"]).expect_status(7);
        conformance(&["exit-threads"]).expect_status(0);
        conformance(&["panic"]).expect_status(101);
    }

    fn hello_c(arguments: &[&str]) -> Ended {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let start = [
            "run",
            "--kernel",
            "native",
            "--",
            "@examples/hello-native-c",
        ];
        let ended = bulkhead.run(start.iter().chain(arguments));
        before.expect_nothing_new();
        ended
    }

    #[test]
    fn a_program_in_c_says_what_it_was_given() {
        let ended = hello_c(&["world", "two words", "status=7"]);
        let lines = [
            "hello from a native partition, in C\n",
            "argument: world\nargument: two words\nargument: status=7\n",
            "granted: console\n",
        ];
        let ended = ended.expect_status(7);
        lines.iter().for_each(|line| {
            ended.expect_stdout(line);
        });
        hello_c(&[]).expect_status(0);
    }

    #[test]
    fn a_program_in_c_is_told_who_was_at_fault() {
        hello_c(&["map"])
            .expect_status(0)
            .expect_stdout("map: Ok\nmap: DeleteFirst, the caller's fault\nmemory: usable\n");
    }

    #[test]
    fn a_program_in_c_ends_by_a_fault_as_by_a_signal() {
        hello_c(&["fault"])
            .expect_status(139)
            .expect_stderr("a page fault");
    }

    #[test]
    fn a_program_in_c_with_too_many_arguments_is_not_started() {
        let mut arguments = vec!["a"; 4095];
        // With its own name as many as there is room for.
        hello_c(&arguments).expect_status(0);
        arguments.push("a");
        hello_c(&arguments)
            .expect_status(125)
            .expect_stderr("more arguments than its stack has room for");
    }

    #[test]
    fn every_fault_ends_the_program_as_a_signal_would() {
        let list = conformance(&["list"]).stdout();
        let faults: Vec<&str> = (list.lines())
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| name.starts_with("fault-"))
            .collect();
        assert!(faults.len() > 5, "{list}");
        for fault in faults {
            let status = conformance(&[fault]).status();
            assert!((129..=159).contains(&status), "{fault} ended with {status}");
        }
    }
}

mod lab {
    use bulkhead_tests::bulkhead::Bulkhead;

    /// Where kernel mode is interpreted this is minutes; there `R4-preemption` revokes 4,096.
    #[test]
    fn revoking_a_hundred_thousand_capabilities_lets_urgent_threads_run() {
        let bulkhead = Bulkhead::built();
        let program = bulkhead.library("tests/conformance");
        let memory = ["run", "--kernel", "native", "--memory", "128MiB", "--"];
        let revoke = [program.to_str().unwrap(), "revoke-100000"];
        let ended = bulkhead.run(memory.iter().chain(&revoke));
        print!("{}", ended.stdout());
        let said = "100352 capabilities revoked";
        ended.expect_status(0).expect_stdout(said);
    }
}
