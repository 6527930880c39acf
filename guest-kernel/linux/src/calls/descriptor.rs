//! Descriptors: duplicating, closing, flags, waiting for readiness.

use linux_raw_sys::general as raw;

use super::{Args, Outcome};
use crate::errno::Errno;
use crate::fs::open::MAX_FILES;
use crate::memory::UserPtr;
use crate::process::Process;
use crate::uapi::{PollFd, Timespec};

/// Status flags that `F_SETFL` changes.
const SETTABLE: u32 = raw::O_APPEND | raw::O_NONBLOCK | raw::O_NOATIME | raw::FASYNC;

pub(super) fn close(p: &mut Process<'_>, a: Args) -> Outcome {
    p.files.close(&mut p.tree, a.int(0)).map(|()| 0)
}

pub(super) fn dup(p: &mut Process<'_>, a: Args) -> Outcome {
    p.files.duplicate(a.int(0), 0, false).map(|fd| fd as u64)
}

pub(super) fn dup2(p: &mut Process<'_>, a: Args) -> Outcome {
    let (from, to) = (a.int(0), a.int(1));
    if from == to {
        p.files.get(from)?;
    } else {
        p.files.duplicate_to(&mut p.tree, from, to, false)?;
    }
    Ok(to as u64)
}

pub(super) fn dup3(p: &mut Process<'_>, a: Args) -> Outcome {
    let (from, to, flags) = (a.int(0), a.int(1), a.uint(2));
    if from == to || flags & !raw::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    p.files.duplicate_to(&mut p.tree, from, to, flags != 0)?;
    Ok(to as u64)
}

pub(super) fn fcntl(p: &mut Process<'_>, a: Args) -> Outcome {
    let fd = a.int(0);
    let file = p.files.get(fd)?;
    match a.uint(1) {
        raw::F_DUPFD => p.files.duplicate(fd, a.int(2), false).map(|fd| fd as u64),
        raw::F_DUPFD_CLOEXEC => p.files.duplicate(fd, a.int(2), true).map(|fd| fd as u64),
        raw::F_GETFD => p.files.close_on_exec(fd).map(u64::from),
        raw::F_SETFD => {
            p.files
                .set_close_on_exec(fd, a.uint(2) & raw::FD_CLOEXEC != 0)?;
            Ok(0)
        }
        raw::F_GETFL => Ok(u64::from(file.flags.get())),
        raw::F_SETFL => {
            file.flags
                .set(file.flags.get() & !SETTABLE | a.uint(2) & SETTABLE);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn poll(p: &mut Process<'_>, a: Args) -> Outcome {
    let timeout = a.int(2);
    let timeout = u64::try_from(timeout).ok().map(|ms| ms * 1_000_000);
    wait(p, a.pointer(0), a.get(1), timeout)
}

pub(super) fn ppoll(p: &mut Process<'_>, a: Args) -> Outcome {
    let pointer: UserPtr<Timespec> = a.pointer(2);
    let timeout = if pointer.is_null() {
        None
    } else {
        Some(super::time::duration_ns(&p.memory().read(pointer)?)?)
    };
    wait(p, a.pointer(0), a.get(1), timeout)
}

/// Everything there is here is always ready, so that only an empty set waits.
fn wait(
    p: &mut Process<'_>,
    first: UserPtr<PollFd>,
    count: u64,
    timeout_ns: Option<u64>,
) -> Outcome {
    if count > MAX_FILES as u64 {
        return Err(Errno::EINVAL);
    }
    let mut ready = 0;
    for index in 0..count {
        let mut poll = p.memory().read(first.at(index))?;
        let events = poll.events as u32;
        poll.revents = match p.files.get(poll.fd) {
            _ if poll.fd < 0 => 0,
            Err(_) => raw::POLLNVAL as i16,
            Ok(file) => {
                let mut can = 0;
                if file.readable() {
                    can |= raw::POLLIN | raw::POLLRDNORM;
                }
                if file.writable() {
                    can |= raw::POLLOUT | raw::POLLWRNORM;
                }
                (events & can) as i16
            }
        };
        ready += u64::from(poll.revents != 0);
        p.memory().write(first.at(index), &poll)?;
    }
    if ready == 0 {
        match timeout_ns {
            Some(0) => {}
            Some(ns) => p.platform.sleep(ns),
            None => super::process::deadlock(p, "it polls for what cannot happen"),
        }
    }
    Ok(ready)
}
