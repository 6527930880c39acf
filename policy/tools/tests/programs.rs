//! Programs of the host: what one can do in its jail, and that all of it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bench::Bench;
use serde_json::{Value, json};
use tools::registry::Deadline;
use tools::{CallError, ToolError};

/// On every Debian, and able to do whatever a system call can.
const PERL: &str = "/usr/bin/perl";

fn perl(bench: &Bench, write: bool, script: &str) -> Value {
    let arguments = json!({
        "program": PERL,
        "arguments": ["-e", script],
        "directory": bench.data,
        "write": write,
    });
    bench.call("process.run", arguments).unwrap().result
}

/// Processes of the host whose command line has this in it, other than this one.
fn processes_with(marker: &str) -> usize {
    let own = std::process::id().to_string();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter(|entry| *entry.file_name() != *own);
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(marker))
        .count()
}

/// Nothing with this in its command line is left; what was killed may take a moment to go.
fn expect_gone(marker: &str) {
    for _ in 0..2000 {
        if processes_with(marker) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let left = Command::new("ps")
        .args(["-eo", "pid,ppid,stat,args"])
        .output()
        .unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    let left: Vec<_> = left.lines().filter(|line| line.contains(marker)).collect();
    panic!("{marker} goes on: {left:#?}");
}

#[test]
fn a_program_works_in_its_directory_with_its_input_and_arguments() {
    let bench = Bench::with_programs(&[PERL]);
    fs::write(bench.data.join("f"), "in the file").unwrap();
    let script =
        "open F, 'f'; print <F>, '|', <STDIN>, '|', join(',', @ARGV); print STDERR 'e'; exit 7";
    let arguments = json!({
        "program": PERL,
        "arguments": ["-e", script, "--", "-x", "$(id)", "a b"],
        "directory": bench.data,
        "input": "fed",
    });
    let result = bench.call("process.run", arguments).unwrap().result;
    let expected = json!({
        "status": 7, "stdout": "in the file|fed|-x,$(id),a b", "stderr": "e", "truncated": false,
    });
    assert_eq!(result, expected);
    let result = perl(
        &bench,
        false,
        "print join ',', map { \"$_=$ENV{$_}\" } sort keys %ENV",
    );
    let environment = "HOME=/nonexistent,LC_ALL=C.UTF-8,PATH=/usr/local/bin:/usr/bin:/bin";
    assert_eq!(result["stdout"], environment);
}

#[test]
fn only_granted_programs_run() {
    let bench = Bench::with_programs(&[PERL]);
    for program in ["/bin/sh", "/usr/bin/env", "perl", "/usr/bin/../bin/perl"] {
        let arguments = json!({ "program": program, "directory": bench.data });
        let refused = bench.call("process.run", arguments).unwrap_err();
        assert!(
            matches!(refused, CallError::NotPermitted(_)),
            "{program}: {refused:?}"
        );
    }
    let script = "exec('/bin/sh', '-c', 'echo escaped') or print \"$!\"";
    assert_eq!(perl(&bench, false, script)["stdout"], "Permission denied");
    // Not even what it writes itself, or what the loader would load for it.
    let script = "open F, '>', 'p'; print F \"#!/usr/bin/perl\\nprint 'escaped'\"; close F;
        chmod 0755, 'p'; exec('./p') or print \"$!\"";
    assert_eq!(perl(&bench, true, script)["stdout"], "Permission denied");
}

#[test]
fn a_program_sees_its_directory_alone() {
    let bench = Bench::with_programs(&[PERL]);
    let outside = bench.scratch.path().join("secret");
    fs::write(&outside, "secret").unwrap();
    fs::write(bench.given.join("other"), "other").unwrap();
    fs::write(bench.data.join("own"), "own").unwrap();
    let reads = |path: &Path| {
        let script = format!(
            "open(F, '<', '{}') ? print <F> : print \"$!\"",
            path.display()
        );
        perl(&bench, true, &script)["stdout"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(reads(&bench.data.join("own")), "own");
    for path in [
        outside,
        bench.given.join("other"),
        "/etc/passwd".into(),
        "/proc/self/environ".into(),
        "/proc/1/cmdline".into(),
        "../secret".into(),
    ] {
        assert_eq!(reads(&path), "Permission denied", "{}", path.display());
    }
    // Only read, it cannot be written, removed or changed.
    for act in [
        "open F, '>', 'own'",
        "open F, '>', 'new'",
        "unlink 'own'",
        "mkdir 'd'",
        "rename 'own', 'o'",
        "symlink 'own', 'l'",
    ] {
        let script = format!("({act}) ? print 'done' : print \"$!\"");
        assert_eq!(
            perl(&bench, false, &script)["stdout"],
            "Permission denied",
            "{act}"
        );
    }
    assert_eq!(fs::read(bench.data.join("own")).unwrap(), b"own");
    assert_eq!(
        perl(&bench, true, "unlink 'own' and print 'done'")["stdout"],
        "done"
    );
}

#[test]
fn a_program_reaches_no_socket_and_no_other_process() {
    let bench = Bench::with_programs(&[PERL]);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = bench.data.join("socket");
    let _local = UnixListener::bind(&local).unwrap();
    let port = tcp.local_addr().unwrap().port();
    let script = format!(
        "use Socket; for ([PF_INET, pack_sockaddr_in({port}, inet_aton('127.0.0.1'))],
                          [PF_UNIX, pack_sockaddr_un('{}')]) {{
            print socket(S, $_->[0], SOCK_STREAM, 0) ? 'socket ' : \"$! \";
         }}",
        local.display()
    );
    let denied = "Operation not permitted ";
    let result = perl(&bench, true, &script);
    assert_eq!(result["stdout"], denied.repeat(2), "{result}");
    let own = std::process::id();
    let script = format!("print kill(0, {own}), ' ', $$ < 10 ? 'inside' : 'outside'");
    assert_eq!(perl(&bench, true, &script)["stdout"], "0 inside");
    // unshare, clone with a namespace, clone3, ptrace, mount, bpf, io_uring_setup.
    let script =
        "for ([272, 0x10000000], [56, 0x10000000], [435, 0, 0], [101, 0], [165, 0, 0, 0, 0, 0],
                       [321, 0, 0, 0], [425, 1, 0]) {
        my ($call, @with) = @$_; print syscall($call, @with) < 0 ? $! + 0 : 'done', ' ';
    }";
    assert_eq!(perl(&bench, true, script)["stdout"], "1 1 38 1 1 1 1 ");
    // A call of the x32 ABI ends it.
    let script = "print 'before'; $| = 1; syscall(0x40000000 | 41, 2, 1, 0); print 'after'";
    let result = perl(&bench, true, script);
    assert_eq!(result["status"], 128 + 31, "{result}");
}

#[test]
fn what_a_program_leaves_behind_ends_with_it() {
    let bench = Bench::with_programs(&[PERL]);
    let marker = "left-behind-7c1f";
    let script = format!(
        "for (1..3) {{ if (!fork) {{ require POSIX; POSIX::setsid(); open STDOUT, '>', '/dev/null';
           open STDERR, '>', '/dev/null'; $0 = '{marker}'; sleep 1000 }} }} print 'parent'"
    );
    assert_eq!(perl(&bench, false, &script)["stdout"], "parent");
    expect_gone(marker);
}

#[test]
fn a_program_whose_time_is_over_ends_with_all_it_started() {
    let bench = Bench::with_programs(&[PERL]);
    let host = bench.pipeline.host();
    let registry = tools::Registry::new().unwrap();
    let run = registry.get("process.run").unwrap();
    for (marker, script) in [
        ("endless-a-91d2", "sleep 1000"),
        ("endless-b-91d2", "close STDOUT; close STDERR; sleep 1000"),
        (
            "endless-c-91d2",
            "$SIG{TERM} = $SIG{HUP} = 'IGNORE'; fork; fork; 1 while 1",
        ),
        (
            "endless-d-91d2",
            "require POSIX; fork and exit 0; POSIX::setsid(); sleep 1000",
        ),
    ] {
        let arguments = json!({
            "program": PERL, "directory": bench.data,
            "arguments": ["-e", format!("$0 = '{marker}'; {script}"), marker],
        });
        let deadline = Deadline::after(Duration::from_millis(1500));
        let ended = run.run(host, &arguments, &deadline);
        // The last leaves nothing that could be waited for.
        if !marker.starts_with("endless-d") {
            let error = ended.unwrap_err().to_string();
            assert_eq!(error, ToolError::TimedOut(1).to_string(), "{marker}");
        }
        expect_gone(marker);
    }
}

#[test]
fn output_without_end_is_kept_in_bounds_and_ends_the_program() {
    let bench = Bench::with_programs(&[PERL]);
    let result = perl(
        &bench,
        false,
        "print 'x' x 1_000_000; print STDERR 'y' x 10",
    );
    assert_eq!(result["stdout"].as_str().unwrap().len(), 256 * 1024);
    assert_eq!(result["stderr"], "yyyyyyyyyy");
    assert_eq!(result["truncated"], true);
    let arguments = json!({
        "program": PERL, "directory": bench.data,
        "arguments": ["-e", "$x = 'x' x 65536; print $x while 1", "flood-55aa"],
    });
    let refused = bench.call("process.run", arguments).unwrap_err();
    assert!(refused.to_string().contains("wrote more than"), "{refused}");
    expect_gone("flood-55aa");
}

#[test]
fn programs_go_on_while_other_calls_are_done() {
    let bench = Bench::with_programs(&[PERL]);
    let start = |script: &str, marker: &str| {
        let arguments = json!({
            "program": PERL, "directory": bench.data, "arguments": ["-e", script, marker],
        });
        bench
            .call("process.start", arguments)
            .map(|done| done.result["job"].as_u64().unwrap())
    };
    let output = |job: u64| {
        bench
            .call("process.output", json!({ "job": job }))
            .unwrap()
            .result
    };
    let job = start("$| = 1; print 'first'; sleep 1000", "job-1-3e44").unwrap();
    let mut heard = String::new();
    while !heard.contains("first") {
        heard += output(job)["stdout"].as_str().unwrap();
        std::thread::yield_now();
    }
    assert_eq!(output(job)["running"], true);
    let listed = bench.call("process.list", json!({})).unwrap().result;
    assert_eq!(listed["jobs"][0]["program"], PERL);
    bench.call("process.kill", json!({ "job": job })).unwrap();
    expect_gone("job-1-3e44");
    while output(job)["running"] == true {
        std::thread::yield_now();
    }
    assert_eq!(output(job)["status"], 128 + 9);
    let ended = start("print 'all'; exit 3", "job-2-3e44").unwrap();
    while output(ended)["running"] == true {
        std::thread::yield_now();
    }
    assert_eq!(output(ended)["status"], 3);
    for _ in 0..tools::jobs::MAX_JOBS {
        start("sleep 1000", "job-3-3e44").unwrap();
    }
    assert!(start("1", "job-4-3e44").is_err());
    assert!(bench.call("process.kill", json!({ "job": 99 })).is_err());
    drop(bench);
    expect_gone("job-3-3e44");
}

#[test]
fn a_fork_bomb_meets_its_limit() {
    // Root has no limit of processes but by control group.
    let bench = Bench::with_programs(&[PERL]);
    if rustix::process::getuid().is_root() {
        let script = "use constant N => 6; require POSIX; $n = 0;
            for (1..100) { my $p = fork; last unless defined $p; if (!$p) { sleep 1000 } $n++ } print $n";
        assert_eq!(perl(&bench, false, script)["stdout"], "100");
        return;
    }
    let script = "$n = 0; for (1..2000) { my $p = fork; last unless defined $p;
        if (!$p) { sleep 1000 } $n++ } print $n";
    let forked: u64 = perl(&bench, false, script)["stdout"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(forked < 256, "{forked}");
}
