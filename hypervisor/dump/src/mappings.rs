//! What a vCPU's page tables map, for dumps: a walk of the tables in guest memory (Intel SDM volume 3,
//! section 5.5). The tables are the guest's: what they say is clipped to memory, and the walk is
//! bounded, whatever loops they form.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bulkhead_machine::control::{DumpedRegion, Registers};

use super::find;

const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
/// Bits of an entry that hold an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Most tables looked at: those of 64 GiB in pages of 4 KiB.
const MAX_TABLES: usize = 1 << 15;

/// A run of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) virtual_address: u64,
    pub(super) physical: u64,
    pub(super) len: u64,
}

/// Page tables of 64-bit mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paging {
    root: u64,
    levels: u32,
}

impl Paging {
    /// Those of a vCPU; nothing where it is not in 64-bit mode.
    pub(super) fn of(registers: &Registers) -> Option<Self> {
        let long = registers.cr0 & CR0_PG != 0 && registers.efer & EFER_LMA != 0;
        long.then_some(Self {
            root: registers.cr3 & ADDRESS,
            levels: if registers.cr4 & CR4_LA57 == 0 { 4 } else { 5 },
        })
    }

    /// What lies in `regions`, memory in `file`, of what is mapped, at most `max` runs, by virtual
    /// address.
    pub(super) fn mappings(
        self,
        file: &File,
        regions: &[DumpedRegion],
        max: usize,
    ) -> Vec<Mapping> {
        let mut walk = Walk {
            file,
            regions,
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
    file: &'a File,
    regions: &'a [DumpedRegion],
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
        if self.tables > MAX_TABLES {
            return;
        }
        let Some(entries) = self.read(address) else {
            return;
        };
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

    /// The page at `address` of memory.
    fn read(&self, address: u64) -> Option<[u8; 4096]> {
        let mut page = [0; 4096];
        let region = find(self.regions, address)?;
        let offset = region.offset.checked_add(address - region.start)?;
        self.file.read_exact_at(&mut page, offset).ok()?;
        Some(page)
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
        if self.found.len() < self.max && find(self.regions, physical).is_some() {
            self.found.push(Mapping {
                virtual_address,
                physical,
                len,
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// 4 MiB of memory in a file, from byte 0x3000.
    const REGIONS: [DumpedRegion; 1] = [DumpedRegion {
        start: 0,
        len: 4 << 20,
        offset: 0x3000,
    }];

    fn memory() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x3000 + (4 << 20)).unwrap();
        file
    }

    fn registers(cr3: u64) -> Registers {
        Registers {
            cr0: CR0_PG,
            cr3,
            efer: EFER_LMA,
            ..Registers::default()
        }
    }

    fn put(memory: &File, table: u64, index: u64, entry: u64) {
        let at = 0x3000 + table + 8 * index;
        memory.write_all_at(&entry.to_le_bytes(), at).unwrap();
    }

    fn found(memory: &File, registers: &Registers, max: usize) -> Vec<Mapping> {
        let paging = Paging::of(registers).unwrap();
        paging.mappings(memory, &REGIONS, max)
    }

    #[test]
    fn runs_are_merged_and_clipped_to_memory() {
        let memory = memory();
        put(&memory, 0x1000, 0, 0x2000 | PRESENT);
        put(&memory, 0x1000, 511, 0x2000 | PRESENT);
        put(&memory, 0x2000, 0, 0x3000 | PRESENT);
        // 2 MiB, then two pages that follow it, one that does not, and one that is nowhere.
        put(&memory, 0x3000, 0, LARGE | PRESENT);
        put(&memory, 0x3000, 1, 0x4000 | PRESENT);
        for (index, address) in [(0, 0x20_0000), (1, 0x20_1000), (2, 0x5000), (3, 1 << 40)] {
            put(&memory, 0x4000, index, address | PRESENT);
        }
        let run = |virtual_address, physical, len| Mapping {
            virtual_address,
            physical,
            len,
        };
        let high = 0xffff_ff80_0000_0000;
        let want = [
            run(0, 0, 0x20_2000),
            run(0x20_2000, 0x5000, 0x1000),
            run(high, 0, 0x20_2000),
            run(high + 0x20_2000, 0x5000, 0x1000),
        ];
        assert_eq!(found(&memory, &registers(0x1000), 100), want);
        assert_eq!(found(&memory, &registers(0x1000), 1), want[..1]);
    }

    #[test]
    fn tables_that_point_at_themselves_come_to_an_end() {
        let memory = memory();
        for index in 0..512 {
            put(&memory, 0x1000, index, 0x1000 | PRESENT);
        }
        for cr4 in [0, CR4_LA57] {
            let registers = Registers {
                cr4,
                ..registers(0x1000)
            };
            assert!(found(&memory, &registers, 50).len() <= 50);
        }
    }

    #[test]
    fn a_root_that_is_nowhere_maps_nothing() {
        assert_eq!(found(&memory(), &registers(ADDRESS), 50), []);
        assert!(Paging::of(&Registers::default()).is_none());
    }
}
