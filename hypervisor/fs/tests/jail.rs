//! The jail of `bulkhead-fs`, from inside: each test starts this program again, which enters the jail
//! and dies of what it may not do. A harness of its own: see the subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/subject/mod.rs"]
mod subject;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use bulkhead_machine::{Fd, Jail};
use bulkhead_share::{FsDescription, Ownership, VERSION};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::fs::{Mode, OFlags, open};
use shared_directory::jail;
use subject::{Subject, case, check, dies, say};
use tempfile::TempDir;

fn main() -> ExitCode {
    match case() {
        Some(case) => inside(&case),
        None => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

/// Enters the jail on the directory behind the act's name, as a process that serves; then acts.
fn inside(case: &str) -> ExitCode {
    let (act, directory) = case.rsplit_once(' ').unwrap();
    let exported = open(directory, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let nothing = Fd(-1);
    let (uid, gid) = (1000, 1000);
    let description = FsDescription {
        version: VERSION,
        name: "test".into(),
        socket: nothing,
        control: None,
        directory: nothing,
        read_only: false,
        ownership: Ownership::Exporter { uid, gid },
        jail: Jail::Full,
    };
    let parent = i64::from(rustix::process::getppid().unwrap().as_raw_pid());
    let jailed = match jail::enter(&description, &exported) {
        Ok(jailed) => jailed,
        Err(error) => {
            say("error", error);
            return ExitCode::SUCCESS;
        }
    };
    if act == "start a thread" {
        std::thread::spawn(|| ()).join().unwrap();
    }
    jail::tighten().unwrap();
    match act {
        "nothing" | "start a thread" => {}
        "look outside" => {
            say("inside", File::open("/here").is_ok());
            let outside = ["/../there", "../there", "/etc/passwd", "/proc/self/status"];
            say(
                "outside",
                outside.iter().any(|path| File::open(path).is_ok()),
            );
        }
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "exec" => drop(Command::new("/bin/true").exec()),
        "thread" => drop(std::thread::spawn(|| ()).join()),
        "accept" => call(libc::SYS_accept4, [0; 4]),
        "kill" => call(libc::SYS_kill, [parent, 0, 0, 0]),
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), parent, 0, 0]),
        "unshare" => call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0]),
        "mount" => call(libc::SYS_mount, [0; 4]),
        "filter" => call(libc::SYS_seccomp, [0; 4]),
        "map code" => {
            let code = libc::PROT_READ | libc::PROT_EXEC;
            call(libc::SYS_mmap, [0, 4096, code.into(), 0x22]);
        }
        other => panic!("no act {other}"),
    }
    say("survived", 1);
    drop(jailed);
    ExitCode::SUCCESS
}

fn call(number: i64, [a, b, c, d]: [i64; 4]) {
    // SAFETY: none of the calls above reads or writes memory of this process.
    unsafe { libc::syscall(number, a, b, c, d, -1, 0) };
}

fn trials() -> Vec<Trial> {
    let mut trials = vec![
        Trial::ignorable_test("a server sees its directory alone", || {
            on_a_directory("look outside", |case| {
                let facts = [("inside", "true"), ("outside", "false"), ("survived", "1")];
                Subject::start(case, None).expect(&facts)
            })
        }),
        Trial::ignorable_test("a server may start a thread at its start", || {
            on_a_directory("start a thread", survives)
        }),
    ];
    for act in [
        "socket", "exec", "thread", "accept", "kill", "ptrace", "unshare", "mount", "filter",
        "map code",
    ] {
        let title = format!("a server dies of {act}");
        trials.push(Trial::ignorable_test(title, move || {
            on_a_directory(act, dies)
        }));
    }
    trials
}

fn survives(case: &str) -> Result<(), Failed> {
    Subject::start(case, None).expect(&[("survived", "1")])
}

/// Tries `act` where the jail can be whole.
fn on_a_directory(
    act: &str,
    test: impl FnOnce(&str) -> Result<(), Failed>,
) -> Result<Completion, Failed> {
    let scratch = TempDir::new()?;
    let exported = scratch.path().join("exported");
    fs::create_dir(&exported)?;
    fs::write(exported.join("here"), "")?;
    fs::write(scratch.path().join("there"), "")?;
    let case = |act: &str, directory: &Path| format!("{act} {}", directory.display());
    let nothing = Subject::start(&case("nothing", &exported), None);
    if let Some(reason) = nothing.facts.get("error") {
        return Ok(Completion::ignored_with(reason.clone()));
    }
    nothing.expect(&[("survived", "1")])?;
    check(nothing.end().success(), "the subject failed")?;
    test(&case(act, &exported))?;
    Ok(Completion::Completed)
}
