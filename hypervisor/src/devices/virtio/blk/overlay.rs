//! A copy-on-write disk: a raw, sparse top as long as the disk, a map of the clusters that are in
//! it, and below them a base that is only read. Used by the disk alone, on worker threads, save
//! [`Overlay::route`].
//!
//! A cluster enters the top whole: all its bytes are written there before its bit is set, and bits
//! are only ever set. So a reader that finds the bit may read the top, one that does not may read
//! the base, and neither needs a lock; those that change a cluster exclude each other ([`Busy`]).
//! What a crash leaves is argued at [`Map::flush`]: for a cluster whose bit was not durable, the
//! base, as before the first write that was not flushed; for others, old or new sectors, as on any
//! disk.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use super::base::Base;
use super::disk::Operation;
use super::file::{HostFile, copy, cut, pages, supported, total};
use super::map::{Map, MapError};

/// See the module.
pub(super) struct Overlay {
    top: HostFile,
    map: Map,
    base: Base,
    busy: Busy,
}

/// Part of a change: bytes `at..end` of the disk.
enum Piece {
    /// All clusters are in the top, or will be whole with this change.
    Direct { at: u64, end: u64 },
    /// Part of a cluster that is not in the top.
    Partial { at: u64, end: u64 },
}

impl Overlay {
    /// The disk of `bytes` in `top`, over `base`.
    pub(super) fn new(top: HostFile, map: File, base: Base, bytes: u64) -> Result<Self, MapError> {
        Ok(Self {
            top,
            map: Map::open(map, bytes, base.bytes())?,
            base,
            busy: Busy::default(),
        })
    }

    pub(super) fn top(&self) -> &HostFile {
        &self.top
    }

    /// The base as one file, where it is one.
    pub(super) fn raw_base(&self) -> Option<BorrowedFd<'_>> {
        self.base.raw()
    }

    /// Bytes in a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.map.cluster_bits()
    }

    /// Takes a longer top.
    pub(super) fn grow(&self, bytes: u64) -> io::Result<()> {
        self.map.grow(bytes)
    }

    /// The file that holds all of what `operation` reads, or takes all of what it writes: 0 is the
    /// top, 1 the raw base. None where there is more to do.
    ///
    /// Whatever changes the map meanwhile, the answer stays true: no cluster leaves the top, and the
    /// base holds what a cluster was before a write that has not ended.
    pub(super) fn route(&self, operation: Operation) -> Option<u32> {
        let (offset, len) = operation.range();
        let writes = match operation {
            Operation::Read { .. } => false,
            Operation::Write { .. } => true,
            _ => return None,
        };
        let (first, end) = self.clusters(offset, offset + len);
        match self.map.run(first, end) {
            (_, alike) if alike < end - first => None,
            (true, _) => Some(0),
            (false, _) if writes || self.base.raw().is_none() => None,
            (false, _) => (offset + len <= self.base.bytes()).then_some(1),
        }
    }

    pub(super) fn read(&self, offset: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        let end = offset + total(slices) as u64;
        let mut at = offset;
        while at < end {
            let (first, last) = self.clusters(at, end);
            let (in_top, alike) = self.map.run(first, last);
            let until = ((first + alike) << self.map.cluster_bits()).min(end);
            let part = cut(slices, (at - offset) as usize, (until - at) as usize)?;
            if in_top {
                self.top.read(at, &part)?;
            } else {
                self.base.read(at, &part)?;
            }
            at = until;
        }
        Ok(())
    }

    pub(super) fn write(&self, offset: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.change(offset, total(slices) as u64, |piece| match piece {
            Piece::Direct { at, end } => {
                let part = cut(slices, (at - offset) as usize, (end - at) as usize)?;
                self.top.write(at, &part)?;
                Ok(true)
            }
            Piece::Partial { at, end } => {
                let part = cut(slices, (at - offset) as usize, (end - at) as usize)?;
                self.copy_up(at, |now| copy(&part, &cut(now, 0, (end - at) as usize)?))?;
                Ok(true)
            }
        })
    }

    /// Makes zeroes.
    pub(super) fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.change(offset, len, |piece| match piece {
            Piece::Direct { at, end } => {
                self.top.zero(at, end - at, unmap)?;
                Ok(true)
            }
            Piece::Partial { at, end } => {
                let len = (end - at) as usize;
                self.copy_up(at, |now| super::file::clear(&cut(now, 0, len)?))?;
                Ok(true)
            }
        })
    }

    /// Gives room in the top back. What is discarded reads as zeroes, or, where the host cannot
    /// punch holes and in clusters that were never written, as before: never as something older.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(offset, len, |piece| match piece {
            // Whole clusters enter the top as holes, lest the base show through again.
            Piece::Direct { at, end } => supported(self.top.punch(at, end - at)),
            Piece::Partial { .. } => Ok(false),
        })
    }

    /// Makes every change durable that ended before.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.map.flush(|| self.top.flush())
    }

    /// Whether clusters have entered the top since the last flush.
    pub(super) fn is_dirty(&self) -> bool {
        self.map.is_dirty()
    }

    /// Clusters that hold bytes `at..end`: the first, and that behind the last.
    fn clusters(&self, at: u64, end: u64) -> (u64, u64) {
        let bits = self.map.cluster_bits();
        (at >> bits, end.div_ceil(1 << bits))
    }

    /// Goes through the pieces of a range in order; for each, `act` brings its clusters whole into
    /// the top and says true, or leaves them as they are and says false.
    fn change(
        &self,
        offset: u64,
        len: u64,
        act: impl Fn(Piece) -> io::Result<bool>,
    ) -> io::Result<()> {
        let (first, last) = self.clusters(offset, offset + len);
        let _mine = self.busy.take(first, last);
        let mut at = offset;
        while at < offset + len {
            let piece = self.piece(at, offset + len);
            let (Piece::Direct { end, .. } | Piece::Partial { end, .. }) = piece;
            let (first, last) = self.clusters(at, end);
            if act(piece)? {
                self.map.set(first, last);
            }
            at = end;
        }
        Ok(())
    }

    /// The longest piece from `at` on.
    fn piece(&self, at: u64, end: u64) -> Piece {
        let bits = self.map.cluster_bits();
        let disk_end = self.map.disk_bytes();
        let (first, last) = self.clusters(at, end);
        let mut direct_end = at;
        for cluster in first..last {
            let begin = cluster << bits;
            let until = (begin + self.cluster()).min(disk_end);
            let whole = direct_end <= begin && until <= end;
            if !whole && !self.map.run(cluster, cluster + 1).0 {
                break;
            }
            direct_end = until.min(end);
        }
        if direct_end > at {
            return Piece::Direct {
                at,
                end: direct_end,
            };
        }
        let until = (first + 1) << bits;
        Piece::Partial {
            at,
            end: until.min(end),
        }
    }

    /// Writes the cluster of byte `at` to the top: from the base, with `change` made to what begins
    /// at `at`.
    fn copy_up(
        &self,
        at: u64,
        change: impl FnOnce(&[VolatileSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let begin = at & !(self.cluster() - 1);
        let len = self.cluster().min(self.map.disk_bytes() - begin) as usize;
        let mut buffer = pages(len);
        let all = VolatileSlice::from(buffer.as_mut_bytes());
        let whole = cut(&[all], 0, len)?;
        self.base.read(begin, &whole)?;
        let skip = (at - begin) as usize;
        change(&cut(&whole, skip, len - skip)?)?;
        self.top.write(begin, &whole)
    }
}

/// Ranges of clusters that somebody changes.
#[derive(Default)]
struct Busy {
    ranges: Mutex<Vec<(u64, u64)>>,
    freed: Condvar,
}

impl Busy {
    /// Waits until nobody changes a cluster of `first..end`, and keeps others from them. Each
    /// holder has one range and waits for none, so they cannot wait for each other.
    fn take(&self, first: u64, end: u64) -> Mine<'_> {
        let mut ranges = self.ranges();
        while ranges.iter().any(|(f, e)| first < *e && *f < end) {
            let woken = self.freed.wait(ranges);
            ranges = woken.unwrap_or_else(PoisonError::into_inner);
        }
        ranges.push((first, end));
        Mine {
            busy: self,
            range: (first, end),
        }
    }

    fn ranges(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        // A list of pairs cannot be left half-changed.
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range of clusters that is the holder's.
struct Mine<'a> {
    busy: &'a Busy,
    range: (u64, u64),
}

impl Drop for Mine<'_> {
    fn drop(&mut self) {
        self.busy.ranges().retain(|range| *range != self.range);
        self.busy.freed.notify_all();
    }
}

#[cfg(test)]
mod tests;
