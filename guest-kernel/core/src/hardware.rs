//! What the kernel's logic asks of the machine. Implemented by `guest-kernel/kernel` for the real
//! one and by the tests' fake.

use bulkhead_abi::restricted::RestrictedState;

use crate::objects::memory::{Memory, Ref};
use crate::objects::thread::Thread;

/// Entries of a page table.
pub const TABLE_ENTRIES: usize = 512;

/// A 4 KiB aligned guest-physical address of RAM that the kernel owns or hands out.
///
/// Only [`crate::untyped`], [`crate::paging`] and [`crate::boot`] make one, from the untyped
/// regions and the modules of the `BootInfo`: the machine relies on it that a `PhysPage` lies in
/// the direct map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysPage(u64);

impl PhysPage {
    pub(crate) const fn new(address: u64) -> Self {
        Self(address & !0xfff)
    }

    /// The guest-physical address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0
    }
}

/// The machine under the kernel: the memory that objects lie in, and the rest.
pub trait Hardware: Memory {
    /// The 512 words of a page: a page table, or memory about to be zeroed or linked into a free
    /// list. Never a page that user mode can reach at this moment.
    fn words(&mut self, page: PhysPage) -> &mut [u64; TABLE_ENTRIES];
    /// A thread, and the restricted state at the start of a page that user mode can reach, where no
    /// object lies.
    fn restricted_state(
        &mut self,
        thread: Ref<Thread>,
        page: PhysPage,
    ) -> (&mut Thread, &mut RestrictedState);
    /// Forgets the translation of one page.
    fn invalidate(&mut self, address: u64);
    /// Forgets all translations of user addresses.
    fn invalidate_all(&mut self);
    /// The time stamp counter.
    fn now(&mut self) -> u64;
    /// One operation of the console mailbox; its result.
    fn console(&mut self, op: u32, address: u64, len: u32) -> i64;
    /// One line on the console's error stream, where there is a console.
    fn report(&mut self, line: core::fmt::Arguments<'_>);
}
