//! virtio-mem (virtio 1.2, section 5.15): memory the guest gains and gives up while it runs, in
//! blocks of 2 MiB of one region above its RAM.
//!
//! The supervisor says how much the guest is to have; the guest plugs and unplugs blocks on its own
//! until it has that. A block that it unplugs goes back to the host at once. The whole region is one
//! memory slot: a guest that touches a block it has not plugged finds zeros, and costs the host a page
//! as plugged memory would, at most as much as the region is long. What it must not do, it gains
//! nothing by.

use std::ops::Range;

use bulkhead_machine::control::Resize;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::queue::Chain;
use super::{
    Activation, DeviceError, DeviceIo, DeviceType, Progress, ResizeError, VirtioDevice,
    read_config_bytes,
};
use crate::machine::memory::discard;

/// A driver does not read memory that is not plugged (section 5.15.3).
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// Bytes of a block.
pub const BLOCK: u64 = 2 << 20;
/// Entries of the request queue; Linux has one request at a time.
const QUEUE_SIZE: u16 = 16;
/// Requests served in a turn.
const TURN_REQUESTS: usize = 16;
/// Most blocks given back to the host in a turn.
const TURN_BLOCKS: usize = 64;

/// Request types, response types and states (section 5.15.6).
const REQ_PLUG: u16 = 0;
const REQ_UNPLUG: u16 = 1;
const REQ_UNPLUG_ALL: u16 = 2;
const REQ_STATE: u16 = 3;
const RESP_ACK: u16 = 0;
const RESP_NACK: u16 = 1;
const RESP_ERROR: u16 = 3;
const STATE_PLUGGED: u16 = 0;
const STATE_UNPLUGGED: u16 = 1;
const STATE_MIXED: u16 = 2;

/// Bytes of a request and of a response.
const REQUEST_BYTES: usize = 24;
const RESPONSE_BYTES: usize = 10;

/// See the module.
#[derive(Debug)]
pub struct Mem {
    start: u64,
    blocks: Vec<bool>,
    plugged: u64,
    requested: u64,
    /// Blocks still to be given back to the host, before any other request.
    leaving: Range<usize>,
    /// The unplug request that is answered then.
    waiting: Option<Chain>,
    returned_bytes: u64,
    refused: u64,
}

impl Mem {
    /// The region `start..start + bytes`, of which nothing is plugged; both are multiples of
    /// [`BLOCK`].
    pub fn new(start: GuestAddress, bytes: u64) -> Self {
        Self {
            start: start.0,
            blocks: vec![false; (bytes / BLOCK) as usize],
            plugged: 0,
            requested: 0,
            leaving: 0..0,
            waiting: None,
            returned_bytes: 0,
            refused: 0,
        }
    }

    fn region_bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    /// The blocks of a request, if there are any and all of them are in the region.
    fn range(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let offset = address.checked_sub(self.start)?;
        let first = usize::try_from(offset / BLOCK).ok()?;
        let range = first..first.checked_add(count.into())?;
        let fits = offset.is_multiple_of(BLOCK) && count > 0 && range.end <= self.blocks.len();
        fits.then_some(range)
    }

    /// Whether all blocks of `range` are plugged, or none; nothing where they differ.
    fn uniform(&self, range: &Range<usize>) -> Option<bool> {
        let blocks = self.blocks.get(range.clone())?;
        let first = *blocks.first()?;
        blocks.iter().all(|b| *b == first).then_some(first)
    }

    fn set(&mut self, range: &Range<usize>, plugged: bool) {
        for block in self.blocks.get_mut(range.clone()).into_iter().flatten() {
            if *block != plugged {
                *block = plugged;
                let bytes = self.plugged;
                self.plugged = if plugged {
                    bytes + BLOCK
                } else {
                    bytes - BLOCK
                };
            }
        }
    }

    /// Carries a request out: response type and state, and the blocks that have to leave first.
    fn serve(&mut self, request: &[u8; REQUEST_BYTES]) -> (u16, u16, Range<usize>) {
        let [
            t0,
            t1,
            _,
            _,
            _,
            _,
            _,
            _,
            address @ ..,
            n0,
            n1,
            _,
            _,
            _,
            _,
            _,
            _,
        ] = request;
        let address = u64::from_le_bytes(*address);
        let count = u16::from_le_bytes([*n0, *n1]);
        let range = self.range(address, count);
        let nothing = 0..0;
        match (u16::from_le_bytes([*t0, *t1]), range) {
            (REQ_PLUG, Some(range)) if self.uniform(&range) == Some(false) => {
                if self.plugged + u64::from(count) * BLOCK > self.requested {
                    return (RESP_NACK, 0, nothing);
                }
                self.set(&range, true);
                (RESP_ACK, 0, nothing)
            }
            (REQ_UNPLUG, Some(range)) if self.uniform(&range) == Some(true) => {
                self.set(&range, false);
                (RESP_ACK, 0, range)
            }
            (REQ_UNPLUG_ALL, _) => {
                let all = 0..self.blocks.len();
                self.set(&all, false);
                (RESP_ACK, 0, all)
            }
            (REQ_STATE, Some(range)) => {
                let state = match self.uniform(&range) {
                    Some(true) => STATE_PLUGGED,
                    Some(false) => STATE_UNPLUGGED,
                    None => STATE_MIXED,
                };
                (RESP_ACK, state, nothing)
            }
            _ => {
                self.refused += 1;
                (RESP_ERROR, 0, nothing)
            }
        }
    }

    /// Gives some of the leaving blocks back to the host; true when none is left.
    fn leave(&mut self, memory: &GuestMemoryMmap) -> bool {
        let Range { start, end } = self.leaving;
        if start == end {
            return true;
        }
        let next = end.min(start + TURN_BLOCKS);
        let address = GuestAddress(self.start + start as u64 * BLOCK);
        match discard(memory, address, (next - start) as u64 * BLOCK) {
            Ok(bytes) => self.returned_bytes += bytes,
            // The host keeps the pages, and the guest may find its own bytes there again.
            Err(_) => self.refused += 1,
        }
        self.leaving = next..end;
        next == end
    }
}

fn answer(
    chain: &Chain,
    memory: &GuestMemoryMmap,
    response: u16,
    state: u16,
) -> Result<(), DeviceError> {
    let mut bytes = [0; RESPONSE_BYTES];
    let [t0, t1, .., s0, s1] = &mut bytes;
    [*t0, *t1] = response.to_le_bytes();
    [*s0, *s1] = state.to_le_bytes();
    Ok(chain.writable.write_at(memory, 0, &bytes)?)
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> DeviceType {
        DeviceType::Mem
    }

    fn features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// `struct virtio_mem_config` (section 5.15.4): all of the region is usable at any time.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = [
            BLOCK,
            0, // NUMA node, which is not announced
            self.start,
            self.region_bytes(),
            self.region_bytes(),
            self.plugged,
            self.requested,
        ]
        .map(u64::to_le_bytes);
        read_config_bytes(config.as_flattened(), offset, data);
    }

    fn activate(&mut self, _activation: Activation<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("region-bytes", self.region_bytes()),
            ("requested-bytes", self.requested),
            ("plugged-bytes", self.plugged),
            ("returned-bytes", self.returned_bytes),
            ("refused-requests", self.refused),
        ]
    }

    fn resize(&mut self, resize: &Resize, io: &mut DeviceIo<'_>) -> Result<(), ResizeError> {
        let Resize::Memory { pluggable_mib } = resize else {
            return Err(ResizeError::Fixed);
        };
        let max_mib = self.region_bytes() >> 20;
        let bytes = pluggable_mib << 20;
        if *pluggable_mib > max_mib || !bytes.is_multiple_of(BLOCK) {
            return Err(ResizeError::OutOfRange(format!(
                "{pluggable_mib} MiB of pluggable memory are not an even number up to {max_mib}"
            )));
        }
        self.requested = bytes;
        *io.config_changed = true;
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let Some(queue) = io.queues.get_mut(index) else {
            return Ok(Progress::Idle);
        };
        for _ in 0..TURN_REQUESTS {
            if !self.leave(io.memory) {
                return Ok(Progress::More);
            }
            if let Some(chain) = self.waiting.take() {
                answer(&chain, io.memory, RESP_ACK, 0)?;
                queue.push(io.memory, &chain, RESPONSE_BYTES as u32)?;
            }
            let Some(chain) = queue.pop(io.memory)? else {
                return Ok(Progress::Idle);
            };
            if chain.writable.len() < RESPONSE_BYTES as u64 {
                return Err(DeviceError::Unanswerable);
            }
            let mut request = [0; REQUEST_BYTES];
            chain.readable.read_at(io.memory, 0, &mut request)?;
            let (response, state, leaving) = self.serve(&request);
            if leaving.is_empty() {
                answer(&chain, io.memory, response, state)?;
                queue.push(io.memory, &chain, RESPONSE_BYTES as u32)?;
            } else {
                self.leaving = leaving;
                self.waiting = Some(chain);
            }
        }
        Ok(Progress::More)
    }

    /// What is plugged stays plugged (section 5.15.5.2): the next driver finds it, or unplugs it all.
    fn reset(&mut self) {
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests;
