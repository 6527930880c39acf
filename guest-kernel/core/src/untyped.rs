//! Free memory. Fresh pages come off a watermark and are zero as the VMM handed them over; pages
//! that a program unmapped are zeroed again before they are handed out a second time.
//!
//! On hosts that interpret guest kernel mode zeroing a page costs 0.3 ms. So fresh memory goes
//! first, and zeroing happens a few pages at a time (`Untyped::clean`): a call that needs more
//! restarts, and interrupts are served in between.

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};

use crate::hardware::{Hardware, PhysPage};

/// Most fresh ranges. A VMM region becomes up to three: what lies before, in and behind its whole
/// 2 MiB pages.
const MAX_RANGES: usize = 24;
/// Pages in a 2 MiB page.
const LARGE_PAGES: u64 = LARGE_PAGE_SIZE / PAGE_SIZE;

/// Fresh memory: small pages from `low` upwards, large ones from `high` downwards.
#[derive(Clone, Copy, Debug)]
struct Fresh {
    low: u64,
    high: u64,
}

/// All memory that nobody uses.
#[derive(Debug)]
pub struct Untyped {
    ranges: [Fresh; MAX_RANGES],
    used_ranges: usize,
    /// The range that small pages come from.
    current: usize,
    fresh_pages: u64,
    /// Zeroed single pages, linked through their first word.
    clean: Option<PhysPage>,
    clean_pages: u64,
    /// Runs of pages with old contents, linked through their first word, their length in the
    /// second.
    dirty: Option<PhysPage>,
    dirty_pages: u64,
}

impl Untyped {
    /// No memory.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ranges: [Fresh { low: 0, high: 0 }; MAX_RANGES],
            used_ranges: 0,
            current: 0,
            fresh_pages: 0,
            clean: None,
            clean_pages: 0,
            dirty: None,
            dirty_pages: 0,
        }
    }

    /// Adds fresh, zeroed memory, page 0 excepted: a page of address 0 is the free lists' end.
    /// What exceeds the table is left unused.
    pub(crate) fn add(&mut self, start: u64, len: u64) {
        let end = start.saturating_add(len) / PAGE_SIZE * PAGE_SIZE;
        let Some(start) = start.max(PAGE_SIZE).checked_next_multiple_of(PAGE_SIZE) else {
            return;
        };
        let body_start = start
            .checked_next_multiple_of(LARGE_PAGE_SIZE)
            .unwrap_or(end);
        let body_end = end / LARGE_PAGE_SIZE * LARGE_PAGE_SIZE;
        if body_start < body_end {
            self.add_range(start, body_start);
            self.add_range(body_end, end);
            self.add_range(body_start, body_end);
        } else {
            self.add_range(start, end);
        }
    }

    fn add_range(&mut self, low: u64, high: u64) {
        if low >= high {
            return;
        }
        if let Some(range) = self.ranges.get_mut(self.used_ranges) {
            *range = Fresh { low, high };
            self.used_ranges += 1;
            self.fresh_pages += (high - low) / PAGE_SIZE;
        }
    }

    /// Pages that can be taken at once.
    #[must_use]
    pub const fn ready_pages(&self) -> u64 {
        self.fresh_pages + self.clean_pages
    }

    /// Pages that have to go through `Untyped::clean` first.
    #[must_use]
    pub const fn dirty_pages(&self) -> u64 {
        self.dirty_pages
    }

    /// Takes up to `most` zeroed, contiguous pages: the first one, and how many; `None` when none is ready.
    pub(crate) fn take_run(
        &mut self,
        hardware: &mut impl Hardware,
        most: u64,
    ) -> Option<(PhysPage, u64)> {
        while self.current < self.used_ranges {
            if let Some(range) = self.ranges.get_mut(self.current) {
                let pages = ((range.high - range.low) / PAGE_SIZE).min(most);
                if pages > 0 {
                    let first = PhysPage::new(range.low);
                    range.low += pages * PAGE_SIZE;
                    self.fresh_pages -= pages;
                    return Some((first, pages));
                }
            }
            self.current += 1;
        }
        let page = self.clean?;
        let [link, ..] = hardware.words(page);
        self.clean = link_to(*link);
        *link = 0;
        self.clean_pages -= 1;
        Some((page, 1))
    }

    /// Takes one zeroed page.
    pub(crate) fn take(&mut self, hardware: &mut impl Hardware) -> Option<PhysPage> {
        self.take_run(hardware, 1).map(|(page, _)| page)
    }

    /// Takes a zeroed, aligned 2 MiB page. Only fresh memory has them.
    pub(crate) fn take_large(&mut self) -> Option<PhysPage> {
        let ranges = self.ranges.get_mut(..self.used_ranges)?;
        let range = ranges.iter_mut().rev().find(|r| {
            r.high.is_multiple_of(LARGE_PAGE_SIZE) && r.high - r.low >= LARGE_PAGE_SIZE
        })?;
        range.high -= LARGE_PAGE_SIZE;
        self.fresh_pages -= LARGE_PAGES;
        Some(PhysPage::new(range.high))
    }

    /// Takes a zeroed block of `1 << bits` bytes, aligned to its size, from the end of fresh memory.
    /// What lies behind it stays unused.
    pub(crate) fn take_block(&mut self, bits: u32) -> Option<u64> {
        let ranges = self.ranges.get_mut(..self.used_ranges)?;
        ranges.iter_mut().rev().find_map(|range| {
            let at = range.high >> bits << bits;
            let at = at.checked_sub(1 << bits).filter(|at| *at >= range.low)?;
            self.fresh_pages -= (range.high - at) / PAGE_SIZE;
            range.high = at;
            Some(at)
        })
    }

    /// Takes back `pages` contiguous pages with whatever is in them. No table maps them any more.
    pub(crate) fn give_back(&mut self, hardware: &mut impl Hardware, first: PhysPage, pages: u64) {
        let [link, len, ..] = hardware.words(first);
        *link = self.dirty.map_or(0, PhysPage::address);
        *len = pages;
        self.dirty = Some(first);
        self.dirty_pages += pages;
    }

    /// Zeroes up to `most` given-back pages, so that they can be taken.
    pub(crate) fn clean(&mut self, hardware: &mut impl Hardware, most: u64) {
        for _ in 0..most {
            let Some(run) = self.dirty else { return };
            let [link, len, ..] = hardware.words(run);
            let next = link_to(*link);
            // The run shrinks from its end; its first page, which holds the link, goes last.
            *len = len.saturating_sub(1);
            let rest = *len;
            if rest == 0 {
                self.dirty = next;
            }
            let page = PhysPage::new(run.address() + rest * PAGE_SIZE);
            let words = hardware.words(page);
            words.fill(0);
            let [link, ..] = words;
            *link = self.clean.map_or(0, PhysPage::address);
            self.clean = Some(page);
            self.clean_pages += 1;
            self.dirty_pages -= 1;
        }
    }
}

impl Default for Untyped {
    fn default() -> Self {
        Self::new()
    }
}

fn link_to(word: u64) -> Option<PhysPage> {
    (word != 0).then(|| PhysPage::new(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    extern crate std;
    use std::collections::HashSet;

    #[test]
    fn every_page_is_handed_out_once_and_zero() {
        let mut hardware = Fake::new();
        let mut untyped = Untyped::new();
        // Page 0 is left out; an odd head and tail around two large pages.
        untyped.add(0, 0x5000);
        untyped.add(0x1f_e000, 0x40_5000);
        assert_eq!(untyped.ready_pages(), 4 + 2 + 1024 + 3);
        let large = untyped.take_large().unwrap();
        assert_eq!(large.address(), 0x40_0000);
        let mut seen = HashSet::new();
        while let Some((first, pages)) = untyped.take_run(&mut hardware, 100) {
            for n in 0..pages {
                assert!(seen.insert(first.address() + n * PAGE_SIZE));
            }
        }
        assert_eq!(seen.len(), 4 + 2 + 512 + 3);
        assert!(!seen.contains(&0));
        assert!(untyped.take_large().is_none());
        assert_eq!(untyped.ready_pages(), 0);
    }

    #[test]
    fn used_pages_come_back_zeroed_and_only_after_cleaning() {
        let mut hardware = Fake::new();
        let mut untyped = Untyped::new();
        untyped.add(0x10_0000, 0x4000);
        let (first, 4) = untyped.take_run(&mut hardware, 9).unwrap() else {
            panic!("one run of four pages")
        };
        for n in 0..4 {
            hardware
                .words(PhysPage::new(first.address() + n * PAGE_SIZE))
                .fill(0xaa);
        }
        untyped.give_back(&mut hardware, first, 3);
        untyped.give_back(&mut hardware, PhysPage::new(first.address() + 0x3000), 1);
        assert_eq!((untyped.ready_pages(), untyped.dirty_pages()), (0, 4));
        assert!(untyped.take(&mut hardware).is_none());
        untyped.clean(&mut hardware, 2);
        assert_eq!((untyped.ready_pages(), untyped.dirty_pages()), (2, 2));
        untyped.clean(&mut hardware, 9);
        let mut seen = HashSet::new();
        while let Some(page) = untyped.take(&mut hardware) {
            assert!(
                hardware.words(page).iter().all(|w| *w == 0),
                "{page:?} is not zero"
            );
            assert!(seen.insert(page.address()));
        }
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn too_many_regions_are_left_unused() {
        let mut untyped = Untyped::new();
        for n in 1..100 {
            untyped.add(n * 0x10_0000, PAGE_SIZE);
        }
        assert_eq!(untyped.ready_pages(), MAX_RANGES as u64);
        untyped.add(u64::MAX - 5, 5);
    }
}
