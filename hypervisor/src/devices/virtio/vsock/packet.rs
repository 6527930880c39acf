//! The header of a vsock packet (virtio 1.2, section 5.10.6), and how it lies in a chain. Used by the
//! vsock device alone.

use vm_memory::GuestMemoryMmap;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::devices::virtio::queue::Chain;

/// The host's context identifier (section 5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub(super) const TYPE_STREAM: u16 = 1;
/// Length of a header in bytes.
pub(super) const HEADER_BYTES: u64 = size_of::<Header>() as u64;
/// Most payload of a packet, either way: what Linux sends at once. A longer one is refused.
pub(super) const MAX_PAYLOAD: u32 = 64 * 1024;

/// Flag of [`Op::Shutdown`]: the sender receives no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of [`Op::Shutdown`]: the sender sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) src_cid: U64,
    pub(super) dst_cid: U64,
    pub(super) src_port: U32,
    pub(super) dst_port: U32,
    pub(super) len: U32,
    pub(super) kind: U16,
    pub(super) op: U16,
    pub(super) flags: U32,
    pub(super) buf_alloc: U32,
    pub(super) fwd_cnt: U32,
}

/// Operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    fn from_number(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|op| *op as u16 == number)
    }
}

/// The two ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

impl Key {
    /// As one number, and back.
    pub(super) fn token(self) -> u64 {
        u64::from(self.host_port) << 32 | u64::from(self.guest_port)
    }

    pub(super) fn from_token(token: u64) -> Self {
        Self {
            host_port: (token >> 32) as u32,
            guest_port: token as u32,
        }
    }
}

impl Header {
    /// A packet to the guest without credit information and payload.
    pub(super) fn to_guest(cid: u32, key: Key, op: Op) -> Self {
        let mut header = Self::new_zeroed();
        header.src_cid = HOST_CID.into();
        header.dst_cid = u64::from(cid).into();
        header.src_port = key.host_port.into();
        header.dst_port = key.guest_port.into();
        header.kind = TYPE_STREAM.into();
        header.op = (op as u16).into();
        header
    }

    /// The connection that a packet from the guest belongs to.
    pub(super) fn key(&self) -> Key {
        Key {
            host_port: self.dst_port.get(),
            guest_port: self.src_port.get(),
        }
    }

    /// What a packet from the guest asks for; nothing that the device knows of.
    pub(super) fn op(&self) -> Option<Op> {
        Op::from_number(self.op.get()).filter(|_| self.kind.get() == TYPE_STREAM)
    }
}

/// Reads the packet in `chain` from the guest with address `cid`; nothing where it is none: cut off,
/// with more payload than the chain or a packet holds, or not from the guest to the host.
pub(super) fn read(chain: &Chain, memory: &GuestMemoryMmap, cid: u32) -> Option<Header> {
    let mut header = Header::new_zeroed();
    let payload = chain.readable.len().checked_sub(HEADER_BYTES)?;
    chain
        .readable
        .read_at(memory, 0, header.as_mut_bytes())
        .ok()?;
    let len = header.len.get();
    let whole = len <= MAX_PAYLOAD && u64::from(len) <= payload;
    let ours = header.src_cid.get() == u64::from(cid) && header.dst_cid.get() == HOST_CID;
    (whole && ours).then_some(header)
}
