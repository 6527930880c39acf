//! Frames and page tables in address spaces.
//!
//! An address space is two roots in a row: the full one, and behind it that of restricted mode,
//! which leads to the same tables below `RESTRICTED_END` and to nothing above it. Page tables are
//! objects that whoever maps gives; frames are mapped below them.
//!
//! A frame's or page table's capability knows where it is mapped: an address, and the number and
//! generation of the address space. So a mapping ends with the capability that made it, whatever
//! other capabilities to the frame there are; and an address space ends without a walk through its
//! tables, for what was mapped in it names a generation that is no more.

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};

use super::capability::{Capability, Kind, Rights};
use super::memory::{Memory, Ref};
use super::slot::Slot;
use super::{Error, Objects};
use crate::paging::{self, ADDRESS, GIVEN, LARGE, RESTRICTED_ROOTS, TABLE, UNCACHED, index_at};
use crate::user::UserRange;

/// Most address spaces at a time.
pub const SPACES: usize = 256;
/// Size of an address space in bits: both roots.
pub const SPACE_BITS: u32 = 13;
/// Distance from the full root to that of restricted mode.
pub const RESTRICTED_ROOT: u64 = PAGE_SIZE;

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
    /// The running thread's root may be another one than before.
    changed: bool,
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
            changed: false,
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

    /// Whether the running thread's root may have changed since the last question.
    pub const fn take_space_changed(&mut self) -> bool {
        core::mem::replace(&mut self.spaces.changed, false)
    }

    /// A thread gets or loses an address space.
    pub(crate) const fn space_changes(&mut self) {
        self.spaces.changed = true;
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
        self.spaces.changed = true;
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
            if entry & LARGE != 0 || entry & GIVEN == 0 {
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
        self.set_entry(root, at, missing + 1, table.address() | TABLE | GIVEN);
        let place = self.place(space, page);
        let mapped = table.with_level(missing).with_mapping(place.word());
        self.memory.get_mut(slot).set_capability(mapped);
        Ok(())
    }

    /// Maps the frame in `slot`, or changes the rights where it is mapped there already.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no frame or no address space;
    /// [`Error::IllegalOperation`] for rights that the capability has not;
    /// [`Error::InvalidArgument`] for a misaligned address, [`Error::InvalidAddress`] for what is
    /// no user address; [`Error::DeleteFirst`] when this capability has mapped it elsewhere or
    /// something else is there; [`Error::NoTable`].
    pub fn map_frame(
        &mut self,
        slot: Ref<Slot>,
        space: Capability,
        address: u64,
        rights: paging::Rights,
    ) -> Result<(), Error> {
        let frame = self.capability(slot);
        if frame.kind() != Kind::Frame || space.kind() != Kind::AddressSpace {
            return Err(Error::InvalidCapability);
        }
        let has = frame.rights();
        if !has.any(Rights::READ) || rights.writable() && !has.any(Rights::WRITE) {
            return Err(Error::IllegalOperation);
        }
        let (size, level) = size_and_level(frame);
        if !address.is_multiple_of(size) {
            return Err(Error::InvalidArgument);
        }
        UserRange::pages(address, size).map_err(|_| Error::InvalidAddress)?;
        let place = self.place(space, address);
        let mapped_here = match Place::of(frame.mapping()) {
            Some(before) if before == place => true,
            Some(before) if self.root(before).is_some() => return Err(Error::DeleteFirst),
            _ => false,
        };
        let root = space.address();
        let at = self.entry(root, address, level)?;
        let entry = self.memory.load(at);
        if entry != 0 && !(mapped_here && is_of(entry, frame)) {
            return Err(Error::DeleteFirst);
        }
        let mut wanted = frame.address() | rights.entry_bits();
        if frame.is_large() {
            wanted |= LARGE;
        }
        if frame.is_device() {
            wanted |= UNCACHED;
        }
        self.memory.store(at, wanted);
        if entry != 0 {
            self.memory.forget(root, address);
        }
        let mapped = frame.with_mapping(place.word());
        self.memory.get_mut(slot).set_capability(mapped);
        Ok(())
    }

    /// Undoes [`Objects::map_frame`], if it was done.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no frame.
    pub fn unmap_frame(&mut self, slot: Ref<Slot>) -> Result<(), Error> {
        let frame = self.capability(slot);
        if frame.kind() != Kind::Frame {
            return Err(Error::InvalidCapability);
        }
        self.end_mapping(frame);
        (self.memory.get_mut(slot)).set_capability(frame.with_mapping(0));
        Ok(())
    }

    /// Ends what a frame's or page table's capability has mapped: it goes.
    pub(super) fn end_mapping(&mut self, capability: Capability) {
        let Some(place) = Place::of(capability.mapping()) else {
            return;
        };
        let Some(root) = self.root(place) else { return };
        let level = match capability.kind() {
            Kind::Frame => size_and_level(capability).1,
            _ => capability.level() + 1,
        };
        // A table above may be gone, or another one be there: then this mapping is, too.
        let Ok(at) = self.entry(root, place.address, level) else {
            return;
        };
        if !is_of(self.memory.load(at), capability) {
            return;
        }
        self.set_entry(root, at, level, 0);
        match capability.kind() {
            Kind::Frame => self.memory.forget(root, place.address),
            _ => self.memory.forget_all(root),
        }
    }
}

/// Whether an entry maps what `capability` names.
fn is_of(entry: u64, capability: Capability) -> bool {
    let large = capability.kind() == Kind::Frame && capability.is_large();
    entry & ADDRESS == capability.address() && (entry & LARGE != 0) == large
}

/// Bytes of a frame, and the level of the table that maps it.
fn size_and_level(frame: Capability) -> (u64, u32) {
    if frame.is_large() {
        (LARGE_PAGE_SIZE, 2)
    } else {
        (PAGE_SIZE, 1)
    }
}
