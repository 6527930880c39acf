//! What puts memory behind a program's addresses: frames, of which pages are mapped, changed and
//! unmapped in as few kernel calls as can be. Memory that was used before is zeroed here, in user
//! mode; it stays the program's own until it ends.
//!
//! Memory comes in *blocks*, frames of 2 MiB while there are such. A *window* is a capability to a
//! block's frame, and the address at which the block's first page would be: pages of the block are
//! mapped at their distance from it, in one call for as many as lie in a row. A block has one window
//! on 2 MiB, so what lies near each other shares a block, and 2 MiB in one piece are a large page.
//! When no whole block is left, what is free in any block is used through further windows, each with
//! a copy of the frame's capability.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};
use bulkhead_abi::syscall::{Status, rights};

use super::IntervalMap;
use crate::platform::PlatformError;

/// Pages of a whole block.
const BLOCK_PAGES: u64 = LARGE_PAGE_SIZE / PAGE_SIZE;
/// All pages of a frame, as [`Frames`] is asked for them.
const ALL: Part = (0, 0);

/// Pages of a frame: from which on, and how many; 0 and 0 are the frame as a whole, and one of 2 MiB
/// is then a large page.
pub type Part = (u64, u64);

/// What the kernel does with frames, in the one address space that there is. Handles are the
/// implementation's.
pub trait Frames {
    /// A frame of zeros, the largest that memory is left for: its handle, and how many pages it has.
    fn take(&mut self) -> Option<(u64, u64)>;
    /// A second capability to a frame, which is mapped nowhere.
    ///
    /// # Errors
    /// There is no place for it.
    fn copy(&mut self, frame: u64) -> Result<u64, Status>;
    /// Gives a second capability back; what it has mapped is unmapped.
    fn discard(&mut self, copy: u64);
    /// Maps pages of a frame so that the first of them is at `address`, with the page tables that are
    /// missing, or changes their rights.
    ///
    /// # Errors
    /// [`Status::NotEnoughMemory`] for want of page tables; [`Status::DeleteFirst`] for a large page
    /// where there is a page table.
    fn map(&mut self, frame: u64, address: u64, rights: u64, part: Part) -> Result<(), Status>;
    /// Unmaps pages of a frame that are mapped.
    fn unmap(&mut self, frame: u64, part: Part);
    /// Zeroes memory that is mapped writable.
    fn zero(&mut self, range: Range<u64>);
}

/// Some of a block's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PageSet([u64; BLOCK_PAGES as usize / 64]);

impl PageSet {
    fn has(&self, page: u64) -> bool {
        let word = self.0.get(page as usize / 64);
        word.is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    fn change(&mut self, pages: Range<u64>, value: bool) {
        for page in pages {
            if let Some(word) = self.0.get_mut(page as usize / 64) {
                *word = *word & !(1 << (page % 64)) | u64::from(value) << (page % 64);
            }
        }
    }

    /// The first run of pages within `within` that are in the set, or are not.
    fn run(&self, within: Range<u64>, value: bool) -> Option<Range<u64>> {
        let start = within.clone().find(|page| self.has(*page) == value)?;
        let end = (start..within.end).find(|page| self.has(*page) != value);
        Some(start..end.unwrap_or(within.end))
    }
}

/// A frame.
#[derive(Clone, Debug)]
struct Block {
    frame: u64,
    pages: u64,
    /// What is mapped.
    used: PageSet,
    /// What has old contents.
    dirty: PageSet,
    /// A window has the frame's own capability.
    is_open: bool,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
struct Window {
    block: usize,
    frame: u64,
    is_copy: bool,
    base: u64,
    /// Pages that are mapped.
    live: u64,
    is_large: bool,
}

/// Addresses that have memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Piece {
    window: usize,
    rights: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Backing {
    blocks: Vec<Block>,
    /// Whole blocks of which nothing is mapped.
    unused: Vec<usize>,
    /// The machine has no whole block any more.
    is_short: bool,
    windows: Vec<Window>,
    /// Windows that can be used anew.
    closed: Vec<usize>,
    /// The windows on 2 MiB, by their base.
    aligned: BTreeMap<u64, usize>,
    mapped: IntervalMap<Piece>,
}

fn refused(status: Status) -> PlatformError {
    match status {
        Status::NotEnoughMemory => PlatformError::OutOfMemory,
        _ => PlatformError::Refused,
    }
}

impl Backing {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            blocks: Vec::new(),
            unused: Vec::new(),
            is_short: false,
            windows: Vec::new(),
            closed: Vec::new(),
            aligned: BTreeMap::new(),
            mapped: IntervalMap::new(),
        }
    }

    /// Puts zeroed memory behind all of `range`, which has none.
    ///
    /// # Errors
    /// [`PlatformError::OutOfMemory`]; nothing was mapped.
    pub fn map(
        &mut self,
        frames: &mut dyn Frames,
        range: Range<u64>,
        rights: u64,
    ) -> Result<(), PlatformError> {
        let mut at = range.start;
        while at < range.end {
            match self.map_some(frames, at..range.end, rights) {
                Ok(end) => at = end,
                Err(status) => {
                    if at > range.start {
                        self.unmap(frames, range.start..at)?;
                    }
                    return Err(refused(status));
                }
            }
        }
        Ok(())
    }

    /// Maps the first part of `range`: its end.
    fn map_some(
        &mut self,
        frames: &mut dyn Frames,
        range: Range<u64>,
        rights: u64,
    ) -> Result<u64, Status> {
        let (at, wanted) = (range.start, (range.end - range.start) / PAGE_SIZE);
        // No window begins at address 0.
        let base = (at & !(LARGE_PAGE_SIZE - 1)).max(PAGE_SIZE);
        let first = (at - base) / PAGE_SIZE;
        let window = match self.aligned.get(&base) {
            Some(window) => Some(*window),
            None => match self.whole_block(frames) {
                Some(block) => {
                    let window = self.open(frames, block, base)?;
                    self.aligned.insert(base, window);
                    Some(window)
                }
                None => None,
            },
        };
        if let Some(id) = window {
            let pages = first..BLOCK_PAGES.min(first + wanted);
            if let Some(free) = self.free_run(id, pages)
                && free.start == first
            {
                return self.fill(frames, id, free, rights);
            }
        }
        self.map_left_over(frames, at, wanted, rights)
    }

    /// As [`Self::map_some`], with what is free in any block.
    fn map_left_over(
        &mut self,
        frames: &mut dyn Frames,
        at: u64,
        wanted: u64,
        rights: u64,
    ) -> Result<u64, Status> {
        // Behind what is mapped before it, if that goes on.
        if let Some((_, before)) = at.checked_sub(1).and_then(|at| self.mapped.get(at))
            && let Some(window) = self.windows.get(before.window)
        {
            let first = (at - window.base) / PAGE_SIZE;
            if let Some(free) = self.free_run(before.window, first..first + wanted)
                && free.start == first
            {
                return self.fill(frames, before.window, free, rights);
            }
        }
        loop {
            if let Some((block, pages)) = self.left_over(at, wanted) {
                let base = at - pages.start * PAGE_SIZE;
                let id = self.open(frames, block, base)?;
                return self.fill(frames, id, pages, rights);
            }
            let (frame, pages) = frames.take().ok_or(Status::NotEnoughMemory)?;
            self.add(frame, pages);
        }
    }

    /// Free pages in a row for `at`: as many as are wanted in the first block that has them, else the
    /// most that any has.
    fn left_over(&self, at: u64, wanted: u64) -> Option<(usize, Range<u64>)> {
        let mut best: Option<(usize, Range<u64>)> = None;
        for (id, block) in self.blocks.iter().enumerate() {
            // The window has to begin above address 0.
            let end = block.pages.min(at / PAGE_SIZE);
            let mut from = 0;
            while let Some(free) = block.used.run(from..end, false) {
                from = free.end;
                let free = free.start..free.end.min(free.start + wanted);
                let length = free.end - free.start;
                if length == wanted {
                    return Some((id, free));
                }
                if best.as_ref().is_none_or(|(_, b)| length > b.end - b.start) {
                    best = Some((id, free));
                }
            }
        }
        best
    }

    /// The first free pages of a window's block among `pages`.
    fn free_run(&self, window: usize, pages: Range<u64>) -> Option<Range<u64>> {
        let block = self.blocks.get(self.windows.get(window)?.block)?;
        block
            .used
            .run(pages.start..pages.end.min(block.pages), false)
    }

    /// A block of 2 MiB of which nothing is mapped.
    fn whole_block(&mut self, frames: &mut dyn Frames) -> Option<usize> {
        if let Some(block) = self.unused.pop() {
            return Some(block);
        }
        if self.is_short {
            return None;
        }
        let taken = frames.take();
        self.is_short = taken.is_none_or(|(_, pages)| pages < BLOCK_PAGES);
        let (frame, pages) = taken?;
        let block = self.add(frame, pages);
        (!self.is_short).then_some(block)
    }

    fn add(&mut self, frame: u64, pages: u64) -> usize {
        self.blocks.push(Block {
            frame,
            pages,
            used: PageSet::default(),
            dirty: PageSet::default(),
            is_open: false,
        });
        self.blocks.len() - 1
    }

    /// A window to a block.
    fn open(&mut self, frames: &mut dyn Frames, id: usize, base: u64) -> Result<usize, Status> {
        let block = (self.blocks.get_mut(id)).ok_or(Status::InvalidArgument)?;
        let is_copy = block.is_open;
        let frame = if is_copy {
            frames.copy(block.frame)?
        } else {
            block.frame
        };
        block.is_open = true;
        // A block with a window is no longer a whole one to use.
        self.unused.retain(|unused| *unused != id);
        let window = Window {
            block: id,
            frame,
            is_copy,
            base,
            live: 0,
            is_large: false,
        };
        let Some(slot) = self.closed.pop() else {
            self.windows.push(window);
            return Ok(self.windows.len() - 1);
        };
        if let Some(closed) = self.windows.get_mut(slot) {
            *closed = window;
        }
        Ok(slot)
    }

    /// Maps free pages of a window's block, zeroed: their end.
    fn fill(
        &mut self,
        frames: &mut dyn Frames,
        id: usize,
        pages: Range<u64>,
        rights: u64,
    ) -> Result<u64, Status> {
        let mapped = self.try_fill(frames, id, pages, rights);
        if mapped.is_err() {
            self.close_if_empty(frames, id);
        }
        mapped
    }

    fn try_fill(
        &mut self,
        frames: &mut dyn Frames,
        id: usize,
        pages: Range<u64>,
        rights: u64,
    ) -> Result<u64, Status> {
        let window = (self.windows.get_mut(id)).ok_or(Status::InvalidArgument)?;
        let block = (self.blocks.get_mut(window.block)).ok_or(Status::InvalidArgument)?;
        let at = |page: u64| window.base + page * PAGE_SIZE;
        let (start, end) = (at(pages.start), at(pages.end));
        let count = pages.end - pages.start;
        let is_dirty = block.dirty.run(pages.clone(), true).is_some();
        let first_rights = if is_dirty {
            rights | rights::WRITE
        } else {
            rights
        };
        let mut part = (pages.start, count);
        let mut mapped = Err(Status::DeleteFirst);
        if count == BLOCK_PAGES && start.is_multiple_of(LARGE_PAGE_SIZE) {
            mapped = frames.map(window.frame, start, first_rights, ALL);
            if mapped.is_ok() {
                part = ALL;
            }
        }
        if mapped == Err(Status::DeleteFirst) {
            mapped = frames.map(window.frame, start, first_rights, part);
        }
        mapped?;
        if is_dirty {
            let mut from = pages.start;
            while let Some(dirty) = block.dirty.run(from..pages.end, true) {
                from = dirty.end;
                frames.zero(at(dirty.start)..at(dirty.end));
            }
            block.dirty.change(pages.clone(), false);
            if first_rights != rights {
                frames.map(window.frame, start, rights, part)?;
            }
        }
        block.used.change(pages, true);
        window.live += count;
        window.is_large = part == ALL;
        self.mapped.insert(start..end, Piece { window: id, rights });
        Ok(end)
    }

    /// Closes a window of which nothing is mapped.
    fn close_if_empty(&mut self, frames: &mut dyn Frames, id: usize) {
        let Some(window) = self.windows.get(id).filter(|window| window.live == 0) else {
            return;
        };
        let Some(block) = self.blocks.get_mut(window.block) else {
            return;
        };
        if window.is_copy {
            frames.discard(window.frame);
        } else {
            frames.unmap(window.frame, ALL);
            block.is_open = false;
        }
        if self.aligned.get(&window.base) == Some(&id) {
            self.aligned.remove(&window.base);
        }
        if !block.is_open && block.pages == BLOCK_PAGES && block.used == PageSet::default() {
            self.unused.push(window.block);
        }
        self.closed.push(id);
    }

    /// Takes the memory behind `range` away where there is some.
    ///
    /// # Errors
    /// [`PlatformError::OutOfMemory`] when a large page has to go in part and there is no memory for a
    /// page table; nothing changed.
    pub fn unmap(
        &mut self,
        frames: &mut dyn Frames,
        range: Range<u64>,
    ) -> Result<(), PlatformError> {
        self.split_ends(frames, range.clone())?;
        while let Some((piece, Piece { window: id, .. })) = self.first_mapped(range.clone()) {
            self.mapped.remove(piece.clone());
            let Some(window) = self.windows.get_mut(id) else {
                continue;
            };
            let pages =
                (piece.start - window.base) / PAGE_SIZE..(piece.end - window.base) / PAGE_SIZE;
            window.live -= pages.end - pages.start;
            if window.live > 0 {
                frames.unmap(window.frame, (pages.start, pages.end - pages.start));
            }
            if let Some(block) = self.blocks.get_mut(window.block) {
                block.used.change(pages.clone(), false);
                block.dirty.change(pages, true);
            }
            self.close_if_empty(frames, id);
        }
        Ok(())
    }

    /// Changes the rights of memory that is there.
    ///
    /// # Errors
    /// As for [`Self::unmap`].
    pub fn protect(
        &mut self,
        frames: &mut dyn Frames,
        range: Range<u64>,
        rights: u64,
    ) -> Result<(), PlatformError> {
        self.split_ends(frames, range.clone())?;
        let mut from = range.start;
        while let Some((piece, before)) = self.first_mapped(from..range.end) {
            from = piece.end;
            let Some(window) = self.windows.get(before.window) else {
                continue;
            };
            if before.rights != rights {
                let part = if window.is_large {
                    ALL
                } else {
                    let first = (piece.start - window.base) / PAGE_SIZE;
                    (first, (piece.end - piece.start) / PAGE_SIZE)
                };
                frames
                    .map(window.frame, piece.start, rights, part)
                    .map_err(refused)?;
                self.mapped.insert(piece, Piece { rights, ..before });
            }
        }
        Ok(())
    }

    /// The first part of `within` that has memory.
    fn first_mapped(&self, within: Range<u64>) -> Option<(Range<u64>, Piece)> {
        self.mapped.overlapping(within).next()
    }

    /// Maps large pages that lie in `range` in part by small pages.
    fn split_ends(
        &mut self,
        frames: &mut dyn Frames,
        range: Range<u64>,
    ) -> Result<(), PlatformError> {
        for at in [range.start, range.end - 1] {
            let Some((piece, Piece { window, rights })) = self.mapped.get(at) else {
                continue;
            };
            let Some(window) = self.windows.get_mut(window) else {
                continue;
            };
            let inside = range.start <= piece.start && piece.end <= range.end;
            if window.is_large && !inside {
                frames.unmap(window.frame, ALL);
                let small = frames.map(window.frame, window.base, rights, (0, BLOCK_PAGES));
                if let Err(status) = small {
                    frames
                        .map(window.frame, window.base, rights, ALL)
                        .map_err(refused)?;
                    return Err(refused(status));
                }
                window.is_large = false;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
