//! Promise: an unmodified static Linux binary runs without a Linux kernel, and `bulkhead run`
//! behaves as `docker run` does.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use bulkhead_tests::bulkhead::{Bulkhead, Ended};
    use bulkhead_tests::leftovers::Census;

    fn busybox(args: &[&str]) -> Ended {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let start = ["run", "--kernel", "linux-abi", "--", "/bin/busybox"];
        let ended = bulkhead.run(start.iter().chain(args));
        before.expect_nothing_new();
        ended
    }

    #[test]
    fn a_rust_program_prints_and_its_status_passes_through() {
        let bulkhead = Bulkhead::built();
        let program = bulkhead.library("examples/hello-linux-abi");
        let program = program.to_str().unwrap();
        bulkhead
            .run(["run", "--kernel", "linux-abi", "--", program])
            .expect_status(0)
            .expect_stdout("ello");
    }

    #[test]
    fn busybox_echo() {
        let ended = busybox(&["echo", "a", "b  c"]);
        ended.expect_status(0);
        assert_eq!(ended.stdout(), "a b  c\n");
    }

    #[test]
    fn busybox_uname_names_linux() {
        busybox(&["uname", "-a"])
            .expect_status(0)
            .expect_stdout("Linux");
    }

    #[test]
    fn busybox_shell_loops() {
        let ended = busybox(&["sh", "-c", "for i in 1 2 3; do echo line $i; done"]);
        ended.expect_status(0);
        assert_eq!(ended.stdout(), "line 1\nline 2\nline 3\n");
    }

    #[test]
    fn exit_statuses_pass_through() {
        for status in [0, 1, 7, 124, 255] {
            busybox(&["sh", "-c", &format!("exit {status}")]).expect_status(status);
        }
    }

    #[test]
    fn stdout_and_stderr_stay_apart() {
        let ended = busybox(&["sh", "-c", "echo out; echo err >&2"]);
        ended.expect_status(0);
        assert_eq!(ended.stdout(), "out\n");
        ended.expect_stderr("err");
    }

    #[test]
    fn stdin_reaches_the_program() {
        let bulkhead = Bulkhead::built();
        let ended = bulkhead.run_with_input(
            ["run", "--kernel", "linux-abi", "--", "/bin/busybox", "cat"],
            b"one\ntwo\n",
        );
        ended.expect_status(0);
        assert_eq!(ended.stdout(), "one\ntwo\n");
    }

    #[test]
    fn an_unknown_system_call_is_named_and_harms_nobody() {
        let bulkhead = Bulkhead::built();
        // busybox `hostname NAME` asks for sethostname, which no partition without a network has.
        let ended = bulkhead.run([
            "run",
            "--kernel",
            "linux-abi",
            "--trace-syscalls",
            "--",
            "/bin/busybox",
            "sh",
            "-c",
            "busybox swapoff -a /x; echo still here",
        ]);
        ended.expect_stdout("still here");
    }
}
