//! A connected Unix socket whose data lies in guest memory; it never blocks, however it was opened.
//! Used by vsock connections alone.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vm_memory::VolatileSlice;

use crate::devices::virtio::vectored::{MAX_IOVECS, iovecs};

/// What one attempt did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now; wait for readiness.
    WouldBlock,
    /// The other side has ended this direction.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Stream(OwnedFd);

impl Stream {
    /// Over a connected socket.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The descriptor to wait for.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Receives into `slices`, not empty.
    pub(super) fn receive(&self, slices: &[VolatileSlice<'_>]) -> Moved {
        let mut parts = iovecs(slices);
        self.attempt(&mut parts, |fd, message| {
            // SAFETY: each part covers one VolatileSlice, whose memory is mapped and writable for
            // the whole call; the kernel writes there and nowhere else. No Rust reference to guest
            // memory exists.
            unsafe { libc::recvmsg(fd, message, libc::MSG_DONTWAIT) }
        })
    }

    /// Receives one byte.
    pub(super) fn receive_byte(&self) -> (Moved, u8) {
        let mut byte = 0u8;
        let mut parts = [libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        }];
        let moved = self.attempt(&mut parts, |fd, message| {
            // SAFETY: the one part covers `byte`.
            unsafe { libc::recvmsg(fd, message, libc::MSG_DONTWAIT) }
        });
        (moved, byte)
    }

    /// Sends from `slices`, not empty.
    pub(super) fn send(&self, slices: &[VolatileSlice<'_>]) -> Moved {
        self.send_parts(&mut iovecs(slices))
    }

    /// Sends from `bytes`, not empty.
    pub(super) fn send_bytes(&self, bytes: &[u8]) -> Moved {
        self.send_parts(&mut [libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        }])
    }

    fn send_parts(&self, parts: &mut [libc::iovec]) -> Moved {
        self.attempt(parts, |fd, message| {
            // SAFETY: each part covers one VolatileSlice, whose memory is mapped for the whole call,
            // or a slice that is borrowed meanwhile; the kernel only reads them.
            unsafe { libc::sendmsg(fd, message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
        })
    }

    /// Says that nothing more will be sent.
    pub(super) fn end_sending(&self) {
        // Fails where the other side is gone, which is noticed otherwise.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
    }

    fn attempt(
        &self,
        parts: &mut [libc::iovec],
        act: impl Fn(RawFd, *mut libc::msghdr) -> isize,
    ) -> Moved {
        // SAFETY: a `msghdr` of zeros is one without name, parts and control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len().min(MAX_IOVECS) as _;
        loop {
            return match usize::try_from(act(self.0.as_raw_fd(), &mut message)) {
                Ok(0) => Moved::Closed,
                Ok(count) => Moved::Bytes(count),
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN) => Moved::WouldBlock,
                    _ => Moved::Closed,
                },
            };
        }
    }
}
