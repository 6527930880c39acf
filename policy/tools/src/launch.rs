//! How a program of the host is started for a tool: this binary three times over, each a step
//! further in, the last of which becomes the program. Called by `main`, and described by `programs`.
//!
//! 1. [`Stage::Outer`] leaves for a process-id namespace of its own, which a user namespace makes
//!    possible, and waits. Whoever kills it kills everything that is inside, and so does the end of
//!    the thread that started it.
//! 2. [`Stage::Init`] is the first process in there: when it ends, the host kills the others. It
//!    reaps what the program leaves behind.
//! 3. [`Stage::Program`] limits itself, gives up every file but the program's own, its libraries and
//!    one directory, every socket and all that could lead further, and becomes the program.
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

use bulkhead_jail::privileges;
use command_fds::CommandFdExt;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, fchdir, getpid, getppid, pidfd_open,
    set_parent_process_death_signal, setrlimit, wait,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};

use crate::calls;

/// Exit status where the program could not be started.
pub(crate) const NOT_STARTED: u8 = 125;
/// The option of `bulkhead-tools` that begins a stage.
pub const LAUNCH: &str = "--launch";
/// Newest Landlock ABI whose rights are denied.
const LANDLOCK_ABI: ABI = ABI::V6;
/// Where libraries are, and what a program needs of the host to find them.
pub(crate) const LIBRARIES: [&str; 6] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
];
/// The loaders that the host's kernel starts dynamic programs with.
pub(crate) const LOADERS: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"];

/// A program to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// The descriptor of the directory it works in, the only one that it has.
    pub(crate) directory: RawFd,
    /// It may change what is in there.
    pub(crate) write: bool,
    /// The limits, and the other layers of the jail, are in force.
    pub(crate) jailed: bool,
    /// The process that starts it, which it does not outlive.
    pub(crate) parent: u32,
    /// A descriptor of the outermost process, for the first one inside.
    pub(crate) outer: Option<RawFd>,
    pub(crate) cpu_seconds: u64,
    pub(crate) memory: u64,
    pub(crate) file_size: u64,
    pub(crate) processes: u64,
}

/// How far in a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Outside the namespace.
    Outer,
    /// The first process inside.
    Init,
    /// What becomes the program.
    Program,
}

impl Stage {
    /// As it is written on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Outer => "outer",
            Self::Init => "init",
            Self::Program => "program",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let all = [Self::Outer, Self::Init, Self::Program];
        all.into_iter().find(|stage| stage.as_str() == text)
    }
}

/// Runs a stage, named on the command line with the description of the program.
pub fn run(stage: &str, description: &str) -> ExitCode {
    let launch = serde_json::from_str::<Launch>(description);
    let outcome = match (Stage::parse(stage), launch) {
        (Some(Stage::Outer), Ok(launch)) => outer(launch),
        (Some(Stage::Init), Ok(launch)) => init(&launch, description),
        (Some(Stage::Program), Ok(launch)) => become_program(&launch),
        _ => Err(io::Error::other("it is described wrongly")),
    };
    outcome.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "the program cannot be started: {error}");
        ExitCode::from(NOT_STARTED)
    })
}

/// This binary again, one stage further in.
fn next(stage: Stage, description: &str) -> Command {
    // The supervisor names it by its path, and so does every stage.
    let program = std::env::args_os().next().unwrap_or_default();
    let mut command = Command::new(program);
    command.args([LAUNCH, stage.as_str(), description]);
    command
}

fn outer(mut launch: Launch) -> io::Result<ExitCode> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    launch.outer = Some(own.as_raw_fd());
    // SAFETY: the flags name namespaces only, and this process has one thread and shares nothing.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWPID) }
        .map_err(|errno| io::Error::other(format!("no namespace can be made: {errno}")))?;
    // After the change of credentials, which clears it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent != Some(launch.parent) {
        return Ok(ExitCode::from(NOT_STARTED));
    }
    let description = serde_json::to_string(&launch)?;
    let mut init = next(Stage::Init, &description);
    let status = init.preserved_fds(vec![own]).status()?;
    Ok(exit_code(status))
}

fn init(launch: &Launch, description: &str) -> io::Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if let Some(outer) = launch.outer.filter(|fd| *fd > 2) {
        // SAFETY: the outermost process opened it for this one, which nobody else takes it from.
        let outer = unsafe { OwnedFd::from_raw_fd(outer) };
        let mut watched = [PollFd::new(&outer, PollFlags::IN)];
        // It may have been killed before its end would be told.
        if poll(&mut watched, Some(&Timespec::default()))? > 0 {
            return Ok(ExitCode::from(NOT_STARTED));
        }
    }
    let child = next(Stage::Program, description).spawn()?;
    let child = Pid::from_child(&child);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                let status = ExitStatus::from_raw(status.as_raw());
                return Ok(exit_code(status));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// As a shell tells it: a signal is 128 and its number.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or(0),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(NOT_STARTED))
}

fn become_program(launch: &Launch) -> io::Result<ExitCode> {
    // SAFETY: whoever launches keeps the descriptor open for this process, which does not close it.
    let directory = unsafe { BorrowedFd::borrow_raw(launch.directory.max(0)) };
    fchdir(directory)?;
    rustix::io::fcntl_setfd(directory, rustix::io::FdFlags::CLOEXEC)?;
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .env_clear()
        .envs(launch.environment.iter().map(|(name, value)| (name, value)));
    if launch.jailed {
        privileges::no_new_privileges()?;
        limit(launch)?;
        restrict(launch, directory)?;
        calls::refuse(true).map_err(io::Error::other)?;
    }
    // Only comes back when it fails.
    Err(command.exec())
}

fn limit(launch: &Launch) -> io::Result<()> {
    for (resource, value) in [
        (Resource::Core, 0),
        (Resource::Cpu, launch.cpu_seconds),
        (Resource::As, launch.memory),
        (Resource::Fsize, launch.file_size),
        (Resource::Nofile, 256),
        (Resource::Nproc, launch.processes),
        (Resource::Memlock, 0),
    ] {
        let both = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, both)?;
    }
    Ok(())
}

/// The program and its loader may be executed, libraries read, one directory used.
fn restrict(launch: &Launch, directory: BorrowedFd<'_>) -> io::Result<()> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let run = AccessFs::ReadFile | AccessFs::Execute;
    let mut rules: Vec<(PathFd, BitFlags<AccessFs>)> = Vec::new();
    let mut allow = |path: &str, access: BitFlags<AccessFs>| {
        if let Ok(file) = PathFd::new(path) {
            let access = match is_directory(path) {
                true => access,
                false => access & (run | AccessFs::WriteFile),
            };
            rules.push((file, access));
        }
    };
    for path in LIBRARIES {
        allow(path, read);
    }
    for path in LOADERS {
        allow(path, run);
    }
    allow("/dev/null", AccessFs::ReadFile | AccessFs::WriteFile);
    allow("/dev/urandom", AccessFs::ReadFile.into());
    let program = launch.program.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    allow(program, run);
    let own = match launch.write {
        true => AccessFs::from_all(LANDLOCK_ABI) & !AccessFs::Execute,
        false => read,
    };
    let status = || -> Result<RulesetStatus, RulesetError> {
        let rules = rules
            .into_iter()
            .map(|(file, access)| Ok::<_, RulesetError>(PathBeneath::new(file, access)));
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?
            .add_rules(rules)?
            .add_rule(PathBeneath::new(directory.as_fd(), own))?;
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match status().map_err(io::Error::other)? {
        RulesetStatus::NotEnforced => Err(io::Error::other("the host has no Landlock")),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn is_directory(path: &str) -> bool {
    let found = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let stat = found.and_then(|file| rustix::fs::fstat(file.as_fd()));
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}
