//! The jail: how the process gives up everything but the granted directories and programs, before it
//! accepts the first connection and while it has a single thread. Called by `process` alone.
//!
//! The root becomes an empty filesystem into which only what was granted is mounted; the network is
//! an empty one; Landlock allows the same directories and nothing else; no capability remains.
//! docs/tools.md has the list.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use bulkhead_jail::namespaces::{self, MOUNT_POINTS};
use bulkhead_jail::privileges;
use bulkhead_toolbox::Jail;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, mkdirat, openat, symlinkat,
};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{
    Resource, Rlimit, Signal, chdir, fchdir, getppid, pivot_root, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::CapabilitySet;

use crate::calls;
use crate::directories::Root;
use crate::error::Error;
use crate::programs::Launcher;

/// Newest Landlock ABI whose rights are handled.
const LANDLOCK_ABI: ABI = ABI::V6;
/// How much of the new root's own filesystem there is: names alone.
const ROOT_OPTIONS: &std::ffi::CStr = c"size=64k,mode=0755";

/// Where this binary is found from inside, to start programs with.
const BINARY: &str = "/bulkhead-tools";
/// What a program of the host needs of it, beside itself.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/dev/urandom",
    NULL,
];
/// What every program opens.
const NULL: &str = "/dev/null";
/// What a mount of the host forbids it forbids here too.
const KEPT: [(StatVfsMountFlags, MountFlags); 4] = [
    (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
    (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
    (StatVfsMountFlags::NODEV, MountFlags::NODEV),
    (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
];

/// What is found at a path of the new root.
struct Tree {
    path: PathBuf,
    what: What,
}

enum What {
    /// A link to there.
    Link(PathBuf),
    /// A directory or file of the host, with these restrictions beside its own.
    Mount {
        tree: OwnedFd,
        is_directory: bool,
        flags: MountFlags,
    },
}

/// What the process keeps.
pub(crate) struct Kept<'k> {
    /// The granted directories, which are opened anew from inside.
    pub(crate) roots: &'k mut [Root],
    /// Where back-ups are.
    pub(crate) backups: &'k OwnedFd,
    /// The programs that are granted by their paths, where any are granted at all: with none, nothing
    /// of the host's system is kept.
    pub(crate) programs: Option<&'k [PathBuf]>,
}

/// Locks the process in. Returns how programs are started from inside, and the layers that the host
/// does not offer, by name.
///
/// # Errors
/// A layer is missing that `jail` demands. The process may be half locked in, and has to end.
pub(crate) fn enter(jail: Jail, kept: Kept<'_>) -> Result<(Launcher, Vec<String>), Error> {
    let own = std::env::current_exe().map_err(Error::host("find this program"))?;
    let mut launcher = Launcher {
        binary: own.clone(),
        jailed: jail != Jail::None,
    };
    if jail == Jail::None {
        return Ok((launcher, Vec::new()));
    }
    let mut gaps = Gaps {
        full: jail == Jail::Full,
        names: Vec::new(),
    };
    let supervisor = getppid();
    let mut confined = false;
    let separate = gaps.note("namespaces", namespaces::enter(None))?;
    let rooted = match separate {
        true => become_root(kept.roots, kept.programs, &own),
        false => Err(io::ErrorKind::Unsupported.into()),
    };
    if gaps.note("empty-root", rooted)? {
        confined = true;
        launcher.binary = PathBuf::from(BINARY);
    }
    gaps.note("no-new-privileges", privileges::no_new_privileges())?;
    confined |= gaps.note("landlock", restrict(&kept, &launcher.binary))?;
    if !confined {
        return Err(Error::Unconfined);
    }
    privileges::drop_bounding_set();
    let none = CapabilitySet::empty();
    gaps.note("capabilities", privileges::drop_capabilities(none))?;
    gaps.note("limits", no_core_dump())?;
    // A change of credentials clears it.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Error::host("follow the supervisor's end"))?;
    if getppid() != supervisor {
        let gone = io::Error::other("the supervisor is gone");
        return Err(Error::host("be locked in")(gone));
    }
    let refused = calls::refuse(false).map_err(io::Error::other);
    gaps.note("seccomp", refused)?;
    Ok((launcher, gaps.names))
}

/// Layers that are missing.
struct Gaps {
    full: bool,
    names: Vec<String>,
}

impl Gaps {
    fn note(&mut self, layer: &'static str, outcome: io::Result<()>) -> Result<bool, Error> {
        match outcome {
            Ok(()) => Ok(true),
            Err(source) if self.full => Err(Error::Jail { layer, source }),
            Err(_) => {
                self.names.push(layer.to_owned());
                Ok(false)
            }
        }
    }
}

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// Recursively, because a user namespace may not uncover what is mounted over; tools do not enter what
/// is mounted below.
const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_RECURSIVE);

/// Makes a new root of what is granted. A new namespace has mounts of its own, so each directory is
/// found again by its path, and has to be the one that was granted.
fn become_root(roots: &mut [Root], programs: Option<&[PathBuf]>, own: &Path) -> io::Result<()> {
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let trees = programs.map(|programs| system(programs, own)).transpose()?;
    let mut trees = trees.unwrap_or_default();
    // After the system, in which some may lie.
    for root in roots.iter() {
        let mut flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        flags.set(MountFlags::RDONLY, !root.write);
        let tree = open_tree(CWD, &root.path, CLONE)?;
        let (ours, theirs) = (fstat(&tree)?, fstat(&root.file)?);
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let what = What::Mount {
            tree,
            is_directory: true,
            flags,
        };
        let path = root.path.clone();
        trees.push(Tree { path, what });
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mut mounted = Err(rustix::io::Errno::NOENT);
    for point in MOUNT_POINTS {
        mounted = mount("bulkhead", point, "tmpfs", flags, ROOT_OPTIONS);
        mounted = mounted.and_then(|()| chdir(point));
        if mounted.is_ok() {
            break;
        }
    }
    mounted?;
    for tree in &trees {
        place(tree)?;
    }
    mount_remount(c".", MountFlags::BIND | flags | MountFlags::RDONLY, c"")?;
    // As in namespaces::empty_root.
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    chdir(c"/")?;
    for root in roots {
        root.file = openat(CWD, &root.path, PATH | OFlags::DIRECTORY, Mode::empty())?;
    }
    Ok(())
}

/// What programs need: the host's system, to be read and executed, and this binary.
fn system(programs: &[PathBuf], own: &Path) -> io::Result<Vec<Tree>> {
    let mut trees = Vec::new();
    let within = |path: &Path| SYSTEM.iter().any(|system| path.starts_with(system));
    let others = programs
        .iter()
        .map(PathBuf::as_path)
        .filter(|path| !within(path));
    let paths = SYSTEM.iter().map(Path::new).chain(others);
    for path in paths {
        let found = match std::fs::symlink_metadata(path) {
            Ok(found) => found,
            // Not every host has each.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let path = path.to_owned();
        let what = match found.is_symlink() {
            true => What::Link(std::fs::read_link(&path)?),
            false => mounted(&path, found.is_dir())?,
        };
        trees.push(Tree { path, what });
    }
    trees.push(Tree {
        path: PathBuf::from(BINARY),
        what: mounted(own, false)?,
    });
    Ok(trees)
}

fn mounted(path: &Path, is_directory: bool) -> io::Result<What> {
    let mut flags = MountFlags::RDONLY | MountFlags::NOSUID;
    flags.set(MountFlags::NODEV, !path.starts_with("/dev"));
    Ok(What::Mount {
        tree: open_tree(CWD, path, CLONE)?,
        is_directory,
        flags,
    })
}

/// Puts a tree at its path below the working directory, and comes back there.
fn place(tree: &Tree) -> io::Result<()> {
    let top = openat(CWD, c".", PATH | OFlags::DIRECTORY, Mode::empty())?;
    let mut at = openat(CWD, c".", PATH | OFlags::DIRECTORY, Mode::empty())?;
    let relative = tree.path.strip_prefix("/").unwrap_or(&tree.path);
    for part in relative.parent().unwrap_or(Path::new("")) {
        at = enter_new(&at, Path::new(part))?;
    }
    let name = Path::new(relative.file_name().unwrap_or_default());
    fchdir(&at)?;
    match &tree.what {
        What::Link(target) => symlinkat(target, CWD, name)?,
        What::Mount {
            tree,
            is_directory,
            flags,
        } => {
            match is_directory {
                true => drop(enter_new(&at, name)?),
                false => {
                    let new = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
                    openat(CWD, name, new, Mode::RUSR)?;
                }
            }
            let mut flags = *flags | MountFlags::BIND;
            let host = fstatvfs(tree)?.f_flag;
            let kept = KEPT.iter().filter(|(of_host, _)| host.contains(*of_host));
            kept.for_each(|(_, ours)| flags |= *ours);
            let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(tree, c"", CWD, name, from)?;
            mount_remount(name, flags, c"")?;
        }
    }
    fchdir(&top)?;
    Ok(())
}

/// The directory `name` in `directory`, which is made if need be.
fn enter_new(directory: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    match mkdirat(directory, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

/// Denies everything Landlock knows but work on files below the granted directories and on back-ups,
/// and starting programs. Before ABI 2 it would deny renaming between directories: then it is not
/// used.
fn restrict(kept: &Kept<'_>, binary: &Path) -> io::Result<()> {
    let roots = kept.roots.iter();
    let roots = roots.map(|root| (root.file.as_fd(), allowed(root.write)));
    let mut system = Vec::new();
    if let Some(programs) = kept.programs {
        let programs = programs.iter().map(PathBuf::as_path);
        let paths = SYSTEM.iter().map(Path::new).chain(programs).chain([binary]);
        for path in paths {
            // Those that are not there cannot be used either.
            if let Ok(file) = openat(CWD, path, PATH, Mode::empty()) {
                let mut access = AccessFs::ReadFile | AccessFs::Execute;
                if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::Directory {
                    access |= AccessFs::ReadDir;
                }
                if path == Path::new(NULL) {
                    access |= AccessFs::WriteFile;
                }
                system.push((file, access));
            }
        }
    }
    let system = system.iter().map(|(file, access)| (file.as_fd(), *access));
    let backups = [(kept.backups.as_fd(), allowed(true))];
    let status = || -> Result<RulesetStatus, RulesetError> {
        let rules = roots.chain(backups).chain(system);
        let rules =
            rules.map(|(file, access)| Ok::<_, RulesetError>(PathBeneath::new(file, access)));
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?
            .add_rules(rules)?;
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match status().map_err(io::Error::other)? {
        RulesetStatus::NotEnforced => Err(io::ErrorKind::Unsupported.into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn allowed(write: bool) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    if !write {
        return read;
    }
    read | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::Refer
        | AccessFs::RemoveDir
        | AccessFs::RemoveFile
        | AccessFs::MakeDir
        | AccessFs::MakeReg
        | AccessFs::MakeSym
}

fn no_core_dump() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    Ok(setrlimit(Resource::Core, none)?)
}
