//! The raw system calls of [`bulkhead_abi::syscall`]. Typed wrappers are in [`crate::capability`],
//! [`crate::thread`] and [`crate::time`]; this is for those, for the Linux personality and for
//! programs that test the kernel.

use core::arch::asm;

use bulkhead_abi::syscall::{EXIT, RESTRICTED_BIND, RESTRICTED_ENTER, Status};

/// Any system call: status and value as the kernel left them in `rax` and `rdx`.
///
/// # Safety
/// The call may change or unmap memory, start threads, and run code at addresses it is given: the
/// caller upholds Rust's rules for all that.
pub unsafe fn raw(number: u64, arguments: [u64; 4]) -> (u64, u64) {
    let [a, b, c, d] = arguments;
    let (status, value);
    // SAFETY: the caller's promise for the effect; registers as `bulkhead_abi::syscall` says.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => status,
            in("rdi") a,
            in("rsi") b,
            inlateout("rdx") c => value,
            in("r10") d,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    (status, value)
}

/// As [`raw`], with the status as a type.
///
/// # Errors
/// What the kernel answered; [`Status::UnknownCall`] for an answer this library does not know.
///
/// # Safety
/// As [`raw`].
pub unsafe fn call(number: u64, arguments: [u64; 4]) -> Result<u64, Status> {
    // SAFETY: the caller's promise.
    let (status, value) = unsafe { raw(number, arguments) };
    match Status::from_raw(status).unwrap_or(Status::UnknownCall) {
        Status::Ok => Ok(value),
        status => Err(status),
    }
}

/// `EXIT`.
pub fn exit(status: u8) -> ! {
    loop {
        // SAFETY: nothing of the program runs any more.
        unsafe { raw(EXIT, [u64::from(status), 0, 0, 0]) };
    }
}

/// `RESTRICTED_BIND`: makes the page at `address` the thread's restricted state page.
///
/// # Errors
/// The page is not mapped writable, or a thread of the partition has bound one before.
///
/// # Safety
/// The page is used for a [`bulkhead_abi::restricted::RestrictedState`] alone, and never as a Rust
/// reference while [`restricted_enter`] runs.
pub unsafe fn restricted_bind(address: u64) -> Result<(), Status> {
    // SAFETY: the caller's promise.
    unsafe { call(RESTRICTED_BIND, [address, 0, 0, 0]) }.map(|_| ())
}

/// `RESTRICTED_ENTER`: runs the restricted program until it leaves.
///
/// # Errors
/// The thread has not bound a page, or the page's `rip` is no user address.
///
/// # Safety
/// The restricted program may change all memory below `RESTRICTED_END`.
pub unsafe fn restricted_enter() -> Result<(), Status> {
    // SAFETY: the caller's promise.
    unsafe { call(RESTRICTED_ENTER, [0; 4]) }.map(|_| ())
}
