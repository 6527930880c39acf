//! Promise: an unmodified static Linux binary runs without a Linux kernel, and `bulkhead run`
//! behaves as `docker run` does.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod kvm {
    use std::fs::File;
    use std::io::Read;
    use std::process::{Command, Stdio};

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

    /// What `command` prints on a terminal of its own.
    fn on_a_terminal(command: &mut Command) -> String {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let terminal = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let other = || Stdio::from(terminal.try_clone().unwrap());
        let mut child = command
            .stdin(other())
            .stdout(other())
            .stderr(other())
            .spawn()
            .unwrap();
        child.wait().unwrap();
        let mut printed = [0; 4096];
        let length = File::from(controller).read(&mut printed).unwrap();
        String::from_utf8_lossy(&printed[..length]).into_owned()
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
        let before = Census::take();
        // A new host name is nothing that a partition without a network has.
        let run = ["run", "--kernel", "linux-abi", "--trace-syscalls", "--"];
        let ended = bulkhead.run(run.iter().chain(&["/bin/busybox", "hostname", "x"]));
        ended
            .expect_status(1)
            .expect_stderr("(sethostname) -> ENOSYS")
            .expect_stderr("hostname: sethostname: Function not implemented");
        before.expect_nothing_new();
    }

    #[test]
    fn many_unknown_system_calls_stop_nothing() {
        // Each attempt to fork is one; the shell goes on until it is told to end.
        let script = "i=0; while [ $i -lt 50 ]; do (exit 0) 2>/dev/null || true; i=$((i+1)); done";
        let ended = busybox(&["sh", "-c", script]);
        assert!(
            [0, 2].contains(&ended.status()),
            "{}\n{}",
            ended.status(),
            ended.stderr()
        );
    }

    #[test]
    fn a_terminal_is_told_from_a_pipe() {
        let script = "test -t 1 && echo terminal || echo pipe";
        busybox(&["sh", "-c", script]).expect_stdout("pipe");
        let bulkhead = Bulkhead::built();
        let mut command = bulkhead.command(["run", "--", "/bin/busybox", "sh", "-c", script]);
        let printed = on_a_terminal(&mut command);
        assert!(printed.contains("terminal"), "{printed}");
    }
}
