//! The jail: how the process gives up everything but its sockets, before it reads the conditions.
//! docs/policy.md has the table of its system calls, and a test fails where the two differ.

use std::io;

use bulkhead_jail::privileges;
use bulkhead_machine::Jail;
use bulkhead_seccomp::rules::{Argument, Rule};
use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{
    Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::CapabilitySet;

/// Newest Landlock ABI whose rights are denied. A host that knows fewer enforces those.
const LANDLOCK_ABI: ABI = ABI::V6;

/// The jail could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The host does not offer a layer, and the description demands all of them.
    #[error(
        "the host refuses the jail layer {layer}: {source}; allow it, or run with a best-effort jail"
    )]
    Layer {
        /// Which.
        layer: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The supervisor ended meanwhile.
    #[error("the supervisor is gone")]
    Orphaned,
    /// The seccomp filter does not compile.
    #[error(transparent)]
    Filter(#[from] bulkhead_seccomp::TooLong),
}

impl JailError {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Layer { .. } => "jail-layer",
            Self::Orphaned => "supervisor-gone",
            Self::Filter(_) => "jail-seccomp",
        }
    }
}

/// Locks the process in: nothing is left but the sockets that it has. Returns the layers that the host
/// does not offer, by name; with [`Jail::Full`] a missing layer is an error instead, and with
/// [`Jail::None`] nothing happens.
///
/// # Errors
/// See [`JailError`]. The process may then be half locked in, and has to end.
pub fn enter(jail: Jail) -> Result<Vec<String>, JailError> {
    if jail == Jail::None {
        return Ok(Vec::new());
    }
    let mut gaps = Vec::new();
    let mut note = |layer: &'static str, outcome: io::Result<()>| match outcome {
        Ok(()) => Ok(()),
        Err(source) if jail == Jail::Full => Err(JailError::Layer { layer, source }),
        Err(_) => {
            gaps.push(layer.to_owned());
            Ok(())
        }
    };
    let supervisor = getppid();
    let filter = bulkhead_seccomp::allow(RULES.iter())?;
    note("no-new-privileges", privileges::no_new_privileges())?;
    note("landlock", restrict())?;
    note("limits", no_core_dump())?;
    privileges::drop_bounding_set();
    note("user", privileges::leave_root())?;
    let none = CapabilitySet::empty();
    note("capabilities", privileges::drop_capabilities(none))?;
    // A change of credentials clears the signal that ends the process with its supervisor.
    let signal = set_parent_process_death_signal(Some(Signal::KILL));
    note("user", signal.map_err(io::Error::from))?;
    if getppid() != supervisor {
        return Err(JailError::Orphaned);
    }
    let filtered = seccompiler::apply_filter(&filter).map_err(io::Error::other);
    note("seccomp", filtered)?;
    Ok(gaps)
}

/// No file, no network, no abstract socket, no foreign process.
fn restrict() -> io::Result<()> {
    let status = || -> Result<RulesetStatus, RulesetError> {
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?;
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match status().map_err(io::Error::other)? {
        RulesetStatus::NotEnforced => Err(io::ErrorKind::Unsupported.into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

/// A core dump would hold what the partition does.
fn no_core_dump() -> io::Result<()> {
    let none = Some(0);
    let limit = Rlimit {
        current: none,
        maximum: none,
    };
    Ok(setrlimit(Resource::Core, limit)?)
}

const ANY: Argument = Argument::Any;
const NO_CODE: Argument = Argument::Without {
    index: 2,
    name: "PROT_EXEC",
    mask: libc::PROT_EXEC as u64,
};
const GETFD: Argument = Argument::OneOf {
    index: 1,
    values: &[("F_GETFD", libc::F_GETFD as u64)],
};
const ABORT: Argument = Argument::OneOf {
    index: 1,
    values: &[("SIGABRT", libc::SIGABRT as u64)],
};
const ABORT_THREAD: Argument = Argument::OneOf {
    index: 2,
    values: &[("SIGABRT", libc::SIGABRT as u64)],
};

macro_rules! rules {
    ($($number:ident $argument:ident $reason:literal)*) => {
        /// Every allowed call.
        const RULES: &[Rule] = &[$(Rule {
            constant: stringify!($number),
            number: libc::$number,
            threads: &[],
            argument: $argument,
            reason: $reason,
        }),*];
    };
}

rules! {
    SYS_ppoll           ANY          "waiting for questions"
    SYS_recvfrom        ANY          "questions"
    SYS_recvmsg         ANY          "new askers, with their sockets"
    SYS_sendto          ANY          "answers; events on the control socket"
    SYS_close           ANY          "askers that are gone"
    SYS_fcntl           GETFD        "debug builds look at a descriptor before they close it"
    SYS_write           ANY          "a line on standard error"
    SYS_clock_gettime   ANY          "the clock, where the vDSO does not serve it"
    SYS_getrandom       ANY          "seeds of hash maps"

    SYS_mmap            NO_CODE      "the allocator; stack for deep conditions"
    SYS_mprotect        NO_CODE      "the allocator of glibc; that stack"
    SYS_mremap          ANY          "the allocator, for large vectors"
    SYS_munmap          ANY          "the allocator; that stack"
    SYS_madvise         ANY          "the allocator"
    SYS_brk             ANY          "the allocator"

    SYS_futex           ANY          "the lock of standard error"
    SYS_restart_syscall ANY          "the kernel, after a stop interrupted a wait"
    SYS_rt_sigaction    ANY          "abort restores the default action"
    SYS_rt_sigprocmask  ANY          "abort"
    SYS_sigaltstack     ANY          "the standard library, at the end"
    SYS_getpid          ANY          "abort"
    SYS_gettid          ANY          "abort"
    SYS_tkill           ABORT        "abort, by musl"
    SYS_tgkill          ABORT_THREAD "abort, by glibc"
    SYS_exit_group      ANY          "the end"
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- decision seccomp: begin -->\n";
    const END: &str = "<!-- decision seccomp: end -->\n";

    fn table() -> String {
        let mut table = String::from("| call | only if | for |\n|---|---|---|\n");
        for rule in RULES {
            let name = rule.constant.trim_start_matches("SYS_");
            let condition = match rule.argument {
                Argument::Any => String::new(),
                Argument::OneOf { index, values } => {
                    let names: Vec<_> = values.iter().map(|(n, _)| format!("`{n}`")).collect();
                    format!("argument {} is {}", index + 1, names.join(" or "))
                }
                Argument::Without { index, name, .. } => {
                    format!("argument {} without `{name}`", index + 1)
                }
            };
            table += &format!("| `{name}` | {condition} | {} |\n", rule.reason);
        }
        table
    }

    #[test]
    fn the_book_shows_the_rules() {
        let book = include_str!("../../../../docs/policy.md");
        let after = book.split_once(BEGIN).map(|(_, after)| after);
        let shown = after.and_then(|after| after.split_once(END));
        let shown = shown.map_or("", |(table, _)| table);
        assert!(
            shown == table(),
            "put this between the markers:\n{}",
            table()
        );
    }

    #[test]
    fn calls_are_listed_once_and_compile() {
        let mut numbers: Vec<i64> = RULES.iter().map(|rule| rule.number).collect();
        numbers.sort_unstable();
        let count = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
        assert!(bulkhead_seccomp::allow(RULES.iter()).is_ok());
    }
}
