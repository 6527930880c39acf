//! The first address space while the kernel starts: tables of memory that nobody has a capability to,
//! and mappings that stay.

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};

use super::StartError;
use super::free::FreeMemory;
use crate::hardware::{Hardware, TABLE_ENTRIES};
use crate::objects::mapping::RESTRICTED_ROOT;
use crate::paging::{ADDRESS, LARGE, RESTRICTED_ROOTS, Rights, TABLE, index_at};
use crate::user::UserRange;

/// See the module.
pub(super) struct FirstSpace<'a, 'i, H> {
    root: u64,
    memory: &'a mut H,
    free: &'a mut FreeMemory<'i>,
}

impl<'a, 'i, H: Hardware> FirstSpace<'a, 'i, H> {
    /// That of the address space object at `root`.
    pub(super) const fn new(root: u64, memory: &'a mut H, free: &'a mut FreeMemory<'i>) -> Self {
        Self { root, memory, free }
    }

    /// Maps zeroed memory.
    ///
    /// # Errors
    /// [`StartError::Memory`].
    pub(super) fn map_new(&mut self, range: UserRange, rights: Rights) -> Result<(), StartError> {
        let pages = self.free.take(range.page_count());
        self.map(range, pages.ok_or(StartError::Memory)?, rights)
    }

    /// Maps the memory from `physical` on, by large pages where both addresses allow it. Nothing is
    /// mapped in the range, nor in the rest of its large pages.
    ///
    /// # Errors
    /// [`StartError::Memory`] for want of page tables.
    pub(super) fn map(
        &mut self,
        range: UserRange,
        mut physical: u64,
        rights: Rights,
    ) -> Result<(), StartError> {
        let bits = rights.entry_bits();
        let mut at = range.start();
        while at < range.end() {
            let large = (at | physical).is_multiple_of(LARGE_PAGE_SIZE)
                && range.end() - at >= LARGE_PAGE_SIZE;
            let (level, size, bits) = if large {
                (2, LARGE_PAGE_SIZE, bits | LARGE)
            } else {
                (1, PAGE_SIZE, bits)
            };
            let table = self.table(at, level)?;
            let first = index_at(at, level);
            let count = ((range.end() - at) / size).min((TABLE_ENTRIES - first) as u64);
            let entries = table + first as u64 * 8;
            for entry in self.memory.entries(entries, count) {
                *entry = physical | bits;
                physical += size;
            }
            at += count * size;
        }
        Ok(())
    }

    /// The table of `level` (2: directory of 2 MiB pages, 1: of 4 KiB pages) for `at`; makes what
    /// is missing.
    fn table(&mut self, at: u64, level: u32) -> Result<u64, StartError> {
        let mut table = self.root;
        for above in (level + 1..=4).rev() {
            let index = index_at(at, above);
            let place = table + index as u64 * 8;
            let entry = self.memory.load(place);
            if entry != 0 {
                table = entry & ADDRESS;
                continue;
            }
            table = self.free.take(1).ok_or(StartError::Memory)?;
            self.memory.store(place, table | TABLE);
            if above == 4 && index < RESTRICTED_ROOTS {
                self.memory.store(place + RESTRICTED_ROOT, table | TABLE);
            }
        }
        Ok(table)
    }
}
