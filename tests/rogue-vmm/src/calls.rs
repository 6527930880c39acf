//! System calls by their numbers, as code that was injected would make them.

use std::ffi::CString;
use std::io;

/// Makes a call; what it returned.
///
/// # Errors
/// What the host said.
pub(crate) fn call(number: libc::c_long, arguments: [i64; 6]) -> io::Result<i64> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: callers pass numbers, and addresses of values that outlive the call and are as large
    // as the call expects.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        other => Ok(other),
    }
}

/// The address of a value, for [`call`].
pub(crate) fn address<T: ?Sized>(value: &T) -> i64 {
    std::ptr::from_ref(value).cast::<u8>() as i64
}

/// The address of a value that the call may change.
pub(crate) fn address_mut<T: ?Sized>(value: &mut T) -> i64 {
    std::ptr::from_mut(value).cast::<u8>() as i64
}

/// A text for the host's kernel.
pub(crate) fn text(text: &str) -> CString {
    CString::new(text).expect("no NUL")
}

/// Opens a file; its descriptor.
///
/// # Errors
/// What the host said.
pub(crate) fn open(directory: i32, path: &str, flags: i32) -> io::Result<i64> {
    let path = text(path);
    let at = address(path.as_bytes_with_nul());
    call(
        libc::SYS_openat,
        [directory.into(), at, flags.into(), 0o600, 0, 0],
    )
}
