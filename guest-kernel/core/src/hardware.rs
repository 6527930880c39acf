//! What the kernel's logic asks of the machine. Implemented by `guest-kernel/kernel` for the real
//! one and by the tests' fake.

use crate::objects::memory::Memory;

/// Entries of a page table.
pub const TABLE_ENTRIES: usize = 512;

/// The machine under the kernel: the memory that objects lie in, and the rest.
pub trait Hardware: Memory {
    /// One operation of the console mailbox; its result.
    fn console(&mut self, op: u32, address: u64, len: u32) -> i64;
    /// One line on the console's error stream, where there is a console.
    fn report(&mut self, line: core::fmt::Arguments<'_>);
}
