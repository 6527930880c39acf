//! The driver's receive buffers that the device holds, and how a frame goes into them
//! (virtio 1.2, section 5.1.6.3). Used by the network device alone.

use std::collections::VecDeque;

use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::HEADER_BYTES;
use crate::devices::virtio::DeviceError;
use crate::devices::virtio::queue::{Chain, QueueError, Virtqueue};
use crate::devices::virtio::vectored::MAX_IOVECS;

/// Where the header's `num_buffers` lies.
const NUM_BUFFERS: u64 = 10;

/// Chains taken from a receive queue, for frames to come: as many as its longest frame needs, and
/// no more buffers than one system call fills.
#[derive(Debug, Default)]
pub(super) struct Held {
    chains: VecDeque<Chain>,
    bytes: u64,
    buffers: usize,
    ready: bool,
}

impl Held {
    /// Takes chains from `queue` until a frame of `longest` bytes, header and all, fits. `merge`:
    /// it may use several of them. Returns whether a frame may be received.
    pub(super) fn fill(
        &mut self,
        queue: &mut Virtqueue,
        memory: &GuestMemoryMmap,
        longest: u64,
        merge: bool,
    ) -> Result<bool, DeviceError> {
        loop {
            self.ready = if merge {
                // A driver whose whole queue does not hold the longest frame gets those that fit.
                self.bytes >= longest
                    || self.buffers >= MAX_IOVECS
                    || self.chains.len() >= usize::from(queue.size())
            } else {
                !self.chains.is_empty()
            };
            if self.ready {
                return Ok(true);
            }
            let Some(chain) = queue.pop(memory)? else {
                return Ok(false);
            };
            if chain.writable.len() < HEADER_BYTES {
                return Err(DeviceError::Unanswerable);
            }
            self.bytes += chain.writable.len();
            self.buffers += chain.writable.count();
            self.chains.push_back(chain);
        }
    }

    /// What [`Self::fill`] said last.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// The memory of the buffers for the next frame, from `offset` on.
    pub(super) fn slices<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        offset: u64,
        merge: bool,
        slices: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<(), DeviceError> {
        slices.clear();
        let usable = if merge { self.chains.len() } else { 1 };
        let mut skip = offset;
        for chain in self.chains.iter().take(usable) {
            let buffers = &chain.writable;
            buffers.append_slices(memory, skip, buffers.len() - skip, slices)?;
            skip = 0;
        }
        Ok(())
    }

    /// Returns the chains that hold a frame of `len` bytes, header and all. The number of chains goes
    /// into the end of the header, and what comes before it is overwritten by `start`, where given.
    pub(super) fn deliver(
        &mut self,
        queue: &mut Virtqueue,
        memory: &GuestMemoryMmap,
        len: u64,
        start: Option<[u8; NUM_BUFFERS as usize]>,
    ) -> Result<(), DeviceError> {
        let mut rest = len;
        let mut used = 0;
        for chain in &self.chains {
            used += 1;
            if rest <= chain.writable.len() {
                break;
            }
            rest -= chain.writable.len();
        }
        if let Some(first) = self.chains.front() {
            if let Some(start) = start {
                first.writable.write_at(memory, 0, &start)?;
            }
            let count = (used as u16).to_le_bytes();
            first.writable.write_at(memory, NUM_BUFFERS, &count)?;
        }
        let mut rest = len;
        let chains = self.chains.iter().take(used).map(|chain| {
            let written = rest.min(chain.writable.len());
            rest -= written;
            (chain, written as u32)
        });
        let done: Result<(), QueueError> = queue.push_together(memory, chains);
        for chain in self.chains.drain(..used) {
            self.bytes -= chain.writable.len();
            self.buffers -= chain.writable.count();
        }
        Ok(done?)
    }

    /// Forgets all: the driver has reset the device.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
