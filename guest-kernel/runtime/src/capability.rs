//! The console's capability as a type. It stands for a slot of the root CNode; where that was not
//! granted, the answer is [`Status::InvalidCapability`].

use bulkhead_abi::syscall::{CONSOLE_READ, CONSOLE_WRITE, Status, slot};

use crate::syscall::call;

/// The console, with the `console` grant.
#[derive(Clone, Copy, Debug)]
pub struct Console(u64);

/// The console.
pub const CONSOLE: Console = Console(slot::CONSOLE);
/// An output stream of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Standard output.
    Output = 1,
    /// Standard error.
    Error = 2,
}

impl Console {
    /// Writes a prefix of `bytes`; its length.
    ///
    /// # Errors
    /// [`Status::InvalidCapability`] without the `console` grant.
    pub fn write(self, stream: Stream, bytes: &[u8]) -> Result<usize, Status> {
        let buffer = [
            self.0,
            bytes.as_ptr() as u64,
            bytes.len() as u64,
            stream as u64,
        ];
        // SAFETY: the kernel reads `bytes`.
        unsafe { call(CONSOLE_WRITE, buffer) }.map(|written| written as usize)
    }

    /// Waits for input and reads at most `into.len()` bytes of it; 0 is the end of input.
    ///
    /// # Errors
    /// [`Status::InvalidCapability`] without the `console` grant.
    pub fn read(self, into: &mut [u8]) -> Result<usize, Status> {
        let buffer = [self.0, into.as_mut_ptr() as u64, into.len() as u64, 0];
        // SAFETY: the kernel writes to `into` alone.
        unsafe { call(CONSOLE_READ, buffer) }.map(|read| read as usize)
    }
}
