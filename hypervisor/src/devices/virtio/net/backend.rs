//! The host side of a network interface: taps, or a socket to a user-mode network process. Frames
//! move between it and guest memory without a copy. Used by the network device alone.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use bulkhead_machine::device::NetBackend;
use libc::{
    IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6,
};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use virtio_bindings::virtio_net::*;
use vm_memory::VolatileSlice;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::{HEADER_BYTES, NetError};
use crate::devices::virtio::vectored::{MAX_IOVECS, iovecs};

/// What became of an attempt to move one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// It moved; so many bytes, with the tap's header where there is one.
    Frame(usize),
    /// Nothing now; wait for readiness.
    WouldBlock,
    /// This frame is lost: too long, or refused by the host.
    Lost,
    /// The other side is gone for good.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Backend {
    queues: Vec<File>,
    /// Frames begin with a virtio-net header, which the tap reads and writes.
    has_header: bool,
    /// Features that the kernel's tap can do.
    features: u64,
}

/// `struct ifreq` (netdevice(7)): a name, then, for `TUNGETIFF`, the flags.
#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

impl Backend {
    /// Takes over the descriptors of `backend`, in its order.
    pub(super) fn new(backend: &NetBackend, files: Vec<OwnedFd>) -> Result<Self, NetError> {
        let mut features = 0;
        for file in &files {
            match backend {
                NetBackend::Tap { .. } => features = set_up_tap(file)?,
                NetBackend::Socket { .. } if is_packet_socket(file) => {}
                NetBackend::Socket { .. } => {
                    return Err(NetError::Rule("its socket is not SOCK_SEQPACKET"));
                }
            }
            let flags = fcntl_getfl(file).map_err(NetError::host("F_GETFL"))?;
            fcntl_setfl(file, flags | OFlags::NONBLOCK).map_err(NetError::host("F_SETFL"))?;
        }
        Ok(Self {
            queues: files.into_iter().map(File::from).collect(),
            has_header: matches!(backend, NetBackend::Tap { .. }),
            features,
        })
    }

    /// Sockets that pass for the queues of a tap with `features`.
    #[cfg(test)]
    pub(super) fn like_tap(files: Vec<OwnedFd>, features: u64) -> Self {
        let socket = bulkhead_machine::Fd(-1);
        let mut backend = Self::new(&NetBackend::Socket { socket }, files).unwrap();
        (backend.has_header, backend.features) = (true, features);
        backend
    }

    /// Device features that this backend makes possible.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Bytes of a virtio-net header before each frame on the host's side.
    pub(super) fn header_bytes(&self) -> u64 {
        if self.has_header { HEADER_BYTES } else { 0 }
    }

    /// Every descriptor, by index of its queue.
    pub(super) fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.queues.iter().map(AsRawFd::as_raw_fd)
    }

    /// Tells the tap what its frames may look like for a driver that has negotiated `features`.
    pub(super) fn set_offloads(&self, features: u64) {
        let has = |bit: u32| features & 1 << bit != 0;
        let mut flags = 0;
        if has(VIRTIO_NET_F_GUEST_CSUM) {
            flags |= TUN_F_CSUM;
            for (bit, flag) in [
                (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
                (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
            ] {
                flags |= if has(bit) { flag } else { 0 };
            }
            // The kernel takes both or none.
            if has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6) {
                flags |= TUN_F_USO4 | TUN_F_USO6;
            }
        }
        if self.has_header {
            for file in &self.queues {
                // It cannot fail: the flags are of those that the tap took before.
                let _ = set_offload(file, flags);
            }
        }
    }

    /// Receives a frame into `slices`; one that they do not hold is lost.
    pub(super) fn receive(&self, queue: usize, slices: &[VolatileSlice<'_>]) -> Moved {
        let Some(file) = self.queues.get(queue) else {
            return Moved::Closed;
        };
        let mut iovecs = iovecs(slices);
        iovecs.truncate(MAX_IOVECS - 1);
        let room: usize = iovecs.iter().map(|iovec| iovec.iov_len).sum();
        // A byte more shows where a frame was cut off: the host does not say.
        let mut spare = 0u8;
        iovecs.push(libc::iovec {
            iov_base: (&raw mut spare).cast(),
            iov_len: 1,
        });
        loop {
            // SAFETY: each iovec covers exactly one VolatileSlice, whose memory is mapped and
            // writable for the whole call, or `spare`; the kernel writes there and nowhere else. No
            // Rust reference to guest memory exists. The count is the vector's length.
            let len = unsafe {
                libc::readv(
                    file.as_raw_fd(),
                    iovecs.as_ptr(),
                    iovecs.len() as libc::c_int,
                )
            };
            return match usize::try_from(len) {
                // The end of the socket. (A tap has none, and no empty frame.)
                Ok(0) => Moved::Closed,
                Ok(len) if len > room => Moved::Lost,
                Ok(len) => Moved::Frame(len),
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN) => Moved::WouldBlock,
                    // EBADFD: the tap was deleted; ECONNRESET: the other process ended.
                    _ => Moved::Closed,
                },
            };
        }
    }

    /// Sends the frame that `head` and `slices` are in sequence.
    pub(super) fn send(&self, queue: usize, head: &[u8], slices: &[VolatileSlice<'_>]) -> Moved {
        let Some(file) = self.queues.get(queue) else {
            return Moved::Closed;
        };
        let mut all = vec![libc::iovec {
            iov_base: head.as_ptr().cast_mut().cast(),
            iov_len: head.len(),
        }];
        all.append(&mut iovecs(slices));
        if all.len() > MAX_IOVECS {
            return Moved::Lost;
        }
        loop {
            // A socket whose other side is gone gives EPIPE: Rust programs start with SIGPIPE ignored.
            // SAFETY: the first iovec covers `head`, the others one VolatileSlice each, whose
            // memory is mapped for the whole call; the kernel only reads them. The count is the
            // vector's length.
            let len =
                unsafe { libc::writev(file.as_raw_fd(), all.as_ptr(), all.len() as libc::c_int) };
            return match usize::try_from(len) {
                Ok(len) => Moved::Frame(len),
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN) => Moved::WouldBlock,
                    Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN | libc::EBADFD) => {
                        Moved::Closed
                    }
                    // EINVAL: the tap does not take the frame's header; EIO: the interface is down.
                    _ => Moved::Lost,
                },
            };
        }
    }
}

fn is_packet_socket(file: &OwnedFd) -> bool {
    matches!(socket_type(file), Ok(SocketType::SEQPACKET))
}

/// Checks how a tap was opened, makes its header ours, and finds out what it can do.
fn set_up_tap(file: &OwnedFd) -> Result<u64, NetError> {
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: 0,
        rest: [0; 22],
    };
    // SAFETY: TUNGETIFF fills a `struct ifreq`, which `request` is as long as, and nothing else;
    // a descriptor of another kind refuses it.
    let done = unsafe { ioctl_with_mut_ref(file, libc::TUNGETIFF as _, &mut request) };
    let wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if done != 0 || libc::c_int::from(request.flags) & wanted != wanted {
        return Err(NetError::Rule(
            "a descriptor is not a tap with IFF_NO_PI and IFF_VNET_HDR",
        ));
    }
    let header = HEADER_BYTES as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int, and changes nothing in this process.
    if unsafe { ioctl_with_ref(file, libc::TUNSETVNETHDRSZ as _, &header) } != 0 {
        return Err(NetError::last("TUNSETVNETHDRSZ"));
    }
    let segments = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    let mut features = 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_GUEST_CSUM
        | 1 << VIRTIO_NET_F_GUEST_TSO4
        | 1 << VIRTIO_NET_F_GUEST_TSO6
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6;
    // Segmentation of UDP came with Linux 6.2.
    if set_offload(file, segments | TUN_F_USO4 | TUN_F_USO6) {
        features |= 1 << VIRTIO_NET_F_GUEST_USO4
            | 1 << VIRTIO_NET_F_GUEST_USO6
            | 1 << VIRTIO_NET_F_HOST_USO;
    } else if !set_offload(file, segments) {
        return Err(NetError::last("TUNSETOFFLOAD"));
    }
    Ok(features)
}

fn set_offload(file: &impl AsRawFd, flags: libc::c_uint) -> bool {
    // SAFETY: TUNSETOFFLOAD takes a number, and changes nothing in this process.
    unsafe { ioctl_with_val(file, libc::TUNSETOFFLOAD as _, flags.into()) == 0 }
}
