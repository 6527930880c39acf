//! The virtio devices of a partition, and what stands behind each. In a machine description and in
//! [`crate::control::Command::Attach`]; read by nobody but the VMM.

use serde::{Deserialize, Serialize};

use crate::Fd;

/// Longest name of a device in bytes; a block device shows it as its serial number.
pub const MAX_DEVICE_NAME: usize = 20;
/// Longest tag of a shared directory in bytes (virtio 1.2, section 5.11.4).
pub const MAX_TAG: usize = 36;
/// Most queues, or pairs of queues, a device can have: one for each vCPU.
pub const MAX_QUEUES: u16 = 32;
/// Largest Ethernet frame on [`NetBackend::Socket`] in bytes: an MTU of 65,520, and 30 bytes for
/// the Ethernet header and tags.
pub const MAX_FRAME_BYTES: usize = 65_550;

/// A virtio device. Its name is unique in the partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What control messages, counters and `BootInfo` call it: 1 to [`MAX_DEVICE_NAME`] bytes.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
}

/// Kinds of devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A disk served by the VMM.
    Block(Block),
    /// A network interface served by the VMM.
    Net(Net),
    /// Sockets between host and guest, at most one.
    Vsock(Vsock),
    /// Memory given back on request, at most one.
    Balloon(Balloon),
    /// A file that is memory of the guest.
    Pmem(Pmem),
    /// A device that another process serves.
    VhostUser(VhostUser),
}

impl DeviceKind {
    /// Every descriptor it names.
    pub fn descriptors(&self) -> Vec<Fd> {
        match self {
            Self::Block(block) => {
                let mut fds = vec![block.file];
                if let Some(overlay) = &block.overlay {
                    fds.push(overlay.map);
                    fds.extend(overlay.base.iter().map(|base| base.file));
                }
                fds
            }
            Self::Net(net) => match &net.backend {
                NetBackend::Tap { queues } => queues.clone(),
                NetBackend::Socket { socket } => vec![*socket],
            },
            Self::Vsock(vsock) => vec![vsock.listener, vsock.connector],
            Self::Balloon(_) => Vec::new(),
            Self::Pmem(pmem) => vec![pmem.file],
            Self::VhostUser(vhost_user) => vec![vhost_user.socket],
        }
    }
}

/// A disk: one raw file, or a raw copy-on-write top over a base that is only read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Raw image file or block device, opened as `read_only` says, with `O_DIRECT` for direct I/O.
    /// With `overlay` it is the top, as long as the disk.
    pub file: Fd,
    /// Offer `VIRTIO_BLK_F_RO` and refuse writes.
    pub read_only: bool,
    /// `file` was opened with `O_DIRECT`.
    #[serde(default)]
    pub direct: bool,
    /// What shows through where `file` was not written.
    #[serde(default)]
    pub overlay: Option<Overlay>,
    /// Request queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// How fast it may be.
    #[serde(default)]
    pub rate: RateLimit,
}

/// The lower part of a copy-on-write disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlay {
    /// Which parts of the top are in force: a file of the VMM's own format, empty at first.
    pub map: Fd,
    /// The base, and what it itself is based on: each opened read-only.
    pub base: Vec<BaseImage>,
}

/// An image that is only read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseImage {
    /// The file, without `O_DIRECT`: many partitions share what the host caches of it.
    pub file: Fd,
    /// Its format: never guessed, since a guest may have written the file.
    pub format: ImageFormat,
}

/// Formats of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Where frames go.
    pub backend: NetBackend,
    /// Its address; not a multicast address.
    pub mac: [u8; 6],
    /// `VIRTIO_NET_F_MTU`, 68 to 65,520; absent: the driver's 1,500.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Pairs of queues, 1 to [`MAX_QUEUES`]; more than one only with as many tap descriptors.
    pub queue_pairs: u16,
    /// How fast the guest may receive.
    #[serde(default)]
    pub receive_rate: RateLimit,
    /// How fast it may send.
    #[serde(default)]
    pub transmit_rate: RateLimit,
}

/// The host side of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "kebab-case", deny_unknown_fields)]
pub enum NetBackend {
    /// A tap interface opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, one descriptor for each
    /// pair of queues.
    Tap {
        /// The descriptors.
        queues: Vec<Fd>,
    },
    /// A `SOCK_SEQPACKET` socket to a user-mode network process: each packet is one Ethernet frame
    /// of at most [`MAX_FRAME_BYTES`] without any header before it.
    Socket {
        /// The socket.
        socket: Fd,
    },
}

/// Sockets between host and guest, by the conventions of Firecracker: who connects to the listening
/// socket and writes `CONNECT port\n` reaches the guest's listener on that port and reads
/// `OK number\n`; a guest's connection to CID 2, port n, reaches whoever listens behind `connector`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address, from 3.
    pub cid: u32,
    /// A listening `SOCK_STREAM` Unix socket, non-blocking.
    pub listener: Fd,
    /// A `SOCK_SEQPACKET` socket to the supervisor: see [`crate::control::vsock`].
    pub connector: Fd,
}

/// A balloon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// MiB the guest is asked to give back at once.
    #[serde(default)]
    pub target_mib: u64,
    /// The guest may take pages back when it runs out of memory.
    pub deflate_on_oom: bool,
    /// The guest reports free pages, and the host takes them.
    pub free_page_reporting: bool,
}

/// A file that is memory of the guest, shared or, when read-only, not to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// The file, whole 2 MiB long, opened as `read_only` says.
    pub file: Fd,
    /// The guest's writes are dropped.
    pub read_only: bool,
}

/// A device behind a vhost-user back end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhostUser {
    /// A connected `SOCK_STREAM` Unix socket.
    pub socket: Fd,
    /// What the back end is.
    pub device: VhostUserDevice,
    /// Entries of each queue, a power of two up to 1,024.
    pub queue_size: u16,
}

/// What a vhost-user back end serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "serves", rename_all = "kebab-case", deny_unknown_fields)]
pub enum VhostUserDevice {
    /// A disk; its configuration space is the back end's.
    Block {
        /// Request queues, 1 to [`MAX_QUEUES`].
        queues: u16,
    },
    /// A network interface.
    Net {
        /// Its address.
        mac: [u8; 6],
        /// Pairs of queues, 1 to [`MAX_QUEUES`].
        queue_pairs: u16,
    },
    /// A shared directory.
    Fs {
        /// What the guest mounts, 1 to [`MAX_TAG`] bytes.
        tag: String,
        /// Request queues, 1 to [`MAX_QUEUES`].
        queues: u16,
    },
}

/// How fast something may go; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes.
    #[serde(default)]
    pub bytes: Option<TokenBucket>,
    /// Requests, or frames.
    #[serde(default)]
    pub operations: Option<TokenBucket>,
}

/// A bucket that holds `burst` tokens and gains `per_second`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens gained in a second, at least 1.
    pub per_second: u64,
    /// Tokens it holds, full at the start; at least 1.
    pub burst: u64,
}
