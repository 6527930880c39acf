//! The kernel's own voice: one line at a time on the console's error stream. Programs' bytes do
//! not pass through here: they go from their own frames.

use core::fmt::{self, Write};

use bulkhead_abi::layout::KERNEL_BASE;
use bulkhead_abi::machine::{CONSOLE_REFUSED, CONSOLE_WRITE_ERROR, ConsoleMailbox};

use crate::arch::{ring_console, write_mailbox};

/// Longest line; what is longer is cut.
const LINE_BYTES: usize = 512;

struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let slot = self.bytes.get_mut(self.len).ok_or(fmt::Error)?;
            *slot = byte;
            self.len += 1;
        }
        Ok(())
    }
}

/// Writes `line` and a line feed, where there is a console.
pub(crate) fn report(line: fmt::Arguments<'_>) {
    let mut buffer = Line {
        bytes: [0; LINE_BYTES],
        len: 0,
    };
    // Too long a line is cut: the rest of the message is worth more than nothing.
    let _ = buffer.write_fmt(line);
    let _ = buffer.write_str("\n");
    let request = ConsoleMailbox {
        op: CONSOLE_WRITE_ERROR,
        len: buffer.len as u32,
        // The kernel's stack lies in its image, which is linked at `KERNEL_BASE` + its physical
        // address.
        address: (buffer.bytes.as_ptr() as u64).wrapping_sub(KERNEL_BASE),
        result: CONSOLE_REFUSED,
    };
    if write_mailbox(request) {
        ring_console();
    }
}
