//! The jail: how the process gives up everything it does not need, before guest code runs.
//! Called by `main` alone, in this order:
//!
//! 1. [`outlive_file_size_limit`], and [`close_inherited`] before anything is opened: descriptors
//!    that nobody meant to hand over are closed.
//! 2. [`enter`], when every descriptor is open, memory is mapped and the vCPUs exist, and while
//!    the process has a single thread: a user namespace cannot be entered otherwise. The first
//!    `KVM_RUN` would end that too, as recent kernels then give the process a worker of KVM's.
//! 3. [`confine`], with one of [`filters`]: each vCPU thread puts its own in force when it starts,
//!    and the event loop last.
//!
//! What each layer is for, and what it costs: docs/security.md.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use bulkhead_jail::{namespaces, privileges};
use bulkhead_machine::Jail;
use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{
    Resource, Rlimit, getppid, parent_process_death_signal, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::CapabilitySet;
use seccompiler::{BpfProgramRef, apply_filter};
use vmm_sys_util::signal::register_signal_handler;

/// Newest Landlock ABI whose rights are all denied. A host that knows fewer enforces those.
const LANDLOCK_ABI: ABI = ABI::V6;

/// A layer of the jail, by the name users see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Own mount, network, IPC and host-name namespaces, inside a user namespace where the process
    /// has no privileges to begin with.
    Namespaces,
    /// An empty, read-only root directory.
    EmptyRoot,
    /// A user of its own, where it started as root.
    User,
    /// No capabilities, now or ever.
    Capabilities,
    /// No new privileges through `execve`.
    NoNewPrivileges,
    /// No file, TCP port, abstract socket or foreign process can be reached.
    Landlock,
    /// No new descriptors, no core dumps.
    Limits,
}

impl Layer {
    /// Stable name, as in `jail_gaps`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::EmptyRoot => "empty-root",
            Self::User => "user",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no-new-privileges",
            Self::Landlock => "landlock",
            Self::Limits => "limits",
        }
    }
}

/// The jail could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The host does not offer a layer, and the description demands all of them.
    #[error(
        "the host refuses the jail layer {}: {source}; allow it, or run with a best-effort jail",
        layer.name()
    )]
    Layer {
        /// Which.
        layer: Layer,
        /// What the host said.
        source: io::Error,
    },
    /// Descriptors could not be closed.
    #[error("cannot close inherited descriptors: {0}")]
    Close(io::Error),
    /// The supervisor ended meanwhile.
    #[error("the supervisor is gone")]
    Orphaned,
    /// A seccomp filter was refused.
    #[error("cannot install a seccomp filter: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

impl JailError {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Layer { .. } => "jail-layer",
            Self::Close(_) => "jail-descriptors",
            Self::Orphaned => "supervisor-gone",
            Self::Seccomp(_) => "jail-seccomp",
        }
    }
}

/// Closes every descriptor from 3 on that is not in `keep`.
///
/// # Errors
/// The host refuses.
pub fn close_inherited(keep: &[RawFd]) -> Result<(), JailError> {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .filter(|fd| *fd > 2)
        .collect();
    keep.sort_unstable();
    keep.dedup();
    let mut first = 3;
    for kept in keep {
        close_range(first, kept.saturating_sub(1))?;
        first = kept.saturating_add(1);
    }
    close_range(first, u32::MAX)
}

/// Closes `first..=last`; nothing where that is empty.
fn close_range(first: u32, last: u32) -> Result<(), JailError> {
    if first > last {
        return Ok(());
    }
    // SAFETY: the descriptors were inherited and are named by nobody: callers list all that the
    // process uses, and nothing has been opened yet.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(JailError::Close(io::Error::last_os_error()))
    }
}

/// Makes a write beyond the user's limit on file sizes an error of that write, as on a full disk:
/// `SIGXFSZ` would end the process, at a moment the guest chooses.
///
/// # Errors
/// The host refuses.
pub fn outlive_file_size_limit() -> Result<(), JailError> {
    register_signal_handler(libc::SIGXFSZ, pass_over).map_err(|error| JailError::Layer {
        layer: Layer::Limits,
        source: error.into(),
    })
}

extern "C" fn pass_over(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Locks the process in. Returns the layers that the host does not offer, by name; with
/// [`Jail::Full`] a missing layer is an error instead, and with [`Jail::None`] nothing happens.
/// Afterwards the process can open, or be sent, `room` descriptors beyond those it has. `network` is
/// an empty network namespace that spares the creation of another.
///
/// # Errors
/// See [`JailError`]. The process may then be half locked in, and has to end.
pub fn enter(level: Jail, room: usize, network: Option<File>) -> Result<Vec<String>, JailError> {
    if level == Jail::None {
        return Ok(Vec::new());
    }
    let mut gaps = Gaps {
        level,
        names: Vec::new(),
    };
    // A change of credentials clears the signal that ends the process with its supervisor.
    let death_signal = parent_process_death_signal().ok().flatten();
    let supervisor = getppid();

    let separate = gaps.note(
        Layer::Namespaces,
        namespaces::enter(network.as_ref().map(AsFd::as_fd)),
    )?;
    drop(network);
    if separate {
        gaps.note(Layer::EmptyRoot, namespaces::empty_root())?;
    } else {
        gaps.note(Layer::EmptyRoot, Err(io::ErrorKind::Unsupported.into()))?;
    }
    gaps.note(Layer::NoNewPrivileges, privileges::no_new_privileges())?;
    gaps.note(Layer::Landlock, deny_all())?;
    privileges::drop_bounding_set();
    gaps.note(Layer::User, privileges::leave_root())?;
    gaps.note(
        Layer::Capabilities,
        privileges::drop_capabilities(CapabilitySet::empty()),
    )?;
    gaps.note(Layer::Limits, limit(room))?;

    set_parent_process_death_signal(death_signal).map_err(|errno| JailError::Layer {
        layer: Layer::User,
        source: errno.into(),
    })?;
    if getppid() != supervisor {
        return Err(JailError::Orphaned);
    }
    Ok(gaps.names)
}

/// What each kind of thread may ask the kernel for: made by `hypervisor/seccomp` when this was built.
#[allow(missing_docs, reason = "generated")]
pub mod filters {
    use seccompiler::sock_filter;

    include!(concat!(env!("OUT_DIR"), "/filters.rs"));
}

/// Puts `filter` in force for the calling thread, and those it starts later.
///
/// # Errors
/// The host refuses.
pub fn confine(level: Jail, filter: BpfProgramRef<'_>) -> Result<(), JailError> {
    match level {
        Jail::None => Ok(()),
        Jail::Full | Jail::BestEffort => Ok(apply_filter(filter)?),
    }
}

/// Layers that are missing.
struct Gaps {
    level: Jail,
    names: Vec<String>,
}

impl Gaps {
    /// Whether `layer` is in place.
    fn note(&mut self, layer: Layer, outcome: io::Result<()>) -> Result<bool, JailError> {
        match outcome {
            Ok(()) => Ok(true),
            Err(source) if self.level == Jail::Full => Err(JailError::Layer { layer, source }),
            Err(_) => {
                self.names.push(layer.name().to_owned());
                Ok(false)
            }
        }
    }
}

/// Denies every right Landlock knows. What is already open stays usable.
fn deny_all() -> io::Result<()> {
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

/// No core dump, which would hold the guest's memory, and no more than `room` further descriptors.
fn limit(room: usize) -> io::Result<()> {
    for (resource, value) in [(Resource::Core, 0), (Resource::Nofile, first_closed(room))] {
        setrlimit(
            resource,
            Rlimit {
                current: Some(value),
                maximum: Some(value),
            },
        )?;
    }
    Ok(())
}

/// The number below which `room` descriptors are closed. At least 3: `poll` wants the limit to cover
/// its list.
fn first_closed(room: usize) -> u64 {
    let is_closed = |fd: &RawFd| {
        // SAFETY: the borrow ends with this statement, and the number is only asked about.
        rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(*fd) }).is_err()
    };
    (0..)
        .filter(is_closed)
        .nth(room)
        .map_or(3, |fd| fd.max(3) as u64)
}
