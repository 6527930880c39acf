//! What a vCPU's page tables map, for dumps: a walk of the tables in guest memory (Intel SDM volume 3,
//! section 5.5). The tables are the guest's: what they say is clipped to memory, and the walk is
//! bounded, whatever loops they form.

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::memory::GuestMemory;

const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
/// Bits of an entry that hold an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Most tables looked at: those of 64 GiB in pages of 4 KiB.
const MAX_TABLES: usize = 1 << 15;
/// Read, write, execute: what a mapping allows matters to no reader of a dump.
const ALL_ACCESS: u32 = 7;

/// A run of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) virtual_address: u64,
    pub(super) physical: u64,
    pub(super) len: u64,
    /// `p_flags`.
    pub(super) flags: u32,
}

impl Mapping {
    /// Addresses that stand for themselves.
    pub(super) fn identity(start: u64, len: u64) -> Self {
        Self {
            virtual_address: start,
            physical: start,
            len,
            flags: ALL_ACCESS,
        }
    }
}

/// Page tables of 64-bit mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paging {
    root: u64,
    levels: u32,
}

impl Paging {
    /// Those of a vCPU; nothing where it is not in 64-bit mode.
    pub(super) fn of(sregs: &kvm_sregs) -> Option<Self> {
        let long = sregs.cr0 & CR0_PG != 0 && sregs.efer & EFER_LMA != 0;
        long.then_some(Self {
            root: sregs.cr3 & ADDRESS,
            levels: if sregs.cr4 & CR4_LA57 == 0 { 4 } else { 5 },
        })
    }

    /// What lies in memory of what is mapped, at most `max` runs, by virtual address.
    pub(super) fn mappings(self, memory: &GuestMemory, max: usize) -> Vec<Mapping> {
        let mut walk = Walk {
            memory,
            tables: 0,
            max,
            found: Vec::new(),
            top: 12 + 9 * self.levels,
        };
        walk.table(self.root, self.levels, 0);
        walk.found
    }
}

struct Walk<'a> {
    memory: &'a GuestMemory,
    tables: usize,
    max: usize,
    found: Vec<Mapping>,
    /// Bits of a virtual address.
    top: u32,
}

impl Walk<'_> {
    /// Looks at the table at `address`, `level` levels above pages, which maps what begins at `base`.
    fn table(&mut self, address: u64, level: u32, base: u64) {
        self.tables += 1;
        let mut entries = [0u8; 4096];
        let table = GuestAddress(address);
        if self.tables > MAX_TABLES || self.memory.read_slice(&mut entries, table).is_err() {
            return;
        }
        let shift = 12 + 9 * (level - 1);
        let entries = entries
            .as_chunks::<8>()
            .0
            .iter()
            .copied()
            .map(u64::from_le_bytes);
        for (index, entry) in (0u64..).zip(entries) {
            let start = base | index << shift;
            if entry & PRESENT == 0 {
                continue;
            }
            // Bit 7 of a table of tables is reserved above 1 GiB pages.
            if level > 1 && (entry & LARGE == 0 || level > 3) {
                self.table(entry & ADDRESS, level - 1, start);
                continue;
            }
            let len = 1 << shift;
            self.add(start, entry & ADDRESS & !(len - 1), len);
        }
    }

    fn add(&mut self, start: u64, physical: u64, len: u64) {
        // The upper half is sign-extended.
        let unused = 64 - self.top;
        let virtual_address = ((start << unused) as i64 >> unused) as u64;
        if let Some(last) = self.found.last_mut()
            && last.virtual_address.wrapping_add(last.len) == virtual_address
            && last.physical.wrapping_add(last.len) == physical
        {
            last.len += len;
            return;
        }
        if self.found.len() < self.max && self.memory.read_obj::<u8>(GuestAddress(physical)).is_ok()
        {
            self.found.push(Mapping {
                virtual_address,
                physical,
                len,
                flags: ALL_ACCESS,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::create;

    fn sregs(cr3: u64) -> kvm_sregs {
        kvm_sregs {
            cr0: CR0_PG,
            cr3,
            efer: EFER_LMA,
            ..kvm_sregs::default()
        }
    }

    fn put(memory: &GuestMemory, table: u64, index: u64, entry: u64) {
        memory
            .write_obj(entry, GuestAddress(table + 8 * index))
            .unwrap();
    }

    #[test]
    fn runs_are_merged_and_clipped_to_memory() {
        let memory = create(4).unwrap();
        put(&memory, 0x1000, 0, 0x2000 | PRESENT);
        put(&memory, 0x1000, 511, 0x2000 | PRESENT);
        put(&memory, 0x2000, 0, 0x3000 | PRESENT);
        // 2 MiB, then two pages that follow it, one that does not, and one that is nowhere.
        put(&memory, 0x3000, 0, LARGE | PRESENT);
        put(&memory, 0x3000, 1, 0x4000 | PRESENT);
        for (index, address) in [(0, 0x20_0000), (1, 0x20_1000), (2, 0x5000), (3, 1 << 40)] {
            put(&memory, 0x4000, index, address | PRESENT);
        }
        let found = Paging::of(&sregs(0x1000)).unwrap().mappings(&memory, 100);
        let run = |virtual_address, physical, len| Mapping {
            virtual_address,
            physical,
            len,
            flags: 7,
        };
        let high = 0xffff_ff80_0000_0000;
        let want = [
            run(0, 0, 0x20_2000),
            run(0x20_2000, 0x5000, 0x1000),
            run(high, 0, 0x20_2000),
            run(high + 0x20_2000, 0x5000, 0x1000),
        ];
        assert_eq!(found, want);
        let few = Paging::of(&sregs(0x1000)).unwrap().mappings(&memory, 1);
        assert_eq!(few, want[..1]);
    }

    #[test]
    fn tables_that_point_at_themselves_come_to_an_end() {
        let memory = create(4).unwrap();
        for index in 0..512 {
            put(&memory, 0x1000, index, 0x1000 | PRESENT);
        }
        for cr4 in [0, CR4_LA57] {
            let sregs = kvm_sregs {
                cr4,
                ..sregs(0x1000)
            };
            let found = Paging::of(&sregs).unwrap().mappings(&memory, 50);
            assert!(found.len() <= 50);
        }
    }

    #[test]
    fn a_root_that_is_nowhere_maps_nothing() {
        let memory = create(4).unwrap();
        let found = Paging::of(&sregs(ADDRESS)).unwrap().mappings(&memory, 50);
        assert_eq!(found, []);
        assert!(Paging::of(&kvm_sregs::default()).is_none());
    }
}
