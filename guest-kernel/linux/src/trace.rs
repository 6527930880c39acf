//! `--trace-syscalls`: one line for each system call on the console's error stream, in the manner
//! of strace but without decoding.
//!
//! ```text
//! trace: write(0x1, 0x7f00, 0x3) = 0x3
//! trace: openat(0xffffff9c, 0x4021a0, 0x0, 0x0) = -1 ENOENT
//! trace: exit_group(0x7) ended with 7
//! trace: unknown system call 435 (clone3) -> ENOSYS
//! ```

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use crate::calls::{Args, Entry};
use crate::errno::Errno;

/// The line about a call that has a handler.
pub fn call(
    entry: &Entry,
    arguments: &Args,
    result: Result<u64, Errno>,
    ended: Option<u8>,
) -> String {
    let mut line = format!("trace: {}(", entry.name);
    for index in 0..entry.arguments {
        let comma = if index > 0 { ", " } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(line, "{comma}{:#x}", arguments.get(index));
    }
    let _ = match (ended, result) {
        (Some(status), _) => writeln!(line, ") ended with {status}"),
        (None, Ok(value)) => writeln!(line, ") = {value:#x}"),
        (None, Err(errno)) => writeln!(line, ") = -1 {}", errno.name()),
    };
    line
}

/// The line about a call that has none.
pub fn unknown(number: u64) -> String {
    let name = usize::try_from(number).ok().and_then(syscalls::Sysno::new);
    let name = name.map_or("no such call on x86-64", |known| known.name());
    format!("trace: unknown system call {number} ({name}) -> ENOSYS\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls;

    #[test]
    fn lines_read_like_strace() {
        let write = calls::find(1).unwrap();
        let arguments = Args::new([1, 0x7f00, 3, 9, 9, 9]);
        assert_eq!(
            call(write, &arguments, Ok(3), None),
            "trace: write(0x1, 0x7f00, 0x3) = 0x3\n"
        );
        let failed = call(write, &arguments, Err(Errno::EBADF), None);
        assert_eq!(failed, "trace: write(0x1, 0x7f00, 0x3) = -1 EBADF\n");
        let exit = calls::find(231).unwrap();
        assert_eq!(
            call(exit, &Args::new([7; 6]), Ok(0), Some(7)),
            "trace: exit_group(0x7) ended with 7\n"
        );
        assert_eq!(
            unknown(435),
            "trace: unknown system call 435 (clone3) -> ENOSYS\n"
        );
        assert_eq!(
            unknown(u64::MAX),
            "trace: unknown system call 18446744073709551615 (no such call on x86-64) -> ENOSYS\n"
        );
    }
}
