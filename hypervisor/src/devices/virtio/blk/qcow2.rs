//! Reads qcow2 images, versions 2 and 3 (QEMU's docs/interop/qcow2.txt), as bases of overlays: never
//! written, never given a name to open. Used by `base` alone.
//!
//! Everything in the file is an allegation: whoever made the image, maybe a guest, chose it. Tables
//! are read as they are needed and kept up to [`L2_CACHE_BYTES`]; a position is checked when it is
//! used, and one that cannot be is an error of that read, not of the partition.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::VolatileSlice;

use super::file::{HostFile, clear, copy, cut, total};
use super::inflate::{self, Compression};

/// `QFI\xfb`, big-endian as everything in the file.
const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a header of version 2, and of version 3 with the compression type.
const V2_HEADER: usize = 72;
const V3_HEADER: usize = 112;
/// Cluster sizes: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Longest first-level table: 4 MiB, 256 TiB of disk with clusters of 64 KiB.
const MAX_L1_BYTES: u64 = 4 * 1024 * 1024;
/// Longest disk: what offsets in entries can express.
const MAX_BYTES: u64 = 1 << 56;
/// Second-level tables kept, each a cluster; one is kept whatever its size.
const L2_CACHE_BYTES: usize = 1024 * 1024;
/// Bits of a standard entry that hold a position.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The entry describes a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes.
const ZERO: u64 = 1;

/// Incompatible features (bits of the header's field) by what they stand for.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// An image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The host refused.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Another format, or a version QEMU no longer writes.
    #[error("is not a qcow2 image of version 2 or 3: say the right format, or convert it")]
    Format,
    /// Contradicts the format.
    #[error("is damaged: {0}")]
    Damaged(&'static str),
    /// Uses a feature that is not supported here.
    #[error("uses {0}, which is not supported: convert it with `qemu-img convert`")]
    Unsupported(&'static str),
}

impl Qcow2Error {
    /// Stable code for users.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "qcow2-unreadable",
            Self::Format => "qcow2-format",
            Self::Damaged(_) => "qcow2-damaged",
            Self::Unsupported(_) => "qcow2-unsupported",
        }
    }
}

/// Where a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// In the image below.
    Below,
    /// Nowhere: zeroes.
    Zero,
    /// In the file, from `host` on.
    Data { host: u64 },
    /// In a compressed cluster.
    Compressed(Place),
}

/// A compressed cluster in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    host: u64,
    /// Upper bound of its length.
    len: usize,
}

/// What the header says, checked.
#[derive(Clone, Copy, Debug)]
struct Header {
    cluster_bits: u32,
    bytes: u64,
    l1_offset: u64,
    l1_entries: u64,
    has_backing: bool,
    zero_flag: bool,
    compression: Compression,
}

/// A second-level table, and where it is in the file.
type Table = (u64, Arc<[u64]>);

/// See the module.
pub(super) struct Qcow2 {
    file: HostFile,
    header: Header,
    l1: Vec<u64>,
    /// Most recently used last.
    l2: Mutex<VecDeque<Table>>,
    /// The cluster inflated last: a sequential reader comes back to it.
    inflated: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, Qcow2Error> {
        let word = |at: usize| {
            let field = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
            field.map_or(0, u32::from_be_bytes)
        };
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        let version = word(4);
        if bytes.len() < V2_HEADER || word(0) != MAGIC || !matches!(version, 2 | 3) {
            return Err(Qcow2Error::Format);
        }
        let (incompatible, header_bytes) = match version {
            2 => (0, V2_HEADER),
            _ => (long(72), word(100) as usize),
        };
        for (feature, what) in [
            (EXTERNAL_DATA, "an external data file"),
            (EXTENDED_L2, "extended second-level entries"),
            (
                !(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2),
                "a feature of a newer QEMU",
            ),
        ] {
            if incompatible & feature != 0 {
                return Err(Qcow2Error::Unsupported(what));
            }
        }
        if incompatible & CORRUPT != 0 {
            return Err(Qcow2Error::Damaged(
                "QEMU has marked it corrupt; see `qemu-img check`",
            ));
        }
        if word(32) != 0 {
            return Err(Qcow2Error::Unsupported("encryption"));
        }
        let kind = bytes.get(104).copied().unwrap_or(0);
        let compression = match (incompatible & COMPRESSION_TYPE != 0, kind) {
            (false, _) => Compression::Deflate,
            (true, 1) if header_bytes > 104 => Compression::Zstd,
            _ => return Err(Qcow2Error::Unsupported("an unknown compression")),
        };
        let header = Self {
            cluster_bits: word(20),
            bytes: long(24),
            l1_offset: long(40),
            l1_entries: word(36).into(),
            has_backing: long(8) != 0,
            zero_flag: version == 3,
            compression,
        };
        if !CLUSTER_BITS.contains(&header.cluster_bits) {
            return Err(Qcow2Error::Damaged("its cluster size is impossible"));
        }
        if header.bytes > MAX_BYTES {
            return Err(Qcow2Error::Damaged("its disk is impossibly long"));
        }
        let per_entry = header.cluster() as u64 * header.l2_entries();
        let needed = header.bytes.div_ceil(per_entry);
        if needed * 8 > MAX_L1_BYTES {
            return Err(Qcow2Error::Unsupported(
                "a first-level table of more than 4 MiB",
            ));
        }
        if header.l1_entries < needed || !header.l1_offset.is_multiple_of(header.cluster() as u64) {
            return Err(Qcow2Error::Damaged("its first-level table is impossible"));
        }
        // What is behind the end of the disk is of no use.
        Ok(Self {
            l1_entries: needed,
            ..header
        })
    }

    fn cluster(&self) -> usize {
        1 << self.cluster_bits
    }

    /// Entries of a second-level table.
    fn l2_entries(&self) -> u64 {
        self.cluster() as u64 / 8
    }

    /// What the second-level entry `entry` says of the byte `within` its cluster.
    fn mapping(&self, entry: u64, within: u64) -> io::Result<Mapping> {
        if entry & COMPRESSED != 0 {
            // Section "Compressed Clusters Descriptor".
            let split = 62 - (self.cluster_bits - 8);
            let host = entry & ((1 << split) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> split;
            let len = (sectors + 1) * 512 - (host & 511);
            let len = len as usize;
            return Ok(Mapping::Compressed(Place { host, len }));
        }
        let host = entry & OFFSET_MASK;
        if self.zero_flag && entry & ZERO != 0 {
            return Ok(Mapping::Zero);
        }
        if host == 0 {
            return Ok(Mapping::Below);
        }
        if !host.is_multiple_of(self.cluster() as u64) {
            return Err(damaged("a cluster is not aligned"));
        }
        Ok(Mapping::Data {
            host: host + within,
        })
    }
}

impl Qcow2 {
    /// The image in `file`.
    pub(super) fn open(file: File) -> Result<Self, Qcow2Error> {
        let mut start = [0; V3_HEADER];
        let read = read_up_to(&file, 0, &mut start)?;
        let header = Header::parse(start.get(..read).unwrap_or_default())?;
        let mut table = vec![0; header.l1_entries as usize * 8];
        file.read_exact_at(&mut table, header.l1_offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Qcow2Error::Damaged("its first-level table is cut off")
                }
                _ => Qcow2Error::Read(error),
            })?;
        Ok(Self {
            file: HostFile::new(file, false)?,
            header,
            l1: entries(&table).collect(),
            l2: Mutex::default(),
            inflated: Mutex::default(),
        })
    }

    /// Length of the disk in it.
    pub(super) fn bytes(&self) -> u64 {
        self.header.bytes
    }

    /// It names another image that it is based on.
    pub(super) fn has_backing(&self) -> bool {
        self.header.has_backing
    }

    /// Where the bytes from `offset` on are, and how many of the `len` are there in one run; at
    /// least one. The caller keeps inside the disk.
    pub(super) fn map(&self, offset: u64, len: u64) -> io::Result<(Mapping, u64)> {
        let bits = self.header.cluster_bits;
        let cluster = self.header.cluster() as u64;
        let per_table = self.header.l2_entries();
        let first = offset >> bits;
        let entry = self.l1.get((first / per_table) as usize);
        let table_at = entry.copied().unwrap_or(0) & OFFSET_MASK;
        let table = match table_at {
            0 => None,
            at if !at.is_multiple_of(cluster) => return Err(damaged("a table is not aligned")),
            at => Some(self.table(at)?),
        };
        let look_up = |number: u64, within| match &table {
            None => Ok(Mapping::Below),
            Some(table) => {
                let entry = table.get((number % per_table) as usize);
                self.header.mapping(entry.copied().unwrap_or(0), within)
            }
        };
        let mapping = look_up(first, offset & (cluster - 1))?;
        let mut run = cluster - (offset & (cluster - 1));
        // The run goes on where the next cluster does, to the end of the table.
        let mut next = first + 1;
        while run < len && !next.is_multiple_of(per_table) {
            let expected = match mapping {
                Mapping::Data { host } => Mapping::Data {
                    host: host.saturating_add(run),
                },
                Mapping::Compressed(_) => break,
                same => same,
            };
            if look_up(next, 0)? != expected {
                break;
            }
            run += cluster;
            next += 1;
        }
        Ok((mapping, run.min(len)))
    }

    /// Fills `slices` from the file; behind its end are zeroes, as QEMU has it.
    pub(super) fn read_data(&self, host: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len = total(slices);
        let there = self.file.bytes()?.saturating_sub(host);
        let inside = there.min(len as u64) as usize;
        clear(&cut(slices, inside, len - inside)?)?;
        self.file.read(host, &cut(slices, 0, inside)?)
    }

    /// Fills `slices` with the bytes of the disk from `offset` on, all of them in the compressed
    /// cluster at `place`.
    pub(super) fn read_compressed(
        &self,
        place: Place,
        offset: u64,
        slices: &[VolatileSlice<'_>],
    ) -> io::Result<()> {
        let cluster = self.inflated(place)?;
        let within = offset as usize & (self.header.cluster() - 1);
        let mut bytes = cluster.get(within..).unwrap_or_default().to_vec();
        copy(&[VolatileSlice::from(bytes.as_mut_slice())], slices)
    }

    fn inflated(&self, place: Place) -> io::Result<Arc<[u8]>> {
        // Several workers may inflate the same; none waits for another's reading.
        let kept = || self.inflated.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((host, cluster)) = &*kept()
            && *host == place.host
        {
            return Ok(cluster.clone());
        }
        let mut packed = vec![0; place.len];
        let read = read_up_to(self.file.file(), place.host, &mut packed)?;
        let packed = packed.get(..read).unwrap_or_default();
        let cluster = inflate::inflate(self.header.compression, packed, self.header.cluster())
            .ok_or_else(|| damaged("a compressed cluster does not unpack"))?;
        let cluster: Arc<[u8]> = cluster.into();
        *kept() = Some((place.host, cluster.clone()));
        Ok(cluster)
    }

    /// The second-level table at `at`.
    fn table(&self, at: u64) -> io::Result<Arc<[u64]>> {
        let kept = || self.l2.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tables = kept();
        if let Some(index) = tables.iter().position(|(of, _)| *of == at)
            && let Some(found) = tables.remove(index)
        {
            let table = found.1.clone();
            tables.push_back(found);
            return Ok(table);
        }
        drop(tables);
        let mut bytes = vec![0; self.header.cluster()];
        self.file.file().read_exact_at(&mut bytes, at)?;
        let table: Arc<[u64]> = entries(&bytes).collect();
        let mut tables = kept();
        let max = (L2_CACHE_BYTES / self.header.cluster()).max(1);
        while tables.len() >= max {
            tables.pop_front();
        }
        tables.push_back((at, table.clone()));
        Ok(table)
    }
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    let (entries, _) = table.as_chunks::<8>();
    entries.iter().map(|entry| u64::from_be_bytes(*entry))
}

/// Reads until `buffer` is full or the file ends; how much that was.
fn read_up_to(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
