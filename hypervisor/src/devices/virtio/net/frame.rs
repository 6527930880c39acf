//! What a driver puts before a frame, and whether the frame may go (virtio 1.2, section 5.1.6.2).
//! Used by the network device alone.
//!
//! Header and Ethernet addresses are copied out of guest memory once, checked, and sent from the
//! copy: what the guest writes there meanwhile has no effect.

use bulkhead_machine::device::MAX_FRAME_BYTES;
use virtio_bindings::virtio_net::*;
use vm_memory::GuestMemoryMmap;

use super::HEADER_BYTES;
use crate::devices::virtio::queue::Chain;

/// Bytes of an Ethernet header: destination, source, type.
const ETHERNET_BYTES: u64 = 14;
/// What is copied out: both headers.
const HEAD_BYTES: usize = (HEADER_BYTES + ETHERNET_BYTES) as usize;

/// A frame that may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// The checked headers: virtio-net's, then Ethernet's.
    head: [u8; HEAD_BYTES],
    /// Its length in bytes, without the virtio-net header.
    pub(super) len: u64,
}

/// Why a frame may not go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Too short or too long, or its header asks for what was not negotiated.
    Malformed,
    /// Its source address is not the interface's.
    Spoofed,
}

impl Frame {
    /// Checks the frame in `chain` for an interface with address `mac` and a driver that has
    /// negotiated `features`.
    pub(super) fn check(
        chain: &Chain,
        memory: &GuestMemoryMmap,
        features: u64,
        mac: [u8; 6],
    ) -> Result<Self, Refusal> {
        let mut head = [0; HEAD_BYTES];
        let len = chain.readable.len().saturating_sub(HEADER_BYTES);
        if len < ETHERNET_BYTES || len > MAX_FRAME_BYTES as u64 {
            return Err(Refusal::Malformed);
        }
        if chain.readable.read_at(memory, 0, &mut head).is_err() {
            return Err(Refusal::Malformed);
        }
        let [flags, gso, hl0, hl1, gs0, gs1, _, _, _, _, n0, n1, ..] = &mut head;
        let has = |bit: u32| features & 1 << bit != 0;
        // Flags that the device does not know are to be ignored.
        *flags &= if has(VIRTIO_NET_F_CSUM) {
            VIRTIO_NET_HDR_F_NEEDS_CSUM as u8
        } else {
            0
        };
        let needed = match u32::from(*gso) {
            VIRTIO_NET_HDR_GSO_NONE => None,
            VIRTIO_NET_HDR_GSO_TCPV4 => Some(VIRTIO_NET_F_HOST_TSO4),
            VIRTIO_NET_HDR_GSO_TCPV6 => Some(VIRTIO_NET_F_HOST_TSO6),
            VIRTIO_NET_HDR_GSO_UDP_L4 => Some(VIRTIO_NET_F_HOST_USO),
            _ => return Err(Refusal::Malformed),
        };
        match needed {
            Some(bit) if !has(bit) => return Err(Refusal::Malformed),
            Some(_) => {}
            // Lengths of segments mean nothing then.
            None => (*hl0, *hl1, *gs0, *gs1) = (0, 0, 0, 0),
        }
        (*n0, *n1) = (0, 0);
        let source = HEADER_BYTES as usize + 6..HEADER_BYTES as usize + 12;
        if head.get(source) != Some(&mac[..]) {
            return Err(Refusal::Spoofed);
        }
        Ok(Self { head, len })
    }

    /// The headers, with a virtio-net header of the given length before Ethernet's: 0, or
    /// [`HEADER_BYTES`].
    pub(super) fn head(&self, header_bytes: u64) -> &[u8] {
        let skip = HEADER_BYTES.saturating_sub(header_bytes) as usize;
        self.head.get(skip..).unwrap_or_default()
    }

    /// Where the rest lies in the chain's readable buffers, and its length.
    pub(super) fn rest(&self) -> (u64, u64) {
        (HEAD_BYTES as u64, self.len - ETHERNET_BYTES)
    }
}
