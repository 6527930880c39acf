//! Address spaces: four-level page tables of x86-64 (AMD64 Architecture Programmer's Manual
//! volume 2, section 5.3), user half.
//!
//! An [`AddressSpace`] has two roots. Both lead to the same tables below
//! [`RESTRICTED_END`]; only the full one leads to the initial program above it. Every call checks
//! first and changes afterwards, so that an error leaves everything as it was.

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE, RESTRICTED_END};
use bulkhead_abi::syscall::{Status, rights};

use crate::hardware::{Hardware, PhysPage, TABLE_ENTRIES};
use crate::objects::mapping::RESTRICTED_ROOT;
use crate::untyped::Untyped;
use crate::user::UserRange;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Set from the start: the kernel reads neither, and the CPU need not write them.
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
/// Neither cached nor gathered: device memory (AMD64 Architecture Programmer's Manual volume 2,
/// section 5.4.1).
pub(crate) const UNCACHED: u64 = 1 << 3 | 1 << 4;
pub(crate) const LARGE: u64 = 1 << 7;
/// Software bit: the page came from the untyped and goes back there.
const OWNED: u64 = 1 << 9;
/// Software bit: the table is an object that a program gave ([`crate::objects::mapping`]).
pub(crate) const GIVEN: u64 = 1 << 10;
const NO_EXECUTE: u64 = 1 << 63;
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
pub(crate) const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED_DIRTY;

/// Index in the root of the first table that the restricted root lacks.
pub(crate) const RESTRICTED_ROOTS: usize = (RESTRICTED_END >> 39) as usize;
/// Most single invalidations before forgetting all translations is cheaper.
const MAX_INVALIDATIONS: u64 = 16;

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

/// A piece of a range that one table entry, or one run of entries in a table, describes.
enum Span {
    /// Nothing is mapped and no table of pages exists.
    Hole,
    /// A 2 MiB page, by the table that holds its entry; `whole` when the range covers it.
    Large {
        table: PhysPage,
        index: usize,
        whole: bool,
    },
    /// A table that is a program's own object: not for these operations.
    Given,
    /// Entries of a table of 4 KiB pages.
    Pages {
        table: PhysPage,
        first: usize,
        count: usize,
    },
}

/// The user half of an address space, seen in full and in restricted mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    root: PhysPage,
    restricted_root: PhysPage,
}

impl AddressSpace {
    /// The address space object at `root`.
    pub(crate) const fn at(root: u64) -> Self {
        Self {
            root: PhysPage::new(root),
            restricted_root: PhysPage::new(root + RESTRICTED_ROOT),
        }
    }

    /// The root for the initial program.
    #[must_use]
    pub const fn root(&self) -> PhysPage {
        self.root
    }

    /// The root for restricted mode.
    #[must_use]
    pub const fn restricted_root(&self) -> PhysPage {
        self.restricted_root
    }

    /// Most tables that mapping `range` can need.
    fn tables_for(range: UserRange) -> u64 {
        let spanned = |shift: u32| ((range.end() - 1) >> shift) - (range.start() >> shift) + 1;
        spanned(21) + spanned(30) + spanned(39)
    }

    /// Checks that `range` can be mapped now.
    ///
    /// # Errors
    /// [`Status::NotEnoughMemory`] when less is ready than it can need, [`Status::DeleteFirst`]
    /// when something is mapped there.
    pub(crate) fn check_map(
        &self,
        hardware: &mut impl Hardware,
        untyped: &Untyped,
        range: UserRange,
    ) -> Result<(), Status> {
        // Memory first: it bounds the walk.
        if range.page_count() + Self::tables_for(range) > untyped.ready_pages() {
            return Err(Status::NotEnoughMemory);
        }
        let mut at = range.start();
        while at < range.end() {
            let (span, next) = self.span(hardware, at, range.end());
            let empty = match span {
                Span::Hole => true,
                Span::Large { .. } | Span::Given => false,
                Span::Pages {
                    table,
                    first,
                    count,
                } => entries(hardware, table, first, count)
                    .iter()
                    .all(|entry| *entry == 0),
            };
            if !empty {
                return Err(Status::DeleteFirst);
            }
            at = next;
        }
        Ok(())
    }

    /// Maps zeroed memory.
    ///
    /// # Errors
    /// Those of [`AddressSpace::check_map`]; nothing changed.
    pub(crate) fn map(
        &self,
        hardware: &mut impl Hardware,
        untyped: &mut Untyped,
        range: UserRange,
        rights: Rights,
    ) -> Result<(), Status> {
        self.check_map(hardware, untyped, range)?;
        let bits = rights.entry_bits() | OWNED;
        let mut at = range.start();
        while at < range.end() {
            let directory = self.table(hardware, untyped, at, 2)?;
            let index = index_at(at, 2);
            let fits = at.is_multiple_of(LARGE_PAGE_SIZE) && range.end() - at >= LARGE_PAGE_SIZE;
            if fits
                && hardware.words(directory)[index] == 0
                && let Some(page) = untyped.take_large()
            {
                hardware.words(directory)[index] = page.address() | bits | LARGE;
                at += LARGE_PAGE_SIZE;
                continue;
            }
            let table = self.table(hardware, untyped, at, 1)?;
            let first = index_at(at, 1);
            let most = ((range.end() - at) / PAGE_SIZE).min((TABLE_ENTRIES - first) as u64);
            let (page, count) = untyped
                .take_run(hardware, most)
                .ok_or(Status::NotEnoughMemory)?;
            let mut entry = page.address() | bits;
            for slot in entries(hardware, table, first, count as usize) {
                *slot = entry;
                entry += PAGE_SIZE;
            }
            at += count * PAGE_SIZE;
        }
        Ok(())
    }

    /// Maps memory that does not belong to the untyped (modules, `BootInfo`) where it lies.
    ///
    /// # Errors
    /// As [`AddressSpace::map`]. Used at boot only, where an error is the end.
    pub(crate) fn map_in_place(
        &self,
        hardware: &mut impl Hardware,
        untyped: &mut Untyped,
        range: UserRange,
        physical: u64,
        rights: Rights,
    ) -> Result<(), Status> {
        let bits = rights.entry_bits();
        let mut at = range.start();
        let mut physical = physical;
        while at < range.end() {
            let large = (at | physical).is_multiple_of(LARGE_PAGE_SIZE)
                && range.end() - at >= LARGE_PAGE_SIZE;
            let (level, size, bits) = if large {
                (2, LARGE_PAGE_SIZE, bits | LARGE)
            } else {
                (1, PAGE_SIZE, bits)
            };
            let table = self.table(hardware, untyped, at, level)?;
            let first = index_at(at, level);
            let count = (((range.end() - at) / size) as usize).min(TABLE_ENTRIES - first);
            for slot in entries(hardware, table, first, count) {
                if *slot != 0 {
                    return Err(Status::DeleteFirst);
                }
                *slot = physical | bits;
                physical += size;
            }
            at += count as u64 * size;
        }
        Ok(())
    }

    /// Changes the rights of mapped memory.
    ///
    /// # Errors
    /// [`Status::NotMapped`] when a page of it is not mapped, [`Status::NotEnoughMemory`] when a
    /// large page would have to be split and there is no memory for it. Nothing changed.
    pub(crate) fn protect(
        &self,
        hardware: &mut impl Hardware,
        untyped: &mut Untyped,
        range: UserRange,
        rights: Rights,
    ) -> Result<(), Status> {
        self.check_spans(hardware, untyped, range, true)?;
        let wanted = rights.entry_bits();
        let change = |entry: &mut u64| *entry = *entry & (ADDRESS | LARGE | OWNED) | wanted;
        let mut at = range.start();
        while at < range.end() {
            let (span, next) = self.span(hardware, at, range.end());
            match span {
                Span::Hole | Span::Given => {}
                Span::Large {
                    table,
                    index,
                    whole: false,
                } => {
                    self.split(hardware, untyped, table, index)?;
                    continue;
                }
                Span::Large {
                    table,
                    index,
                    whole: true,
                } => {
                    change(&mut hardware.words(table)[index]);
                }
                Span::Pages {
                    table,
                    first,
                    count,
                } => {
                    entries(hardware, table, first, count)
                        .iter_mut()
                        .for_each(change);
                }
            }
            at = next;
        }
        forget(hardware, range);
        Ok(())
    }

    /// Unmaps what is mapped; the untyped takes back what came from there.
    ///
    /// # Errors
    /// [`Status::NotEnoughMemory`] as for [`AddressSpace::protect`]. Nothing changed.
    pub(crate) fn unmap(
        &self,
        hardware: &mut impl Hardware,
        untyped: &mut Untyped,
        range: UserRange,
    ) -> Result<(), Status> {
        self.check_spans(hardware, untyped, range, false)?;
        let mut at = range.start();
        while at < range.end() {
            let (span, next) = self.span(hardware, at, range.end());
            match span {
                Span::Hole | Span::Given => {}
                Span::Large {
                    table,
                    index,
                    whole: false,
                } => {
                    self.split(hardware, untyped, table, index)?;
                    continue;
                }
                Span::Large {
                    table,
                    index,
                    whole: true,
                } => {
                    let entry = core::mem::take(&mut hardware.words(table)[index]);
                    give_back(hardware, untyped, entry, LARGE_PAGE_SIZE / PAGE_SIZE);
                }
                Span::Pages {
                    table,
                    first,
                    count,
                } => {
                    for index in first..first + count {
                        let entry = core::mem::take(&mut hardware.words(table)[index]);
                        give_back(hardware, untyped, entry, 1);
                    }
                }
            }
            at = next;
        }
        forget(hardware, range);
        Ok(())
    }

    /// Where a user may read (or write) the byte at `address`: its guest-physical address and how
    /// many bytes of the page follow, itself included.
    pub(crate) fn translate(
        &self,
        hardware: &mut impl Hardware,
        address: u64,
        write: bool,
    ) -> Option<(u64, u64)> {
        self.translate_in(hardware, address, write, true)
    }

    /// [`Self::translate`] of memory from the pool alone.
    pub(crate) fn translate_pooled(
        &self,
        hardware: &mut impl Hardware,
        address: u64,
        write: bool,
    ) -> Option<(u64, u64)> {
        self.translate_in(hardware, address, write, false)
    }

    fn translate_in(
        &self,
        hardware: &mut impl Hardware,
        address: u64,
        write: bool,
        through_given: bool,
    ) -> Option<(u64, u64)> {
        let (span, _) = self.span_in(hardware, address, address + 1, through_given);
        let (entry, size) = match span {
            Span::Hole | Span::Given => return None,
            Span::Large { table, index, .. } => (hardware.words(table)[index], LARGE_PAGE_SIZE),
            Span::Pages { table, first, .. } => (hardware.words(table)[first], PAGE_SIZE),
        };
        let needed = PRESENT | USER | if write { WRITABLE } else { 0 };
        // The kernel and the VMM reach RAM alone.
        if entry & (needed | UNCACHED) != needed {
            return None;
        }
        let offset = address % size;
        Some(((entry & ADDRESS) + offset, size - offset))
    }

    /// First pass of a change: large pages that must be split have memory for it and, with
    /// `complete`, there is no hole.
    fn check_spans(
        &self,
        hardware: &mut impl Hardware,
        untyped: &Untyped,
        range: UserRange,
        complete: bool,
    ) -> Result<(), Status> {
        let mut splits = 0;
        let mut at = range.start();
        while at < range.end() {
            let (span, next) = self.span(hardware, at, range.end());
            let hole = match span {
                Span::Given => return Err(Status::InvalidAddress),
                Span::Hole => true,
                Span::Large { whole, .. } => {
                    splits += u64::from(!whole);
                    false
                }
                Span::Pages {
                    table,
                    first,
                    count,
                } if complete => entries(hardware, table, first, count).contains(&0),
                Span::Pages { .. } => false,
            };
            if hole && complete {
                return Err(Status::NotMapped);
            }
            at = next;
        }
        if splits > untyped.ready_pages() {
            return Err(Status::NotEnoughMemory);
        }
        Ok(())
    }

    /// What describes `at`, and where the next span begins (at most `end`).
    fn span(&self, hardware: &mut impl Hardware, at: u64, end: u64) -> (Span, u64) {
        self.span_in(hardware, at, end, false)
    }

    /// [`Self::span`], also within tables that are a program's own objects.
    fn span_in(
        &self,
        hardware: &mut impl Hardware,
        at: u64,
        end: u64,
        through_given: bool,
    ) -> (Span, u64) {
        let mut table = self.root;
        let mut level = 4;
        loop {
            let index = index_at(at, level);
            let size = entry_size(level);
            let boundary = at.wrapping_add(size) & !(size - 1);
            let next = boundary.min(end);
            let entry = hardware.words(table)[index];
            if entry == 0 {
                return (Span::Hole, next);
            }
            if entry & LARGE != 0 {
                let whole = at.is_multiple_of(size) && next == boundary;
                return (
                    Span::Large {
                        table,
                        index,
                        whole,
                    },
                    next,
                );
            }
            if entry & GIVEN != 0 && !through_given {
                return (Span::Given, next);
            }
            table = PhysPage::new(entry & ADDRESS);
            level -= 1;
            if level == 1 {
                let first = index_at(at, 1);
                let count = (next - at).div_ceil(PAGE_SIZE) as usize;
                return (
                    Span::Pages {
                        table,
                        first,
                        count,
                    },
                    next,
                );
            }
        }
    }

    /// The table of `level` (2: directory of 2 MiB pages, 1: of 4 KiB pages) for `at`; makes what
    /// is missing.
    fn table(
        &self,
        hardware: &mut impl Hardware,
        untyped: &mut Untyped,
        at: u64,
        level: u32,
    ) -> Result<PhysPage, Status> {
        let mut table = self.root;
        for above in (level + 1..=4).rev() {
            let index = index_at(at, above);
            let entry = hardware.words(table)[index];
            if entry & (LARGE | GIVEN) != 0 {
                return Err(Status::DeleteFirst);
            }
            if entry != 0 {
                table = PhysPage::new(entry & ADDRESS);
                continue;
            }
            let new = untyped.take(hardware).ok_or(Status::NotEnoughMemory)?;
            let entry = new.address() | TABLE;
            hardware.words(table)[index] = entry;
            if above == 4 && index < RESTRICTED_ROOTS {
                hardware.words(self.restricted_root)[index] = entry;
            }
            table = new;
        }
        Ok(table)
    }

    /// Replaces a large page by a table of small ones with the same rights.
    fn split(
        &self,
        hardware: &mut impl Hardware,
        untyped: &mut Untyped,
        directory: PhysPage,
        index: usize,
    ) -> Result<(), Status> {
        let table = untyped.take(hardware).ok_or(Status::NotEnoughMemory)?;
        let mut entry = hardware.words(directory)[index] & !LARGE;
        for slot in hardware.words(table) {
            *slot = entry;
            entry += PAGE_SIZE;
        }
        hardware.words(directory)[index] = table.address() | TABLE;
        Ok(())
    }
}

const fn entry_size(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

pub(crate) const fn index_at(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1))) as usize % TABLE_ENTRIES
}

/// `count` entries of a table; fewer where the table ends.
fn entries(
    hardware: &mut impl Hardware,
    table: PhysPage,
    first: usize,
    count: usize,
) -> &mut [u64] {
    let words = hardware.words(table);
    let end = first.saturating_add(count).min(TABLE_ENTRIES);
    words.get_mut(first..end).unwrap_or(&mut [])
}

fn give_back(hardware: &mut impl Hardware, untyped: &mut Untyped, entry: u64, pages: u64) {
    if entry & OWNED != 0 {
        untyped.give_back(hardware, PhysPage::new(entry & ADDRESS), pages);
    }
}

fn forget(hardware: &mut impl Hardware, range: UserRange) {
    if range.page_count() > MAX_INVALIDATIONS {
        hardware.invalidate_all();
        return;
    }
    let mut at = range.start();
    while at < range.end() {
        hardware.invalidate(at);
        at += PAGE_SIZE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const MIB: u64 = 1 << 20;
    const RW: u64 = rights::READ | rights::WRITE;

    struct Bench {
        hardware: Fake,
        untyped: Untyped,
        space: AddressSpace,
    }

    fn bench(bytes: u64) -> Bench {
        let hardware = Fake::new();
        let mut untyped = Untyped::new();
        untyped.add(4 * MIB, bytes);
        let space = AddressSpace::at(0x1000);
        Bench {
            hardware,
            untyped,
            space,
        }
    }

    impl Bench {
        fn map(&mut self, at: u64, bytes: u64, bits: u64) -> Result<(), Status> {
            let (range, rights) = (UserRange::pages(at, bytes)?, Rights::from_bits(bits)?);
            self.space
                .map(&mut self.hardware, &mut self.untyped, range, rights)
        }
        fn protect(&mut self, at: u64, bytes: u64, bits: u64) -> Result<(), Status> {
            let (range, rights) = (UserRange::pages(at, bytes)?, Rights::from_bits(bits)?);
            self.space
                .protect(&mut self.hardware, &mut self.untyped, range, rights)
        }
        fn unmap(&mut self, at: u64, bytes: u64) -> Result<(), Status> {
            let range = UserRange::pages(at, bytes)?;
            self.space
                .unmap(&mut self.hardware, &mut self.untyped, range)
        }
        fn at(&mut self, address: u64, write: bool) -> Option<u64> {
            self.space
                .translate(&mut self.hardware, address, write)
                .map(|(at, _)| at)
        }
    }

    #[test]
    fn both_roots_share_the_lower_half_only() {
        let mut b = bench(8 * MIB);
        b.map(0x1000, 0x1000, RW).unwrap();
        b.map(RESTRICTED_END, 0x1000, RW).unwrap();
        b.map(RESTRICTED_END - 0x1000, 0x1000, RW).unwrap();
        let full = *b.hardware.words(b.space.root());
        let restricted = *b.hardware.words(b.space.restricted_root());
        for index in 0..TABLE_ENTRIES {
            let program = (RESTRICTED_ROOTS..256).contains(&index);
            assert_eq!(
                restricted[index],
                if program { 0 } else { full[index] },
                "{index}"
            );
        }
        assert_ne!(full[224], 0);
        assert_ne!(full[223], 0);
    }

    #[test]
    fn large_pages_where_aligned_and_small_ones_around() {
        let mut b = bench(16 * MIB);
        let start = 0x4000_0000 - 0x2000;
        b.map(start, 2 * MIB + 0x5000, RW).unwrap();
        let sizes: [u64; 3] = [start, start + 0x2000, start + 2 * MIB + 0x2000]
            .map(|at| b.space.translate(&mut b.hardware, at, true).unwrap().1);
        assert_eq!(sizes, [PAGE_SIZE, LARGE_PAGE_SIZE, PAGE_SIZE]);
        assert_eq!(b.at(start - 1, false), None);
        assert_eq!(b.at(start + 2 * MIB + 0x5000, false), None);
    }

    #[test]
    fn a_refused_map_changes_nothing() {
        let mut b = bench(4 * MIB);
        b.map(0x10_5000, 0x1000, RW).unwrap();
        let ready = b.untyped.ready_pages();
        assert_eq!(b.map(0x10_0000, 0x1_0000, RW), Err(Status::DeleteFirst));
        assert_eq!(b.map(0x10_5000, 0x1000, RW), Err(Status::DeleteFirst));
        assert_eq!(b.map(0x20_0000, 4 * MIB, RW), Err(Status::NotEnoughMemory));
        assert_eq!(b.map(0x20_0000, 1 << 45, RW), Err(Status::NotEnoughMemory));
        assert_eq!(b.map(0x20_0000, 0x1000, 8), Err(Status::InvalidArgument));
        assert_eq!(b.untyped.ready_pages(), ready);
        assert_eq!(b.at(0x10_0000, false), None);
    }

    #[test]
    fn rights_follow_protect_and_large_pages_split() {
        let mut b = bench(16 * MIB);
        b.map(0x4000_0000, 2 * MIB, RW).unwrap();
        let base = b.at(0x4000_0000, true).unwrap();
        b.protect(0x4000_1000, 0x1000, rights::READ).unwrap();
        assert_eq!(b.at(0x4000_1000, true), None);
        assert_eq!(b.at(0x4000_1000, false), Some(base + 0x1000));
        assert_eq!(b.at(0x4000_2fff, true), Some(base + 0x2fff));
        assert_eq!(b.protect(0x4010_0000, 2 * MIB, RW), Err(Status::NotMapped));
        assert_eq!(b.protect(0x5000_0000, 0x1000, RW), Err(Status::NotMapped));
        assert_eq!(
            b.at(0x4000_1000, true),
            None,
            "a refused protect changes nothing"
        );
    }

    #[test]
    #[cfg_attr(
        miri,
        ignore = "thousands of pages: minutes under Miri, and no unsafe code"
    )]
    fn unmapped_memory_can_be_mapped_again_and_is_zero() {
        let mut b = bench(8 * MIB);
        b.map(0x4000_0000, 2 * MIB + 0x3000, RW).unwrap();
        let inside = b.at(0x4000_8000, true).unwrap();
        b.hardware.words(PhysPage::new(inside))[7] = 7;
        b.unmap(0x4000_8000, 0x1000).unwrap();
        assert_eq!(b.at(0x4000_8000, false), None);
        assert!(b.at(0x4000_9000, true).is_some());
        assert_eq!(b.untyped.dirty_pages(), 1);
        b.unmap(0x3000_0000, 0x4000_0000).unwrap();
        assert_eq!(b.at(0x4000_9000, false), None);
        assert_eq!(b.untyped.dirty_pages(), 512 + 3);
        b.unmap(0x3000_0000, 0x4000_0000).unwrap();
        b.untyped.clean(&mut b.hardware, u64::MAX >> 40);
        let all = b.untyped.ready_pages() - 8;
        b.map(0x8000_0000, all * PAGE_SIZE, RW).unwrap();
        for page in 0..all {
            let at = b.at(0x8000_0000 + page * PAGE_SIZE, true).unwrap();
            let words = b.hardware.words(PhysPage::new(at));
            assert!(words.iter().all(|w| *w == 0));
        }
    }

    #[test]
    fn memory_mapped_in_place_never_enters_the_untyped() {
        let mut b = bench(8 * MIB);
        let range = UserRange::pages(RESTRICTED_END, 2 * MIB + 0x1000).unwrap();
        let place = 0x4000_0000;
        b.space
            .map_in_place(&mut b.hardware, &mut b.untyped, range, place, Rights::READ)
            .unwrap();
        assert_eq!(
            b.at(RESTRICTED_END + 2 * MIB + 5, false),
            Some(place + 2 * MIB + 5)
        );
        assert_eq!(b.at(RESTRICTED_END, true), None);
        b.unmap(range.start(), 2 * MIB + 0x1000).unwrap();
        assert_eq!(b.untyped.dirty_pages(), 0);
    }

    #[test]
    fn walks_over_huge_ranges_end() {
        let mut b = bench(8 * MIB);
        b.map(0x10_0000, 0x1000, RW).unwrap();
        b.unmap(0x1000, crate::user::USER_LIMIT - 0x1000).unwrap();
        assert_eq!(b.at(0x10_0000, false), None);
    }
}
