//! The global allocator: `talc` over memory mapped at [`HEAP_START`] as it is needed, never given
//! back. Small programs never have more of it than one large page, and that costs one page table:
//! the heap lies below the table that leads to the program.

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};
use bulkhead_abi::syscall::{YIELD, rights};
use talc::TalcLock;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

use crate::{memory, syscall};

/// Where the heap begins.
pub const HEAP_START: u64 = 0x7040_0000_0000;
/// Where it ends at the latest.
pub const HEAP_LIMIT: u64 = 0x7060_0000_0000;
/// Room for the allocator's own records in a growth.
const OVERHEAD: u64 = PAGE_SIZE;

/// A lock that lets other threads run while it waits: the holder may be one that was preempted.
pub struct YieldLock(AtomicBool);

// SAFETY: `compare_exchange` lets one thread in at a time; `unlock` is the holder's.
unsafe impl lock_api::RawMutex for YieldLock {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "the initialiser lock_api asks for"
    )]
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = lock_api::GuardSend;

    fn lock(&self) {
        while !self.try_lock() {
            // SAFETY: no effect on memory.
            unsafe { syscall::raw(YIELD, [0; 4]) };
        }
    }

    fn try_lock(&self) -> bool {
        self.0
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Where the allocator gets memory from.
#[derive(Debug)]
struct Growth {
    /// End of the allocator's region, once it has one.
    end: Option<NonNull<u8>>,
    /// End of what is mapped.
    mapped_to: u64,
}

// SAFETY: the end pointer is used under the allocator's lock only.
unsafe impl Send for Growth {}

// SAFETY: memory is obtained by a system call alone; the allocator itself is not used.
unsafe impl Source for Growth {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let needed = (layout.size() as u64)
            .checked_add(layout.align() as u64 + OVERHEAD)
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE_SIZE))
            .ok_or(())?;
        let start = talc.source.mapped_to;
        let least = start.checked_add(needed).ok_or(())?;
        if least > HEAP_LIMIT || needed > LARGE_PAGE_SIZE && needed > memory::available() {
            return Err(());
        }
        let read_write = rights::READ | rights::WRITE;
        let end = memory::extend(start..least, HEAP_LIMIT, read_write);
        if end == start {
            return Err(());
        }
        talc.source.mapped_to = end;
        // Where that is less than what is needed, the allocator comes again, until nothing is left.
        let heap_end = match talc.source.end {
            // SAFETY: the region was just mapped and is used for nothing else.
            None => unsafe { talc.claim(start as *mut u8, (end - start) as usize) }.ok_or(())?,
            // SAFETY: as above, and it follows the old region.
            Some(old) => unsafe { talc.extend(old, end as *mut u8) },
        };
        talc.source.end = Some(heap_end);
        Ok(())
    }
}

#[cfg_attr(target_os = "none", global_allocator)]
#[cfg_attr(
    not(target_os = "none"),
    allow(dead_code, reason = "the host has its own allocator")
)]
static HEAP: TalcLock<YieldLock, Growth> = TalcLock::new(Growth {
    end: None,
    mapped_to: HEAP_START,
});
