//! A virtqueue of eight entries from the driver's side (virtio 1.2, section 2.7), and what a device
//! makes of what it is offered.

use crate::machine::{BYTES, Memory};
use crate::transport::{Device, NEEDS_RESET, Register};

/// Entries.
pub(crate) const SIZE: u16 = 8;
/// Bytes of a queue with its three rings.
pub(crate) const QUEUE_BYTES: u64 = 0x400;
/// Where available and used ring lie behind the descriptor table.
const AVAIL: u64 = 0x100;
const USED: u64 = 0x200;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// How often the driver looks for the answer to an attack: milliseconds, and far more than a device
/// needs. One that is late is taken for silent, which proves nothing and disproves nothing.
pub(crate) const PATIENCE: u32 = 400;
/// The same for a queue that the device does not look at.
pub(crate) const LITTLE_PATIENCE: u32 = 60;
/// How often it looks for the answer to an honest request: this bounds a hang, and judges nothing.
const MUCH_PATIENCE: u32 = 2_000_000;

/// Address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// What a device did with an attack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It stopped until its reset.
    NeedsReset,
    /// It returned a buffer.
    Returned,
    /// It took the buffer, and waits with it.
    Kept,
    Silence,
}

/// A queue of the driver's.
pub(crate) struct Queue {
    index: u32,
    /// Offset in [`Memory`] of its rings.
    at: u64,
    /// Index of the available ring, and the next descriptor.
    offered: u16,
    next: u16,
}

impl Queue {
    /// Queue `index` with rings at offset `at`, not placed yet.
    pub(crate) fn new(memory: &Memory, index: u32, at: u64) -> Self {
        for ring in [at, at + 8 * u64::from(SIZE), at + AVAIL, at + USED] {
            for word in 0..10 {
                memory.put(ring + 8 * word, 0u64);
            }
        }
        Self {
            index,
            at,
            offered: 0,
            next: 0,
        }
    }

    /// Guest-physical addresses of the rings.
    pub(crate) fn rings(&self, memory: &Memory) -> [u64; 3] {
        [0, AVAIL, USED].map(|offset| memory.start + self.at + offset)
    }

    /// Tells the device of it; true when it takes it.
    pub(crate) fn place(&self, device: &Device, memory: &Memory) -> bool {
        device.place_queue(self.index, SIZE.into(), self.rings(memory))
    }

    /// Writes descriptors from number 0 on.
    pub(crate) fn describe(&self, memory: &Memory, descriptors: &[Descriptor]) {
        describe(memory, self.at, descriptors);
    }

    /// Makes `head` available as the first of `index`, and rings.
    pub(crate) fn offer(&mut self, device: &Device, memory: &Memory, head: u16, index: u16) {
        self.offered = index;
        memory.put(self.at + AVAIL + 4, head);
        memory.put(self.at + AVAIL + 2, index);
        device.notify(self.index);
    }

    /// Makes a chain of buffers available, behind those before, and rings: address, length, flags.
    pub(crate) fn submit(&mut self, device: &Device, memory: &Memory, chain: &[(u64, u32, u16)]) {
        let head = self.next;
        for (number, (address, len, flags)) in chain.iter().enumerate() {
            let (this, next) = (self.next % SIZE, (self.next + 1) % SIZE);
            let more = if number + 1 < chain.len() { NEXT } else { 0 };
            let descriptor = (*address, *len, flags | more, next);
            describe(memory, self.at + 16 * u64::from(this), &[descriptor]);
            self.next = next;
        }
        let slot = u64::from(self.offered % SIZE);
        memory.put(self.at + AVAIL + 4 + 2 * slot, head);
        self.offered = self.offered.wrapping_add(1);
        memory.put(self.at + AVAIL + 2, self.offered);
        device.notify(self.index);
    }

    /// Waits a while for the device to have returned `count` chains.
    pub(crate) fn returned(&self, memory: &Memory, count: u16) -> bool {
        (0..20 * PATIENCE).any(|_| self.used(memory) >= count)
    }

    fn used(&self, memory: &Memory) -> u16 {
        memory.get(self.at + USED + 2)
    }

    /// Where the device says up to which index it has looked (section 2.7.10).
    fn looked(&self, memory: &Memory) -> u16 {
        memory.get(self.at + USED + 4 + 8 * u64::from(SIZE))
    }

    /// Waits for the device to return something or to give up.
    pub(crate) fn answer(&self, device: &Device, memory: &Memory, patience: u32) -> Answer {
        for _ in 0..patience {
            if self.used(memory) != 0 {
                return Answer::Returned;
            }
            if device.read(Register::Status) & NEEDS_RESET != 0 {
                return Answer::NeedsReset;
            }
            if self.looked(memory) == self.offered {
                return Answer::Kept;
            }
        }
        Answer::Silence
    }

    /// Waits until the device has returned `count` chains; the length written into the last.
    pub(crate) fn wait(&self, device: &Device, memory: &Memory, count: u16) -> Option<u32> {
        for _ in 0..MUCH_PATIENCE {
            if self.used(memory) >= count {
                let slot = u64::from((count - 1) % SIZE);
                return Some(memory.get(self.at + USED + 8 + 8 * slot));
            }
            if device.read(Register::Status) & NEEDS_RESET != 0 {
                return None;
            }
        }
        None
    }
}

/// Writes descriptors at offset `at` of memory.
pub(crate) fn describe(memory: &Memory, at: u64, descriptors: &[Descriptor]) {
    for ((address, len, flags, next), at) in descriptors.iter().zip((at..).step_by(16)) {
        debug_assert!(at + 16 <= BYTES);
        memory.put(at, *address);
        memory.put(at + 8, *len);
        memory.put(at + 12, *flags);
        memory.put(at + 14, *next);
    }
}
