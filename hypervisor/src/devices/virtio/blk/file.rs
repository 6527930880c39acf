//! One file of a disk, as system calls see it: raw bytes moved to and from guest memory without a
//! copy in between, but where direct I/O cannot take the guest's buffers as they lie. Used by the
//! block device's disks; every function may block.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FallocateFlags, SeekFrom, StatxFlags, fallocate, fdatasync, seek, statx,
};
use vm_memory::VolatileSlice;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most slices one system call takes (`IOV_MAX`).
pub(super) const MAX_IOVECS: usize = 1024;
/// Bytes moved at once through memory of our own, per thread that does.
const BOUNCE_BYTES: usize = 1024 * 1024;
/// What direct I/O surely wants where the host does not tell (before Linux 6.1).
const SAFE_ALIGNMENT: u32 = 4096;

/// A page; its alignment suits direct I/O anywhere.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub(super) struct Page(pub(super) [u8; 4096]);

/// A page of zeroes, to write from.
pub(super) static ZEROES: Page = Page([0; 4096]);

/// Memory of at least `len` bytes, aligned to pages.
pub(super) fn pages(len: usize) -> Vec<Page> {
    vec![ZEROES; len.div_ceil(size_of::<Page>())]
}

/// What direct I/O demands of a request.
#[derive(Clone, Copy, Debug)]
struct Alignment {
    /// Of each buffer's address.
    memory: usize,
    /// Of offset and length.
    block: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct HostFile {
    file: File,
    direct: Option<Alignment>,
}

impl HostFile {
    /// `direct`: the file was opened with `O_DIRECT`.
    pub(super) fn new(file: File, direct: bool) -> io::Result<Self> {
        let direct = if direct {
            let flags = StatxFlags::DIOALIGN;
            let told = statx(&file, c"", AtFlags::EMPTY_PATH, flags)?;
            let or_safe = |align: u32| if align == 0 { SAFE_ALIGNMENT } else { align } as usize;
            Some(Alignment {
                memory: or_safe(told.stx_dio_mem_align),
                block: or_safe(told.stx_dio_offset_align).max(512),
            })
        } else {
            None
        };
        Ok(Self { file, direct })
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes in the file, or on the block device.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        // Unlike `fstat`, seeking tells the length of block devices too.
        Ok(seek(&self.file, SeekFrom::End(0))?)
    }

    /// What offset and length of a request have to be multiples of: 512, or more for direct I/O.
    pub(super) fn block(&self) -> u64 {
        self.direct.map_or(512, |direct| direct.block as u64)
    }

    /// Whether it was opened with `O_DIRECT`.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether the kernel takes `slices` as they are, or they have to be copied.
    pub(super) fn takes(&self, slices: &[VolatileSlice<'_>]) -> bool {
        self.direct.is_none_or(|direct| {
            slices.iter().all(|slice| {
                (slice.ptr_guard().as_ptr() as usize).is_multiple_of(direct.memory)
                    && slice.len().is_multiple_of(direct.block)
            })
        })
    }

    /// Fills `slices` from `offset` on.
    pub(super) fn read(&self, offset: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        if self.takes(slices) {
            return self.transfer(offset, slices, Direction::Read);
        }
        bounce(offset, slices, |offset, buffer, part| {
            self.transfer(offset, &[buffer], Direction::Read)?;
            copy(&[buffer], part)
        })
    }

    /// Stores `slices` from `offset` on.
    pub(super) fn write(&self, offset: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        if self.takes(slices) {
            return self.transfer(offset, slices, Direction::Write);
        }
        bounce(offset, slices, |offset, buffer, part| {
            copy(part, &[buffer])?;
            self.transfer(offset, &[buffer], Direction::Write)
        })
    }

    /// Makes everything written durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    /// Gives the bytes' room back to the host; they read as zeroes then. `Unsupported` where the
    /// host cannot, and nothing has changed.
    pub(super) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, offset, len)?)
    }

    /// Makes the bytes zeroes, giving their room back if `unmap` and the host can.
    pub(super) fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap && supported(self.punch(offset, len))? {
            return Ok(());
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let zeroed = fallocate(&self.file, flags, offset, len);
        if supported(zeroed.map_err(io::Error::from))? {
            return Ok(());
        }
        let mut buffer = pages(BOUNCE_BYTES.min(len as usize));
        let mut done = 0;
        while done < len {
            let now = (len - done).min(BOUNCE_BYTES as u64) as usize;
            let slice = VolatileSlice::from(buffer.as_mut_bytes());
            let part = cut(&[slice], 0, now)?;
            self.transfer(offset + done, &part, Direction::Write)?;
            done += now as u64;
        }
        Ok(())
    }

    fn transfer(
        &self,
        offset: u64,
        slices: &[VolatileSlice<'_>],
        direction: Direction,
    ) -> io::Result<()> {
        let mut offset = offset;
        let mut rest = iovecs(slices);
        let mut first = 0;
        while first < rest.len() {
            let now = rest.get(first..).unwrap_or_default();
            let count = now.len().min(MAX_IOVECS) as i32;
            let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            let fd = self.file.as_raw_fd();
            let moved = match direction {
                // SAFETY: each iovec lies within one VolatileSlice, whose memory is mapped and
                // writable as long as it lives, and `slices` outlives the call; the kernel writes
                // there and nowhere else. No Rust reference to that memory is used meanwhile.
                // `count` is at most the slice's length.
                Direction::Read => unsafe { libc::preadv(fd, now.as_ptr(), count, at) },
                // SAFETY: as above; the kernel only reads the memory.
                Direction::Write => unsafe { libc::pwritev(fd, now.as_ptr(), count, at) },
            };
            match usize::try_from(moved) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => {
                    offset += moved as u64;
                    advance(&mut rest, &mut first, moved);
                }
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

/// Whether the host could do it; other failures stay failures.
pub(super) fn supported(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The slices as the kernel takes them.
pub(super) fn iovecs(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let iovec = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().map(iovec).collect()
}

/// Leaves `moved` bytes behind; `first` is the first iovec that is not done.
pub(super) fn advance(iovecs: &mut [libc::iovec], first: &mut usize, moved: usize) {
    let mut moved = moved;
    while let Some(iovec) = iovecs.get_mut(*first) {
        if moved < iovec.iov_len {
            iovec.iov_base = iovec.iov_base.wrapping_byte_add(moved);
            iovec.iov_len -= moved;
            return;
        }
        moved -= iovec.iov_len;
        *first += 1;
    }
}

/// The `len` bytes from `skip` on.
pub(super) fn cut<'m>(
    slices: &[VolatileSlice<'m>],
    skip: usize,
    len: usize,
) -> io::Result<Vec<VolatileSlice<'m>>> {
    let (mut skip, mut rest) = (skip, len);
    let mut part = Vec::new();
    for slice in slices {
        if rest == 0 {
            break;
        }
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        let take = rest.min(slice.len() - skip);
        part.push(slice.subslice(skip, take).map_err(io::Error::other)?);
        (skip, rest) = (0, rest - take);
    }
    if rest > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(part)
}

/// Bytes in all.
pub(super) fn total(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Makes all bytes zero.
pub(super) fn clear(slices: &[VolatileSlice<'_>]) -> io::Result<()> {
    for slice in slices {
        for at in (0..slice.len()).step_by(ZEROES.0.len()) {
            slice
                .offset(at)
                .map_err(io::Error::other)?
                .copy_from(&ZEROES.0);
        }
    }
    Ok(())
}

/// Copies as many bytes as the shorter has.
pub(super) fn copy(from: &[VolatileSlice<'_>], to: &[VolatileSlice<'_>]) -> io::Result<()> {
    let mut done = 0;
    for source in from {
        let len = source.len().min(total(to) - done);
        let mut at = 0;
        for target in cut(to, done, len)? {
            source
                .subslice(at, target.len())
                .map_err(io::Error::other)?
                .copy_to_volatile_slice(target);
            at += target.len();
        }
        done += len;
    }
    Ok(())
}

/// Moves `slices` through an aligned buffer, a part at a time: the part's offset, the buffer, and
/// the part go to `step`.
fn bounce(
    offset: u64,
    slices: &[VolatileSlice<'_>],
    step: impl Fn(u64, VolatileSlice<'_>, &[VolatileSlice<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let len = total(slices);
    let mut buffer = pages(BOUNCE_BYTES.min(len));
    let mut done = 0;
    while done < len {
        let now = (len - done).min(BOUNCE_BYTES);
        let part = cut(slices, done, now)?;
        let aligned = VolatileSlice::from(buffer.as_mut_bytes());
        let aligned = aligned.subslice(0, now).map_err(io::Error::other)?;
        step(offset + done as u64, aligned, &part)?;
        done += now;
    }
    Ok(())
}
