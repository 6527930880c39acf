//! The program's capabilities as types. They stand for slots of the root CNode; a slot that was
//! not granted answers [`Status::InvalidCapability`].

use core::ops::Range;

use bulkhead_abi::syscall::{CONSOLE_READ, CONSOLE_WRITE, MAP, PROTECT, Status, UNMAP, slot};

use crate::syscall::call;

/// The console, with the `console` grant.
#[derive(Clone, Copy, Debug)]
pub struct Console(u64);

/// All free memory.
#[derive(Clone, Copy, Debug)]
pub struct Untyped(u64);

/// The program's own address space.
#[derive(Clone, Copy, Debug)]
pub struct AddressSpace(u64);

/// The console.
pub const CONSOLE: Console = Console(slot::CONSOLE);
/// All free memory.
pub const UNTYPED: Untyped = Untyped(slot::UNTYPED);
/// The program's own address space.
pub const ADDRESS_SPACE: AddressSpace = AddressSpace(slot::ADDRESS_SPACE);

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

impl Untyped {
    /// Maps zeroed memory at `range` with [`bulkhead_abi::syscall::rights`].
    ///
    /// # Errors
    /// See [`MAP`]; nothing was mapped.
    pub fn map(self, range: Range<u64>, rights: u64) -> Result<(), Status> {
        let bytes = range.end.saturating_sub(range.start);
        // SAFETY: only addresses where nothing was mapped change: no reference leads there.
        unsafe { call(MAP, [self.0, range.start, bytes, rights]) }.map(|_| ())
    }
}

impl AddressSpace {
    /// Changes the rights of mapped memory.
    ///
    /// # Errors
    /// See [`PROTECT`].
    ///
    /// # Safety
    /// No reference to the range is used in a way that `rights` forbid.
    pub unsafe fn protect(self, range: Range<u64>, rights: u64) -> Result<(), Status> {
        let bytes = range.end.saturating_sub(range.start);
        // SAFETY: the caller's promise.
        unsafe { call(PROTECT, [self.0, range.start, bytes, rights]) }.map(|_| ())
    }

    /// Unmaps memory.
    ///
    /// # Errors
    /// See [`UNMAP`].
    ///
    /// # Safety
    /// No reference to the range is left.
    pub unsafe fn unmap(self, range: Range<u64>) -> Result<(), Status> {
        let bytes = range.end.saturating_sub(range.start);
        // SAFETY: the caller's promise.
        unsafe { call(UNMAP, [self.0, range.start, bytes, 0]) }.map(|_| ())
    }
}
