//! The jail of the processes of `policy` that need their sockets and, perhaps, a directory or some ports:
//! how they give up everything else before the first request. Called by `bulkhead-ledger`,
//! `bulkhead-decision` and `bulkhead-gateway`. What each may call is its own list; of the first two one of
//! [`rules!`], which a book shows as [`table`].
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use bulkhead_jail::privileges;
use bulkhead_machine::Jail;
use bulkhead_seccomp::rules::{Argument, Rule};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getppid, getrlimit, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::CapabilitySet;
use seccompiler::BpfProgramRef;

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
    #[error("cannot compile the seccomp filter: {0}")]
    Filter(Box<dyn std::error::Error + Send + Sync>),
}

impl JailError {
    /// For `map_err` where a filter is compiled.
    pub fn filter(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Filter(Box::new(error))
    }

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
    /// Ports that its TCP connections may go to; without a list, any. It listens on none.
    pub ports: Option<Vec<u16>>,
    /// Most descriptors that it has open; without a number, what the host allows.
    pub descriptors: Option<u64>,
}

impl Kept<'_> {
    /// What it has open, and no more.
    pub const NOTHING: Self = Self {
        directory: None,
        user: false,
        ports: Some(Vec::new()),
        descriptors: None,
    };
}

/// A process that is locked in except for its system calls: it may still start threads, which are
/// locked in as it is.
#[must_use = "seal it"]
#[derive(Debug)]
pub struct Entered {
    jail: Jail,
    gaps: Vec<String>,
}

/// Locks the process in, up to its last layer. With [`Jail::None`] nothing happens.
///
/// # Errors
/// See [`JailError`]. The process may then be half locked in, and has to end.
pub fn enter(jail: Jail, kept: &Kept<'_>) -> Result<Entered, JailError> {
    let gaps = Vec::new();
    let mut entered = Entered { jail, gaps };
    if jail == Jail::None {
        return Ok(entered);
    }
    let supervisor = getppid();
    entered.note("no-new-privileges", privileges::no_new_privileges())?;
    entered.note("landlock", restrict(kept))?;
    entered.note("limits", limit(kept.descriptors))?;
    privileges::drop_bounding_set();
    if !kept.user {
        entered.note("user", privileges::leave_root())?;
    }
    let none = CapabilitySet::empty();
    entered.note("capabilities", privileges::drop_capabilities(none))?;
    // A change of credentials clears the signal that ends the process with its supervisor.
    let signal = set_parent_process_death_signal(Some(Signal::KILL));
    let layer = if kept.user { "capabilities" } else { "user" };
    entered.note(layer, signal.map_err(io::Error::from))?;
    if getppid() != supervisor {
        return Err(JailError::Orphaned);
    }
    // Nobody of the same user reads its memory, in which keys and secrets are, or what partitions do.
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    entered.note(layer, hidden.map_err(io::Error::from))?;
    Ok(entered)
}

impl Entered {
    fn note(&mut self, layer: &'static str, outcome: io::Result<()>) -> Result<(), JailError> {
        match outcome {
            Ok(()) => Ok(()),
            Err(source) if self.jail == Jail::Full => Err(JailError::Layer { layer, source }),
            Err(_) => {
                self.gaps.push(layer.to_owned());
                Ok(())
            }
        }
    }

    /// Takes away all system calls but those of this filter, from all threads that there are. Returns
    /// the layers that the host does not offer, by name; with [`Jail::Full`] a missing layer is an error
    /// instead.
    ///
    /// # Errors
    /// See [`JailError`]. The process has to end then.
    pub fn seal(mut self, filter: BpfProgramRef<'_>) -> Result<Vec<String>, JailError> {
        if self.jail != Jail::None {
            let filtered = seccompiler::apply_filter_all_threads(filter);
            self.note("seccomp", filtered.map_err(io::Error::other))?;
        }
        Ok(self.gaps)
    }
}

/// No file but those that are kept, no port but those, no abstract socket, no foreign process. Landlock
/// knows no addresses and no UDP.
fn restrict(kept: &Kept<'_>) -> io::Result<()> {
    let network = match kept.ports {
        Some(_) => AccessNet::from_all(LANDLOCK_ABI),
        None => AccessNet::BindTcp.into(),
    };
    let status = || -> Result<RulesetStatus, RulesetError> {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(network)?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?;
        if let Some((directory, allowed)) = kept.directory {
            ruleset = ruleset.add_rule(PathBeneath::new(directory, allowed))?;
        }
        for port in kept.ports.iter().flatten() {
            ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
        }
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match status().map_err(io::Error::other)? {
        RulesetStatus::NotEnforced => Err(io::ErrorKind::Unsupported.into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

/// No core dump, which would hold keys, or what partitions do, and no more descriptors than are needed.
fn limit(descriptors: Option<u64>) -> io::Result<()> {
    let possible = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let descriptors = descriptors.map(|most| (Resource::Nofile, most.min(possible)));
    for (resource, most) in [(Resource::Core, 0)].into_iter().chain(descriptors) {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
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
