//! The paths of a Linux program's system calls, through its personality.

use bulkhead_paths::{MARK, steady};

/// Every path, in the order of the table.
const PATHS: [fn(); 2] = [getpid, write];

/// Takes them.
pub(crate) fn take_all() {
    for path in PATHS {
        path();
    }
}

/// What follows is the path `name`, of so many entries into the kernel: the program's own, those
/// of the personality on its behalf, and the one by which it goes back to the program.
fn mark(name: &str, entries: libc::c_long) {
    let number = MARK as libc::c_long;
    // From the mark itself the personality goes back by an entry, which is passed over.
    // SAFETY: there is no such system call.
    unsafe { libc::syscall(number, name.as_ptr(), name.len(), 1, entries) };
}

fn getpid() {
    let path = || {
        // SAFETY: it cannot fail and has no effect.
        unsafe { libc::getpid() };
    };
    steady(|| mark("Linux getpid", 2), path);
}

fn write() {
    let path = || {
        // SAFETY: the kernel reads one byte that is there.
        unsafe { libc::write(libc::STDOUT_FILENO, b"\n".as_ptr().cast(), 1) };
    };
    steady(|| mark("Linux write, 1 byte", 3), path);
}
