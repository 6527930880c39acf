//! Entries of page tables, and the way through the tables of an address space: four levels of
//! x86-64 (AMD64 Architecture Programmer's Manual volume 2, section 5.3), user half.
//!
//! An [`AddressSpace`] has two roots. Both lead to the same tables below
//! [`RESTRICTED_END`]; only the full one leads to what is above it. What is mapped comes about in
//! [`crate::objects::mapping`], and at boot in [`crate::boot`].

use bulkhead_abi::layout::{PAGE_SIZE, RESTRICTED_END};
use bulkhead_abi::syscall::{Status, rights};

use crate::hardware::TABLE_ENTRIES;
use crate::objects::mapping::RESTRICTED_ROOT;
use crate::objects::memory::Memory;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Set from the start: the kernel reads neither, and the CPU need not write them.
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
/// Neither cached nor gathered: device memory (AMD64 Architecture Programmer's Manual volume 2,
/// section 5.4.1).
pub(crate) const UNCACHED: u64 = 1 << 3 | 1 << 4;
pub(crate) const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
pub(crate) const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED_DIRTY;

/// Index in the root of the first table that the restricted root lacks.
pub(crate) const RESTRICTED_ROOTS: usize = (RESTRICTED_END >> 39) as usize;

/// Rights of a user mapping. Every mapping can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(u64);

impl Rights {
    /// Readable only.
    pub const READ: Self = Self(rights::READ);

    /// Checks a bit set of [`rights`].
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for bits that are no right.
    pub fn from_bits(bits: u64) -> Result<Self, Status> {
        if bits & !(rights::READ | rights::WRITE | rights::EXECUTE) != 0 {
            return Err(Status::InvalidArgument);
        }
        Ok(Self(bits))
    }

    pub(crate) const fn writable(self) -> bool {
        self.0 & rights::WRITE != 0
    }

    pub(crate) const fn entry_bits(self) -> u64 {
        let mut bits = PRESENT | USER | ACCESSED_DIRTY;
        if self.0 & rights::WRITE != 0 {
            bits |= WRITABLE;
        }
        if self.0 & rights::EXECUTE == 0 {
            bits |= NO_EXECUTE;
        }
        bits
    }
}

/// The user half of an address space, seen in full and in restricted mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    root: u64,
}

impl AddressSpace {
    /// The address space object at `root`.
    pub(crate) const fn at(root: u64) -> Self {
        Self { root }
    }

    /// The guest-physical address of the root for all that is mapped.
    #[must_use]
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// That of the root for restricted mode.
    #[must_use]
    pub const fn restricted_root(&self) -> u64 {
        self.root + RESTRICTED_ROOT
    }

    /// Where a user may read (or write) the byte at `address`, which is a user address: its
    /// guest-physical address and how many bytes of the page follow, itself included.
    pub(crate) fn translate(
        &self,
        memory: &impl Memory,
        address: u64,
        write: bool,
    ) -> Option<(u64, u64)> {
        let (mut table, mut level) = (self.root, 4);
        let (entry, size) = loop {
            let entry = memory.load(table + index_at(address, level) as u64 * 8);
            if level == 1 || entry & LARGE != 0 {
                break (entry, entry_size(level));
            }
            if entry == 0 {
                return None;
            }
            table = entry & ADDRESS;
            level -= 1;
        };
        let needed = PRESENT | USER | if write { WRITABLE } else { 0 };
        // The kernel and the VMM reach RAM alone.
        if entry & (needed | UNCACHED) != needed {
            return None;
        }
        let offset = address % size;
        Some(((entry & ADDRESS) + offset, size - offset))
    }
}

const fn entry_size(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

pub(crate) const fn index_at(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1))) as usize % TABLE_ENTRIES
}
