//! Frames and page tables in address spaces.
//!
//! An address space is two roots in a row: the full one, and behind it that of restricted mode,
//! which leads to the same tables below `RESTRICTED_END` and to nothing above it. Page tables are
//! objects that whoever maps gives, but for those of the first program, which the kernel makes at
//! boot; frames are mapped below them.
//!
//! A frame's or page table's capability knows where it is mapped: an address, and the number and
//! generation of the address space. So a mapping ends with the capability that made it, whatever
//! other capabilities to the frame there are; and an address space ends without a walk through its
//! tables, for what was mapped in it names a generation that is no more.
//!
//! Of a frame of many pages any can be mapped, each at its own distance from one address: that of
//! the frame's first page, be it mapped or not. That address is what the capability remembers; which
//! pages are mapped, the page tables say.

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};

use super::capability::{Capability, Kind, Rights};
use super::memory::{Memory, Ref};
use super::slot::Slot;
use super::{Error, Objects};
use crate::paging::{self, ADDRESS, LARGE, RESTRICTED_ROOTS, TABLE, UNCACHED, index_at};
use crate::user::UserRange;

/// Most address spaces at a time.
pub const SPACES: usize = 256;
/// Size of an address space in bits: both roots.
pub const SPACE_BITS: u32 = 13;
/// Distance from the full root to that of restricted mode.
pub const RESTRICTED_ROOT: u64 = PAGE_SIZE;

/// Most single translations that are forgotten before all are. Each costs as many instructions as all.
const MAX_FORGOTTEN: u64 = 4;

/// Root entries of the kernel's half.
const KERNEL_ROOTS: core::ops::Range<u64> = 256..511;
/// The root entry of the kernel's image.
const IMAGE_ROOT: u64 = 511;

/// One of the address spaces.
#[derive(Clone, Copy, Debug)]
struct Space {
    /// Its root; zero while the number is free.
    root: u64,
    /// How many had the number before.
    generation: u32,
}

/// All address spaces, by their number.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Spaces {
    table: [Space; SPACES],
    /// No number below is free, so that making many does not look through the table for each.
    all_below: usize,
    /// The root of the kernel alone, whose upper half all share.
    kernel_root: u64,
}

impl Spaces {
    pub(super) const fn new() -> Self {
        Self {
            table: [Space {
                root: 0,
                generation: 0,
            }; SPACES],
            all_below: 0,
            kernel_root: 0,
        }
    }
}

/// Where something is mapped, in one word that is never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    address: u64,
    number: u64,
    generation: u64,
}

impl Place {
    const NUMBER_BITS: u32 = SPACES.ilog2();
    /// User addresses have 47 bits, of which the lowest twelve are zero.
    const GENERATION_BITS: u32 = u64::BITS - Self::NUMBER_BITS - 35;

    const fn word(self) -> u64 {
        (self.address >> 12) << (Self::GENERATION_BITS + Self::NUMBER_BITS)
            | (self.generation & ((1 << Self::GENERATION_BITS) - 1)) << Self::NUMBER_BITS
            | self.number
    }

    const fn of(word: u64) -> Option<Self> {
        if word == 0 {
            return None;
        }
        Some(Self {
            address: (word >> (Self::GENERATION_BITS + Self::NUMBER_BITS)) << 12,
            number: word & ((1 << Self::NUMBER_BITS) - 1),
            generation: word >> Self::NUMBER_BITS & ((1 << Self::GENERATION_BITS) - 1),
        })
    }
}

/// Pages of a frame: so many from the `first` on; `count` 0 is all that follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The first one.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Part {
    /// All pages of a frame.
    pub const ALL: Self = Self { first: 0, count: 0 };

    /// The same with its count, if a frame of so many pages has them.
    const fn within(self, pages: u64) -> Result<Self, Error> {
        if self.first >= pages {
            return Err(Error::Range {
                min: 0,
                max: pages - 1,
            });
        }
        let rest = pages - self.first;
        if self.count > rest {
            return Err(Error::Range { min: 0, max: rest });
        }
        let count = if self.count == 0 { rest } else { self.count };
        Ok(Self { count, ..self })
    }
}

/// Entries in a row of one table of 4 KiB pages.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// Where the first of them lies.
    at: u64,
    count: u64,
}

/// How many of `count` pages from `address` on lie below one table of 4 KiB pages.
fn below_one_table(address: u64, count: u64) -> u64 {
    ((LARGE_PAGE_SIZE - address % LARGE_PAGE_SIZE) / PAGE_SIZE).min(count)
}

/// What the entries of pages in a row differ by. These functions take four entries at a time, since
/// there are hundreds and each instruction counts.
const ROW: [u64; 4] = [0, PAGE_SIZE, 2 * PAGE_SIZE, 3 * PAGE_SIZE];
const ROW_BYTES: u64 = 4 * PAGE_SIZE;

fn are_empty(entries: &[u64]) -> bool {
    let (rows, rest) = entries.as_chunks::<4>();
    rows.iter().all(|[a, b, c, d]| a | b | c | d == 0) && rest.iter().all(|entry| *entry == 0)
}

/// Whether entries map the pages of one frame in a row, of which `first` is the first one's entry, or
/// nothing.
fn are_of(entries: &[u64], first: u64) -> bool {
    let (rows, rest) = entries.as_chunks::<4>();
    let (mut wanted, mut differ) = (first, 0);
    for [a, b, c, d] in rows {
        let [p, q, r, s] = ROW.map(|bytes| wanted + bytes);
        differ |= a ^ p | b ^ q | c ^ r | d ^ s;
        wanted += ROW_BYTES;
    }
    for entry in rest {
        differ |= entry ^ wanted;
        wanted += PAGE_SIZE;
    }
    let mut wanted = first & ADDRESS;
    differ & ADDRESS == 0
        || entries.iter().all(|entry| {
            let is_of = *entry == 0 || entry & ADDRESS == wanted;
            wanted += PAGE_SIZE;
            is_of
        })
}

/// Has entries map the pages of one frame in a row.
fn fill(entries: &mut [u64], first: u64) {
    let (rows, rest) = entries.as_chunks_mut::<4>();
    let mut next = first;
    for row in rows {
        *row = ROW.map(|bytes| next + bytes);
        next += ROW_BYTES;
    }
    for entry in rest {
        *entry = next;
        next += PAGE_SIZE;
    }
}

impl<M: Memory> Objects<M> {
    /// Says what root the kernel was entered with: its upper half is that of all address spaces.
    pub fn set_kernel_root(&mut self, root: u64) {
        self.spaces.kernel_root = root;
    }

    /// The root that a thread without an address space runs with: nothing of it is a program's.
    #[must_use]
    pub const fn kernel_root(&self) -> u64 {
        self.spaces.kernel_root
    }

    /// How many more address spaces there can be.
    pub(super) fn free_spaces(&self) -> u64 {
        self.spaces.table.iter().filter(|s| s.root == 0).count() as u64
    }

    /// Makes an address space of zeroed memory at `root`; its capability.
    ///
    /// # Errors
    /// [`Error::NotEnoughMemory`] when there are as many as there can be.
    pub(crate) fn begin_space(&mut self, root: u64) -> Result<Capability, Error> {
        let first = self.spaces.all_below;
        let behind = self.spaces.table.iter().skip(first);
        let number = (behind.take_while(|space| space.root != 0).count()) + first;
        let Some(space) = self.spaces.table.get_mut(number) else {
            return Err(Error::NotEnoughMemory { available: 0 });
        };
        space.root = root;
        self.spaces.all_below = number + 1;
        let kernel = self.spaces.kernel_root;
        if kernel != 0 {
            // Only what is in use: on some hosts each instruction here costs half a microsecond.
            let direct = KERNEL_ROOTS.take_while(|n| self.memory.load(kernel + n * 8) != 0);
            let count = direct.count() as u64;
            let used = (KERNEL_ROOTS.start..KERNEL_ROOTS.start + count).chain([IMAGE_ROOT]);
            for at in used.map(|index| index * 8) {
                let entry = self.memory.load(kernel + at);
                self.memory.store(root + at, entry);
                self.memory.store(root + RESTRICTED_ROOT + at, entry);
            }
        }
        Ok(Capability::object(Kind::AddressSpace, root).with_number(number as u64))
    }

    /// Ends an address space: what is mapped in it is mapped nowhere.
    pub(super) fn end_space(&mut self, capability: Capability) {
        let number = capability.number() as usize % SPACES;
        self.spaces.all_below = self.spaces.all_below.min(number);
        let space = &mut self.spaces.table[number];
        space.root = 0;
        space.generation = space.generation.wrapping_add(1);
        self.space_changes();
        self.memory.leave(capability.address());
    }

    /// Where a mapping in the address space of `capability` is recorded.
    fn place(&self, space: Capability, address: u64) -> Place {
        let number = space.number();
        let generation = self.spaces.table[number as usize % SPACES].generation;
        Place {
            address,
            number,
            generation: u64::from(generation) & ((1 << Place::GENERATION_BITS) - 1),
        }
    }

    /// The root of the address space that a place is in, while it exists.
    fn root(&self, place: Place) -> Option<u64> {
        let space = self.spaces.table[place.number as usize % SPACES];
        let same = u64::from(space.generation) & ((1 << Place::GENERATION_BITS) - 1);
        (space.root != 0 && same == place.generation).then_some(space.root)
    }

    /// Where the entry for `address` in a table of `level` lies: 1 is that of 4 KiB pages.
    fn entry(&self, root: u64, address: u64, level: u32) -> Result<u64, Error> {
        let mut table = root;
        for above in (level + 1..=4).rev() {
            let entry = self
                .memory
                .load(table + index_at(address, above) as u64 * 8);
            if entry == 0 {
                return Err(Error::NoTable { level: above - 1 });
            }
            if entry & LARGE != 0 {
                return Err(Error::DeleteFirst);
            }
            table = entry & ADDRESS;
        }
        Ok(table + index_at(address, level) as u64 * 8)
    }

    /// Sets an entry of a table of `level`; of a root also what restricted mode sees of it.
    fn set_entry(&mut self, root: u64, at: u64, level: u32, entry: u64) {
        self.memory.store(at, entry);
        if level == 4 && ((at - root) / 8) < RESTRICTED_ROOTS as u64 {
            self.memory.store(at + RESTRICTED_ROOT, entry);
        }
    }

    /// Puts the page table in `slot` where the first one is missing on the way to `address`.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no page table or no address space;
    /// [`Error::InvalidAddress`] for what is no user address; [`Error::DeleteFirst`] when the page
    /// table is in use, or no table is missing.
    pub fn map_table(
        &mut self,
        slot: Ref<Slot>,
        space: Capability,
        address: u64,
    ) -> Result<(), Error> {
        let table = self.capability(slot);
        if table.kind() != Kind::PageTable || space.kind() != Kind::AddressSpace {
            return Err(Error::InvalidCapability);
        }
        let page = address / PAGE_SIZE * PAGE_SIZE;
        UserRange::pages(page, PAGE_SIZE).map_err(|_| Error::InvalidAddress)?;
        if table.level() != 0 {
            return Err(Error::DeleteFirst);
        }
        let root = space.address();
        let missing = match self.entry(root, page, 1) {
            Err(Error::NoTable { level }) => level,
            Ok(_) => return Err(Error::DeleteFirst),
            Err(error) => return Err(error),
        };
        let at = self.entry(root, page, missing + 1)?;
        self.set_entry(root, at, missing + 1, table.address() | TABLE);
        let place = self.place(space, page);
        let mapped = table.with_level(missing).with_mapping(place.word());
        self.memory.get_mut(slot).set_capability(mapped);
        Ok(())
    }

    /// Maps a part of the frame in `slot` so that its first page is at `address`, or changes the
    /// rights where this capability has mapped pages of it there already. A frame of 2 MiB as a
    /// whole becomes a large page; all else is mapped by 4 KiB pages.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no frame or no address space;
    /// [`Error::IllegalOperation`] for rights that the capability has not; [`Error::Range`] for pages
    /// that the frame has not; [`Error::InvalidArgument`] for a misaligned address,
    /// [`Error::InvalidAddress`] where the whole frame would not fit into user addresses;
    /// [`Error::DeleteFirst`] when this capability has mapped it elsewhere or something else is
    /// there; [`Error::NoTable`].
    pub fn map_frame(
        &mut self,
        slot: Ref<Slot>,
        space: Capability,
        address: u64,
        rights: paging::Rights,
        part: Part,
    ) -> Result<(), Error> {
        let frame = self.capability(slot);
        if frame.kind() != Kind::Frame || space.kind() != Kind::AddressSpace {
            return Err(Error::InvalidCapability);
        }
        let has = frame.rights();
        if !has.any(Rights::READ) || rights.writable() && !has.any(Rights::WRITE) {
            return Err(Error::IllegalOperation);
        }
        let large = frame.is_large() && part == Part::ALL;
        let part = part.within(frame.pages())?;
        let unit = if large { LARGE_PAGE_SIZE } else { PAGE_SIZE };
        if !address.is_multiple_of(unit) {
            return Err(Error::InvalidArgument);
        }
        let base = address
            .checked_sub(part.first * PAGE_SIZE)
            .ok_or(Error::InvalidAddress)?;
        UserRange::pages(base, frame.pages() * PAGE_SIZE).map_err(|_| Error::InvalidAddress)?;
        let place = self.place(space, base);
        let mapped_here = match Place::of(frame.mapping()) {
            Some(before) if before == place => true,
            Some(before) if self.root(before).is_some() => return Err(Error::DeleteFirst),
            _ => false,
        };
        let mut entry = frame.address() | rights.entry_bits();
        if frame.is_device() {
            entry |= UNCACHED;
        }
        let root = space.address();
        let first = entry + part.first * PAGE_SIZE;
        match (large, part.count) {
            (true, _) => self.map_one(root, address, 2, entry | LARGE, mapped_here)?,
            (false, 1) => self.map_one(root, address, 1, first, mapped_here)?,
            (false, count) => self.map_pages(root, address, first, count, mapped_here)?,
        }
        let mapped = frame.with_mapping(place.word());
        self.memory.get_mut(slot).set_capability(mapped);
        Ok(())
    }

    /// Maps by one entry of a table of `level`.
    fn map_one(
        &mut self,
        root: u64,
        address: u64,
        level: u32,
        entry: u64,
        mapped_here: bool,
    ) -> Result<(), Error> {
        let at = self.entry(root, address, level)?;
        let before = self.memory.load(at);
        if before != 0 && !(mapped_here && (before ^ entry) & (ADDRESS | LARGE) == 0) {
            return Err(Error::DeleteFirst);
        }
        self.memory.store(at, entry);
        if before != 0 {
            self.memory.forget(root, address);
        }
        Ok(())
    }

    /// Maps `count` pages, of which `entry` is the first one's, after a look at all of them.
    fn map_pages(
        &mut self,
        root: u64,
        address: u64,
        entry: u64,
        count: u64,
        mapped_here: bool,
    ) -> Result<(), Error> {
        // A frame is no longer than what lies below one table, so it lies below two at most.
        let mut runs = [Run::default(); 2];
        let (mut next, mut left, mut wanted) = (address, count, entry);
        let mut is_change = false;
        for run in &mut runs {
            let at = self.entry(root, next, 1)?;
            let count = below_one_table(next, left);
            let before = self.memory.entries(at, count);
            if !are_empty(before) {
                if !mapped_here || !are_of(before, wanted) {
                    return Err(Error::DeleteFirst);
                }
                is_change = true;
            }
            *run = Run { at, count };
            next += count * PAGE_SIZE;
            wanted += count * PAGE_SIZE;
            left -= count;
            if left == 0 {
                break;
            }
        }
        let mut wanted = entry;
        for run in runs.into_iter().filter(|run| run.count > 0) {
            fill(self.memory.entries(run.at, run.count), wanted);
            wanted += run.count * PAGE_SIZE;
        }
        if is_change {
            self.forget_pages(root, address, count);
        }
        Ok(())
    }

    fn forget_pages(&mut self, root: u64, address: u64, count: u64) {
        if count > MAX_FORGOTTEN {
            self.memory.forget_all(root);
            return;
        }
        for page in 0..count {
            self.memory.forget(root, address + page * PAGE_SIZE);
        }
    }

    /// Undoes [`Objects::map_frame`] for a part of the frame, as far as it was done.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no frame, [`Error::Range`] for pages that it has
    /// not; [`Error::DeleteFirst`] for a part of a large page: that goes as a whole.
    pub fn unmap_frame(&mut self, slot: Ref<Slot>, part: Part) -> Result<(), Error> {
        let frame = self.capability(slot);
        if frame.kind() != Kind::Frame {
            return Err(Error::InvalidCapability);
        }
        if part == Part::ALL {
            self.end_mapping(frame);
            (self.memory.get_mut(slot)).set_capability(frame.with_mapping(0));
            return Ok(());
        }
        let part = part.within(frame.pages())?;
        let Some((root, base)) = self.mapped_at(frame) else {
            return Ok(());
        };
        if self.large_entry(root, base, frame).is_some() {
            return Err(Error::DeleteFirst);
        }
        self.unmap_pages(root, base, frame, part);
        Ok(())
    }

    /// The root of the address space in which a capability's mapping is, and its address.
    fn mapped_at(&self, capability: Capability) -> Option<(u64, u64)> {
        let place = Place::of(capability.mapping())?;
        self.root(place).map(|root| (root, place.address))
    }

    /// Where the entry lies that maps a frame as a large page.
    fn large_entry(&self, root: u64, base: u64, frame: Capability) -> Option<u64> {
        if !frame.is_large() || !base.is_multiple_of(LARGE_PAGE_SIZE) {
            return None;
        }
        let at = self.entry(root, base, 2).ok()?;
        let is_it = (self.memory.load(at) ^ (frame.address() | LARGE)) & (ADDRESS | LARGE) == 0;
        is_it.then_some(at)
    }

    /// Unmaps those of a frame's pages that are mapped at their distance from `base`.
    fn unmap_pages(&mut self, root: u64, base: u64, frame: Capability, part: Part) {
        let mut next = base + part.first * PAGE_SIZE;
        let mut mapped = frame.address() + part.first * PAGE_SIZE;
        let (mut left, mut gone) = (part.count, 0);
        while left > 0 {
            let count = below_one_table(next, left);
            // A table above may be gone, or another one be there: then this mapping is, too.
            if let Ok(at) = self.entry(root, next, 1) {
                let mut mapped = mapped;
                for entry in self.memory.entries(at, count) {
                    if *entry & ADDRESS == mapped {
                        *entry = 0;
                        gone += 1;
                    }
                    mapped += PAGE_SIZE;
                }
            }
            next += count * PAGE_SIZE;
            mapped += count * PAGE_SIZE;
            left -= count;
        }
        if gone > 0 {
            self.forget_pages(root, base + part.first * PAGE_SIZE, part.count);
        }
    }

    /// Ends what a frame's or page table's capability has mapped: it goes.
    pub(super) fn end_mapping(&mut self, capability: Capability) {
        let Some((root, base)) = self.mapped_at(capability) else {
            return;
        };
        if capability.kind() == Kind::Frame {
            if let Some(at) = self.large_entry(root, base, capability) {
                self.memory.store(at, 0);
                self.memory.forget(root, base);
            } else {
                let all = Part {
                    first: 0,
                    count: capability.pages(),
                };
                self.unmap_pages(root, base, capability, all);
            }
            return;
        }
        let level = capability.level() + 1;
        // As in `unmap_pages`.
        let Ok(at) = self.entry(root, base, level) else {
            return;
        };
        let entry = self.memory.load(at);
        if entry & ADDRESS == capability.address() && entry & LARGE == 0 {
            self.set_entry(root, at, level, 0);
            self.memory.forget_all(root);
        }
    }
}
