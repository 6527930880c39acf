//! Ends a system from another process, for certain and within a second.

use crate::control::{PATIENCE, Request, ask};
use crate::error::Error;
use crate::record::SystemRecord;
use crate::state_dir::{Found, Standing, StateRoot, is_held};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

/// How long a supervisor may take to end its system before it is killed.
const GRACE: Duration = Duration::from_millis(700);
/// When `down` gives up.
const LIMIT: Duration = Duration::from_secs(1);

/// Ends a system and removes what it left, within one second: its supervisor is asked, and killed
/// when it does not answer; its VMMs die with it.
///
/// # Errors
/// It is still there after a second.
pub fn down(root: &StateRoot, found: &Found) -> Result<(), Error> {
    if found.standing == Standing::Live {
        end_live(found)?;
    }
    root.remove_finished(found)
}

fn end_live(found: &Found) -> Result<(), Error> {
    let begun = Instant::now();
    // While the lock is held the supervisor lives, so these numbers are its own and its VMMs'.
    let supervisor = process(found.record.supervisor);
    let vmms: Vec<OwnedFd> = found
        .record
        .partitions
        .iter()
        .filter_map(|partition| process(partition.vmm))
        .collect();
    let asked = ask::<SystemRecord>(found, &Request::Down, PATIENCE).is_some();
    let grace = if asked { GRACE } else { PATIENCE };
    while is_held(&found.path) && begun.elapsed() < grace {
        thread::sleep(Duration::from_millis(2));
    }
    if is_held(&found.path)
        && let Some(supervisor) = &supervisor
    {
        let _ = pidfd_send_signal(supervisor, Signal::KILL);
    }
    while is_held(&found.path) {
        if begun.elapsed() > LIMIT {
            return Err(Error::StillThere(found.name.clone()));
        }
        thread::sleep(Duration::from_millis(2));
    }
    // The VMMs of a killed supervisor get the news from the kernel; wait until each has died of it.
    for vmm in vmms {
        let left = LIMIT.saturating_sub(begun.elapsed());
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut watched = [PollFd::new(&vmm, PollFlags::IN)];
        if poll(&mut watched, Some(&wait)) == Ok(0) {
            return Err(Error::StillThere(found.name.clone()));
        }
    }
    Ok(())
}

pub(crate) fn process(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}
