//! The jail: how the process gives up everything but the exported directory, before it accepts the
//! connection and while it has a single thread. Called by `run` alone.
//!
//! The root becomes the directory itself, mounted without devices, set-user-id programs and
//! execution; Landlock allows what the server does below it, and nothing else anywhere; what
//! capabilities remain is what the ownership policy needs. docs/shared-directories.md has the list.

pub mod rules;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bulkhead_jail::namespaces::{self, MOUNT_POINTS};
use bulkhead_jail::privileges;
use bulkhead_machine::Jail;
use bulkhead_share::{FsDescription, Ownership};
use hypervisor::jail::{JailError, Layer};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, open, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{
    Resource, Rlimit, chdir, fchdir, geteuid, getppid, pivot_root, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::{CapabilitySet, capabilities};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::credentials;
use crate::error::Error;

/// Newest Landlock ABI whose rights are handled.
const LANDLOCK_ABI: ABI = ABI::V6;

/// What the server works on, seen from inside.
#[derive(Debug)]
pub struct Jailed {
    /// The exported directory, `O_PATH`.
    pub root: OwnedFd,
    /// `/proc/self/fd`, `O_PATH`.
    pub descriptors: OwnedFd,
    /// Layers that the host does not offer, by name.
    pub gaps: Vec<String>,
}

/// Locks the process in, on `directory`.
///
/// # Errors
/// The host does not offer a layer that the description demands.
pub fn enter(description: &FsDescription, directory: &OwnedFd) -> Result<Jailed, Error> {
    let kept = match description.ownership {
        Ownership::Guest => credentials::KEPT,
        Ownership::Exporter { .. } => CapabilitySet::empty(),
    };
    let held = capabilities(None).map_err(Error::host("cannot read capabilities"))?;
    let missing = kept.difference(held.permitted);
    if !missing.is_empty() || (!kept.is_empty() && !geteuid().is_root()) {
        let names: Vec<_> = missing
            .iter_names()
            .map(|(name, _)| format!("CAP_{name}"))
            .collect();
        return Err(Error::Privileges(names.join(", ")));
    }
    if description.jail == Jail::None {
        let (root, descriptors) = unconfined(directory)?;
        return Ok(Jailed {
            root,
            descriptors,
            gaps: Vec::new(),
        });
    }
    let mut gaps = Gaps {
        full: description.jail == Jail::Full,
        names: Vec::new(),
    };
    let supervisor = getppid();

    // A new namespace has mounts of its own, and the working directory is what moves into it.
    fchdir(directory).map_err(Error::host("cannot enter the directory"))?;
    let separate = gaps.note(Layer::Namespaces, namespaces::enter(None))?;
    let (root, descriptors) = unconfined(directory)?;
    let mut inside = (root, descriptors);
    let mut confined = false;
    let layer = Layer::EmptyRoot;
    if !separate {
        gaps.note(layer, Err(io::ErrorKind::Unsupported.into()))?;
    } else if let Some(found) = gaps.keep(layer, become_root(directory, description.read_only))? {
        inside = found;
        confined = true;
    }
    gaps.note(Layer::NoNewPrivileges, privileges::no_new_privileges())?;
    confined |= gaps.note(Layer::Landlock, restrict(&inside.0, description.read_only))?;
    if !confined {
        return Err(Error::Unconfined);
    }
    privileges::drop_bounding_set();
    gaps.note(Layer::Capabilities, privileges::drop_capabilities(kept))?;
    gaps.note(Layer::Limits, no_core_dump())?;

    // A change of credentials clears it.
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(Error::host("cannot follow the supervisor's end"))?;
    if getppid() != supervisor {
        return Err(JailError::Orphaned.into());
    }
    let filter = bulkhead_seccomp::allow(rules::RULES.iter())?;
    seccompiler::apply_filter(&filter).map_err(JailError::from)?;
    let (root, descriptors) = inside;
    Ok(Jailed {
        root,
        descriptors,
        gaps: gaps.names,
    })
}

/// Takes away, from every thread, what starting them and accepting the connection needed.
///
/// # Errors
/// The host refuses.
pub fn tighten() -> Result<(), Error> {
    let refused = rules::ONCE.iter().map(|call| (*call, Vec::new()));
    let filter = SeccompFilter::new(
        BTreeMap::from_iter(refused),
        SeccompAction::Allow,
        SeccompAction::KillProcess,
        TargetArch::x86_64,
    )?;
    seccompiler::apply_filter_all_threads(&BpfProgram::try_from(filter)?)
        .map_err(JailError::from)?;
    Ok(())
}

/// Layers that are missing.
struct Gaps {
    full: bool,
    names: Vec<String>,
}

impl Gaps {
    /// What `outcome` holds, if the layer is in place.
    fn keep<T>(&mut self, layer: Layer, outcome: io::Result<T>) -> Result<Option<T>, JailError> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(source) if self.full => Err(JailError::Layer { layer, source }),
            Err(_) => {
                self.names.push(layer.name().to_owned());
                Ok(None)
            }
        }
    }

    fn note(&mut self, layer: Layer, outcome: io::Result<()>) -> Result<bool, JailError> {
        self.keep(layer, outcome).map(|value| value.is_some())
    }
}

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);

/// The directory, and `/proc/self/fd`, as they are named now.
fn unconfined(directory: &OwnedFd) -> Result<(OwnedFd, OwnedFd), Error> {
    let root = openat(directory, c".", PATH, Mode::empty());
    let descriptors = open(c"/proc/self/fd", PATH, Mode::empty());
    Ok((
        root.map_err(Error::host("cannot open the directory"))?,
        descriptors.map_err(Error::host("cannot open /proc/self/fd; mount /proc"))?,
    ))
}

/// Makes the working directory, which is `directory`, the root of this mount namespace. Returns it
/// and `/proc/self/fd`, each the top of a mount of its own: above it there is nothing.
fn become_root(directory: &OwnedFd, read_only: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let descriptors = open_tree(CWD, c"/proc/self/fd", clone)?;
    // Recursively, because a user namespace may not uncover what is mounted over; the server does
    // not enter what is mounted below.
    let tree = open_tree(CWD, c".", clone | OpenTreeFlags::AT_RECURSIVE)?;
    let (ours, theirs) = (fstat(&tree)?, fstat(directory)?);
    if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let mut moved = Err(rustix::io::Errno::NOENT);
    for point in MOUNT_POINTS {
        moved = move_mount(&tree, c"", CWD, point, from);
        if moved.is_ok() {
            break;
        }
    }
    moved?;
    fchdir(&tree)?;
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let is_read_only = fstatvfs(&tree)?.f_flag.contains(StatVfsMountFlags::RDONLY);
    flags.set(MountFlags::RDONLY, read_only || is_read_only);
    mount_remount(c".", flags, c"")?;
    // As in namespaces::empty_root.
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    chdir(c"/")?;
    Ok((open(c"/", PATH, Mode::empty())?, descriptors))
}

/// Denies everything Landlock knows but work on files below `root`. Before ABI 2 it would deny
/// renaming between directories: then it is not used.
fn restrict(root: &OwnedFd, read_only: bool) -> io::Result<()> {
    let status = || -> Result<RulesetStatus, RulesetError> {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?
            .add_rule(PathBeneath::new(root.as_fd(), allowed(read_only)))?;
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match status().map_err(io::Error::other)? {
        RulesetStatus::NotEnforced => Err(io::ErrorKind::Unsupported.into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn allowed(read_only: bool) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    if read_only {
        return read;
    }
    read | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::Refer
        | AccessFs::RemoveDir
        | AccessFs::RemoveFile
        | AccessFs::MakeDir
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::MakeFifo
        | AccessFs::MakeSym
}

fn no_core_dump() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    Ok(setrlimit(Resource::Core, none)?)
}
