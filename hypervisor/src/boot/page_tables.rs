//! Page tables for the first moment of a guest: four levels, 4 KiB and 2 MiB pages (Intel SDM
//! volume 3, section 4.5).
//!
//! Tables are built in host memory and copied to the guest in one piece. Accessed and dirty bits are
//! set from the start, so that the CPU has nothing to write back.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::machine::memory::GuestMemory;

/// Bytes of a table.
pub const TABLE_BYTES: u64 = 4096;

const ENTRIES: usize = 512;
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What may be done with a page; reading always. All pages are the kernel's alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Writes.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
    /// The same in every address space: kept over a CR3 switch.
    pub global: bool,
}

impl Rights {
    fn bits(self) -> u64 {
        let mut bits = PRESENT | ACCESSED | DIRTY;
        if self.write {
            bits |= WRITABLE;
        }
        if !self.execute {
            bits |= NO_EXECUTE;
        }
        if self.global {
            bits |= GLOBAL;
        }
        bits
    }
}

/// A set of tables that will lie at consecutive pages from `base`; the first is the root.
#[derive(Debug)]
pub struct PageTables {
    base: u64,
    tables: Vec<[u64; ENTRIES]>,
}

impl PageTables {
    /// An empty root at guest-physical `base`, on 4 KiB.
    pub fn new(base: u64) -> Self {
        Self {
            base,
            tables: vec![[0; ENTRIES]],
        }
    }

    /// Guest-physical address of the root: CR3.
    pub fn root(&self) -> u64 {
        self.base
    }

    /// Bytes that the tables take.
    pub fn bytes(&self) -> u64 {
        self.tables.len() as u64 * TABLE_BYTES
    }

    /// Maps the 4 KiB page at `virtual_address` to `physical_address`, replacing what was there.
    pub fn map_page(&mut self, virtual_address: u64, physical_address: u64, rights: Rights) {
        let entry = (physical_address & ADDRESS) | rights.bits();
        self.set(virtual_address, 1, entry);
    }

    /// Maps the 2 MiB page at `virtual_address` to `physical_address`, replacing what was there.
    pub fn map_large(&mut self, virtual_address: u64, physical_address: u64, rights: Rights) {
        let entry = (physical_address & ADDRESS) | rights.bits() | LARGE;
        self.set(virtual_address, 2, entry);
    }

    /// Copies the tables to guest memory.
    ///
    /// # Errors
    /// They do not lie in guest memory.
    pub fn write_to(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        let mut at = self.base;
        for table in &self.tables {
            memory.write_slice(zerocopy::IntoBytes::as_bytes(table), GuestAddress(at))?;
            at += TABLE_BYTES;
        }
        Ok(())
    }

    /// Sets the entry of `virtual_address` in the table of `level` (1: of pages), making the tables
    /// above it.
    fn set(&mut self, virtual_address: u64, level: u32, entry: u64) {
        let mut table = 0;
        for above in (level + 1..=4).rev() {
            table = self.next(table, index(virtual_address, above));
        }
        if let Some(slot) = self.slot(table, index(virtual_address, level)) {
            *slot = entry;
        }
    }

    /// The table below entry `index` of `table`.
    fn next(&mut self, table: usize, index: usize) -> usize {
        let base = self.base;
        let new = self.tables.len();
        let Some(slot) = self.slot(table, index) else {
            return 0;
        };
        if *slot & PRESENT != 0 {
            return ((*slot & ADDRESS).saturating_sub(base) / TABLE_BYTES) as usize;
        }
        // Rights are taken from the last level: upper levels allow everything.
        *slot = (base + new as u64 * TABLE_BYTES) | PRESENT | WRITABLE | ACCESSED;
        self.tables.push([0; ENTRIES]);
        new
    }

    fn slot(&mut self, table: usize, index: usize) -> Option<&mut u64> {
        self.tables.get_mut(table)?.get_mut(index)
    }
}

fn index(virtual_address: u64, level: u32) -> usize {
    (virtual_address >> (12 + 9 * (level - 1))) as usize & (ENTRIES - 1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Walks tables in guest memory as a CPU does: physical address, write, execute.
    pub(crate) fn walk(memory: &GuestMemory, root: u64, va: u64) -> Option<(u64, bool, bool)> {
        let (mut table, mut write, mut execute) = (root, true, true);
        for level in (1..=4).rev() {
            let at = GuestAddress(table + 8 * index(va, level) as u64);
            let entry: u64 = memory.read_obj(at).unwrap();
            if entry & PRESENT == 0 {
                return None;
            }
            write &= entry & WRITABLE != 0;
            execute &= entry & NO_EXECUTE == 0;
            let page = 1u64 << (12 + 9 * (level - 1));
            if level == 1 || entry & LARGE != 0 {
                return Some(((entry & ADDRESS) + va % page, write, execute));
            }
            table = entry & ADDRESS;
        }
        None
    }

    #[test]
    fn pages_of_both_sizes_are_found_by_a_walk() {
        let memory = crate::machine::memory::create(2).unwrap();
        let mut tables = PageTables::new(0x8000);
        let data = Rights {
            write: true,
            ..Rights::default()
        };
        let code = Rights {
            execute: true,
            ..Rights::default()
        };
        tables.map_large(0xffff_8000_0020_0000, 0x20_0000, data);
        tables.map_page(0xffff_ffff_8020_0000, 0x20_0000, code);
        tables.map_page(0xffff_ffff_8020_1000, 0x20_1000, Rights::default());
        tables.map_page(0xffff_ffff_8020_1000, 0x20_3000, data);
        assert_eq!(tables.bytes(), 6 * TABLE_BYTES);
        tables.write_to(&memory).unwrap();
        let root = tables.root();
        for (va, want) in [
            (0xffff_8000_0020_1234, Some((0x20_1234, true, false))),
            (0xffff_ffff_8020_0fff, Some((0x20_0fff, false, true))),
            (0xffff_ffff_8020_1008, Some((0x20_3008, true, false))),
            (0xffff_ffff_8020_2000, None),
            (0xffff_8000_0000_0000, None),
            (0, None),
        ] {
            assert_eq!(walk(&memory, root, va), want, "{va:#x}");
        }
    }
}
