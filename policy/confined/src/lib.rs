//! The jail of the processes of `policy` that have one thread and need their sockets and, perhaps, a
//! directory: how they give up everything else before the first request. Called by `bulkhead-ledger` and
//! `bulkhead-decision`; what each may do is its own list of [`rules!`], which a book shows as [`table`].
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use bulkhead_jail::privileges;
use bulkhead_machine::Jail;
use bulkhead_seccomp::rules::{Argument, Rule};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{
    Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::CapabilitySet;

#[doc(hidden)]
pub use bulkhead_seccomp::rules as seccomp_rules;

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

/// What a process keeps.
#[derive(Debug)]
pub struct Kept<'k> {
    /// A directory, and what it may do with what is in there.
    pub directory: Option<(BorrowedFd<'k>, BitFlags<AccessFs>)>,
    /// The user that it was started as, whose files it writes; else, where that is root, it becomes
    /// one who owns nothing.
    pub user: bool,
    /// Its system calls.
    pub calls: &'static [Rule],
}

/// Locks the process in. Returns the layers that the host does not offer, by name; with [`Jail::Full`] a
/// missing layer is an error instead, and with [`Jail::None`] nothing happens.
///
/// # Errors
/// See [`JailError`]. The process may then be half locked in, and has to end.
pub fn enter(jail: Jail, kept: &Kept<'_>) -> Result<Vec<String>, JailError> {
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
    let filter = bulkhead_seccomp::allow(kept.calls.iter())?;
    note("no-new-privileges", privileges::no_new_privileges())?;
    note("landlock", restrict(kept))?;
    note("limits", no_core_dump())?;
    privileges::drop_bounding_set();
    if !kept.user {
        note("user", privileges::leave_root())?;
    }
    let none = CapabilitySet::empty();
    note("capabilities", privileges::drop_capabilities(none))?;
    // A change of credentials clears the signal that ends the process with its supervisor.
    let signal = set_parent_process_death_signal(Some(Signal::KILL));
    let layer = if kept.user { "capabilities" } else { "user" };
    note(layer, signal.map_err(io::Error::from))?;
    if getppid() != supervisor {
        return Err(JailError::Orphaned);
    }
    let filtered = seccompiler::apply_filter(&filter).map_err(io::Error::other);
    note("seccomp", filtered)?;
    Ok(gaps)
}

/// No file but those that are kept, no network, no abstract socket, no foreign process.
fn restrict(kept: &Kept<'_>) -> io::Result<()> {
    let status = || -> Result<RulesetStatus, RulesetError> {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?;
        if let Some((directory, allowed)) = kept.directory {
            ruleset = ruleset.add_rule(PathBeneath::new(directory, allowed))?;
        }
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match status().map_err(io::Error::other)? {
        RulesetStatus::NotEnforced => Err(io::ErrorKind::Unsupported.into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

/// A core dump would hold keys, or what partitions do.
fn no_core_dump() -> io::Result<()> {
    let none = Some(0);
    let limit = Rlimit {
        current: none,
        maximum: none,
    };
    Ok(setrlimit(Resource::Core, limit)?)
}

/// Conditions on arguments that both lists have.
pub mod arguments {
    use super::Argument;

    /// No condition.
    pub const ANY: Argument = Argument::Any;
    /// No memory becomes code.
    pub const NO_CODE: Argument = Argument::Without {
        index: 2,
        name: "PROT_EXEC",
        mask: libc::PROT_EXEC as u64,
    };
    /// Only whether a descriptor is open.
    pub const GETFD: Argument = Argument::OneOf {
        index: 1,
        values: &[("F_GETFD", libc::F_GETFD as u64)],
    };
    /// Only its own end, by `tkill`.
    pub const ABORT: Argument = Argument::OneOf {
        index: 1,
        values: &[("SIGABRT", libc::SIGABRT as u64)],
    };
    /// The same by `tgkill`.
    pub const ABORT_THREAD: Argument = Argument::OneOf {
        index: 2,
        values: &[("SIGABRT", libc::SIGABRT as u64)],
    };
}

/// Makes `RULES`, every allowed call, of lines that have its constant, a condition of [`arguments`], and
/// what it is for. Who uses it has `libc`.
#[macro_export]
macro_rules! rules {
    ($($number:ident $argument:ident $reason:literal)*) => {
        /// Every allowed call.
        const RULES: &[$crate::seccomp_rules::Rule] = &[$($crate::seccomp_rules::Rule {
            constant: stringify!($number),
            number: libc::$number,
            threads: &[],
            argument: $crate::arguments::$argument,
            reason: $reason,
        }),*];
    };
}

/// The rules as a book shows them.
pub fn table(rules: &[Rule]) -> String {
    let mut table = String::from("| call | only if | for |\n|---|---|---|\n");
    for rule in rules {
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
