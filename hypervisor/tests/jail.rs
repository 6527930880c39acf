//! The jail, from inside and outside: each test starts this program again, which enters the jail
//! and tells what it finds there, or dies of what it may not do.
//!
//! A harness of its own, because a user namespace can only be entered by a process with a single
//! thread, which a test of the standard harness never is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod subject;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode};

use bulkhead_machine::{Jail, Memory};
use hypervisor::jail::filters;
use hypervisor::jail::{JailError, close_inherited, enter, outlive_file_size_limit};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::process::{Resource, Rlimit, Signal, getuid, parent_process_death_signal, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use seccompiler::{
    BpfProgram, BpfProgramRef, SeccompAction, SeccompFilter, TargetArch, apply_filter,
};
use subject::{SIGSYS, Subject, case, check, dies, say};

/// A user that owns nothing.
const NOBODY: u32 = 65_534;
/// The stop signal, as glibc numbers it.
const STOP: i32 = 34;
/// What no jail lets a subject make.
const DIRECTORY: &str = "/tmp/bulkhead-jail-test";

fn main() -> ExitCode {
    if let Some(case) = case() {
        return inside(&case);
    }
    libtest_mimic::run(&Arguments::from_args(), trials()).exit_code()
}

// ---- the subject ----

fn inside(case: &str) -> ExitCode {
    match case {
        "full" => tell_jail(enter(Jail::Full, 0, None)),
        "shared network" => {
            let network = shared_network();
            say("network", fs::File::metadata(&network).unwrap().ino());
            tell_jail(enter(Jail::Full, 0, Some(network)));
        }
        "none" => tell_jail(enter(Jail::None, 0, None)),
        "best effort without namespaces" => {
            refuse(libc::SYS_unshare, libc::EPERM);
            tell_jail(enter(Jail::BestEffort, 0, None));
        }
        "full without namespaces" => {
            refuse(libc::SYS_unshare, libc::EPERM);
            tell_jail(enter(Jail::Full, 0, None));
        }
        "best effort without mounts" => {
            refuse(libc::SYS_mount, libc::EPERM);
            tell_jail(enter(Jail::BestEffort, 0, None));
        }
        "best effort without landlock" => {
            refuse(libc::SYS_landlock_create_ruleset, libc::ENOSYS);
            tell_jail(enter(Jail::BestEffort, 0, None));
        }
        "full without landlock" => {
            refuse(libc::SYS_landlock_create_ruleset, libc::ENOSYS);
            tell_jail(enter(Jail::Full, 0, None));
        }
        "descriptors" => tell_descriptors(),
        "file size limit" => tell_file_size_limit(),
        other => match other.split_once(' ') {
            Some(("loop", act)) => do_filtered(filters::EVENT_LOOP, act),
            Some(("vcpu", act)) => do_filtered(filters::VCPU, act),
            Some(("debugger", act)) => do_filtered(filters::DEBUGGER, act),
            _ => return ExitCode::from(99),
        },
    }
    ExitCode::SUCCESS
}

/// A new network namespace, or our own where we may not make one and not enter it either.
fn shared_network() -> fs::File {
    let open = || fs::File::open("/proc/thread-self/ns/net").unwrap();
    let made = std::thread::spawn(move || {
        // SAFETY: a network namespace is no part of the address space or the descriptor table.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        unshared.is_ok().then(open)
    });
    made.join().unwrap().unwrap_or_else(open)
}

/// Plays a host that refuses a system call.
fn refuse(number: i64, errno: i32) {
    let filter = SeccompFilter::new(
        BTreeMap::from([(number, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        TargetArch::x86_64,
    )
    .unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Tells the outcome and what can be seen from inside, then waits to be looked at from outside.
fn tell_jail(outcome: Result<Vec<String>, JailError>) {
    match outcome {
        Ok(gaps) => say("gaps", gaps.join(",")),
        Err(error) => {
            say("code", error.code());
            say("error", error);
            return;
        }
    }
    say("uid", getuid().as_raw());
    say("etc", fs::metadata("/etc").is_ok());
    say("mkdir", fs::create_dir(DIRECTORY).is_ok());
    say("open", fs::File::open("/").is_ok());
    let death_signal = parent_process_death_signal().unwrap();
    say("dies-with-parent", death_signal == Some(Signal::KILL));
    say("end", "");
    // The examiner looks at /proc now; it closes our input when it has seen enough.
    let _ = io::stdin().read_line(&mut String::new());
}

fn tell_descriptors() {
    let files: Vec<_> = (0..4)
        .map(|_| fs::File::open("/dev/null").unwrap())
        .collect();
    let numbers: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    std::mem::forget(files);
    close_inherited(&[numbers[3], 1, -1, numbers[1], numbers[1], 4000]).unwrap();
    let open = numbers.iter().map(|fd| {
        let is_open = fs::metadata(format!("/proc/self/fd/{fd}")).is_ok();
        if is_open { '1' } else { '0' }
    });
    say("open", open.collect::<String>());
}

/// Asks for more memory than a file may be long.
fn tell_file_size_limit() {
    outlive_file_size_limit().unwrap();
    let limit = Rlimit {
        current: Some(1 << 20),
        maximum: Some(1 << 20),
    };
    setrlimit(Resource::Fsize, limit).unwrap();
    // Shared memory is a file, and thus under the limit.
    let shared = Memory {
        shared: true,
        ..Memory::of_mib(2)
    };
    let outcome = hypervisor::machine::memory::map(&shared);
    say("code", outcome.err().unwrap().code());
}

/// Installs a filter and does one thing.
fn do_filtered(filter: BpfProgramRef<'_>, act: &str) {
    let other = rustix::process::getppid().unwrap().as_raw_nonzero().get();
    apply_filter(filter).unwrap();
    match act {
        "nothing" => {}
        "allocate" => drop(std::hint::black_box(vec![1u8; 8 << 20])),
        "sleep" => std::thread::sleep(std::time::Duration::from_millis(1)),
        "panic" => panic!("as a program with a fault would"),
        "open" => drop(fs::File::open("/")),
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "exec" => drop(Command::new("/bin/true").exec()),
        "fork" => drop(Command::new("/bin/true").status()),
        "thread" => drop(std::thread::spawn(|| ()).join()),
        _ => call(act, other.into()),
    }
    say("survived", 1);
}

/// Makes one system call; `other` is a process it may aim at.
fn call(act: &str, other: libc::c_long) {
    use libc::*;
    let own = i64::from(std::process::id());
    let (number, arguments): (c_long, [c_long; 4]) = match act {
        "stop" => (SYS_tgkill, [own, own, STOP.into(), 0]),
        "kill" => (SYS_kill, [other, 0, 0, 0]),
        "interrupt" => (SYS_tgkill, [other, other, SIGINT.into(), 0]),
        "ptrace" => (SYS_ptrace, [PTRACE_ATTACH.into(), other, 0, 0]),
        "unshare" => (SYS_unshare, [CLONE_NEWUSER.into(), 0, 0, 0]),
        "type at the terminal" => (SYS_ioctl, [0, TIOCSTI as c_long, 0, 0]),
        "create a vm" => (SYS_ioctl, [0, 0xae01, 0, 0]),
        "run a vcpu" => (SYS_ioctl, [0, 0xae80, 0, 0]),
        "map code" => (SYS_mmap, [0, 4096, (PROT_READ | PROT_EXEC).into(), 0x22]),
        unknown => panic!("no act {unknown}"),
    };
    let [a, b, c, d] = arguments;
    // SAFETY: none of the calls above reads or writes memory of this process.
    unsafe { syscall(number, a, b, c, d, -1, 0) };
}

// ---- the examiner ----

fn trials() -> Vec<Trial> {
    let mut trials = vec![
        Trial::test("no jail changes nothing", none),
        Trial::test("inherited descriptors are closed", descriptors),
        Trial::test("a file size limit is an error", file_size_limit),
    ];
    let mut users = vec![("as it is", None)];
    if getuid().is_root() {
        users.push(("as nobody", Some(NOBODY)));
    }
    for (name, user) in users {
        let title = format!("the full jail {name}");
        trials.push(Trial::ignorable_test(title, move || full("full", user)));
        let title = format!("the full jail with a shared network namespace {name}");
        trials.push(Trial::ignorable_test(title, move || shared(user)));
        for (case, gaps) in [
            ("best effort without namespaces", "namespaces,empty-root"),
            ("best effort without mounts", "empty-root"),
            ("best effort without landlock", "landlock"),
        ] {
            let title = format!("{case} {name}");
            trials.push(Trial::ignorable_test(title, move || {
                best_effort(case, gaps, user)
            }));
        }
        for (case, layer) in [
            ("full without namespaces", "namespaces"),
            ("full without landlock", "landlock"),
        ] {
            let title = format!("{case} {name}");
            trials.push(Trial::test(title, move || refused(case, layer, user)));
        }
    }
    for thread in ["loop", "vcpu", "debugger"] {
        for act in ["nothing", "allocate", "stop"] {
            let title = format!("{thread} may {act}");
            trials.push(Trial::test(title, move || survives(thread, act)));
        }
        for act in [
            "open",
            "socket",
            "exec",
            "fork",
            "thread",
            "kill",
            "interrupt",
            "ptrace",
            "unshare",
            "type at the terminal",
            "create a vm",
            "map code",
        ] {
            let title = format!("{thread} dies of {act}");
            trials.push(Trial::test(title, move || dies(&format!("{thread} {act}"))));
        }
        trials.push(Trial::test(format!("{thread} may panic"), move || {
            panics(thread)
        }));
    }
    trials.push(Trial::test("loop may sleep", || survives("loop", "sleep")));
    trials.push(Trial::test("vcpu may run a vcpu", || {
        survives("vcpu", "run a vcpu")
    }));
    for thread in ["loop", "debugger"] {
        trials.push(Trial::test(
            format!("{thread} dies of run a vcpu"),
            move || dies(&format!("{thread} run a vcpu")),
        ));
    }
    trials
}

fn none() -> Result<(), Failed> {
    let subject = Subject::start("none", None);
    let _ = fs::remove_dir(DIRECTORY);
    subject.expect(&[
        ("gaps", ""),
        ("etc", "true"),
        ("mkdir", "true"),
        ("open", "true"),
    ])?;
    check(subject.end().success(), "the subject failed")
}

fn descriptors() -> Result<(), Failed> {
    Subject::start("descriptors", None).expect(&[("open", "0101")])
}

fn file_size_limit() -> Result<(), Failed> {
    Subject::start("file size limit", None).expect(&[("code", "memory-refused")])
}

/// Why this host does not offer every layer to that user, if so.
fn missing(user: Option<u32>) -> Option<String> {
    let subject = Subject::start("full", user);
    subject.facts.get("error").cloned()
}

fn full(case: &str, user: Option<u32>) -> Result<Completion, Failed> {
    if let Some(reason) = missing(user) {
        return Ok(Completion::ignored_with(reason));
    }
    let subject = Subject::start(case, user);
    subject.expect(&[("gaps", ""), ("etc", "false")])?;
    for name in ["ns/mnt", "ns/net", "ns/ipc", "ns/uts"] {
        let own = fs::read_link(format!("/proc/self/{name}")).ok();
        let other = fs::read_link(subject.proc(name)).ok();
        check(
            other.is_some() && other != own,
            format!("{name} is shared: {other:?}"),
        )?;
    }
    jailed(&subject)?;
    check(subject.end().success(), "the subject failed")?;
    Ok(Completion::Completed)
}

/// What holds with every gap that is tested.
fn jailed(subject: &Subject) -> Result<(), Failed> {
    subject.expect(&[
        ("mkdir", "false"),
        ("open", "false"),
        ("dies-with-parent", "true"),
    ])?;
    check(
        subject.facts.get("uid").is_some_and(|uid| uid != "0"),
        "it is still root",
    )?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let found = subject.status(set);
        // A process that was never privileged cannot empty its bounding set.
        let empty = found.chars().all(|digit| digit == '0');
        check(empty || set == "CapBnd", format!("{set} is {found}"))?;
    }
    check(
        subject.status("NoNewPrivs") == "1",
        "privileges can be gained",
    )?;
    let limits = fs::read_to_string(subject.proc("limits")).unwrap();
    for (limit, value) in [("Max core file size", "0"), ("Max open files", "3")] {
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix(limit))
            .unwrap_or_default();
        let hard = line.split_whitespace().nth(1);
        check(hard == Some(value), format!("{limit} is {hard:?}"))?;
    }
    Ok(())
}

fn shared(user: Option<u32>) -> Result<Completion, Failed> {
    if let Some(reason) = missing(user) {
        return Ok(Completion::ignored_with(reason));
    }
    let subject = Subject::start("shared network", user);
    let entered = fs::metadata(subject.proc("ns/net"))?.ino().to_string();
    let given = subject.facts.get("network") == Some(&entered);
    let privileged = user.is_none() && getuid().is_root();
    check(given == privileged, "only who may enters the given one")?;
    check(subject.end().success(), "the subject failed")?;
    full("shared network", user)
}

fn best_effort(case: &str, gaps: &str, user: Option<u32>) -> Result<Completion, Failed> {
    if let Some(reason) = missing(user) {
        return Ok(Completion::ignored_with(reason));
    }
    let subject = Subject::start(case, user);
    subject.expect(&[("gaps", gaps)])?;
    jailed(&subject)?;
    check(subject.end().success(), "the subject failed")?;
    Ok(Completion::Completed)
}

fn refused(case: &str, layer: &str, user: Option<u32>) -> Result<(), Failed> {
    let subject = Subject::start(case, user);
    subject.expect(&[("code", "jail-layer")])?;
    let error = subject.facts.get("error").cloned().unwrap_or_default();
    check(error.contains(&format!("jail layer {layer}")), error)
}

fn survives(thread: &str, act: &str) -> Result<(), Failed> {
    let status = Subject::start(&format!("{thread} {act}"), None).end();
    // Nothing handles the stop signal here, so that it ends the process.
    let fine = status.success() || act == "stop" && status.signal() == Some(STOP);
    check(fine, format!("it ended with {status}"))
}

fn panics(thread: &str) -> Result<(), Failed> {
    let mut subject = Subject::start(&format!("{thread} panic"), None);
    let mut message = String::new();
    subject
        .child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut message)?;
    check(
        message.contains("as a program with a fault would"),
        "no message",
    )?;
    let status = subject.end();
    check(
        status.signal() != Some(SIGSYS),
        format!("it ended with {status}: {message}"),
    )
}
