//! Memory for the program: frames, page tables and small objects, of the untypeds that the program
//! was given, [`slot::MEMORY`] and those behind it. What is mapped here stays mapped; who wants to
//! give memory back keeps frames of its own.
//!
//! Untypeds are used up in pieces of 2 MiB: a large frame is one, and small objects share another, so
//! that none of them costs a large frame its alignment. None of this needs the heap, which grows
//! by it.

use core::ops::Range;

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};
use bulkhead_abi::object::{TYPE_FRAME, TYPE_PAGE_TABLE, TYPE_UNTYPED};
use bulkhead_abi::syscall::{Status, slot};
use lock_api::Mutex;

use crate::heap::YieldLock;
use crate::object::{ADDRESS_SPACE, CNODE, Frame, PageTable, Untyped};
use crate::slots;

/// Pages of a large frame, in bits.
pub const LARGE_FRAME_BITS: u64 = (LARGE_PAGE_SIZE / PAGE_SIZE).ilog2() as u64;
/// Largest frame that is made where no large one fits, in bits of pages: 64 KiB.
const SMALL_FRAME_BITS: u64 = 4;
/// Page tables that are made at a time: the more, the less each costs.
const TABLES: u64 = 8;
/// Large frames that are made at a time for who takes all there is.
const LARGE_FRAMES: u64 = 4;

/// Objects in a row of slots.
#[derive(Debug)]
struct Row {
    first: u64,
    left: u64,
}

impl Row {
    const EMPTY: Self = Self { first: 0, left: 0 };

    fn take(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        self.first += 1;
        Some(self.first - 1)
    }
}

/// Where memory comes from.
struct Supply {
    /// The untyped that gives the next 2 MiB.
    next: u64,
    /// The untyped that gives small objects; 0 for none yet.
    small: u64,
    large_frames: Row,
    tables: Row,
}

static SUPPLY: Mutex<YieldLock, Supply> = Mutex::new(Supply {
    next: slot::MEMORY,
    small: 0,
    large_frames: Row::EMPTY,
    tables: Row::EMPTY,
});

/// An object of a `TYPE_*`, `1 << bits` bytes long, in a free slot: its handle. `size` as for
/// [`Untyped::make`].
///
/// # Errors
/// [`Status::NotEnoughMemory`], also without a free slot.
pub fn object(kind: u64, size: u64, bits: u64) -> Result<u64, Status> {
    let mut supply = SUPPLY.lock();
    make_row(1, |at, count| supply.small(kind, size, bits, at, count))
}

/// A frame of `1 << bits` pages.
///
/// # Errors
/// As for [`object`].
pub fn frame(bits: u64) -> Result<Frame, Status> {
    if bits == LARGE_FRAME_BITS {
        return SUPPLY.lock().large_frame(1).map(Frame);
    }
    object(TYPE_FRAME, bits, bits + PAGE_SIZE.ilog2() as u64).map(Frame)
}

/// The largest frame that memory is left for, and its pages in bits: for who takes all there is. The
/// next one may be made along with it.
#[must_use]
pub fn largest_frame() -> Option<(Frame, u64)> {
    if let Ok(frame) = SUPPLY.lock().large_frame(LARGE_FRAMES) {
        return Some((Frame(frame), LARGE_FRAME_BITS));
    }
    let sizes = (0..LARGE_FRAME_BITS).rev();
    sizes
        .into_iter()
        .find_map(|bits| Some((frame(bits).ok()?, bits)))
}

/// Bytes that are left, about.
#[must_use]
pub fn available() -> u64 {
    untypeds().map(|(_, free)| free).sum()
}

/// The untypeds, and how much of each is left.
fn untypeds() -> impl Iterator<Item = (u64, u64)> {
    (slot::MEMORY..slot::INTERRUPTS).map_while(|at| {
        let (bits, used) = Untyped(at).inspect().ok()?;
        Some((at, (1 << bits) - used))
    })
}

/// Maps `count` pages of a frame from the `first` on, with the page tables that are missing. As for
/// [`Frame::map_part`] 0 pages are all that follow; for these the page tables of `address` alone are
/// made.
///
/// # Errors
/// See [`bulkhead_abi::syscall::FRAME_MAP`]; [`Status::NotEnoughMemory`] for want of page tables.
///
/// # Safety
/// As for [`Frame::map_part`].
pub unsafe fn map_frame(
    frame: Frame,
    address: u64,
    rights: u64,
    (first, count): (u64, u64),
) -> Result<(), Status> {
    loop {
        // SAFETY: the caller's promise.
        let mapped = unsafe { frame.map_or_say(ADDRESS_SPACE, address, rights, (first, count)) };
        let Err((Status::NotMapped, level)) = mapped else {
            return mapped.map_err(|(status, _)| status);
        };
        let last = address + count.saturating_sub(1) * PAGE_SIZE;
        // What may become a large page wants none of level 1.
        let tables = level - u64::from(count == 0 && level > 1);
        SUPPLY.lock().provide_tables([address, last], tables)?;
    }
}

/// Maps zeroed memory from the start of `range` on, where nothing is mapped, as far as memory is left
/// for it: the end of what is mapped. That is behind the range only where a large page serves its end,
/// and never behind `limit`.
pub fn extend(range: Range<u64>, limit: u64, rights: u64) -> u64 {
    let mut at = range.start;
    while at < range.end {
        let is_large = at.is_multiple_of(LARGE_PAGE_SIZE) && limit - at >= LARGE_PAGE_SIZE;
        if is_large && map_large(at, rights).is_ok() {
            at += LARGE_PAGE_SIZE;
            continue;
        }
        let left = range.end - at;
        let most = u64::from((left / PAGE_SIZE).max(1).ilog2()).min(SMALL_FRAME_BITS);
        let made = (0..=most)
            .rev()
            .find_map(|bits| Some((frame(bits).ok()?, bits)));
        let Some((frame, bits)) = made else { break };
        // SAFETY: nothing is mapped there, so no reference leads there.
        if unsafe { map_frame(frame, at, rights, (0, 1 << bits)) }.is_err() {
            let _ = frame.delete();
            break;
        }
        at += PAGE_SIZE << bits;
    }
    at
}

fn map_large(at: u64, rights: u64) -> Result<(), Status> {
    let handle = SUPPLY.lock().large_frame(1)?;
    // SAFETY: as in `extend`.
    let mapped = unsafe { map_frame(Frame(handle), at, rights, (0, 0)) };
    if mapped.is_err() {
        let _ = Frame(handle).delete();
    }
    mapped
}

/// Makes up to `most` objects in free slots in a row, or one at least: the first.
fn make_row(
    most: u64,
    mut retype: impl FnMut(u64, u64) -> Result<(), Status>,
) -> Result<u64, Status> {
    let at = slots::take_row(most).ok_or(Status::NotEnoughMemory)?;
    retype(at, most).inspect_err(|_| (at..at + most).for_each(slots::give_back))?;
    Ok(at)
}

impl Supply {
    /// Makes objects of 2 MiB each.
    fn units(&mut self, kind: u64, size: u64, at: u64, count: u64) -> Result<(), Status> {
        while self.next < slot::INTERRUPTS {
            match Untyped(self.next).retype(kind, size, CNODE, at, count) {
                // The one behind is shorter; the end is an empty slot.
                Err(Status::NotEnoughMemory) if count == 1 => self.next += 1,
                Err(Status::InvalidCapability) => break,
                other => return other,
            }
        }
        Err(Status::NotEnoughMemory)
    }

    /// Makes objects of `1 << bits` bytes each.
    fn small(
        &mut self,
        kind: u64,
        size: u64,
        bits: u64,
        at: u64,
        count: u64,
    ) -> Result<(), Status> {
        let retype = |from: u64| Untyped(from).retype(kind, size, CNODE, at, count);
        if self.small != 0 {
            match retype(self.small) {
                Err(Status::NotEnoughMemory) => {}
                other => return other,
            }
        }
        let unit_bits = u64::from(LARGE_PAGE_SIZE.ilog2());
        let unit = make_row(1, |at, count| {
            self.units(TYPE_UNTYPED, unit_bits, at, count)
        });
        let fits = |(at, free): (u64, u64)| (free >= count << bits).then_some(at);
        // At last what is shorter than that.
        let small = unit.ok().or_else(|| untypeds().find_map(fits));
        self.small = small.ok_or(Status::NotEnoughMemory)?;
        retype(self.small)
    }

    fn large_frame(&mut self, most: u64) -> Result<u64, Status> {
        if self.large_frames.left == 0 {
            self.large_frames = self.row(most, |supply, at, count| {
                supply.units(TYPE_FRAME, LARGE_FRAME_BITS, at, count)
            })?;
        }
        self.large_frames.take().ok_or(Status::NotEnoughMemory)
    }

    /// A row of up to `most` objects.
    fn row(
        &mut self,
        most: u64,
        mut retype: impl FnMut(&mut Self, u64, u64) -> Result<(), Status>,
    ) -> Result<Row, Status> {
        for left in [most, 1] {
            if let Ok(first) = make_row(left, |at, count| retype(self, at, count)) {
                return Ok(Row { first, left });
            }
        }
        Err(Status::NotEnoughMemory)
    }

    /// Puts up to `count` page tables where they are missing on the way to the first of `addresses`
    /// that lacks any.
    fn provide_tables(&mut self, addresses: [u64; 2], count: u64) -> Result<(), Status> {
        if self.tables.left == 0 {
            self.tables = self.row(TABLES, |supply, at, count| {
                let bits = PAGE_SIZE.ilog2() as u64;
                supply.small(TYPE_PAGE_TABLE, 0, bits, at, count)
            })?;
        }
        let count = self.tables.left.min(count);
        let mut put = Err(Status::DeleteFirst);
        for address in addresses {
            put = PageTable(self.tables.first).map_row(ADDRESS_SPACE, address, count);
            if put != Err(Status::DeleteFirst) {
                break;
            }
        }
        let used = put?;
        self.tables.first += used;
        self.tables.left -= used;
        Ok(())
    }
}
