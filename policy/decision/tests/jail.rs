//! The jail of `bulkhead-decision`, from inside: each test starts this program again, which enters the
//! jail and dies of what it may not do. A harness of its own: see the subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../../hypervisor/tests/subject/mod.rs"]
mod subject;

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use bulkhead_decision::process::jail;
use bulkhead_machine::Jail;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use subject::{Subject, case, check, dies, say};

fn main() -> ExitCode {
    match case() {
        Some(case) => inside(&case),
        None => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

/// Enters the jail, then acts.
fn inside(act: &str) -> ExitCode {
    let parent = i64::from(rustix::process::getppid().unwrap().as_raw_pid());
    if let Err(error) = jail::enter(Jail::Full) {
        say("error", error);
        return ExitCode::SUCCESS;
    }
    match act {
        "nothing" => {}
        "open" => drop(File::open("/")),
        "create" => drop(File::create("/tmp/bulkhead-test-jail-x")),
        "internet socket" => call(libc::SYS_socket, [2, 1, 0, 0]),
        "local socket" => call(libc::SYS_socket, [1, 1, 0, 0]),
        "connect" => call(libc::SYS_connect, [0, 0, 0, 0]),
        "unlink" => call(libc::SYS_unlinkat, [-1, 0, 0, 0]),
        "exec" => drop(Command::new("/bin/true").exec()),
        "thread" => drop(std::thread::spawn(|| ()).join()),
        "kill" => call(libc::SYS_kill, [parent, 0, 0, 0]),
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), parent, 0, 0]),
        "unshare" => call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0]),
        "map code" => {
            let code = libc::PROT_READ | libc::PROT_EXEC;
            call(libc::SYS_mmap, [0, 4096, code.into(), 0x22]);
        }
        other => panic!("no act {other}"),
    }
    say("survived", 1);
    ExitCode::SUCCESS
}

fn call(number: i64, [a, b, c, d]: [i64; 4]) {
    // SAFETY: none of the calls above reads or writes memory of this process.
    unsafe { libc::syscall(number, a, b, c, d, -1, 0) };
}

fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for act in [
        "open",
        "create",
        "internet socket",
        "local socket",
        "connect",
        "unlink",
        "exec",
        "thread",
        "kill",
        "ptrace",
        "unshare",
        "map code",
    ] {
        let title = format!("a process that decides dies of {act}");
        trials.push(Trial::ignorable_test(title, move || whole(act, dies)));
    }
    trials
}

/// Tries `act` where the jail can be whole.
fn whole(act: &str, test: impl FnOnce(&str) -> Result<(), Failed>) -> Result<Completion, Failed> {
    let nothing = Subject::start("nothing", None);
    if let Some(reason) = nothing.facts.get("error") {
        return Ok(Completion::ignored_with(reason.clone()));
    }
    nothing.expect(&[("survived", "1")])?;
    check(nothing.end().success(), "the subject failed")?;
    test(act)?;
    Ok(Completion::Completed)
}
