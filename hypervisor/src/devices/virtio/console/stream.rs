//! The host side of a console: a readable and a writable descriptor that never block the event
//! loop, whatever is on their other side (pipe, terminal, socket, file), and whose flags stay as
//! they were for the processes that share them. Used by consoles.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

/// Most bytes moved at once on a description that may block: what a pipe that is ready takes
/// without blocking (`PIPE_BUF`).
const CAUTIOUS_BYTES: usize = 4096;
/// Most bytes moved at once: a device such as `/dev/urandom` would fill a buffer of any size, and
/// hold the event loop as long.
const MOST_BYTES: usize = 1024 * 1024;

/// What one attempt did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now; wait for readiness.
    WouldBlock,
    /// The other side is gone, or at its end; nothing ever again.
    Closed,
}

/// One direction of a console.
#[derive(Debug)]
pub(super) struct Stream {
    fd: OwnedFd,
    /// The description is ours alone and non-blocking.
    nonblocking: bool,
}

impl Stream {
    /// Takes over a descriptor to read from. Call before the jail closes: pipes and terminals are
    /// opened anew through `/proc`, to get a description whose flags nobody else sees.
    pub(super) fn reader(fd: OwnedFd) -> Self {
        Self::new(fd, OFlags::RDONLY)
    }

    /// As [`Self::reader`], to write to.
    pub(super) fn writer(fd: OwnedFd) -> Self {
        Self::new(fd, OFlags::WRONLY)
    }

    fn new(fd: OwnedFd, access: OFlags) -> Self {
        match reopen(&fd, access) {
            Some(own) => Self {
                fd: own,
                nonblocking: true,
            },
            None => Self {
                fd,
                nonblocking: false,
            },
        }
    }

    /// The descriptor to wait on.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Reads once into `slice`.
    pub(super) fn read(&self, slice: &VolatileSlice<'_>) -> Moved {
        self.attempt(slice, PollFlags::IN, |fd, slice| {
            (&mut &*fd).read_volatile(slice)
        })
    }

    /// Writes once from `slice`.
    pub(super) fn write(&self, slice: &VolatileSlice<'_>) -> Moved {
        self.attempt(slice, PollFlags::OUT, |fd, slice| {
            (&mut &*fd).write_volatile(slice)
        })
    }

    fn attempt(
        &self,
        slice: &VolatileSlice<'_>,
        ready: PollFlags,
        act: impl Fn(&OwnedFd, &mut VolatileSlice<'_>) -> Result<usize, VolatileMemoryError>,
    ) -> Moved {
        if !self.nonblocking && !self.is_ready(ready) {
            return Moved::WouldBlock;
        }
        let most = if self.nonblocking {
            MOST_BYTES
        } else {
            CAUTIOUS_BYTES
        };
        let Ok(mut part) = slice.subslice(0, slice.len().min(most)) else {
            return Moved::Closed;
        };
        loop {
            return match act(&self.fd, &mut part) {
                Ok(0) => Moved::Closed,
                Ok(count) => Moved::Bytes(count),
                Err(VolatileMemoryError::IOError(error)) => match error.kind() {
                    ErrorKind::Interrupted => continue,
                    ErrorKind::WouldBlock => Moved::WouldBlock,
                    // EPIPE, EIO of a terminal that hung up, ENOSPC: the stream is over.
                    _ => Moved::Closed,
                },
                Err(_) => Moved::Closed,
            };
        }
    }

    fn is_ready(&self, ready: PollFlags) -> bool {
        let mut fds = [PollFd::new(&self.fd, ready)];
        // An error or a hang-up counts as ready: the attempt will tell.
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(count) if count > 0)
    }
}

/// A non-blocking description of the same pipe or terminal; nothing for what never blocks (files)
/// or cannot be opened anew (sockets, a foreign terminal, no `/proc`).
fn reopen(fd: &OwnedFd, access: OFlags) -> Option<OwnedFd> {
    let kind = FileType::from_raw_mode(fstat(fd.as_fd()).ok()?.st_mode);
    if !matches!(kind, FileType::Fifo | FileType::CharacterDevice) {
        return None;
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

    use super::*;

    #[test]
    fn an_endless_stream_is_read_in_bounded_parts() {
        let endless = std::fs::File::open("/dev/zero").unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let slices = memory.get_slices(GuestAddress(0), 4 << 20, Permissions::ReadWrite);
        let slice = slices.unwrap().next().unwrap().unwrap();
        let stream = Stream::reader(endless.into());
        assert_eq!(stream.read(&slice), Moved::Bytes(MOST_BYTES));
    }
}
