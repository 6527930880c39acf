//! Printing to and reading from the console. Without the `console` grant nothing is printed and
//! input is at its end; a program that wants to know asks [`crate::capability::CONSOLE`].

use core::fmt::{self, Write};

use crate::capability::{CONSOLE, Stream};

/// Bytes gathered before they are handed to the kernel: a line mostly.
const BUFFER_BYTES: usize = 512;

/// Gathers formatted text, so that a line is one system call.
struct Writer {
    stream: Stream,
    buffer: [u8; BUFFER_BYTES],
    len: usize,
}

impl Writer {
    fn flush(&mut self) {
        let mut rest = self.buffer.get(..self.len).unwrap_or_default();
        while !rest.is_empty() {
            match CONSOLE.write(self.stream, rest) {
                Ok(written @ 1..) => rest = rest.get(written..).unwrap_or_default(),
                // No console, or its other side is gone.
                Ok(0) | Err(_) => break,
            }
        }
        self.len = 0;
    }
}

impl Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.len == BUFFER_BYTES {
                self.flush();
            }
            if let Some(slot) = self.buffer.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Prints formatted text; what [`crate::print!`] and its relatives call.
pub fn print(stream: Stream, text: fmt::Arguments<'_>) {
    let mut writer = Writer {
        stream,
        buffer: [0; BUFFER_BYTES],
        len: 0,
    };
    // An error can only come from a `Display` implementation: what it wrote is printed.
    let _ = writer.write_fmt(text);
    writer.flush();
}

/// Reads input, waiting for some: the number of bytes, 0 at the end of input.
pub fn read(into: &mut [u8]) -> usize {
    CONSOLE.read(into).unwrap_or(0)
}

/// Prints to the output stream.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => {
        $crate::console::print($crate::capability::Stream::Output, format_args!($($argument)*))
    };
}

/// Prints a line to the output stream.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($format:literal $($argument:tt)*) => {
        $crate::print!("{}\n", format_args!($format $($argument)*))
    };
}

/// Prints to the error stream.
#[macro_export]
macro_rules! eprint {
    ($($argument:tt)*) => {
        $crate::console::print($crate::capability::Stream::Error, format_args!($($argument)*))
    };
}

/// Prints a line to the error stream.
#[macro_export]
macro_rules! eprintln {
    () => { $crate::eprint!("\n") };
    ($format:literal $($argument:tt)*) => {
        $crate::eprint!("{}\n", format_args!($format $($argument)*))
    };
}
