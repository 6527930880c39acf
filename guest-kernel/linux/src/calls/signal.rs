//! Signals: recorded, or fatal. See [`crate::signal`].

use linux_raw_sys::general as raw;

use super::{Args, Outcome};
use crate::errno::Errno;
use crate::memory::UserPtr;
use crate::process::Process;
use crate::signal;
use crate::uapi::{SigAction, SigAltStack};

/// Size of a signal set.
const SET_BYTES: u64 = 8;
/// Smallest alternate stack (`MINSIGSTKSZ`).
const SMALLEST_STACK: u64 = 2048;

pub(super) fn rt_sigaction(p: &mut Process<'_>, a: Args) -> Outcome {
    let (new, old): (UserPtr<SigAction>, UserPtr<SigAction>) = (a.pointer(1), a.pointer(2));
    let signal = a.uint(0);
    if a.get(3) != SET_BYTES {
        return Err(Errno::EINVAL);
    }
    let had = *p.signals.action(signal).ok_or(Errno::EINVAL)?;
    if !new.is_null() {
        if matches!(signal, raw::SIGKILL | raw::SIGSTOP) {
            return Err(Errno::EINVAL);
        }
        let action = p.memory().read(new)?;
        if let Some(slot) = p.signals.action(signal) {
            *slot = action;
        }
    }
    if !old.is_null() {
        p.memory().write(old, &had)?;
    }
    Ok(0)
}

pub(super) fn rt_sigprocmask(p: &mut Process<'_>, a: Args) -> Outcome {
    let (new, old): (UserPtr<u64>, UserPtr<u64>) = (a.pointer(1), a.pointer(2));
    if a.get(3) != SET_BYTES {
        return Err(Errno::EINVAL);
    }
    let had = p.signals.mask;
    if !new.is_null() {
        let set = p.memory().read(new)?;
        let mask = match a.uint(0) {
            raw::SIG_BLOCK => had | set,
            raw::SIG_UNBLOCK => had & !set,
            raw::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        };
        let unblockable = 1 << (raw::SIGKILL - 1) | 1 << (raw::SIGSTOP - 1);
        p.signals.mask = mask & !unblockable;
    }
    if !old.is_null() {
        p.memory().write(old, &had)?;
    }
    Ok(0)
}

pub(super) fn sigaltstack(p: &mut Process<'_>, a: Args) -> Outcome {
    let (new, old): (UserPtr<SigAltStack>, UserPtr<SigAltStack>) = (a.pointer(0), a.pointer(1));
    let had = p.signals.stack;
    if !new.is_null() {
        let stack: SigAltStack = p.memory().read(new)?;
        let disabled = stack.flags & raw::SS_DISABLE as i32 != 0;
        if !disabled && stack.size < SMALLEST_STACK {
            return Err(Errno::ENOMEM);
        }
        p.signals.stack = stack;
    }
    if !old.is_null() {
        p.memory().write(old, &had)?;
    }
    Ok(0)
}

pub(super) fn kill(p: &mut Process<'_>, a: Args) -> Outcome {
    // Itself, its group, everybody: all the same process.
    match a.int(0) {
        -1..=1 => send(p, a.uint(1)),
        _ => Err(Errno::ESRCH),
    }
}

pub(super) fn tkill(p: &mut Process<'_>, a: Args) -> Outcome {
    match a.int(0) {
        1 => send(p, a.uint(1)),
        _ => Err(Errno::ESRCH),
    }
}

pub(super) fn tgkill(p: &mut Process<'_>, a: Args) -> Outcome {
    match (a.int(0), a.int(1)) {
        (1, 1) => send(p, a.uint(2)),
        _ => Err(Errno::ESRCH),
    }
}

fn send(p: &mut Process<'_>, number: u32) -> Outcome {
    match number {
        0 => {}
        number if number > signal::COUNT => return Err(Errno::EINVAL),
        number => {
            if !p.signals.is_ignored(number) {
                p.kill(number);
            }
        }
    }
    Ok(0)
}
