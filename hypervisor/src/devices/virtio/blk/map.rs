//! The map of an overlay: which clusters of the disk are in its top. Used by the overlay alone; the
//! format is described in docs/disks.md.
//!
//! The file is a header of 4096 bytes and a bitmap. A bit is set once, when its cluster is whole in
//! the top, and never cleared. That makes the file valid at any moment without checksums or a
//! journal: whatever mixture of old and new bytes a power failure leaves of the bitmap, each bit in
//! it that is set was set after its cluster was durable ([`Map::flush`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{SeekFrom, seek};

/// Bytes in a cluster of maps we create, as a power of two: 64 KiB.
const CLUSTER_BITS: u32 = 16;
/// Cluster sizes we can open: 4 KiB to 2 MiB.
const CLUSTER_BITS_RANGE: std::ops::RangeInclusive<u32> = 12..=21;
/// First bytes of a map.
const MAGIC: [u8; 8] = *b"BKHDMAP\n";
/// Version of the format.
const VERSION: u32 = 1;
/// Bytes before the bitmap, and in a block of it.
const BLOCK: usize = 4096;
/// Clusters in a block of the bitmap.
const BLOCK_CLUSTERS: u64 = BLOCK as u64 * 8;
/// Longest bitmap: a disk of 64 TiB with clusters of 64 KiB.
const MAX_BITMAP: u64 = 128 * 1024 * 1024;

/// A map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The host refused.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Another kind of file.
    #[error("is not a map of a Bulkhead overlay: give it an empty file")]
    Foreign,
    /// A newer format.
    #[error("has version {0}, and this VMM knows version 1: update Bulkhead")]
    Version(u32),
    /// A header that no VMM writes, or a file that was cut.
    #[error("is damaged: {0}")]
    Damaged(&'static str),
    /// It belongs to another top.
    #[error("is for a disk of {map} bytes, but the top has {top}")]
    Shrunk {
        /// Its disk's length.
        map: u64,
        /// The top's length.
        top: u64,
    },
    /// It belongs to another base.
    #[error(
        "is for a base of {map} bytes, but the base has {base}: give it the base it began with"
    )]
    OtherBase {
        /// Length of the base it was made for.
        map: u64,
        /// Length of the base given.
        base: u64,
    },
    /// More clusters than we keep bits for.
    #[error("would be longer than 128 MiB: make the disk shorter")]
    TooLong,
}

impl MapError {
    /// Stable code for users.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "overlay-map-unreadable",
            Self::Foreign => "overlay-map-foreign",
            Self::Version(_) => "overlay-map-version",
            Self::Damaged(_) => "overlay-map-damaged",
            Self::Shrunk { .. } => "overlay-top-shrunk",
            Self::OtherBase { .. } => "overlay-other-base",
            Self::TooLong => "overlay-too-long",
        }
    }
}

/// The fields of a header, little-endian from offset 0 on; the rest of its block is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    cluster_bits: u32,
    /// Length of the disk when the header was last written.
    disk_bytes: u64,
    /// Length of the base, for life.
    base_bytes: u64,
}

impl Header {
    fn parse(block: &[u8; BLOCK]) -> Result<Self, MapError> {
        let (fields, rest) = block.split_at(32);
        let word = |at: usize| {
            let bytes = fields.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if !fields.starts_with(&MAGIC) {
            return Err(MapError::Foreign);
        }
        if word(8) != VERSION {
            return Err(MapError::Version(word(8)));
        }
        if rest.iter().any(|byte| *byte != 0) {
            return Err(MapError::Damaged("its header has fields version 1 has not"));
        }
        let header = Self {
            cluster_bits: word(12),
            disk_bytes: long(16),
            base_bytes: long(24),
        };
        if !CLUSTER_BITS_RANGE.contains(&header.cluster_bits) {
            return Err(MapError::Damaged("its cluster size is impossible"));
        }
        if header.disk_bytes == 0 || !header.disk_bytes.is_multiple_of(512) {
            return Err(MapError::Damaged("its disk length is impossible"));
        }
        Ok(header)
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let fields: [&[u8]; 5] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            &self.cluster_bits.to_le_bytes(),
            &self.disk_bytes.to_le_bytes(),
            &self.base_bytes.to_le_bytes(),
        ];
        for (to, from) in block.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        block
    }

    /// Blocks of the bitmap.
    fn blocks(&self) -> Result<u64, MapError> {
        let clusters = self.disk_bytes.div_ceil(1 << self.cluster_bits);
        let blocks = clusters.div_ceil(BLOCK_CLUSTERS);
        if blocks.saturating_mul(BLOCK as u64) > MAX_BITMAP {
            return Err(MapError::TooLong);
        }
        Ok(blocks)
    }
}

/// See the module.
pub(super) struct Map {
    file: File,
    cluster_bits: u32,
    state: Mutex<State>,
    /// Held through a flush: a second one must not return before the bits it found written by the
    /// first are durable.
    flushing: Mutex<()>,
}

struct State {
    header: Header,
    /// The header in the file is not this one, or there is none.
    header_due: bool,
    /// Bit n of byte n / 8: cluster n is in the top.
    bits: Vec<u8>,
    /// For each block of the bitmap: bits in it were set since it was written.
    dirty: Vec<bool>,
}

impl Map {
    /// The map in `file`, a new one if that is empty, of a disk of `disk_bytes` over a base of
    /// `base_bytes`. Nothing is written yet.
    pub(super) fn open(file: File, disk_bytes: u64, base_bytes: u64) -> Result<Self, MapError> {
        let file_bytes = length(&file)?;
        let mut block = [0; BLOCK];
        let head = block.len().min(file_bytes as usize);
        file.read_exact_at(block.get_mut(..head).unwrap_or_default(), 0)?;
        // A header of zeroes is one that was never durable; no bit can be either.
        let fresh = block.iter().all(|byte| *byte == 0);
        let mut header = if fresh {
            Header {
                cluster_bits: CLUSTER_BITS,
                disk_bytes,
                base_bytes,
            }
        } else {
            Header::parse(&block)?
        };
        if header.disk_bytes > disk_bytes {
            return Err(MapError::Shrunk {
                map: header.disk_bytes,
                top: disk_bytes,
            });
        }
        if header.base_bytes != base_bytes {
            return Err(MapError::OtherBase {
                map: header.base_bytes,
                base: base_bytes,
            });
        }
        let stored = header.blocks()?.saturating_mul(BLOCK as u64);
        let grown = header.disk_bytes < disk_bytes;
        let valid_clusters = header.disk_bytes.div_ceil(1 << header.cluster_bits);
        header.disk_bytes = disk_bytes;
        let blocks = header.blocks()? as usize;
        let mut bits = vec![0; blocks * BLOCK];
        if !fresh {
            if file_bytes < BLOCK as u64 + stored {
                return Err(MapError::Damaged("it is cut off"));
            }
            let known = bits.get_mut(..stored as usize).unwrap_or_default();
            file.read_exact_at(known, BLOCK as u64)?;
            if bits_from(&bits, valid_clusters) {
                return Err(MapError::Damaged("it has clusters behind the disk's end"));
            }
        }
        Ok(Self {
            file,
            cluster_bits: header.cluster_bits,
            state: Mutex::new(State {
                header,
                header_due: fresh || grown,
                bits,
                dirty: vec![false; blocks],
            }),
            flushing: Mutex::default(),
        })
    }

    /// Bytes in a cluster, as a power of two.
    pub(super) fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// Length of the disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.state().header.disk_bytes
    }

    /// Makes it the map of a longer disk, whose new clusters are not in the top.
    pub(super) fn grow(&self, disk_bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        let mut header = state.header;
        if disk_bytes < header.disk_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        state.header_due |= disk_bytes > header.disk_bytes;
        header.disk_bytes = disk_bytes;
        let blocks = header.blocks().map_err(io::Error::other)? as usize;
        state.bits.resize(blocks * BLOCK, 0);
        state.dirty.resize(blocks, false);
        state.header = header;
        Ok(())
    }

    /// Whether `cluster` is in the top, and how many clusters from there to before `end` are alike.
    pub(super) fn run(&self, cluster: u64, end: u64) -> (bool, u64) {
        let state = self.state();
        let first = state.has(cluster);
        let alike = (cluster..end).take_while(|next| state.has(*next) == first);
        (first, alike.count() as u64)
    }

    /// Clusters `first..end` are whole in the top, though not yet durable there.
    pub(super) fn set(&self, first: u64, end: u64) {
        let mut state = self.state();
        for cluster in first..end {
            let Some(byte) = state.bits.get_mut((cluster / 8) as usize) else {
                return;
            };
            let bit = 1 << (cluster % 8);
            if *byte & bit == 0 {
                *byte |= bit;
                if let Some(dirty) = state.dirty.get_mut((cluster / BLOCK_CLUSTERS) as usize) {
                    *dirty = true;
                }
            }
        }
    }

    /// Whether bits were set since the last flush.
    pub(super) fn is_dirty(&self) -> bool {
        self.state().dirty.contains(&true)
    }

    /// Makes the top durable by `sync_top`, then the bits that were set before this call.
    ///
    /// The order is the point: bits are copied first, then the top is made durable, then the copies
    /// are written. A bit that is set in between is not written, since the cluster behind it may
    /// not be durable; a bit that is written, and may reach the disk at once, has its cluster
    /// there already. The header precedes all bits, so that they can be found.
    pub(super) fn flush(&self, sync_top: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let (blocks, header) = self.state().take_dirty();
        let outcome = sync_top().and_then(|()| self.write(&blocks, header));
        if outcome.is_err() {
            let mut state = self.state();
            state.header_due |= header.is_some();
            for (index, _) in blocks {
                if let Some(dirty) = state.dirty.get_mut(index) {
                    *dirty = true;
                }
            }
        }
        outcome
    }

    fn write(&self, blocks: &[(usize, Vec<u8>)], header: Option<Header>) -> io::Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        if let Some(header) = header {
            let count = header.blocks().map_err(io::Error::other)?;
            let bytes = (count + 1) * BLOCK as u64;
            if length(&self.file)? < bytes {
                self.file.set_len(bytes)?;
            }
            self.file.write_all_at(&header.block(), 0)?;
            self.file.sync_data()?;
        }
        for (index, bits) in blocks {
            let at = (*index as u64 + 1) * BLOCK as u64;
            self.file.write_all_at(bits, at)?;
        }
        self.file.sync_data()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A bit is set or not: no change can be left half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has(&self, cluster: u64) -> bool {
        let byte = self.bits.get((cluster / 8) as usize);
        byte.is_some_and(|byte| byte & 1 << (cluster % 8) != 0)
    }

    /// Copies of the blocks to write, and the header if that goes with them; they count as clean.
    fn take_dirty(&mut self) -> (Vec<(usize, Vec<u8>)>, Option<Header>) {
        let mut blocks = Vec::new();
        for (index, (dirty, bits)) in (self.dirty.iter_mut())
            .zip(self.bits.chunks(BLOCK))
            .enumerate()
        {
            if std::mem::take(dirty) {
                blocks.push((index, bits.to_vec()));
            }
        }
        // Without bits to write, the header can wait as well.
        let header =
            (!blocks.is_empty() && std::mem::take(&mut self.header_due)).then_some(self.header);
        (blocks, header)
    }
}

fn length(file: &File) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}

/// Whether a bit is set from number `first` on.
fn bits_from(bits: &[u8], first: u64) -> bool {
    let at = (first / 8) as usize;
    let edge = bits.get(at).is_some_and(|byte| byte >> (first % 8) != 0);
    let rest = bits.get(at + 1..).unwrap_or_default();
    edge || rest.iter().any(|byte| *byte != 0)
}

#[cfg(test)]
mod tests;
