//! Frames and page tables in address spaces.

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE, USER_END};

use super::super::mapping::{Part, RESTRICTED_ROOT, SPACES};
use super::*;
use crate::paging::{self, index_at};

const AT: u64 = 0x4000_0000;
const RW: u64 = 3;
const SPACE: u64 = 8;
const FRAME: u64 = 9;

impl Rig {
    /// An address space in slot 8, a frame in slot 9, and page tables for [`AT`] in 10 to 12.
    fn mapped() -> Self {
        let mut rig = Self::new();
        rig.make(ObjectType::AddressSpace, SPACE);
        rig.make(PAGE, FRAME);
        rig.retype(ObjectType::PageTable, 10, 3).unwrap();
        for table in 10..13 {
            rig.table(table, AT).unwrap();
        }
        rig
    }

    fn table(&mut self, number: u64, at: u64) -> Result<(), Error> {
        let (slot, space) = (self.slot(number), self.capability(SPACE));
        self.objects.map_table(slot, space, at)
    }

    fn map(&mut self, number: u64, at: u64, rights: u64) -> Result<(), Error> {
        let (slot, space) = (self.slot(number), self.capability(SPACE));
        let rights = paging::Rights::from_bits(rights).unwrap();
        self.objects.map_frame(slot, space, at, rights, Part::ALL)
    }

    fn map_part(
        &mut self,
        number: u64,
        at: u64,
        rights: u64,
        (first, count): (u64, u64),
    ) -> Result<(), Error> {
        let (slot, space) = (self.slot(number), self.capability(SPACE));
        let rights = paging::Rights::from_bits(rights).unwrap();
        let part = Part { first, count };
        self.objects.map_frame(slot, space, at, rights, part)
    }

    fn unmap_part(&mut self, number: u64, first: u64, count: u64) -> Result<(), Error> {
        let slot = self.slot(number);
        self.objects.unmap_frame(slot, Part { first, count })
    }

    /// Which of the pages from `at` on are mapped, and to what in order.
    fn pages(&self, at: u64, count: u64) -> Vec<u64> {
        let all = (0..count).map(|n| self.walk(at + n * PAGE_SIZE) & paging::ADDRESS);
        all.collect()
    }

    /// What the address space has at an address: the entry that the CPU would find.
    fn walk(&self, at: u64) -> u64 {
        let mut table = self.capability(SPACE).address();
        for level in (1..=4).rev() {
            let entry = self
                .objects
                .memory
                .load(table + index_at(at, level) as u64 * 8);
            if entry == 0 || level == 1 || entry & paging::LARGE != 0 {
                return entry;
            }
            table = entry & paging::ADDRESS;
        }
        0
    }
}

#[test]
fn tables_go_where_one_is_missing_and_frames_below_them() {
    let mut rig = Rig::new();
    rig.make(ObjectType::AddressSpace, SPACE);
    rig.make(PAGE, FRAME);
    rig.retype(ObjectType::PageTable, 10, 4).unwrap();
    for level in [3, 2, 1] {
        assert_eq!(rig.map(FRAME, AT, RW), Err(Error::NoTable { level }));
        assert_eq!(rig.table(13 - u64::from(level), AT), Ok(()));
    }
    assert_eq!(
        rig.table(13, AT),
        Err(Error::DeleteFirst),
        "none is missing"
    );
    assert_eq!(rig.table(10, 0), Err(Error::InvalidAddress));
    assert_eq!(rig.table(10, AT << 20), Err(Error::InvalidAddress));
    assert_eq!(
        rig.table(10, 0x1000),
        Err(Error::DeleteFirst),
        "mapped already"
    );
    assert_eq!(rig.table(FRAME, AT), Err(Error::InvalidCapability));
    assert_eq!(rig.map(10, AT, RW), Err(Error::InvalidCapability));
    assert_eq!(rig.map(FRAME, AT + 1, RW), Err(Error::InvalidArgument));
    assert_eq!(rig.map(FRAME, 0, RW), Err(Error::InvalidAddress));
    assert_eq!(rig.map(FRAME, AT, RW), Ok(()));
    assert_eq!(
        rig.walk(AT) & paging::ADDRESS,
        rig.capability(FRAME).address()
    );
    // The lower half is there in restricted mode too.
    let root = rig.capability(SPACE).address();
    let seen = rig.objects.memory.load(root + RESTRICTED_ROOT);
    assert_eq!(seen, rig.objects.memory.load(root));
    assert_ne!(seen, 0);
    rig.check();
}

#[test]
fn rights_and_places_are_the_capabilitys_own() {
    let mut rig = Rig::mapped();
    rig.map(FRAME, AT, RW).unwrap();
    assert_eq!(rig.map(FRAME, AT + 0x1000, RW), Err(Error::DeleteFirst));
    let (to, from) = (rig.slot(20), rig.slot(FRAME));
    rig.objects.copy(to, from, Rights::READ).unwrap();
    assert_eq!(
        rig.map(20, AT, 1),
        Err(Error::DeleteFirst),
        "another's place"
    );
    assert_eq!(rig.map(20, AT + 0x1000, RW), Err(Error::IllegalOperation));
    assert_eq!(rig.map(20, AT + 0x1000, 1), Ok(()));
    assert_eq!(rig.map(FRAME, AT, 1), Ok(()), "other rights");
    assert_eq!(rig.walk(AT) & 2, 0, "not writable");
    let root = rig.capability(SPACE).address();
    assert_eq!(rig.objects.memory.forgotten, [(root, AT)]);
    rig.delete(20);
    assert_eq!(rig.walk(AT + 0x1000), 0);
    assert_ne!(rig.walk(AT), 0, "only its own mapping goes");
    let slot = rig.slot(FRAME);
    assert_eq!(rig.objects.unmap_frame(slot, Part::ALL), Ok(()));
    assert_eq!(rig.walk(AT), 0);
    assert_eq!(rig.objects.unmap_frame(slot, Part::ALL), Ok(()), "again");
    assert_eq!(rig.map(FRAME, AT + 0x2000, RW), Ok(()), "elsewhere now");
    // A move takes the mapping along.
    let to = rig.slot(21);
    rig.objects.relocate(to, slot, None).unwrap();
    rig.delete(21);
    assert_eq!(rig.walk(AT + 0x2000), 0);
    rig.check();
}

#[test]
fn what_was_below_a_table_that_went_is_mapped_nowhere() {
    let mut rig = Rig::mapped();
    rig.map(FRAME, AT, RW).unwrap();
    rig.delete(11);
    assert_eq!(rig.walk(AT), 0);
    let root = rig.capability(SPACE).address();
    assert_eq!(rig.objects.memory.forgotten, [(root, 0)]);
    // Others in its place, and another frame at the same address.
    rig.retype(ObjectType::PageTable, 30, 2).unwrap();
    rig.make(PAGE, 32);
    rig.table(30, AT).unwrap();
    rig.table(31, AT).unwrap();
    rig.map(32, AT, RW).unwrap();
    rig.delete(FRAME);
    rig.delete(12);
    assert_eq!(rig.walk(AT) & paging::ADDRESS, rig.capability(32).address());
    rig.check();
}

#[test]
fn an_address_space_ends_without_a_walk() {
    let mut rig = Rig::mapped();
    rig.map(FRAME, AT, RW).unwrap();
    let root = rig.capability(SPACE).address();
    rig.delete(SPACE);
    assert_eq!(
        rig.objects.memory.forgotten,
        [(root, u64::MAX)],
        "it is left"
    );
    // The next one has its number, and nothing of it.
    rig.make(ObjectType::AddressSpace, SPACE);
    rig.retype(ObjectType::PageTable, 30, 3).unwrap();
    for table in 30..33 {
        rig.table(table, AT).unwrap();
    }
    rig.make(PAGE, 33);
    rig.map(33, AT, RW).unwrap();
    for old in [10, 11, 12] {
        rig.delete(old);
    }
    assert_eq!(rig.map(FRAME, AT, RW), Err(Error::DeleteFirst), "taken");
    assert_eq!(
        rig.map(FRAME, AT + 0x1000, RW),
        Ok(()),
        "it is mapped nowhere"
    );
    rig.delete(FRAME);
    assert_eq!(rig.walk(AT) & paging::ADDRESS, rig.capability(33).address());
    rig.check();
}

#[test]
fn address_spaces_share_the_kernels_half_and_are_counted() {
    let mut rig = Rig::new();
    let kernel = BASE + 0x1000;
    for (index, entry) in [(256, 0xa023), (257, 0xb023), (259, 0xc023), (511, 0xd023)] {
        rig.objects.memory.store(kernel + index * 8, entry);
    }
    rig.objects.set_kernel_root(kernel);
    rig.make(ObjectType::AddressSpace, SPACE);
    let root = rig.capability(SPACE).address();
    for (index, entry) in [
        (0, 0),
        (256, 0xa023),
        (257, 0xb023),
        (258, 0),
        (511, 0xd023),
    ] {
        for root in [root, root + RESTRICTED_ROOT] {
            assert_eq!(rig.objects.memory.load(root + index * 8), entry, "{index}");
        }
    }
    assert_eq!(rig.objects.free_spaces(), SPACES as u64 - 1);
    rig.copy(20, SPACE).unwrap();
    rig.delete(SPACE);
    assert_eq!(
        rig.objects.free_spaces(),
        SPACES as u64 - 1,
        "a copy is left"
    );
    rig.delete(20);
    assert_eq!(rig.objects.free_spaces(), SPACES as u64);
    assert!(rig.objects.take_space_changed());
    assert!(!rig.objects.take_space_changed());
}

#[test]
fn any_pages_of_a_frame_are_mapped_each_at_its_distance() {
    let mut rig = Rig::mapped();
    rig.make(ObjectType::Frame { bits: 3 }, 20);
    let frame = rig.capability(20).address();
    assert!(frame.is_multiple_of(8 * PAGE_SIZE), "aligned to its size");
    let page = |n: u64| frame + n * PAGE_SIZE;
    let at = AT + 0x1_0000;
    assert_eq!(rig.map_part(20, at + 0x2000, RW, (2, 3)), Ok(()));
    let mapped = [0, 0, page(2), page(3), page(4), 0, 0, 0];
    assert_eq!(rig.pages(at, 8), mapped);
    assert_eq!(
        rig.map_part(20, at, RW, (1, 1)),
        Err(Error::DeleteFirst),
        "at another distance"
    );
    // The rest, and other rights for what is there.
    assert_eq!(rig.map_part(20, at + 0x4000, 1, (4, 0)), Ok(()));
    assert_eq!(rig.pages(at, 8)[4..], [page(4), page(5), page(6), page(7)]);
    assert_eq!(rig.walk(at + 0x4000) & 2, 0, "not writable");
    assert_ne!(rig.walk(at + 0x3000) & 2, 0, "its neighbour still is");
    assert_eq!(rig.unmap_part(20, 3, 2), Ok(()));
    let mapped = [0, 0, page(2), 0, 0, page(5), page(6), page(7)];
    assert_eq!(rig.pages(at, 8), mapped);
    assert_eq!(rig.unmap_part(20, 0, 2), Ok(()), "nothing was there");
    assert_eq!(rig.pages(at, 8), mapped);
    for (part, error) in [
        ((8, 0), (0, 7)),
        ((u64::MAX, 1), (0, 7)),
        ((3, 6), (0, 5)),
        ((7, u64::MAX), (0, 1)),
    ] {
        let (min, max) = error;
        let error = Err(Error::Range { min, max });
        let there = at.wrapping_add(part.0.wrapping_mul(PAGE_SIZE));
        assert_eq!(rig.map_part(20, there, RW, part), error, "{part:?}");
        assert_eq!(rig.unmap_part(20, part.0, part.1), error, "{part:?}");
    }
    // All of it has a place among user addresses, wherever the part lies.
    rig.copy(21, 20).unwrap();
    for (address, part) in [
        (0x2000, (2, 1)),
        (USER_END - 0x2000, (0, 1)),
        (0x1000, (2, 1)),
    ] {
        let refused = rig.map_part(21, address, RW, part);
        assert_eq!(refused, Err(Error::InvalidAddress), "{address:#x}");
    }
    // A copy maps for itself, and what it has mapped goes with it.
    assert_eq!(rig.map_part(21, at + 0x1000, RW, (3, 1)), Ok(()));
    assert_eq!(rig.pages(at, 3), [0, page(3), page(2)]);
    rig.delete(21);
    assert_eq!(rig.pages(at, 8), mapped);
    rig.delete(20);
    assert_eq!(rig.pages(at, 8), [0; 8]);
    rig.check();
}

#[test]
fn a_refused_part_changes_nothing() {
    let mut rig = Rig::mapped();
    rig.make(ObjectType::Frame { bits: 2 }, 20);
    let (at, border) = (AT + 0x1_0000, AT + LARGE_PAGE_SIZE);
    rig.map(FRAME, at + 0x3000, RW).unwrap();
    let before = rig.pages(at, 4);
    assert_eq!(rig.map(20, at, RW), Err(Error::DeleteFirst));
    assert_eq!(rig.pages(at, 4), before);
    // The table for its second half is missing.
    let across = border - 0x2000;
    assert_eq!(rig.map(20, across, RW), Err(Error::NoTable { level: 1 }));
    assert_eq!(rig.pages(across, 2), [0, 0]);
    rig.make(ObjectType::PageTable, 21);
    rig.table(21, border).unwrap();
    assert_eq!(rig.map(20, across, RW), Ok(()), "across two tables");
    let frame = rig.capability(20).address();
    let all: Vec<u64> = (0..4).map(|n| frame + n * PAGE_SIZE).collect();
    assert_eq!(rig.pages(across, 4), all);
    // Without the second table the rest is what is mapped.
    rig.delete(21);
    assert_eq!(rig.pages(across, 4), [all[0], all[1], 0, 0]);
    let slot = rig.slot(20);
    assert_eq!(rig.objects.unmap_frame(slot, Part::ALL), Ok(()));
    assert_eq!(rig.pages(across, 4), [0; 4]);
    rig.check();
}

#[test]
fn a_whole_frame_of_two_mebibytes_is_a_large_page() {
    let mut rig = Rig::mapped();
    // Not made of the rig's untyped, which is shorter; nothing touches its memory.
    let frame = Capability::frame(0x4020_0000, 9, false);
    let (slot, at) = (rig.slot(20), AT + LARGE_PAGE_SIZE);
    rig.objects.plant(slot, frame);
    assert_eq!(rig.map(20, at + PAGE_SIZE, RW), Err(Error::InvalidArgument));
    assert_eq!(
        rig.map(20, AT, RW),
        Err(Error::DeleteFirst),
        "a table is there"
    );
    assert_eq!(rig.map(20, at, RW), Ok(()));
    let large = 0x4020_0000 | paging::LARGE;
    let mask = paging::ADDRESS | paging::LARGE;
    assert_eq!(rig.walk(at) & mask, large);
    assert_eq!(rig.map(20, at, 1), Ok(()), "other rights");
    assert_eq!(rig.walk(at) & (mask | 2), large);
    assert_eq!(rig.map(FRAME, at, RW), Err(Error::DeleteFirst), "below it");
    assert_eq!(
        rig.map_part(20, at, RW, (0, 512)),
        Err(Error::DeleteFirst),
        "its parts"
    );
    assert_eq!(rig.unmap_part(20, 5, 1), Err(Error::DeleteFirst));
    let slot = rig.slot(20);
    assert_eq!(rig.objects.unmap_frame(slot, Part::ALL), Ok(()));
    assert_eq!(rig.walk(at), 0);
    // By pages, at any address on 4 KiB.
    rig.make(ObjectType::PageTable, 21);
    rig.table(21, at).unwrap();
    rig.objects.memory.forgotten.clear();
    assert_eq!(rig.map_part(20, at - 0x5000, RW, (0, 512)), Ok(()));
    let all: Vec<u64> = (0..512).map(|n| 0x4020_0000 + n * PAGE_SIZE).collect();
    assert_eq!(rig.pages(at - 0x5000, 512), all);
    assert!(rig.objects.memory.forgotten.is_empty(), "nothing was there");
    rig.delete(20);
    assert_eq!(rig.pages(at - 0x5000, 512), [0; 512]);
    let root = rig.capability(SPACE).address();
    assert_eq!(rig.objects.memory.forgotten, [(root, 0)], "all at once");
}
