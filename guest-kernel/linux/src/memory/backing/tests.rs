//! Backing on a machine that is as strict about frames as the kernel is.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const READ: u64 = rights::READ;
const READ_WRITE: u64 = rights::READ | rights::WRITE;

/// A capability: its frame, and the address at which the frame's first page would be.
struct Capability {
    frame: usize,
    is_copy: bool,
    base: Option<u64>,
    is_large: bool,
}

/// The machine: frames whose pages hold one number each.
struct Machine {
    /// Pages of the frames that are still to be taken, the first one last.
    supply: Vec<u64>,
    frames: Vec<Vec<u8>>,
    capabilities: BTreeMap<u64, Capability>,
    next: u64,
    /// Virtual page to capability, frame's page, rights.
    mapped: BTreeMap<u64, (u64, u64, u64)>,
    /// Large pages' places that have a page table.
    tables: Vec<u64>,
    /// Page tables that can still be made.
    tables_left: usize,
    copies_left: usize,
    calls: usize,
}

impl Machine {
    fn new(supply: &[u64]) -> Self {
        Self {
            supply: supply.iter().rev().copied().collect(),
            frames: Vec::new(),
            capabilities: BTreeMap::new(),
            next: 1,
            mapped: BTreeMap::new(),
            tables: Vec::new(),
            tables_left: usize::MAX,
            copies_left: usize::MAX,
            calls: 0,
        }
    }

    fn add(&mut self, frame: usize, is_copy: bool) -> u64 {
        let capability = Capability {
            frame,
            is_copy,
            base: None,
            is_large: false,
        };
        self.capabilities.insert(self.next, capability);
        self.next += 1;
        self.next - 1
    }

    /// The value of the page at an address; what is not mapped has none.
    fn at(&mut self, address: u64) -> Option<(&mut u8, u64)> {
        let (handle, page, rights) = *self.mapped.get(&(address / PAGE_SIZE))?;
        let frame = self.capabilities[&handle].frame;
        Some((&mut self.frames[frame][page as usize], rights))
    }

    /// No page of a frame is mapped twice.
    fn check(&self) {
        let mut seen = Vec::new();
        for (handle, page, _) in self.mapped.values() {
            seen.push((self.capabilities[handle].frame, *page));
        }
        seen.sort_unstable();
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]));
    }
}

impl Frames for Machine {
    fn take(&mut self) -> Option<(u64, u64)> {
        self.calls += 1;
        let pages = self.supply.pop()?;
        self.frames.push(vec![0; pages as usize]);
        Some((self.add(self.frames.len() - 1, false), pages))
    }

    fn copy(&mut self, frame: u64) -> Result<u64, Status> {
        self.calls += 1;
        let left = self.copies_left.checked_sub(1);
        self.copies_left = left.ok_or(Status::NotEnoughMemory)?;
        let frame = self.capabilities[&frame].frame;
        Ok(self.add(frame, true))
    }

    fn discard(&mut self, copy: u64) {
        self.unmap(copy, ALL);
        let gone = self.capabilities.remove(&copy).unwrap();
        assert!(gone.is_copy, "the frame would be lost");
        self.copies_left = self.copies_left.saturating_add(1);
    }

    fn map(&mut self, handle: u64, address: u64, rights: u64, part: Part) -> Result<(), Status> {
        self.calls += 1;
        let capability = self.capabilities.get_mut(&handle).unwrap();
        let pages = self.frames[capability.frame].len() as u64;
        let is_large = part == ALL && pages == BLOCK_PAGES;
        let (first, count) = if part == ALL { (0, pages) } else { part };
        assert!(count > 0 && first + count <= pages, "{part:?} of {pages}");
        let unit = if is_large { LARGE_PAGE_SIZE } else { PAGE_SIZE };
        assert!(address.is_multiple_of(unit), "{address:#x}");
        let base = address.checked_sub(first * PAGE_SIZE).unwrap();
        assert!(base >= PAGE_SIZE, "a window at address 0");
        assert!(capability.base.is_none_or(|mapped| mapped == base));
        let place = address / LARGE_PAGE_SIZE;
        if is_large {
            if self.tables.contains(&place) {
                return Err(Status::DeleteFirst);
            }
        } else {
            assert!(!capability.is_large || capability.base.is_none());
            for place in place..=(address + count * PAGE_SIZE - 1) / LARGE_PAGE_SIZE {
                if !self.tables.contains(&place) {
                    let left = self.tables_left.checked_sub(1);
                    self.tables_left = left.ok_or(Status::NotEnoughMemory)?;
                    self.tables.push(place);
                }
            }
        }
        capability.base = Some(base);
        capability.is_large = is_large;
        for n in 0..count {
            let mapped = (handle, first + n, rights);
            let before = self.mapped.insert(address / PAGE_SIZE + n, mapped);
            assert!(before.is_none_or(|(h, page, _)| (h, page) == (handle, first + n)));
        }
        Ok(())
    }

    fn unmap(&mut self, handle: u64, part: Part) {
        self.calls += 1;
        let capability = self.capabilities.get_mut(&handle).unwrap();
        let base = capability.base;
        if part == ALL {
            self.mapped.retain(|_, mapped| mapped.0 != handle);
            (capability.base, capability.is_large) = (None, false);
            return;
        }
        assert!(!capability.is_large, "a part of a large page");
        for page in part.0..part.0 + part.1 {
            let at = base.unwrap() / PAGE_SIZE + page;
            assert_eq!(self.mapped.remove(&at).map(|m| m.0), Some(handle));
        }
    }

    fn zero(&mut self, range: Range<u64>) {
        for at in range.step_by(PAGE_SIZE as usize) {
            let (value, rights) = self.at(at).unwrap();
            assert!(rights & rights::WRITE != 0, "{at:#x}");
            *value = 0;
        }
    }
}

/// 2 MiB and its pages.
const BLOCK: u64 = LARGE_PAGE_SIZE;
const START: u64 = 0x40_0000;

fn pages(first: u64, count: u64) -> Range<u64> {
    START + first * PAGE_SIZE..START + (first + count) * PAGE_SIZE
}

#[test]
fn neighbours_share_a_block_and_one_call_maps_many_pages() {
    let mut machine = Machine::new(&[512, 512]);
    let mut backing = Backing::new();
    backing
        .map(&mut machine, pages(3, 200), READ_WRITE)
        .unwrap();
    assert_eq!(machine.calls, 2, "a block, a mapping");
    backing.map(&mut machine, pages(300, 16), READ).unwrap();
    backing.protect(&mut machine, pages(3, 50), READ).unwrap();
    backing.unmap(&mut machine, pages(60, 10)).unwrap();
    assert_eq!(machine.calls, 5, "one each");
    assert_eq!(machine.supply.len(), 1);
    assert_eq!(machine.mapped.len(), 206);
}

#[test]
fn two_mebibytes_are_a_large_page_until_a_part_of_them_differs() {
    let mut machine = Machine::new(&[512, 512]);
    let mut backing = Backing::new();
    backing
        .map(&mut machine, START..START + BLOCK, READ_WRITE)
        .unwrap();
    assert!(machine.capabilities[&1].is_large);
    *machine.at(START + 0x5000).unwrap().0 = 7;
    backing
        .protect(&mut machine, START..START + BLOCK, READ)
        .unwrap();
    assert!(machine.capabilities[&1].is_large);
    // No page table, no part: all is as it was.
    machine.tables_left = 0;
    let part = pages(1, 1);
    let refused = Err(PlatformError::OutOfMemory);
    assert_eq!(backing.unmap(&mut machine, part.clone()), refused);
    assert_eq!(
        backing.protect(&mut machine, part.clone(), READ_WRITE),
        refused
    );
    assert!(machine.capabilities[&1].is_large);
    machine.tables_left = 1;
    backing
        .protect(&mut machine, part.clone(), READ_WRITE)
        .unwrap();
    backing.unmap(&mut machine, part).unwrap();
    assert_eq!(machine.at(START + 0x5000), Some((&mut 7, READ)));
    assert_eq!(machine.at(START + PAGE_SIZE), None);
    // What comes again is zero, and by small pages where the table is.
    backing.unmap(&mut machine, START..START + BLOCK).unwrap();
    backing
        .map(&mut machine, START..START + BLOCK, READ)
        .unwrap();
    assert_eq!(machine.at(START + 0x5000), Some((&mut 0, READ)));
    assert!(!machine.capabilities[&1].is_large);
    assert_eq!(machine.supply.len(), 1);
}

#[test]
fn when_memory_is_short_every_page_is_used() {
    let mut machine = Machine::new(&[512, 16, 1]);
    let mut backing = Backing::new();
    // Far from each other: the first has a window of its own, the others what it leaves.
    for n in 0..529 {
        let at = START + n * 3 * BLOCK;
        backing
            .map(&mut machine, at..at + PAGE_SIZE, READ_WRITE)
            .unwrap();
        *machine.at(at).unwrap().0 = 1;
    }
    machine.check();
    let more = START - BLOCK..START - BLOCK + PAGE_SIZE;
    let refused = backing.map(&mut machine, more.clone(), READ_WRITE);
    assert_eq!(refused, Err(PlatformError::OutOfMemory));
    backing
        .unmap(&mut machine, START..START + 3 * BLOCK)
        .unwrap();
    backing.map(&mut machine, more.clone(), READ_WRITE).unwrap();
    assert_eq!(machine.at(more.start), Some((&mut 0, READ_WRITE)));
    // Once all is given back it is a whole block again.
    backing.unmap(&mut machine, 0..1 << 46).unwrap();
    assert_eq!(machine.capabilities.len(), 3, "copies are given back");
    backing.map(&mut machine, pages(512, 512), READ).unwrap();
    backing.map(&mut machine, pages(0, 17), READ).unwrap();
    machine.check();
    let all = machine.mapped.keys().map(|page| page * PAGE_SIZE);
    for at in all.collect::<Vec<_>>() {
        assert_eq!(machine.at(at), Some((&mut 0, READ)));
    }
}

#[test]
fn low_addresses_have_no_window_below_the_first_page() {
    let mut machine = Machine::new(&[512, 512, 64]);
    let mut backing = Backing::new();
    backing
        .map(&mut machine, 0x1_0000..0x40_0000, READ)
        .unwrap();
    machine.check();
    backing
        .map(&mut machine, 0x50_0000..0x50_1000, READ)
        .unwrap();
    assert_eq!(machine.mapped.len(), 0x3f1);
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let mut machine = Machine::new(&[512]);
    let mut backing = Backing::new();
    let too_much = backing.map(&mut machine, pages(500, 600), READ);
    assert_eq!(too_much, Err(PlatformError::OutOfMemory));
    assert!(machine.mapped.is_empty());
    machine.tables_left = 0;
    let elsewhere = 1 << 30..(1 << 30) + PAGE_SIZE;
    let no_table = backing.map(&mut machine, elsewhere.clone(), READ);
    assert_eq!(no_table, Err(PlatformError::OutOfMemory));
    machine.tables_left = 9;
    backing.map(&mut machine, pages(0, 1), READ).unwrap();
    machine.copies_left = 0;
    let no_copy = backing.map(&mut machine, elsewhere.clone(), READ);
    assert_eq!(no_copy, Err(PlatformError::OutOfMemory));
    backing.map(&mut machine, pages(1, 511), READ).unwrap();
    backing.unmap(&mut machine, pages(0, 512)).unwrap();
    backing.map(&mut machine, elsewhere, READ).unwrap();
    assert_eq!(machine.mapped.len(), 1);
}

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u64, bool),
    Unmap(u64, u64),
    Protect(u64, u64, bool),
    Write(u64),
}

/// Pages of the property: three blocks' places.
const PAGES: u64 = 1536;

fn op() -> impl Strategy<Value = Op> {
    let page = || prop_oneof![0..PAGES, (0..3_u64).prop_map(|n| n * 512)];
    let count = || prop_oneof![1..40_u64, 500..520_u64, Just(512)];
    prop_oneof![
        (page(), count(), any::<bool>()).prop_map(|(at, n, w)| Op::Map(at, n, w)),
        (page(), count(), any::<bool>()).prop_map(|(at, n, w)| Op::Map(at, n, w)),
        (page(), count()).prop_map(|(at, n)| Op::Unmap(at, n)),
        (page(), count(), any::<bool>()).prop_map(|(at, n, w)| Op::Protect(at, n, w)),
        page().prop_map(Op::Write),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Against an array of pages, with less memory than there are addresses.
    #[test]
    fn behaves_as_pages_do(ops in prop::collection::vec(op(), 1..60)) {
        let mut machine = Machine::new(&[512, 512, 64, 16, 4, 1]);
        let total = 512 + 512 + 64 + 16 + 4 + 1;
        let mut backing = Backing::new();
        let mut model = vec![None::<(u64, u8)>; PAGES as usize];
        let rights = |writable| if writable { READ_WRITE } else { READ };
        for op in ops {
            match op {
                Op::Map(at, n, writable) => {
                    // What has no memory yet, from there on.
                    let free = model[at as usize..].iter().take(n as usize);
                    let n = free.take_while(|page| page.is_none()).count();
                    if n == 0 {
                        continue;
                    }
                    let used = model.iter().flatten().count();
                    let range = pages(at, n as u64);
                    let done = backing.map(&mut machine, range, rights(writable));
                    prop_assert_eq!(done.is_ok(), used + n <= total);
                    if done.is_ok() {
                        model[at as usize..][..n].fill(Some((rights(writable), 0)));
                    }
                }
                Op::Unmap(at, n) => {
                    let n = n.min(PAGES - at);
                    backing.unmap(&mut machine, pages(at, n)).unwrap();
                    model[at as usize..(at + n) as usize].fill(None);
                }
                Op::Protect(at, n, writable) => {
                    let n = n.min(PAGES - at);
                    backing.protect(&mut machine, pages(at, n), rights(writable)).unwrap();
                    for page in model[at as usize..(at + n) as usize].iter_mut().flatten() {
                        page.0 = rights(writable);
                    }
                }
                Op::Write(at) => {
                    if let Some(page) = &mut model[at as usize] {
                        page.1 = page.1.wrapping_add(1).max(1);
                        *machine.at(pages(at, 1).start).unwrap().0 = page.1;
                    }
                }
            }
            machine.check();
            for (at, page) in (0..).zip(&model) {
                let found = machine.at(pages(at, 1).start).map(|(value, rights)| (rights, *value));
                prop_assert_eq!(found, *page, "page {}", at);
            }
        }
        backing.unmap(&mut machine, pages(0, PAGES)).unwrap();
        prop_assert!(machine.mapped.is_empty());
        prop_assert!(machine.capabilities.values().all(|c| !c.is_copy && c.base.is_none()));
    }
}
