//! Users, capabilities and privileges. Used by the jails of the VMM and of its back ends.

use std::io;

use rustix::process::{geteuid, getpid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// First of the user ids given to processes that start as root. The range up to the largest process id
/// above it is assigned to nobody (systemd's "Users, Groups, UIDs and GIDs" calls it unused), so
/// that each has a user of its own as long as it lives.
const FIRST_UID: u32 = 1_879_048_192;
/// The overflow user, where the range is not mapped (in a container).
const NOBODY: u32 = 65_534;

/// No `execve` gives privileges from here on.
///
/// # Errors
/// The host refuses.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// Changes from root to a user that owns nothing; nothing to do for others.
///
/// # Errors
/// The host refuses.
pub fn leave_root() -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let own = FIRST_UID.saturating_add(getpid().as_raw_nonzero().get().unsigned_abs());
    become_user(own).or_else(|_| become_user(NOBODY))
}

fn become_user(id: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Empties the bounding set, while that is still allowed: before [`leave_root`].
pub fn drop_bounding_set() {
    for capability in CapabilitySet::all().iter() {
        // Refused without CAP_SETPCAP, which a process that was never privileged does not have,
        // and for capabilities this kernel does not know. With no new privileges, no `execve`
        // could draw on the bounding set anyway.
        let _ = remove_capability_from_bounding_set(capability);
    }
}

/// Empties all other capability sets but for `kept`, which no `execve` passes on.
///
/// # Errors
/// The host refuses, or the process does not have `kept`.
pub fn drop_capabilities(kept: CapabilitySet) -> io::Result<()> {
    clear_ambient_capability_set()?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}
