//! Frames and page tables in address spaces.

use super::super::mapping::{RESTRICTED_ROOT, SPACES};
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
        rig.make(ObjectType::Frame, FRAME);
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
        self.objects.map_frame(slot, space, at, rights)
    }

    /// What the address space has at an address: the entry that the CPU would find.
    fn walk(&self, at: u64) -> u64 {
        let mut table = self.capability(SPACE).address();
        for level in (1..=4).rev() {
            let entry = self
                .objects
                .memory
                .load(table + index_at(at, level) as u64 * 8);
            if entry == 0 || level == 1 {
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
    rig.make(ObjectType::Frame, FRAME);
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
    assert_eq!(rig.objects.unmap_frame(slot), Ok(()));
    assert_eq!(rig.walk(AT), 0);
    assert_eq!(rig.objects.unmap_frame(slot), Ok(()), "again");
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
    rig.make(ObjectType::Frame, 32);
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
    rig.make(ObjectType::Frame, 33);
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
