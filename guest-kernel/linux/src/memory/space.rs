//! The VMA table and what backs it. `mmap` and its relatives change the first; memory is mapped by
//! the kernel only when it is touched, in pieces as large as the range allows, because a kernel call
//! costs far more than a page.
//!
//! Two limits follow, and docs/linux-abi.md states them: the kernel has no mapping without read
//! access, so touched memory under `PROT_NONE` stays readable to the program; and the heap
//! (`brk`) is backed in pieces of 2 MiB, so its unused end does not fault.

use core::ops::Range;

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};
use bulkhead_abi::syscall::rights;

use super::{IntervalMap, LOWEST, MAX_RANGES, MMAP_TOP, STACK_TOP};
use crate::errno::Errno;
use crate::platform::{Platform, PlatformError};

/// Largest piece that is backed around a touched page where no large page fits, in bytes.
const SMALL_PIECE: u64 = 64 * 1024;
/// How far the heap can grow, in bytes.
const HEAP_LIMIT: u64 = 64 << 30;

/// `PROT_READ`, `PROT_WRITE`, `PROT_EXEC` of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection(u8);

impl Protection {
    /// No access.
    pub const NONE: Self = Self(0);
    /// `PROT_READ`.
    pub const READ: Self = Self(1);
    /// `PROT_WRITE`.
    pub const WRITE: Self = Self(2);
    /// `PROT_EXEC`.
    pub const EXECUTE: Self = Self(4);
    /// `PROT_READ | PROT_WRITE`.
    pub const READ_WRITE: Self = Self(3);

    /// From the `prot` argument of `mmap`.
    ///
    /// # Errors
    /// `EINVAL` for bits that are not `PROT_READ`, `PROT_WRITE`, `PROT_EXEC`.
    pub fn from_bits(bits: u64) -> Result<Self, Errno> {
        match u8::try_from(bits) {
            Ok(bits @ 0..=7) => Ok(Self(bits)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// True when every right of `other` is in here.
    pub fn allows(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The rights of either.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Rights to ask of the kernel, where every mapping is readable.
    fn rights(self) -> u64 {
        let mut bits = rights::READ;
        if self.allows(Self::WRITE) {
            bits |= rights::WRITE;
        }
        if self.allows(Self::EXECUTE) {
            bits |= rights::EXECUTE;
        }
        bits
    }
}

/// Where a new range goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Anywhere, there if it is free.
    Hint(u64),
    /// Exactly there, instead of what is there.
    Fixed(u64),
    /// Exactly there, if it is free (`MAP_FIXED_NOREPLACE`).
    FixedIfFree(u64),
}

/// What became of a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Memory is there now: go on.
    Resolved,
    /// The program may not do this.
    Violation,
    /// The partition's memory is used up.
    OutOfMemory,
}

/// One program's ranges.
#[derive(Debug, Default)]
pub struct AddressSpace {
    /// What the program asked for.
    ranges: IntervalMap<Protection>,
    /// What the kernel has mapped, with its rights.
    backed: IntervalMap<u64>,
    /// First address of the heap.
    heap_start: u64,
    /// The 2 MiB border one page behind it.
    heap_border: u64,
    /// The program break.
    heap_end: u64,
}

/// `address..address + len` rounded out to pages, below `STACK_TOP`.
///
/// # Errors
/// `None` when it wraps round, is empty or leaves the restricted half.
pub(crate) fn pages(address: u64, len: u64) -> Option<Range<u64>> {
    let end = address
        .checked_add(len)?
        .checked_next_multiple_of(PAGE_SIZE)?;
    let start = address & !(PAGE_SIZE - 1);
    (len > 0 && end <= STACK_TOP).then_some(start..end)
}

impl AddressSpace {
    /// An empty address space.
    pub const fn new() -> Self {
        Self {
            ranges: IntervalMap::new(),
            backed: IntervalMap::new(),
            heap_start: 0,
            heap_border: 0,
            heap_end: 0,
        }
    }

    /// Gives everything back.
    pub fn clear(&mut self, platform: &mut dyn Platform) {
        // A failed unmap leaves the books as they are: the piece stays backed.
        let _ = self.release(platform, 0..STACK_TOP);
        self.ranges = IntervalMap::new();
        self.heap_start = 0;
        self.heap_end = 0;
    }

    /// Makes a range, without memory behind it yet.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM`, `EEXIST`, `ENOMEM` as `mmap(2)` has them.
    pub fn map(
        &mut self,
        platform: &mut dyn Platform,
        placement: Placement,
        len: u64,
        protection: Protection,
    ) -> Result<u64, Errno> {
        let len = pages(0, len)
            .ok_or(if len == 0 {
                Errno::EINVAL
            } else {
                Errno::ENOMEM
            })?
            .end;
        if self.ranges.len() >= MAX_RANGES {
            return Err(Errno::ENOMEM);
        }
        let range = match placement {
            Placement::Hint(hint) => self.choose(hint, len)?,
            Placement::Fixed(at) | Placement::FixedIfFree(at) => {
                if !at.is_multiple_of(PAGE_SIZE) {
                    return Err(Errno::EINVAL);
                }
                if at < LOWEST {
                    return Err(Errno::EPERM);
                }
                pages(at, len).ok_or(Errno::ENOMEM)?
            }
        };
        if matches!(placement, Placement::FixedIfFree(_))
            && self.ranges.overlapping(range.clone()).next().is_some()
        {
            return Err(Errno::EEXIST);
        }
        self.release(platform, range.clone())?;
        self.ranges.insert(range.clone(), protection);
        Ok(range.start)
    }

    /// A free range of `len`, at `hint` if possible.
    fn choose(&self, hint: u64, len: u64) -> Result<Range<u64>, Errno> {
        let hint = hint & !(PAGE_SIZE - 1);
        if hint >= LOWEST
            && let Some(range) = pages(hint, len)
            && self.ranges.overlapping(range.clone()).next().is_none()
            && self.backed.overlapping(range.clone()).next().is_none()
        {
            return Ok(range);
        }
        // Ranges that can use large pages are placed so that they do.
        let align = if len >= LARGE_PAGE_SIZE {
            LARGE_PAGE_SIZE
        } else {
            PAGE_SIZE
        };
        let floor = self.heap_end.max(LOWEST);
        let free = |align| self.ranges.find_free(floor..MMAP_TOP, len, align);
        let start = free(align)
            .or_else(|| free(PAGE_SIZE))
            .ok_or(Errno::ENOMEM)?;
        Ok(start..start + len)
    }

    /// Takes a range out.
    ///
    /// # Errors
    /// `EINVAL` for bounds, `ENOMEM` when the kernel cannot split a large page, or a hole in the
    /// middle would make one range too many.
    pub fn unmap(
        &mut self,
        platform: &mut dyn Platform,
        address: u64,
        len: u64,
    ) -> Result<(), Errno> {
        if !address.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let range = pages(address, len).ok_or(Errno::EINVAL)?;
        let is_hole =
            |(around, _): (Range<u64>, _)| around.start < range.start && range.end < around.end;
        if self.ranges.len() >= MAX_RANGES && self.ranges.get(range.start).is_some_and(is_hole) {
            return Err(Errno::ENOMEM);
        }
        self.release(platform, range)
    }

    /// Unbacks and forgets `range`.
    fn release(&mut self, platform: &mut dyn Platform, range: Range<u64>) -> Result<(), Errno> {
        while let Some((piece, _)) = self.first_backed(range.clone()) {
            platform.unmap(piece.clone()).map_err(|_| Errno::ENOMEM)?;
            self.backed.remove(piece);
        }
        self.ranges.remove(range);
        Ok(())
    }

    /// Changes the protection of a range.
    ///
    /// # Errors
    /// `EINVAL` for misalignment, `ENOMEM` when a part of it is no range.
    pub fn protect(
        &mut self,
        platform: &mut dyn Platform,
        address: u64,
        len: u64,
        protection: Protection,
    ) -> Result<(), Errno> {
        if !address.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let range = pages(address, len).ok_or(Errno::ENOMEM)?;
        if self.ranges.first_gap(range.clone()).is_some() || self.ranges.len() >= MAX_RANGES {
            return Err(Errno::ENOMEM);
        }
        let wanted = protection.rights();
        let mut from = range.start;
        while let Some((piece, has)) = self.first_backed(from..range.end) {
            if has != wanted {
                if platform.protect(piece.clone(), wanted).is_err() {
                    // What is done stays done, as on Linux. The books must not promise more rights
                    // than the kernel gives: the personality itself would fault.
                    self.ranges.insert(range.start..from, protection);
                    return Err(Errno::ENOMEM);
                }
                self.backed.insert(piece.clone(), wanted);
            }
            from = piece.end;
        }
        self.ranges.insert(range, protection);
        Ok(())
    }

    /// True when every byte of `range` (not empty) allows `need`.
    pub fn allows(&self, range: Range<u64>, need: Protection) -> bool {
        self.ranges.first_gap(range.clone()).is_none()
            && self
                .ranges
                .overlapping(range)
                .all(|(_, has)| has.allows(need))
    }

    /// True when every byte of `range` is in some range.
    pub fn is_mapped(&self, range: Range<u64>) -> bool {
        self.ranges.first_gap(range).is_none()
    }

    /// The range around `at` that has one protection.
    pub fn range_at(&self, at: u64) -> Option<(Range<u64>, Protection)> {
        self.ranges.get(at)
    }

    /// The first part of `within` that has memory behind it, and the kernel's rights there.
    pub fn first_backed(&self, within: Range<u64>) -> Option<(Range<u64>, u64)> {
        self.backed.overlapping(within).next()
    }

    /// Checks that `address..address + len` allows `need` and puts memory behind it.
    ///
    /// # Errors
    /// `EFAULT` when it does not, or when the partition's memory is used up.
    pub fn touch(
        &mut self,
        platform: &mut dyn Platform,
        address: u64,
        len: u64,
        need: Protection,
    ) -> Result<(), Errno> {
        if len == 0 {
            return Ok(());
        }
        let range = pages(address, len).ok_or(Errno::EFAULT)?;
        if !self.allows(range.clone(), need) {
            return Err(Errno::EFAULT);
        }
        self.back(platform, range).map_err(|_| Errno::EFAULT)
    }

    /// Puts memory behind all of `range`, which lies in ranges.
    ///
    /// # Errors
    /// The partition's memory is used up.
    pub fn back(
        &mut self,
        platform: &mut dyn Platform,
        range: Range<u64>,
    ) -> Result<(), PlatformError> {
        while let Some(gap) = self.backed.first_gap(range.clone()) {
            let (vma, protection) = self.ranges.get(gap.start).ok_or(PlatformError::Refused)?;
            let exact = gap.start..gap.end.min(vma.end);
            let rights = protection.rights();
            // A large page where the range has room for one, else as much as is asked or a small piece.
            let large = gap.start & !(LARGE_PAGE_SIZE - 1);
            let large = large..(exact.end.next_multiple_of(LARGE_PAGE_SIZE)).min(vma.end);
            let small = gap.start & !(SMALL_PIECE - 1);
            let small = small.max(vma.start)..exact.end.max((small + SMALL_PIECE).min(vma.end));
            let fits_large = large.start >= vma.start
                && large.end - large.start >= LARGE_PAGE_SIZE
                && self.backed.overlapping(large.clone()).next().is_none();
            let tries = [
                fits_large.then_some(large),
                self.unbacked_around(small, gap.start),
                Some(exact),
            ];
            let mut outcome = Err(PlatformError::OutOfMemory);
            for piece in tries.into_iter().flatten() {
                outcome = platform.map(piece.clone(), rights);
                if outcome.is_ok() {
                    self.backed.insert(piece, rights);
                    break;
                }
            }
            outcome?;
        }
        Ok(())
    }

    /// The part of `within` around `at` that has no memory yet.
    fn unbacked_around(&self, within: Range<u64>, at: u64) -> Option<Range<u64>> {
        let start = self
            .backed
            .overlapping(within.start..at)
            .last()
            .map_or(within.start, |(piece, _)| piece.end);
        let gap = self.backed.first_gap(at..within.end)?;
        (gap.start == at).then_some(start..gap.end)
    }

    /// Serves a page fault of the program at `address` that needs `need`.
    pub fn fault(&mut self, platform: &mut dyn Platform, address: u64, need: Protection) -> Fault {
        let Some(page) = pages(address, 1) else {
            return Fault::Violation;
        };
        let backed = self.backed.get(page.start).is_some();
        if backed || !self.allows(page.clone(), need) {
            return Fault::Violation;
        }
        match self.back(platform, page) {
            Ok(()) => Fault::Resolved,
            Err(_) => Fault::OutOfMemory,
        }
    }

    /// Zeroes the touched parts of a range, as `MADV_DONTNEED` promises for anonymous memory. Parts
    /// that are not writable stay as they are.
    pub fn discard(&mut self, platform: &mut dyn Platform, range: Range<u64>) {
        for (piece, has) in self.backed.overlapping(range) {
            if has & rights::WRITE != 0 {
                platform.zero_memory(piece);
            }
        }
    }

    /// Puts an empty heap behind `after`: one page before a 2 MiB border. The first page stands alone
    /// because C libraries treat it so (musl makes it a guard page); the rest gets large pages.
    pub fn start_heap(&mut self, after: u64) {
        self.heap_border = (after + PAGE_SIZE).next_multiple_of(LARGE_PAGE_SIZE);
        self.heap_start = self.heap_border - PAGE_SIZE;
        self.heap_end = self.heap_start;
    }

    /// Moves the program break to `wanted` if that can be; answers with where it is.
    pub fn set_break(&mut self, platform: &mut dyn Platform, wanted: u64) -> u64 {
        let limit = self.heap_start.saturating_add(HEAP_LIMIT).min(MMAP_TOP);
        if wanted < self.heap_start || wanted > limit {
            return self.heap_end;
        }
        let old = self.heap_end.next_multiple_of(PAGE_SIZE);
        let new = wanted.next_multiple_of(PAGE_SIZE);
        if new > old {
            let grown = old..new;
            if self.ranges.overlapping(grown.clone()).next().is_some() {
                return self.heap_end;
            }
            self.ranges.insert(grown.clone(), Protection::READ_WRITE);
            if self.back_heap(platform, grown.clone()).is_err() {
                self.ranges.remove(grown);
                return self.heap_end;
            }
        } else if new < old {
            // Whoever grows the heap again finds zeros, and may write to them: what has got other
            // rights meanwhile is given back.
            let heap = Protection::READ_WRITE.rights();
            let mut from = new;
            while let Some((piece, has)) = self.first_backed(from..old) {
                from = piece.end;
                if has == heap {
                    platform.zero_memory(piece);
                } else if platform.unmap(piece.clone()).is_ok() {
                    self.backed.remove(piece);
                } else {
                    return self.heap_end;
                }
            }
            self.ranges.remove(new..old);
        }
        self.heap_end = wanted;
        self.heap_end
    }

    /// Puts memory behind a new part of the heap: whole 2 MiB pages, they cost one kernel call.
    fn back_heap(
        &mut self,
        platform: &mut dyn Platform,
        grown: Range<u64>,
    ) -> Result<(), PlatformError> {
        if grown.end <= self.heap_border {
            return self.back(platform, grown);
        }
        // The rest of a large growth is left to page faults: who asks for a gigabyte may use little.
        let first = grown.start.max(self.heap_border);
        let first = first..grown.end.min(first + LARGE_PAGE_SIZE);
        let Some(gap) = self.backed.first_gap(first) else {
            return Ok(());
        };
        let start = gap.start & !(LARGE_PAGE_SIZE - 1);
        let large = start..start + LARGE_PAGE_SIZE;
        let behind = grown.end..large.end.max(grown.end);
        let free = self.backed.overlapping(large.clone()).next().is_none()
            && self.ranges.overlapping(behind).next().is_none();
        let rights = Protection::READ_WRITE.rights();
        if free && platform.map(large.clone(), rights).is_ok() {
            self.backed.insert(large, rights);
            return Ok(());
        }
        self.back(platform, gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Memory, UserPtr};
    use crate::testing::Machine;
    use proptest::prelude::*;

    /// Pages around a 2 MiB border, so that large pages take part.
    const PAGES: u64 = 1100;
    const BASE: u64 = 0x40_0000 - 40 * PAGE_SIZE;

    #[derive(Clone, Debug)]
    enum Op {
        Map(Range<u64>, u8),
        Unmap(Range<u64>),
        Protect(Range<u64>, u8),
        Write(u64, u8),
        Discard(Range<u64>),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        let edges = prop_oneof![0..80u64, 500..600u64, 1000..PAGES];
        (edges.clone(), edges).prop_map(|(a, b)| a.min(b)..a.max(b) + 1)
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (range(), 0..8u8).prop_map(|(r, p)| Op::Map(r, p)),
            range().prop_map(Op::Unmap),
            (range(), 0..8u8).prop_map(|(r, p)| Op::Protect(r, p)),
            (0..PAGES, 1..255u8).prop_map(|(page, value)| Op::Write(page, value)),
            (0..PAGES, 1..255u8).prop_map(|(page, value)| Op::Write(page, value)),
            range().prop_map(Op::Discard),
        ]
    }

    #[test]
    fn a_heap_that_comes_again_is_zero_and_writable() {
        let mut machine = Machine::new();
        let mut space = AddressSpace::new();
        space.start_heap(0x40_0000);
        let start = space.set_break(&mut machine, 0);
        let end = start + 0x20_0000;
        assert_eq!(space.set_break(&mut machine, end), end);
        let at = start + 2 * PAGE_SIZE;
        let write = |space: &mut AddressSpace, machine: &mut Machine, value: u8| {
            let mut memory = Memory {
                space,
                platform: machine,
            };
            memory.write(UserPtr::new(at), &value)
        };
        write(&mut space, &mut machine, 7).unwrap();
        for rights in [Protection::READ, Protection(7)] {
            space.protect(&mut machine, at, PAGE_SIZE, rights).unwrap();
            assert_eq!(space.set_break(&mut machine, start), start);
            assert_eq!(space.set_break(&mut machine, end), end);
            let mut memory = Memory {
                space: &mut space,
                platform: &mut machine,
            };
            assert_eq!(memory.read::<u8>(UserPtr::new(at)), Ok(0));
            assert_eq!(write(&mut space, &mut machine, 8), Ok(()));
            let has = space.first_backed(at..at + 1).map(|(_, has)| has);
            assert_eq!(has, Some(Protection::READ_WRITE.rights()));
        }
    }

    #[test]
    fn half_a_change_of_rights_is_in_the_books() {
        let mut machine = Machine::new();
        let mut space = AddressSpace::new();
        let (len, page) = (3 * PAGE_SIZE, PAGE_SIZE);
        let placement = Placement::Fixed(BASE);
        space
            .map(&mut machine, placement, len, Protection::READ_WRITE)
            .unwrap();
        space.back(&mut machine, BASE..BASE + len).unwrap();
        // Two pieces: the rights differ. The kernel lacks the memory to change the second.
        let second = BASE + page;
        space
            .protect(&mut machine, second, page, Protection(7))
            .unwrap();
        machine.refuses_protect = Some(second);
        let done = space.protect(&mut machine, BASE, len, Protection::READ);
        assert_eq!(done, Err(Errno::ENOMEM));
        let mut memory = Memory {
            space: &mut space,
            platform: &mut machine,
        };
        assert_eq!(memory.write(UserPtr::new(BASE), &1u8), Err(Errno::EFAULT));
        assert_eq!(memory.write(UserPtr::new(second), &1u8), Ok(()));
    }

    #[test]
    fn holes_have_an_end() {
        let mut machine = Machine::new();
        let mut space = AddressSpace::new();
        let len = 2 * (MAX_RANGES as u64 + 10) * PAGE_SIZE;
        let placement = Placement::Fixed(BASE);
        space
            .map(&mut machine, placement, len, Protection::READ_WRITE)
            .unwrap();
        let mut hole =
            |n: u64| space.unmap(&mut machine, BASE + (2 * n + 1) * PAGE_SIZE, PAGE_SIZE);
        for n in 1..MAX_RANGES as u64 {
            assert_eq!(hole(n), Ok(()), "{n}");
        }
        assert_eq!(hole(MAX_RANGES as u64), Err(Errno::ENOMEM));
        // What makes no more ranges still works.
        assert_eq!(hole(1), Ok(()));
        assert_eq!(space.unmap(&mut machine, BASE, len), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        /// Against an array of pages with a protection and a value each.
        #[test]
        fn behaves_as_an_array_of_pages(ops in prop::collection::vec(op(), 1..40)) {
            let mut machine = Machine::new();
            let mut space = AddressSpace::new();
            let mut model = [None::<(Protection, u8)>; PAGES as usize];
            let at = |page: u64| BASE + page * PAGE_SIZE;
            for op in ops {
                match op {
                    Op::Map(r, bits) => {
                        let protection = Protection(bits);
                        let len = (r.end - r.start) * PAGE_SIZE;
                        space.map(&mut machine, Placement::Fixed(at(r.start)), len, protection).unwrap();
                        model[r.start as usize..r.end as usize].fill(Some((protection, 0)));
                    }
                    Op::Unmap(r) => {
                        let len = (r.end - r.start) * PAGE_SIZE;
                        space.unmap(&mut machine, at(r.start), len).unwrap();
                        model[r.start as usize..r.end as usize].fill(None);
                    }
                    Op::Protect(r, bits) => {
                        let len = (r.end - r.start) * PAGE_SIZE;
                        let pages = &mut model[r.start as usize..r.end as usize];
                        let whole = pages.iter().all(Option::is_some);
                        let done = space.protect(&mut machine, at(r.start), len, Protection(bits));
                        prop_assert_eq!(done.is_ok(), whole);
                        if whole {
                            pages.iter_mut().flatten().for_each(|page| page.0 = Protection(bits));
                        }
                    }
                    Op::Write(page, value) => {
                        let mut memory = Memory { space: &mut space, platform: &mut machine };
                        let done = memory.write(UserPtr::new(at(page) + 7), &value);
                        let slot = &mut model[page as usize];
                        let may = slot.is_some_and(|(p, _)| p.allows(Protection::WRITE));
                        prop_assert_eq!(done.is_ok(), may);
                        if let (true, Some(slot)) = (may, slot) {
                            slot.1 = value;
                        }
                    }
                    Op::Discard(r) => {
                        space.discard(&mut machine, at(r.start)..at(r.end));
                        for page in model[r.start as usize..r.end as usize].iter_mut().flatten() {
                            if page.0.allows(Protection::WRITE) {
                                page.1 = 0;
                            }
                        }
                    }
                }
            }
            for page in 0..PAGES {
                let mut memory = Memory { space: &mut space, platform: &mut machine };
                let found = memory.read(UserPtr::<u8>::new(at(page) + 7)).ok();
                let expected = model[page as usize];
                let expected = expected.filter(|(p, _)| p.allows(Protection::READ)).map(|(_, v)| v);
                prop_assert_eq!(found, expected, "page {}", page);
            }
            space.clear(&mut machine);
            prop_assert!(machine.pages.is_empty());
        }
    }
}
