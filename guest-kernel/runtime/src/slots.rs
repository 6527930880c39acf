//! Free slots of the program's own CNode.

use core::sync::atomic::{AtomicU64, Ordering};

use bulkhead_abi::boot::ROOT_RADIX_MAX;
use bulkhead_abi::syscall::slot;

use crate::environment::boot_info;

/// Words of the table: a bit for each slot of the largest CNode.
const WORDS: usize = 1 << (ROOT_RADIX_MAX - 6);

/// A set bit for each slot that is taken.
static TAKEN: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
/// Where to look first.
static NEXT: AtomicU64 = AtomicU64::new(slot::FREE);

/// Slots of the program's own CNode.
#[must_use]
pub fn count() -> u64 {
    1 << boot_info().map_or(0, |info| info.root_radix())
}

/// A slot that nobody uses.
pub fn take() -> Option<u64> {
    let count = count();
    let first = NEXT.load(Ordering::Relaxed);
    for slot in (first..count).chain(slot::FREE..first.min(count)) {
        let (word, bit) = place(slot)?;
        if word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            NEXT.store(slot + 1, Ordering::Relaxed);
            return Some(slot);
        }
    }
    None
}

/// `count` slots in a row that nobody uses, from which on.
pub fn take_row(count: u64) -> Option<u64> {
    let end = self::count();
    let (mut first, mut taken) = (NEXT.load(Ordering::Relaxed), 0);
    while taken < count {
        let at = first + taken;
        if at >= end {
            break;
        }
        let (word, bit) = place(at)?;
        if word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            taken += 1;
            continue;
        }
        (first..at).for_each(give_back);
        (first, taken) = (at + 1, 0);
    }
    if taken < count {
        (first..first + taken).for_each(give_back);
        return None;
    }
    NEXT.store(first + count, Ordering::Relaxed);
    Some(first)
}

/// Gives a slot back, which is empty.
pub fn give_back(slot: u64) {
    if let Some((word, bit)) = place(slot).filter(|_| slot >= slot::FREE) {
        word.fetch_and(!bit, Ordering::Relaxed);
        NEXT.fetch_min(slot, Ordering::Relaxed);
    }
}

fn place(slot: u64) -> Option<(&'static AtomicU64, u64)> {
    let word = TAKEN.get(usize::try_from(slot / 64).ok()?)?;
    Some((word, 1 << (slot % 64)))
}
