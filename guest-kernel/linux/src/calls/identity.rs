//! Who and where the program is: identities, limits, the system's name and size.

use linux_raw_sys::general as raw;
use zerocopy::FromZeros;

use super::{Args, Outcome};
use crate::errno::Errno;
use crate::fs::open::MAX_FILES;
use crate::memory::{STACK_BYTES, UserPtr};
use crate::process::Process;
use crate::uapi::{Rlimit, Sysinfo, Utsname};

/// The one process, and its thread.
const PID: u64 = 1;
/// `uname -r`: the Linux interface that is followed; C libraries refuse releases they find too old.
const RELEASE: &str = "6.1.0-bulkhead";
/// `uname -v`.
const VERSION: &str = concat!(
    "#1 Bulkhead ",
    env!("CARGO_PKG_VERSION"),
    " Linux personality"
);

pub(super) fn getpid(_: &mut Process<'_>, _: Args) -> Outcome {
    Ok(PID)
}

/// Identities that are 0: user, group, the parent, the number of further groups.
pub(super) fn root(_: &mut Process<'_>, _: Args) -> Outcome {
    Ok(0)
}

pub(super) fn set_id(_: &mut Process<'_>, a: Args) -> Outcome {
    if a.uint(0) == 0 {
        Ok(0)
    } else {
        Err(Errno::EPERM)
    }
}

pub(super) fn setpgid(_: &mut Process<'_>, a: Args) -> Outcome {
    match (a.get(0), a.get(1)) {
        (0 | PID, 0 | PID) => Ok(0),
        (0 | PID, _) => Err(Errno::EPERM),
        _ => Err(Errno::ESRCH),
    }
}

pub(super) fn getpgid(_: &mut Process<'_>, a: Args) -> Outcome {
    if matches!(a.get(0), 0 | PID) {
        Ok(PID)
    } else {
        Err(Errno::ESRCH)
    }
}

pub(super) fn setsid(_: &mut Process<'_>, _: Args) -> Outcome {
    Err(Errno::EPERM)
}

pub(super) fn uname(p: &mut Process<'_>, a: Args) -> Outcome {
    let field = |text: &str| {
        let mut field = [0; 65];
        for (to, from) in field.iter_mut().take(64).zip(text.bytes()) {
            *to = from;
        }
        field
    };
    let name = Utsname {
        sysname: field("Linux"),
        nodename: field("bulkhead"),
        release: field(RELEASE),
        version: field(VERSION),
        machine: field("x86_64"),
        domainname: field("(none)"),
    };
    p.memory().write(a.pointer(0), &name)?;
    Ok(0)
}

fn limit(resource: u32) -> Result<Rlimit, Errno> {
    let (current, max) = match resource {
        raw::RLIMIT_STACK => (STACK_BYTES, STACK_BYTES),
        raw::RLIMIT_NOFILE => (MAX_FILES as u64, MAX_FILES as u64),
        raw::RLIMIT_CORE => (0, 0),
        resource if resource < raw::RLIM_NLIMITS => (u64::MAX, u64::MAX),
        _ => return Err(Errno::EINVAL),
    };
    Ok(Rlimit { current, max })
}

pub(super) fn getrlimit(p: &mut Process<'_>, a: Args) -> Outcome {
    p.memory().write(a.pointer(1), &limit(a.uint(0))?)?;
    Ok(0)
}

pub(super) fn setrlimit(p: &mut Process<'_>, a: Args) -> Outcome {
    limit(a.uint(0))?;
    p.memory().read::<Rlimit>(a.pointer(1))?;
    Ok(0)
}

pub(super) fn prlimit64(p: &mut Process<'_>, a: Args) -> Outcome {
    if !matches!(a.get(0), 0 | PID) {
        return Err(Errno::ESRCH);
    }
    let limit = limit(a.uint(1))?;
    let (new, old): (UserPtr<Rlimit>, UserPtr<Rlimit>) = (a.pointer(2), a.pointer(3));
    if !new.is_null() {
        p.memory().read(new)?;
    }
    if !old.is_null() {
        p.memory().write(old, &limit)?;
    }
    Ok(0)
}

pub(super) fn sysinfo(p: &mut Process<'_>, a: Args) -> Outcome {
    let info = Sysinfo {
        uptime: (p.platform.monotonic_ns() / 1_000_000_000) as i64,
        totalram: p.settings.memory_bytes,
        freeram: p.settings.memory_bytes,
        procs: 1,
        mem_unit: 1,
        ..Sysinfo::new_zeroed()
    };
    p.memory().write(a.pointer(0), &info)?;
    Ok(0)
}
