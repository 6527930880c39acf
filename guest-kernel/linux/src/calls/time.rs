//! Clocks and sleep. Elapsed time is everybody's; wall-clock time needs the `time` grant. Without
//! it the clock does not exist: `EINVAL`, and zeros where a program that does not look at the
//! result would find whatever was on its stack.

use linux_raw_sys::general as raw;

use super::{Args, Outcome};
use crate::errno::Errno;
use crate::memory::UserPtr;
use crate::process::Process;
use crate::uapi::{Timespec, Timeval, Timezone};

const SECOND_NS: u64 = 1_000_000_000;

/// From nanoseconds.
pub(super) fn timespec(ns: u64) -> Timespec {
    Timespec {
        sec: (ns / SECOND_NS) as i64,
        nsec: (ns % SECOND_NS) as i64,
    }
}

/// To nanoseconds; too long is as long as can be.
///
/// # Errors
/// `EINVAL` for negative times and fractions of a second and more.
pub(super) fn duration_ns(time: &Timespec) -> Result<u64, Errno> {
    let seconds = u64::try_from(time.sec).map_err(|_| Errno::EINVAL)?;
    match u64::try_from(time.nsec) {
        Ok(ns) if ns < SECOND_NS => Ok(seconds.saturating_mul(SECOND_NS).saturating_add(ns)),
        _ => Err(Errno::EINVAL),
    }
}

/// Now, by the clock `id`.
///
/// # Errors
/// `EINVAL` for clocks that do not exist or are not granted.
fn now(p: &Process<'_>, id: u32) -> Result<u64, Errno> {
    match id {
        raw::CLOCK_REALTIME | raw::CLOCK_REALTIME_COARSE | raw::CLOCK_TAI => {
            p.wall_clock_ns().ok_or(Errno::EINVAL)
        }
        raw::CLOCK_MONOTONIC
        | raw::CLOCK_MONOTONIC_RAW
        | raw::CLOCK_MONOTONIC_COARSE
        | raw::CLOCK_BOOTTIME
        | raw::CLOCK_PROCESS_CPUTIME_ID
        | raw::CLOCK_THREAD_CPUTIME_ID => Ok(p.platform.monotonic_ns()),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn clock_gettime(p: &mut Process<'_>, a: Args) -> Outcome {
    let now = now(p, a.uint(0));
    p.memory()
        .write(a.pointer(1), &timespec(now.unwrap_or(0)))?;
    now.map(|_| 0)
}

pub(super) fn clock_getres(p: &mut Process<'_>, a: Args) -> Outcome {
    now(p, a.uint(0))?;
    let pointer: UserPtr<Timespec> = a.pointer(1);
    if !pointer.is_null() {
        p.memory().write(pointer, &timespec(1))?;
    }
    Ok(0)
}

pub(super) fn gettimeofday(p: &mut Process<'_>, a: Args) -> Outcome {
    let now = p.wall_clock_ns();
    let (time, zone): (UserPtr<Timeval>, UserPtr<Timezone>) = (a.pointer(0), a.pointer(1));
    if !time.is_null() {
        let ns = now.unwrap_or(0);
        let value = Timeval {
            sec: (ns / SECOND_NS) as i64,
            usec: (ns % SECOND_NS / 1000) as i64,
        };
        p.memory().write(time, &value)?;
    }
    if !zone.is_null() {
        p.memory().write(
            zone,
            &Timezone {
                minutes_west: 0,
                dst_time: 0,
            },
        )?;
    }
    now.map(|_| 0).ok_or(Errno::EINVAL)
}

pub(super) fn time(p: &mut Process<'_>, a: Args) -> Outcome {
    let now = p.wall_clock_ns();
    let seconds = now.unwrap_or(0) / SECOND_NS;
    let pointer: UserPtr<u64> = a.pointer(0);
    if !pointer.is_null() {
        p.memory().write(pointer, &seconds)?;
    }
    now.map(|_| seconds).ok_or(Errno::EINVAL)
}

pub(super) fn nanosleep(p: &mut Process<'_>, a: Args) -> Outcome {
    let time = p.memory().read(a.pointer(0))?;
    let ns = duration_ns(&time)?;
    p.platform.sleep(ns);
    Ok(0)
}

pub(super) fn clock_nanosleep(p: &mut Process<'_>, a: Args) -> Outcome {
    let now = now(p, a.uint(0))?;
    let time = p.memory().read(a.pointer(2))?;
    let ns = duration_ns(&time)?;
    let absolute = a.uint(1) & raw::TIMER_ABSTIME != 0;
    p.platform
        .sleep(if absolute { ns.saturating_sub(now) } else { ns });
    Ok(0)
}
