//! A split virtqueue (virtio 1.2, section 2.7) as devices use it: chains come out whole and
//! checked, or not at all. Ring handling itself is rust-vmm's `virtio-queue`.
//!
//! Everything in a ring, a descriptor or an indirect table is the guest's allegation. A chain that
//! breaks the format is an error rather than something to skip: the driver is broken or hostile,
//! and its device stops until it is reset.

use std::io;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice,
};

/// How a driver broke the queue format.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring is out of order; for example its index jumps by more than the queue size.
    #[error("the virtqueue is out of order: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// An available entry that cannot be read.
    #[error("an available ring entry is unreadable")]
    Unreadable,
    /// The chain has no end: a loop, a next index out of range, an unreadable or nested table.
    #[error("the descriptor chain at {head} does not end")]
    Endless {
        /// Index of its first descriptor.
        head: u16,
    },
    /// More descriptors than the device's queue size.
    #[error("the descriptor chain at {head} is longer than the queue")]
    TooLong {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer without a byte.
    #[error("the descriptor chain at {head} holds an empty buffer")]
    EmptyBuffer {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A readable buffer after a writable one (section 2.7.4.2).
    #[error("the descriptor chain at {head} mixes readable and writable buffers")]
    Order {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer that is not guest memory.
    #[error(
        "the descriptor chain at {head} holds a buffer outside memory: {len} bytes at {address:#x}"
    )]
    OutsideMemory {
        /// Index of its first descriptor.
        head: u16,
        /// Guest-physical address of the buffer.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
}

/// One virtqueue.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    /// The used index at the last [`Self::take_notification`].
    told: u16,
    /// Another process has returned chains, and has found that the driver wants to know.
    interrupt: bool,
}

impl Virtqueue {
    /// A queue of at most `max_size` entries.
    ///
    /// # Errors
    /// `max_size` is not a power of two up to 32,768.
    pub fn new(max_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            queue: Queue::new(max_size)?,
            told: 0,
            interrupt: false,
        })
    }

    /// The rings' addresses, size and positions; for the transport.
    pub(super) fn ring(&self) -> &Queue {
        &self.queue
    }

    /// As [`Self::ring`], to change them.
    pub(super) fn ring_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Back to what [`Self::new`] made.
    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.told = 0;
        self.interrupt = false;
    }

    /// Entries, as the driver has set them.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next available chain, checked in full. When there is none, the driver is asked to
    /// notify the device of the next.
    ///
    /// # Errors
    /// The driver broke the format.
    pub fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, QueueError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let max_size = self.queue.max_size();
        // Twice, because a chain may become available just before notifications are enabled.
        for _ in 0..2 {
            if let Some(chain) = self.queue.iter(memory)?.next() {
                return Chain::collect(chain, max_size).map(Some);
            }
            if !self.queue.enable_notification(memory)? {
                return Ok(None);
            }
        }
        Err(QueueError::Unreadable)
    }

    /// Returns a chain into which `written` bytes were written.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn push(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        self.push_together(memory, [(chain, written)])
    }

    /// As [`Self::push`], for chains that belong together: the driver sees all of them at once or
    /// none.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_together<'c>(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: impl IntoIterator<Item = (&'c Chain, u32)>,
    ) -> Result<(), QueueError> {
        // `Queue::add_used` would show the driver each chain by itself.
        let ring = GuestAddress(self.queue.used_ring());
        let at = |offset: u64| {
            let address = ring.checked_add(offset);
            address.ok_or(virtio_queue::Error::AddressOverflow)
        };
        let size = self.queue.size().max(1);
        let mut next = self.queue.next_used();
        for (chain, written) in chains {
            // `struct virtq_used_elem`: the head, then the length.
            let element = u64::from(chain.head) | u64::from(written) << 32;
            memory
                .write_obj(element.to_le(), at(4 + 8 * u64::from(next % size))?)
                .map_err(virtio_queue::Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        memory
            .store(next.to_le(), at(2)?, Ordering::Release)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(())
    }

    /// Interrupts the driver at the end of this turn: the process that serves a foreign queue
    /// ([`super::VirtioDevice::queues_are_foreign`]) has asked for it.
    pub fn interrupt(&mut self) {
        self.interrupt = true;
    }

    /// Whether the driver wants an interrupt for the chains returned since the last call
    /// (section 2.7.7.2).
    ///
    /// # Errors
    /// The available ring cannot be read.
    pub(super) fn take_notification(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, QueueError> {
        let asked = std::mem::take(&mut self.interrupt);
        let new = self.queue.next_used();
        let old = std::mem::replace(&mut self.told, new);
        if asked || new == old || !self.queue.event_idx_enabled() {
            return Ok(asked || new != old);
        }
        // What was returned has to be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let address = GuestAddress(self.queue.avail_ring())
            .checked_add(4 + 2 * u64::from(self.queue.size()))
            .ok_or(virtio_queue::Error::AddressOverflow)?;
        let used_event = memory
            .load(address, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old))
    }
}

/// A run of guest-physical memory, not empty, inside one or several regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    address: GuestAddress,
    len: u32,
}

/// A descriptor chain: buffers the device reads, then buffers it writes, all of them in memory.
#[derive(Clone, Debug)]
pub struct Chain {
    head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers,
    /// What the device may write.
    pub writable: Buffers,
}

impl Chain {
    fn collect(
        mut descriptors: DescriptorChain<&GuestMemoryMmap>,
        max_len: u16,
    ) -> Result<Self, QueueError> {
        let head = descriptors.head_index();
        let mut chain = Self {
            head,
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let mut complete = false;
        let mut count: u16 = 0;
        while let Some(descriptor) = descriptors.next() {
            if count == max_len {
                return Err(QueueError::TooLong { head });
            }
            count += 1;
            let span = Span {
                address: descriptor.addr(),
                len: descriptor.len(),
            };
            if span.len == 0 {
                return Err(QueueError::EmptyBuffer { head });
            }
            let (buffers, access) = if descriptor.is_write_only() {
                (&mut chain.writable, Permissions::Write)
            } else if chain.writable.spans.is_empty() {
                (&mut chain.readable, Permissions::Read)
            } else {
                return Err(QueueError::Order { head });
            };
            let memory = descriptors.memory();
            if !memory.check_range(span.address, span.len as usize, access) {
                return Err(QueueError::OutsideMemory {
                    head,
                    address: span.address.raw_value(),
                    len: span.len,
                });
            }
            buffers.spans.push(span);
            complete = !descriptor.has_next();
        }
        // The iterator ends alike at the last descriptor and at one it cannot follow.
        if complete {
            Ok(chain)
        } else {
            Err(QueueError::Endless { head })
        }
    }
}

/// A sequence of buffers, addressed as if they were one.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    spans: Vec<Span>,
}

impl Buffers {
    /// Bytes in all; a chain is shorter than 4 GiB (section 2.7.5.2).
    pub fn len(&self) -> u64 {
        self.spans.iter().map(|span| u64::from(span.len)).sum()
    }

    /// How many buffers.
    pub fn count(&self) -> usize {
        self.spans.len()
    }

    /// No buffers.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Where each buffer lies: guest-physical address and bytes, all of them in memory.
    pub fn ranges(&self) -> impl Iterator<Item = (GuestAddress, u32)> + '_ {
        self.spans.iter().map(|span| (span.address, span.len))
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the buffers end before `data` is full.
    pub fn read_at(
        &self,
        memory: &GuestMemoryMmap,
        offset: u64,
        data: &mut [u8],
    ) -> io::Result<()> {
        let mut rest = data;
        for slice in self.slices(memory, offset, rest.len() as u64)? {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(slice.len());
            slice.copy_to(now);
            rest = later;
        }
        Ok(())
    }

    /// Copies bytes in, from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the buffers end before `data` does.
    pub fn write_at(&self, memory: &GuestMemoryMmap, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        for slice in self.slices(memory, offset, rest.len() as u64)? {
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            rest = later;
        }
        Ok(())
    }

    /// The `len` bytes from `offset` on, as host memory.
    ///
    /// # Errors
    /// `UnexpectedEof` when the buffers end before that.
    pub fn slices<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        offset: u64,
        len: u64,
    ) -> io::Result<Vec<VolatileSlice<'m>>> {
        let mut slices = Vec::with_capacity(self.spans.len());
        self.append_slices(memory, offset, len, &mut slices)?;
        Ok(slices)
    }

    /// As [`Self::slices`], behind what `slices` holds.
    ///
    /// # Errors
    /// As [`Self::slices`].
    pub fn append_slices<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        offset: u64,
        len: u64,
        slices: &mut Vec<VolatileSlice<'m>>,
    ) -> io::Result<()> {
        let mut skip = offset;
        let mut rest = len;
        for span in &self.spans {
            if rest == 0 {
                break;
            }
            let span_len = u64::from(span.len);
            if skip >= span_len {
                skip -= span_len;
                continue;
            }
            let take = rest.min(span_len - skip);
            let address = span.address.unchecked_add(skip);
            let run = memory
                .get_slices(address, take as usize, Permissions::ReadWrite)
                .map_err(io::Error::other)?;
            for slice in run {
                slices.push(slice.map_err(io::Error::other)?);
            }
            rest -= take;
            skip = 0;
        }
        if rest == 0 {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::super::testing::*;
    use super::*;

    fn pop(rig: &mut Rig) -> Result<Option<Chain>, QueueError> {
        rig.queues[0].pop(rig.memory)
    }

    #[test]
    fn whole_chains_come_out() {
        let mut rig = Rig::new(1);
        rig.describe(0, 2, &[(DATA, 4, NEXT, 5)]);
        rig.describe(0, 5, &[(DATA + 8, 4, NEXT | WRITE, 9)]);
        rig.describe(0, 9, &[(DATA + 16, 100, WRITE, 0)]);
        rig.offer(0, 2);
        let chain = pop(&mut rig).unwrap().unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (4, 104));
        assert!(pop(&mut rig).unwrap().is_none());
        rig.queues[0].push(rig.memory, &chain, 7).unwrap();
        assert_eq!(rig.used(0), [(2, 7)]);
        assert!(rig.queues[0].take_notification(rig.memory).unwrap());
        assert!(!rig.queues[0].take_notification(rig.memory).unwrap());
    }

    #[test]
    fn chains_that_belong_together_are_seen_together() {
        let mut rig = Rig::new(1);
        for n in 0..SIZE {
            rig.describe(0, n, &[(DATA, 4, WRITE, 0)]);
        }
        let mut expected = Vec::new();
        for round in 0..5u32 {
            let heads = [round as u16, 15 - round as u16, 3];
            for head in heads {
                rig.offer(0, head);
            }
            let chains = heads.map(|_| pop(&mut rig).unwrap().unwrap());
            let used = chains.iter().zip(round..);
            rig.queues[0].push_together(rig.memory, used).unwrap();
            expected.extend(heads.map(u32::from).into_iter().zip(round..));
            assert_eq!(rig.used(0), expected);
        }
    }

    proptest! {
        /// With event indices the driver is interrupted exactly when the index it named was passed.
        #[test]
        fn interrupts_follow_the_event_index(
            start in any::<u16>(), steps in vec((1u16..SIZE, any::<u16>(), any::<bool>()), 1..20),
        ) {
            let mut rig = Rig::new(1);
            rig.queues[0].ring_mut().set_event_idx(true);
            rig.queues[0].ring_mut().set_next_used(start);
            rig.queues[0].told = start;
            rig.describe(0, 0, &[(DATA, 4, WRITE, 0)]);
            rig.offer(0, 0);
            let chain = pop(&mut rig).unwrap().unwrap();
            let mut used = start;
            for (count, event, near) in steps {
                let event = if near { used.wrapping_add(event % (2 * SIZE)) } else { event };
                let [_, avail, _] = ring_addresses(0);
                let at = avail.unchecked_add(4 + 2 * u64::from(SIZE));
                rig.memory.write_obj(event, at).unwrap();
                let before = used;
                for _ in 0..count {
                    rig.queues[0].push(rig.memory, &chain, 4).unwrap();
                    used = used.wrapping_add(1);
                }
                let passed = (0..count).any(|n| before.wrapping_add(n) == event);
                prop_assert_eq!(rig.queues[0].take_notification(rig.memory).unwrap(), passed);
                prop_assert!(!rig.queues[0].take_notification(rig.memory).unwrap());
            }
        }
    }

    #[test]
    fn indirect_chains_come_out() {
        let mut rig = Rig::new(1);
        rig.describe(0, 0, &[(DATA, 32, INDIRECT, 0)]);
        rig.describe_at(DATA, &[(DATA + 64, 4, NEXT, 1), (DATA + 128, 6, WRITE, 0)]);
        rig.offer(0, 0);
        let chain = pop(&mut rig).unwrap().unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (4, 6));
    }

    #[test]
    fn malformed_chains_are_errors() {
        for (what, descriptors, table) in malformed_chains() {
            let mut rig = Rig::new(1);
            rig.describe(0, 0, &descriptors);
            rig.describe_at(DATA, &table);
            rig.offer(0, 0);
            assert!(pop(&mut rig).is_err(), "{what}");
        }
    }

    #[test]
    fn a_head_behind_the_table_is_an_error() {
        for head in [SIZE, u16::MAX] {
            let mut rig = Rig::new(1);
            rig.offer(0, head);
            assert!(matches!(pop(&mut rig), Err(QueueError::Endless { .. })));
        }
    }

    #[test]
    fn an_index_that_jumps_is_an_error() {
        for (index, fine) in [
            (0, true),
            (1, true),
            (SIZE, true),
            (SIZE + 1, false),
            (u16::MAX, false),
        ] {
            let mut rig = Rig::new(1);
            rig.describe(0, 0, &[(DATA, 4, 0, 0)]);
            rig.set_avail_idx(0, index);
            assert_eq!(pop(&mut rig).is_ok(), fine, "index {index}");
        }
    }

    #[test]
    fn a_stopped_queue_yields_nothing() {
        let mut rig = Rig::new(1);
        rig.describe(0, 0, &[(DATA, 4, 0, 0)]);
        rig.offer(0, 0);
        rig.queues[0].ring_mut().set_ready(false);
        assert!(pop(&mut rig).unwrap().is_none());
    }

    #[test]
    fn buffers_are_one_sequence_across_regions() {
        let mut rig = Rig::new(1);
        // The second buffer lies in both regions of memory.
        rig.describe(
            0,
            0,
            &[(DATA, 3, WRITE | NEXT, 1), (0x3_0000 - 2, 5, WRITE, 0)],
        );
        rig.offer(0, 0);
        let buffers = pop(&mut rig).unwrap().unwrap().writable;
        buffers
            .write_at(rig.memory, 1, &[1, 2, 3, 4, 5, 6])
            .unwrap();
        assert_eq!(rig.bytes(DATA, 3), [0, 1, 2]);
        assert_eq!(rig.bytes(0x3_0000 - 2, 6), [3, 4, 5, 6, 0, 0]);
        let mut back = [0; 5];
        buffers.read_at(rig.memory, 2, &mut back).unwrap();
        assert_eq!(back, [2, 3, 4, 5, 6]);
        assert!(buffers.write_at(rig.memory, 3, &[0; 6]).is_err());
        assert!(buffers.slices(rig.memory, 8, 1).is_err());
        assert!(buffers.slices(rig.memory, 8, 0).unwrap().is_empty());
    }

    proptest! {
        /// However a sequence is cut into buffers, it takes and gives the same bytes, and leaves
        /// all others alone.
        #[test]
        fn any_cut_is_one_sequence(
            cuts in vec((0u64..0x3000, 1u32..0x1800), 1..usize::from(SIZE)),
            start in 0u64..0x4000,
            data in vec(any::<u8>(), 0..0x2000),
        ) {
            let mut rig = Rig::new(1);
            let mut descriptors = Vec::new();
            let mut covered: Vec<u64> = Vec::new();
            let mut address = DATA;
            for (gap, len) in cuts {
                address += gap;
                if address + u64::from(len) > END {
                    break;
                }
                let next = descriptors.len() as u16 + 1;
                descriptors.push((address, len, WRITE | NEXT, next));
                covered.extend(address..address + u64::from(len));
                address += u64::from(len);
            }
            if let Some(last) = descriptors.last_mut() {
                last.2 = WRITE;
            }
            rig.describe(0, 0, &descriptors);
            rig.offer(0, 0);
            let buffers = pop(&mut rig).unwrap().unwrap().writable;
            prop_assert_eq!(buffers.len(), covered.len() as u64);

            let fits = start + data.len() as u64 <= buffers.len();
            // An empty range fits anywhere.
            let written = buffers.write_at(rig.memory, start, &data).is_ok();
            prop_assert_eq!(written, fits || data.is_empty());
            let mut expected = vec![0; (END - DATA) as usize];
            if fits {
                for (byte, address) in data.iter().zip(&covered[start as usize..]) {
                    expected[(address - DATA) as usize] = *byte;
                }
                let mut back = vec![0; data.len()];
                buffers.read_at(rig.memory, start, &mut back).unwrap();
                prop_assert_eq!(back, data);
            }
            prop_assert!(rig.bytes(DATA, (END - DATA) as usize) == expected);
        }
    }
}
