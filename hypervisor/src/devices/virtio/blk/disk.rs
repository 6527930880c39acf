//! The host side of a block device: a raw file or block device, moved to and from guest memory
//! without a copy in between. Used by the block device alone.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{OFlags, SeekFrom, fcntl_getfl, fdatasync, seek};
use vm_memory::VolatileSlice;

/// Bytes in a sector, the unit of addresses on the device (virtio 1.2, section 5.2.4).
pub(super) const SECTOR_BYTES: u64 = 512;
/// Most slices one system call takes (`IOV_MAX`).
const MAX_IOVECS: usize = 1024;

/// A file cannot serve as a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Zero bytes.
    #[error("disk {name} is empty: give it at least {SECTOR_BYTES} bytes")]
    Empty {
        /// Its name in the description.
        name: String,
    },
    /// A tail that no sector can hold; cut silently it would look like data loss.
    #[error("disk {name} has {bytes} bytes, not a multiple of {SECTOR_BYTES}: resize the file")]
    Unaligned {
        /// Its name in the description.
        name: String,
        /// Its length.
        bytes: u64,
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
    /// The host refused to tell its length or mode.
    #[error("cannot examine disk {name}: {source}")]
    Examine {
        /// Its name in the description.
        name: String,
        /// What the host said.
        source: io::Error,
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
            Self::Examine { .. } => "disk-unreadable",
        }
    }
}

/// A disk of fixed length.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
}

impl Disk {
    /// Takes over `file`; its length now is the disk's for good.
    pub(super) fn new(name: &str, file: OwnedFd, read_only: bool) -> Result<Self, DiskError> {
        let examine = |errno: rustix::io::Errno| DiskError::Examine {
            name: name.into(),
            source: errno.into(),
        };
        let writable = fcntl_getfl(&file).map_err(examine)?.contains(OFlags::RDWR);
        if !read_only && !writable {
            return Err(DiskError::NotWritable { name: name.into() });
        }
        // Unlike `fstat`, seeking tells the length of block devices too.
        let bytes = seek(&file, SeekFrom::End(0)).map_err(examine)?;
        if bytes == 0 {
            return Err(DiskError::Empty { name: name.into() });
        }
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(DiskError::Unaligned {
                name: name.into(),
                bytes,
            });
        }
        Ok(Self {
            file: file.into(),
            sectors: bytes / SECTOR_BYTES,
            read_only,
        })
    }

    /// Capacity.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Writes are refused.
    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Fills `slices` from `sector` on; the caller has checked the range.
    pub(super) fn read(&self, sector: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.transfer(sector, slices, Direction::Read)
    }

    /// Stores `slices` from `sector` on; the caller has checked the range.
    pub(super) fn write(&self, sector: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.transfer(sector, slices, Direction::Write)
    }

    /// Makes everything written durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    fn transfer(
        &self,
        sector: u64,
        slices: &[VolatileSlice<'_>],
        direction: Direction,
    ) -> io::Result<()> {
        let mut offset = sector.saturating_mul(SECTOR_BYTES);
        let mut rest = slices.to_vec();
        rest.reverse();
        while !rest.is_empty() {
            let moved = match self.transfer_some(offset, &rest, direction) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            offset += moved as u64;
            drop_front(&mut rest, moved)?;
        }
        Ok(())
    }

    /// One system call; `reversed` holds the slices last first. Returns the bytes moved.
    fn transfer_some(
        &self,
        offset: u64,
        reversed: &[VolatileSlice<'_>],
        direction: Direction,
    ) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut iovecs = Vec::with_capacity(reversed.len().min(MAX_IOVECS));
        for slice in reversed.iter().rev().take(MAX_IOVECS) {
            iovecs.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        let count = iovecs.len() as i32;
        let fd = self.file.as_raw_fd();
        let moved = match direction {
            // SAFETY: each iovec covers exactly one VolatileSlice, whose memory is mapped and
            // writable for the whole call; the kernel writes there and nowhere else. No Rust
            // reference to guest memory exists. `count` is the vector's length.
            Direction::Read => unsafe { libc::preadv(fd, iovecs.as_ptr(), count, offset) },
            // SAFETY: as above; the kernel only reads the slices.
            Direction::Write => unsafe { libc::pwritev(fd, iovecs.as_ptr(), count, offset) },
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

/// Removes the first `count` bytes from slices that are stored last first.
fn drop_front(reversed: &mut Vec<VolatileSlice<'_>>, count: usize) -> io::Result<()> {
    let mut count = count;
    while let Some(slice) = reversed.pop() {
        if count < slice.len() {
            reversed.push(slice.offset(count).map_err(io::Error::other)?);
            return Ok(());
        }
        count -= slice.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        file.write_all(bytes).unwrap();
        file
    }

    fn code(result: Result<Disk, DiskError>) -> &'static str {
        result.unwrap_err().code()
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!(code(Disk::new("d", file(&[]).into(), false)), "disk-empty");
        assert_eq!(
            code(Disk::new("d", file(&[1]).into(), false)),
            "disk-unaligned"
        );
        assert_eq!(
            code(Disk::new("d", file(&[1; 513]).into(), true)),
            "disk-unaligned"
        );
        assert_eq!(
            Disk::new("d", file(&[1; 1024]).into(), false)
                .unwrap()
                .sectors(),
            2
        );
    }

    #[test]
    fn write_grant_needs_a_writable_descriptor() {
        let read_only = || OwnedFd::from(File::open("/proc/self/exe").unwrap());
        assert_eq!(
            code(Disk::new("d", read_only(), false)),
            "disk-not-writable"
        );
    }

    #[test]
    fn scattered_transfers_keep_their_order() {
        let contents: Vec<u8> = (0..2048u32).map(|n| (n / 7) as u8).collect();
        let disk = Disk::new("d", file(&contents).into(), false).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        // More slices than one call takes, of one byte each, then the rest in one.
        let mut slices = Vec::new();
        for n in 0..1500 {
            slices.extend(
                memory
                    .get_slices(GuestAddress(n), 1, Permissions::ReadWrite)
                    .unwrap()
                    .map(Result::unwrap),
            );
        }
        slices.extend(
            memory
                .get_slices(GuestAddress(1500), 36, Permissions::ReadWrite)
                .unwrap()
                .map(Result::unwrap),
        );
        disk.read(1, &slices).unwrap();
        let mut got = vec![0; 1536];
        memory.read_slice(&mut got, GuestAddress(0)).unwrap();
        assert_eq!(got, contents[512..]);
        disk.write(0, &slices).unwrap();
        disk.flush().unwrap();
        disk.read(0, &slices).unwrap();
        memory.read_slice(&mut got, GuestAddress(0)).unwrap();
        assert_eq!(got, contents[512..]);
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let disk = Disk::new("d", file(&[0; 1024]).into(), false).unwrap();
        disk.file.set_len(512).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let slices: Vec<_> = memory
            .get_slices(GuestAddress(0), 512, Permissions::ReadWrite)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert!(disk.read(1, &slices).is_err());
    }
}
