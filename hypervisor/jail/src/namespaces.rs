//! Namespaces and the empty root. Used by the jails of the VMM and of its back ends.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{chdir, getgid, getuid, pivot_root};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Directories one of which every Linux system has; an empty filesystem is mounted there, in a
/// namespace nobody else sees, to become the root.
pub const MOUNT_POINTS: [&str; 3] = ["/tmp", "/proc", "/dev"];

/// Enters new mount, IPC and host-name namespaces, and a network namespace: `network`, if it is
/// given and the process may enter it, else a new one. They lie inside a new user namespace where
/// the process is not privileged to create them.
///
/// # Errors
/// The host refuses.
pub fn enter(network: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    let entered = network.is_some_and(|namespace| {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network)).is_ok()
    });
    if !entered {
        flags |= UnshareFlags::NEWNET;
    }
    if unshare(flags).is_ok() {
        return Ok(());
    }
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    unshare(flags | UnshareFlags::NEWUSER)?;
    // The kernel lets an unprivileged process map its own ids, once it forgoes `setgroups`.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags name namespaces only: neither the descriptor table nor the address space
    // stops being shared, which is what this call could do to code that relies on either.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// Makes an empty read-only filesystem the root, and lets go of the host's.
///
/// # Errors
/// The host refuses.
pub fn empty_root() -> io::Result<()> {
    // Nothing that is mounted from here on reaches the host.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = c"size=4k,nr_inodes=1,mode=0555";
    let mut mounted = Err(rustix::io::Errno::NOENT);
    for point in MOUNT_POINTS {
        mounted = mount("bulkhead", point, "tmpfs", flags, options).and_then(|()| chdir(point));
        if mounted.is_ok() {
            break;
        }
    }
    mounted?;
    // With both names the same, the old root lies on top of the new one, and is unmounted from it
    // (pivot_root(2), section Notes).
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Ok(())
}
