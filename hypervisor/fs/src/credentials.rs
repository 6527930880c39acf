//! Acting as a user of the guest, on the calling thread alone. Used by the server.
//!
//! Ids change by the system calls of a thread, not by the C library's of a process. The thread's
//! real and saved user stay root, which is what brings it back.

use rustix::io::{Errno, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, set_capabilities, set_thread_res_gid,
    set_thread_res_uid,
};

/// What the process keeps with [`Ownership::Guest`](bulkhead_share::Ownership).
pub const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

const ROOT: (Uid, Gid) = (Uid::ROOT, Gid::ROOT);

/// Runs `act` so that what it creates belongs to `uid` and `gid`. The guest's kernel has checked
/// permissions, with all groups of the user, which this side does not know: so they are not
/// checked again.
///
/// # Errors
/// `EINVAL` for an id that is none, or what the host or `act` say.
pub(crate) fn acting_as<T>(uid: u32, gid: u32, act: impl FnOnce() -> Result<T>) -> Result<T> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    if (uid, gid) == (0, 0) {
        return act();
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_res_gid(ROOT.1, gid, ROOT.1)?;
    let outcome = set_thread_res_uid(ROOT.0, uid, ROOT.0)
        .and_then(|()| effective(CapabilitySet::DAC_OVERRIDE))
        .and_then(|()| act());
    // A thread that stayed somebody else would do what follows in a wrong name: it must not go on.
    let back = set_thread_res_uid(ROOT.0, ROOT.0, ROOT.0)
        .and_then(|()| set_thread_res_gid(ROOT.1, ROOT.1, ROOT.1))
        .and_then(|()| effective(KEPT));
    if back.is_err() {
        std::process::abort();
    }
    outcome
}

/// Runs `act` without `CAP_FSETID`, so that writing and truncating take set-id bits away.
///
/// # Errors
/// What the host or `act` say.
pub(crate) fn killing_set_ids<T>(act: impl FnOnce() -> Result<T>) -> Result<T> {
    effective(KEPT.difference(CapabilitySet::FSETID))?;
    let outcome = act();
    if effective(KEPT).is_err() {
        std::process::abort();
    }
    outcome
}

fn effective(set: CapabilitySet) -> Result<()> {
    let now = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: set & now.permitted,
            ..now
        },
    )
}
