//! What a block device is a window on: one raw file, or an overlay. Used by the block device and
//! its engine.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use bulkhead_machine::device::ImageFormat;
use rustix::fs::{OFlags, fcntl_getfl};
use vm_memory::VolatileSlice;

use super::base::{Base, BaseError};
use super::file::{HostFile, supported};
use super::map::MapError;
use super::overlay::Overlay;
use super::ring::Action;

/// Bytes in a sector, the unit of addresses on the device (virtio 1.2, section 5.2.4).
pub(super) const SECTOR_BYTES: u64 = 512;
/// What a raw file's room is given back in, and best written in.
const RAW_GRANULARITY: u64 = 4096;
/// Worker threads that a disk asks for whose work is theirs.
const WORKERS: usize = 4;

/// A file cannot serve as a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Zero bytes.
    #[error("disk {name} is empty: give it at least {SECTOR_BYTES} bytes")]
    Empty {
        /// Its name in the description.
        name: String,
    },
    /// A tail that no block can hold; cut silently it would look like data loss.
    #[error("disk {name} has {bytes} bytes, not a multiple of {block}: resize the file")]
    Unaligned {
        /// Its name in the description.
        name: String,
        /// Its length.
        bytes: u64,
        /// 512, or the block size of direct I/O.
        block: u64,
    },
    /// Writes were granted on a descriptor that does not allow them.
    #[error("disk {name} is to be written, but its file was opened read-only")]
    NotWritable {
        /// Its name in the description.
        name: String,
    },
    /// The name does not fit the device's serial.
    #[error("disk name {name} is longer than 20 bytes: shorten it")]
    LongName {
        /// The name.
        name: String,
    },
    /// Not 1 to [`MAX_QUEUES`](bulkhead_machine::device::MAX_QUEUES).
    #[error("disk {name} cannot have {queues} queues: give it 1 to 32")]
    Queues {
        /// Its name in the description.
        name: String,
        /// How many were asked for.
        queues: u16,
    },
    /// The host refused to tell its length or mode.
    #[error("cannot examine disk {name}: {source}")]
    Examine {
        /// Its name in the description.
        name: String,
        /// What the host said.
        source: io::Error,
    },
    /// A base of an overlay cannot be used.
    #[error("base {index} of disk {name} {source}")]
    Base {
        /// Its name in the description.
        name: String,
        /// Which base, from 0.
        index: usize,
        /// Why not.
        source: BaseError,
    },
    /// The map of an overlay cannot be used.
    #[error("the map of disk {name} {source}")]
    Map {
        /// Its name in the description.
        name: String,
        /// Why not.
        source: MapError,
    },
}

impl DiskError {
    /// Stable code for users.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty { .. } => "disk-empty",
            Self::Unaligned { .. } => "disk-unaligned",
            Self::NotWritable { .. } => "disk-not-writable",
            Self::LongName { .. } => "disk-name-too-long",
            Self::Queues { .. } => "disk-queues",
            Self::Examine { .. } => "disk-unreadable",
            Self::Base { source, .. } => source.code(),
            Self::Map { source, .. } => source.code(),
        }
    }
}

/// What a disk is made of.
pub(super) struct Files {
    /// The raw file, or the top of an overlay.
    pub(super) file: File,
    /// Map and bases of an overlay.
    pub(super) overlay: Option<(File, Vec<(File, ImageFormat)>)>,
}

/// Something a disk does. Offsets and lengths in bytes, whole blocks, inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Fill the buffers.
    Read { offset: u64, len: u64 },
    /// Store the buffers.
    Write { offset: u64, len: u64 },
    /// Make durable every write that has ended before.
    ///
    /// A driver counts on no more (section 5.2.6.2): writes it saw answered before it asked. Each
    /// of those had ended, its bytes in the host's page cache or on the device, before the flush
    /// came out of the queue; so an `fdatasync` that begins now covers them, and needs to wait for
    /// no write that is still under way.
    Flush,
    /// The contents are not needed any more: keep them or make them zeroes.
    Discard { offset: u64, len: u64 },
    /// Make them zeroes, giving their room back if `unmap`.
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

impl Operation {
    /// Offset and length.
    pub(super) fn range(self) -> (u64, u64) {
        match self {
            Self::Read { offset, len }
            | Self::Write { offset, len }
            | Self::Discard { offset, len }
            | Self::WriteZeroes { offset, len, .. } => (offset, len),
            Self::Flush => (0, 0),
        }
    }

    /// The same on one file, by io_uring.
    pub(super) fn action(self) -> Action {
        match self {
            Self::Read { .. } => Action::Read,
            Self::Write { .. } => Action::Write,
            Self::Flush => Action::Sync,
            Self::Discard { .. } => Action::Discard,
            Self::WriteZeroes { unmap: true, .. } => Action::Punch,
            Self::WriteZeroes { unmap: false, .. } => Action::ZeroRange,
        }
    }
}

/// See the module.
pub(super) struct Disk {
    layout: Layout,
    bytes: AtomicU64,
    read_only: bool,
}

enum Layout {
    Raw(HostFile),
    Overlay(Box<Overlay>),
}

impl Disk {
    /// The disk `name`, made of `files`.
    pub(super) fn new(name: &str, files: Files, read_only: bool) -> Result<Self, DiskError> {
        let examine = |source: io::Error| DiskError::Examine {
            name: name.into(),
            source,
        };
        let mode = fcntl_getfl(&files.file).map_err(|errno| examine(errno.into()))?;
        if !read_only && !mode.contains(OFlags::RDWR) {
            return Err(DiskError::NotWritable { name: name.into() });
        }
        let file = HostFile::new(files.file, mode.contains(OFlags::DIRECT)).map_err(examine)?;
        let bytes = file.bytes().map_err(examine)?;
        if bytes == 0 {
            return Err(DiskError::Empty { name: name.into() });
        }
        let block = file.block();
        if !bytes.is_multiple_of(block) {
            return Err(DiskError::Unaligned {
                name: name.into(),
                bytes,
                block,
            });
        }
        let layout = match files.overlay {
            None => Layout::Raw(file),
            Some((map, bases)) => {
                let base = Base::open(bases).map_err(|(index, source)| DiskError::Base {
                    name: name.into(),
                    index,
                    source,
                })?;
                let overlay = Overlay::new(file, map, base, bytes);
                Layout::Overlay(Box::new(overlay.map_err(|source| DiskError::Map {
                    name: name.into(),
                    source,
                })?))
            }
        };
        Ok(Self {
            layout,
            bytes: bytes.into(),
            read_only,
        })
    }

    fn file(&self) -> &HostFile {
        match &self.layout {
            Layout::Raw(file) => file,
            Layout::Overlay(overlay) => overlay.top(),
        }
    }

    /// Capacity.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Writes are refused.
    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// What offsets and lengths are multiples of.
    pub(super) fn block(&self) -> u64 {
        self.file().block()
    }

    /// What is best written and discarded at once.
    pub(super) fn granularity(&self) -> u64 {
        match &self.layout {
            Layout::Raw(_) => RAW_GRANULARITY.max(self.block()),
            Layout::Overlay(overlay) => overlay.cluster().max(self.block()),
        }
    }

    /// Looks at the file's length again; the new capacity.
    ///
    /// # Errors
    /// The length is none a disk can have, or an overlay is shorter than it was; nothing has
    /// changed then.
    pub(super) fn resize(&self) -> io::Result<u64> {
        let bytes = self.file().bytes()?;
        if bytes == 0 || !bytes.is_multiple_of(self.block()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Layout::Overlay(overlay) = &self.layout {
            overlay.grow(bytes)?;
        }
        self.bytes.store(bytes, Ordering::Release);
        Ok(bytes)
    }

    /// The files that [`Self::route`] names by index.
    pub(super) fn files(&self) -> Vec<BorrowedFd<'_>> {
        let mut files = vec![self.file().as_fd()];
        if let Layout::Overlay(overlay) = &self.layout {
            files.extend(overlay.raw_base());
        }
        files
    }

    /// Threads that it needs: all of them without a ring, some for what a ring does not do.
    pub(super) fn workers(&self, has_ring: bool) -> usize {
        match &self.layout {
            Layout::Raw(file) if has_ring => usize::from(file.is_direct()),
            _ => WORKERS,
        }
    }

    /// How a ring can carry out `operation` by itself: on which file, and what it does there.
    pub(super) fn route(
        &self,
        operation: Operation,
        slices: &[VolatileSlice<'_>],
    ) -> Option<(u32, Action)> {
        let file = match &self.layout {
            Layout::Raw(_) => 0,
            Layout::Overlay(overlay) => overlay.route(operation)?,
        };
        (file != 0 || self.file().takes(slices)).then(|| (file, operation.action()))
    }

    /// Whether writes are lost with this process that nobody has flushed.
    pub(super) fn is_dirty(&self) -> bool {
        match &self.layout {
            Layout::Raw(_) => false,
            Layout::Overlay(overlay) => overlay.is_dirty(),
        }
    }

    /// Carries out `operation`, which may take long: on a worker.
    pub(super) fn execute(
        &self,
        operation: Operation,
        slices: &[VolatileSlice<'_>],
    ) -> io::Result<()> {
        match &self.layout {
            Layout::Raw(file) => match operation {
                Operation::Read { offset, .. } => file.read(offset, slices),
                Operation::Write { offset, .. } => file.write(offset, slices),
                Operation::Flush => file.flush(),
                Operation::Discard { offset, len } => supported(file.punch(offset, len)).map(drop),
                Operation::WriteZeroes { offset, len, unmap } => file.zero(offset, len, unmap),
            },
            Layout::Overlay(overlay) => match operation {
                Operation::Read { offset, .. } => overlay.read(offset, slices),
                Operation::Write { offset, .. } => overlay.write(offset, slices),
                Operation::Flush => overlay.flush(),
                Operation::Discard { offset, len } => overlay.discard(offset, len),
                Operation::WriteZeroes { offset, len, unmap } => overlay.zero(offset, len, unmap),
            },
        }
    }
}
