//! Free memory while the kernel starts. What the kernel needs itself comes off the beginning of the
//! longest region, already zero as the VMM handed it over; the rest becomes untypeds. Later nobody
//! but the holders of these has memory to give.

use bulkhead_abi::boot::{BootInfoView, REGION_UNTYPED};
use bulkhead_abi::layout::PAGE_SIZE;

use crate::objects::capability::MAX_SIZE_BITS;

/// Most regions whose memory is handed out; further ones stay unused.
const MAX_REGIONS: usize = 16;

/// Whole pages of free memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
}

/// Free memory cut at the address that most powers of two divide: so both sides fall into untypeds
/// bit by bit, the larger ones nearer to the middle.
#[derive(Clone, Copy, Debug, Default)]
struct Cut {
    middle: u64,
    /// Bytes below the middle, and above it.
    below: u64,
    above: u64,
}

impl Range {
    fn cut(self) -> Cut {
        let differ = self.start.wrapping_sub(1) ^ self.end;
        let middle = self.end >> differ.ilog2() << differ.ilog2();
        Cut {
            middle,
            below: middle - self.start,
            above: self.end - middle,
        }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct FreeMemory<'a> {
    info: BootInfoView<'a>,
    /// What is left of the longest region, and where that began.
    rest: Range,
    longest: u64,
}

impl<'a> FreeMemory<'a> {
    pub(super) fn new(info: BootInfoView<'a>) -> Self {
        let longest = ranges(info).max_by_key(|range| range.end - range.start);
        let rest = longest.unwrap_or_default();
        Self {
            info,
            rest,
            longest: rest.start,
        }
    }

    /// Takes `count` zeroed pages in a row: the address of the first.
    pub(super) fn take(&mut self, count: u64) -> Option<u64> {
        let at = self.rest.start;
        if (self.rest.end - at) / PAGE_SIZE < count {
            return None;
        }
        self.rest.start += count * PAGE_SIZE;
        Some(at)
    }

    /// What is left, as untypeds aligned to their size: calls `each` with address and size in bits,
    /// the largest first.
    pub(super) fn untypeds(self, mut each: impl FnMut(u64, u32)) {
        let mut cuts = [Cut::default(); MAX_REGIONS];
        let (mut count, mut sizes) = (0, 0);
        for (place, range) in cuts.iter_mut().zip(ranges(self.info)) {
            let is_longest = range.start == self.longest;
            let left = if is_longest { self.rest } else { range };
            if left.start < left.end {
                *place = left.cut();
                sizes |= place.below | place.above;
            }
            count += 1;
        }
        let cuts = cuts.get(..count).unwrap_or_default();
        // Of what is longer than the largest untyped there are several.
        if sizes >> MAX_SIZE_BITS != 0 {
            for cut in cuts {
                for n in 1..=cut.below >> MAX_SIZE_BITS {
                    each(cut.middle - (n << MAX_SIZE_BITS), MAX_SIZE_BITS);
                }
                for n in 0..cut.above >> MAX_SIZE_BITS {
                    each(cut.middle + (n << MAX_SIZE_BITS), MAX_SIZE_BITS);
                }
            }
            sizes &= (1 << MAX_SIZE_BITS) - 1;
        }
        while let Some(bits) = sizes.checked_ilog2() {
            let size = 1 << bits;
            sizes ^= size;
            for cut in cuts {
                if cut.below & size != 0 {
                    each(cut.middle - (cut.below & size.wrapping_neg()), bits);
                }
                if cut.above & size != 0 {
                    each(cut.middle + (cut.above & (size * 2).wrapping_neg()), bits);
                }
            }
        }
    }
}

/// Free memory as the VMM hands it over, page 0 excepted: no object can lie there.
fn ranges(info: BootInfoView<'_>) -> impl Iterator<Item = Range> + Clone {
    let free = info.regions().iter().filter(|r| r.kind == REGION_UNTYPED);
    free.map(|region| {
        let end = (region.range.start + region.range.len) / PAGE_SIZE * PAGE_SIZE;
        let start = region.range.start.max(PAGE_SIZE);
        Range {
            start: start
                .checked_next_multiple_of(PAGE_SIZE)
                .unwrap_or(end)
                .min(end),
            end,
        }
    })
    .filter(|range| range.start < range.end)
}
