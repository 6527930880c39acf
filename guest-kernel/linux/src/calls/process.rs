//! The process itself: its end, its registers, its one thread.

use alloc::format;
use alloc::vec::Vec;

use bulkhead_abi::layout::RESTRICTED_END;
use chacha20::rand_core::Rng;
use linux_raw_sys::general as raw;
use linux_raw_sys::prctl as option;
use zerocopy::FromZeros;

use super::{Args, Outcome};
use crate::errno::Errno;
use crate::memory::UserPtr;
use crate::process::{CONSOLE_BYTES, Process};
use crate::program::{self, Invocation, MAX_ARGUMENT_BYTES};
use crate::signal;
use crate::uapi::{Rusage, Timespec, Timeval};

/// `arch_prctl` (`asm/prctl.h`).
const ARCH_SET_GS: u32 = 0x1001;
const ARCH_SET_FS: u32 = 0x1002;
const ARCH_GET_FS: u32 = 0x1003;
const ARCH_GET_GS: u32 = 0x1004;
/// Longest single string of `execve` (Linux `MAX_ARG_STRLEN`).
const MAX_STRING: usize = 128 * 1024;

pub(super) fn exit(p: &mut Process<'_>, a: Args) -> Outcome {
    p.ended = Some(a.get(0) as u8);
    Ok(0)
}

pub(super) fn sched_yield(_: &mut Process<'_>, _: Args) -> Outcome {
    Ok(0)
}

pub(super) fn execve(p: &mut Process<'_>, a: Args) -> Outcome {
    let path = super::path::read_path(p, a.pointer(0))?;
    let mut left = MAX_ARGUMENT_BYTES;
    let invocation = Invocation {
        path,
        arguments: strings(p, a.pointer(1), &mut left)?,
        environment: strings(p, a.pointer(2), &mut left)?,
    };
    if let Err(error) = program::start(p, invocation) {
        if !p.has_program {
            p.report(&format!("a program could not be replaced: {error}"));
            p.ended = Some(signal::status(raw::SIGKILL));
        }
        return Err(error.errno());
    }
    p.files.close_for_exec(&mut p.tree);
    p.signals.reset_for_exec();
    Ok(0)
}

/// A NULL-terminated array of strings; a null pointer is an empty one.
fn strings(
    p: &mut Process<'_>,
    first: UserPtr<u64>,
    left: &mut usize,
) -> Result<Vec<Vec<u8>>, Errno> {
    let mut strings = Vec::new();
    if first.is_null() {
        return Ok(strings);
    }
    for index in 0.. {
        let pointer = p.memory().read(first.at(index))?;
        if pointer == 0 {
            break;
        }
        let string = p.memory().read_string(pointer, MAX_STRING, Errno::E2BIG)?;
        let bytes = string.len() + 1 + size_of::<u64>();
        *left = left.checked_sub(bytes).ok_or(Errno::E2BIG)?;
        strings.push(string);
    }
    Ok(strings)
}

pub(super) fn arch_prctl(p: &mut Process<'_>, a: Args) -> Outcome {
    let base = a.get(1);
    match a.uint(0) {
        ARCH_SET_FS | ARCH_SET_GS if base >= RESTRICTED_END => return Err(Errno::EPERM),
        ARCH_SET_FS => p.platform.set_fs_base(base),
        ARCH_SET_GS => p.platform.set_gs_base(base),
        ARCH_GET_FS => {
            let base = p.platform.fs_base();
            p.memory().write(a.pointer(1), &base)?;
        }
        ARCH_GET_GS => {
            let base = p.platform.gs_base();
            p.memory().write(a.pointer(1), &base)?;
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

pub(super) fn prctl(p: &mut Process<'_>, a: Args) -> Outcome {
    match a.uint(0) {
        option::PR_SET_NAME => {
            let mut name = [0; 16];
            // At most 16 bytes, but the string may end before its page does.
            for (index, byte) in name.iter_mut().enumerate() {
                *byte = p.memory().read(a.pointer::<u8>(1).at(index as u64))?;
                if *byte == 0 {
                    break;
                }
            }
            p.set_name(&name);
        }
        option::PR_GET_NAME => {
            let name = p.name;
            p.memory().write(a.pointer(1), &name)?;
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

pub(super) fn getrandom(p: &mut Process<'_>, a: Args) -> Outcome {
    let known = raw::GRND_NONBLOCK | raw::GRND_RANDOM | raw::GRND_INSECURE;
    if p.random.is_none() {
        return Err(Errno::ENOSYS);
    }
    if a.uint(2) & !known != 0 {
        return Err(Errno::EINVAL);
    }
    fill_random(p, a.get(0), a.get(1))
}

/// Random bytes to program memory: of a long request, a part.
pub(super) fn fill_random(p: &mut Process<'_>, at: u64, len: u64) -> Outcome {
    let len = len.min(CONSOLE_BYTES as u64);
    let Process {
        random,
        space,
        platform,
        scratch,
        ..
    } = p;
    let random = random.as_mut().ok_or(Errno::ENOSYS)?;
    let bytes = scratch.get(len as usize)?;
    random.fill_bytes(bytes);
    crate::memory::Memory {
        space,
        platform: *platform,
    }
    .write_bytes(at, bytes)?;
    bytes.fill(0);
    Ok(len)
}

pub(super) fn sched_getaffinity(p: &mut Process<'_>, a: Args) -> Outcome {
    let len = a.get(1);
    if !matches!(a.int(0), 0 | 1) {
        return Err(Errno::ESRCH);
    }
    if len < 8 || !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    p.memory().write(a.pointer(2), &1u64)?;
    Ok(8)
}

pub(super) fn getrusage(p: &mut Process<'_>, a: Args) -> Outcome {
    let ns = p.platform.monotonic_ns();
    let mut usage = Rusage::new_zeroed();
    match a.int(0) {
        // Itself, its thread.
        0 | 1 => {
            usage.utime = Timeval {
                sec: (ns / 1_000_000_000) as i64,
                usec: (ns % 1_000_000_000 / 1000) as i64,
            };
        }
        // Its children: none.
        -1 => {}
        _ => return Err(Errno::EINVAL),
    }
    p.memory().write(a.pointer(1), &usage)?;
    Ok(0)
}

pub(super) fn times(p: &mut Process<'_>, a: Args) -> Outcome {
    if a.get(0) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(p.platform.monotonic_ns() / 10_000_000)
}

/// One thread: nobody waits, and nobody can end a wait.
pub(super) fn futex(p: &mut Process<'_>, a: Args) -> Outcome {
    let command = a.uint(1) & !(raw::FUTEX_PRIVATE_FLAG | raw::FUTEX_CLOCK_REALTIME);
    match command {
        raw::FUTEX_WAKE | raw::FUTEX_WAKE_BITSET => Ok(0),
        raw::FUTEX_WAIT | raw::FUTEX_WAIT_BITSET => {
            let value: u32 = p.memory().read(a.pointer(0))?;
            if value != a.uint(2) {
                return Err(Errno::EAGAIN);
            }
            let timeout: UserPtr<Timespec> = a.pointer(3);
            if timeout.is_null() {
                deadlock(p, "its only thread waits for itself");
                return Ok(0);
            }
            let ns = super::time::duration_ns(&p.memory().read(timeout)?)?;
            // FUTEX_WAIT_BITSET names a moment, FUTEX_WAIT a duration.
            let realtime = a.uint(1) & raw::FUTEX_CLOCK_REALTIME != 0;
            let now = match command {
                raw::FUTEX_WAIT => 0,
                _ if realtime => p.wall_clock_ns().ok_or(Errno::EINVAL)?,
                _ => p.platform.monotonic_ns(),
            };
            p.platform.sleep(ns.saturating_sub(now));
            Err(Errno::ETIMEDOUT)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Ends a program that would wait for ever.
pub(super) fn deadlock(p: &mut Process<'_>, why: &str) {
    p.report(&format!("killed: deadlock: {why}"));
    p.ended = Some(signal::status(raw::SIGKILL));
}
