//! The driver's side of a queue, for the tests of devices and transport: real rings in real guest
//! memory, written by hand, so that they can also be written wrong.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::QueueT;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::queue::Virtqueue;
use super::{Activation, DeviceIo};

/// The chain goes on.
pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The device writes.
pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The buffer is a table.
pub(super) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
/// Entries of each queue.
pub(super) const SIZE: u16 = 16;
/// First address that no ring uses.
pub(super) const DATA: u64 = 0x2_0000;
/// First address behind memory; two regions meet half-way.
pub(super) const END: u64 = 0x4_0000;

/// Regions of memory.
const REGIONS: [(GuestAddress, usize); 2] = [
    (GuestAddress(0), 0x3_0000),
    (GuestAddress(0x3_0000), 0x1_0000),
];

/// Address, length, flags and next index of a descriptor.
pub(super) type Desc = (u64, u32, u16, u16);

/// Memory with the rings of some queues.
pub(super) struct Rig {
    pub(super) memory: &'static GuestMemoryMmap,
    pub(super) queues: Vec<Virtqueue>,
    rings: Vec<Rings>,
    /// The device has announced a change of its configuration space.
    pub(super) config_changed: bool,
}

struct Rings {
    table: DescriptorTable<'static, GuestMemoryMmap>,
    avail: AvailRing<'static, GuestMemoryMmap>,
    used: UsedRing<'static, GuestMemoryMmap>,
}

/// Addresses of the table, the available and the used ring of queue `index`.
pub(super) fn ring_addresses(index: usize) -> [GuestAddress; 3] {
    let base = 0x4000 * index as u64;
    [0x1000, 0x2000, 0x3000].map(|offset| GuestAddress(base + offset))
}

impl Rig {
    /// `count` queues, ready.
    pub(super) fn new(count: usize) -> Self {
        Self::over(GuestMemoryMmap::from_ranges(&REGIONS).unwrap(), count)
    }

    /// As [`Self::new`], in memory that another process can map.
    pub(super) fn shared(count: usize) -> Self {
        let file = memfd_create("rig", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, END).unwrap();
        let file = Arc::new(File::from(file));
        let regions = REGIONS.map(|(start, len)| {
            let file = FileOffset::from_arc(file.clone(), start.0);
            (start, len, Some(file))
        });
        Self::over(
            GuestMemoryMmap::from_ranges_with_files(regions).unwrap(),
            count,
        )
    }

    fn over(memory: GuestMemoryMmap, count: usize) -> Self {
        // Leaked, because the rings borrow it; a test process is short.
        let memory: &'static GuestMemoryMmap = Box::leak(Box::new(memory));
        let mut rig = Self {
            memory,
            queues: Vec::new(),
            rings: Vec::new(),
            config_changed: false,
        };
        for index in 0..count {
            let [table, avail, used] = ring_addresses(index);
            let mut queue = Virtqueue::new(SIZE).unwrap();
            let ring = queue.ring_mut();
            ring.try_set_desc_table_address(table).unwrap();
            ring.try_set_avail_ring_address(avail).unwrap();
            ring.try_set_used_ring_address(used).unwrap();
            ring.set_ready(true);
            assert!(ring.is_valid(memory));
            rig.queues.push(queue);
            rig.rings.push(Rings {
                table: DescriptorTable::new(memory, table, SIZE),
                avail: AvailRing::new(memory, avail, SIZE),
                used: UsedRing::new(memory, used, SIZE),
            });
        }
        rig
    }

    pub(super) fn io(&mut self) -> DeviceIo<'_> {
        DeviceIo {
            memory: self.memory,
            queues: &mut self.queues,
            config_changed: &mut self.config_changed,
        }
    }

    /// What a device gets from a driver that has negotiated `features`; without doorbells.
    pub(super) fn activation(&mut self, features: u64) -> Activation<'_> {
        Activation {
            features,
            memory: self.memory,
            queues: &mut self.queues,
            doorbells: &[],
        }
    }

    /// Writes descriptors, the first as number `at`.
    pub(super) fn describe(&self, queue: usize, at: u16, descriptors: &[Desc]) {
        for (index, (address, len, flags, next)) in (at..).zip(descriptors) {
            let descriptor = Descriptor::new(*address, *len, *flags, *next);
            self.rings[queue]
                .table
                .store(index, RawDescriptor::from(descriptor))
                .unwrap();
        }
    }

    /// Makes the chain that starts at `head` available.
    pub(super) fn offer(&self, queue: usize, head: u16) {
        let avail = &self.rings[queue].avail;
        let index = avail.idx().load();
        avail
            .ring()
            .ref_at(usize::from(index % SIZE))
            .unwrap()
            .store(head);
        avail.idx().store(index.wrapping_add(1));
    }

    /// Overwrites the available index.
    pub(super) fn set_avail_idx(&self, queue: usize, index: u16) {
        self.rings[queue].avail.idx().store(index);
    }

    /// Heads and lengths of the chains returned so far.
    pub(super) fn used(&self, queue: usize) -> Vec<(u32, u32)> {
        let used = &self.rings[queue].used;
        (0..usize::from(used.idx().load()))
            .map(|index| {
                let element = used.ring().ref_at(index).unwrap().load();
                (element.id(), element.len())
            })
            .collect()
    }

    /// Writes an indirect table at `address`.
    pub(super) fn describe_at(&self, address: u64, descriptors: &[Desc]) {
        for (index, (buffer, len, flags, next)) in (0..).zip(descriptors) {
            let descriptor = RawDescriptor::from(Descriptor::new(*buffer, *len, *flags, *next));
            let at = GuestAddress(address).unchecked_add(16 * index);
            self.memory.write_obj(descriptor, at).unwrap();
        }
    }

    pub(super) fn fill(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub(super) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }
}

/// Chains no device may act on: what is wrong, the descriptors from number 0 on, and the indirect
/// table at [`DATA`].
pub(super) fn malformed_chains() -> Vec<(&'static str, Vec<Desc>, Vec<Desc>)> {
    let data = DATA + 0x1000;
    let indirect = |len: u32, flags: u16| vec![(DATA, len, INDIRECT | flags, 1)];
    vec![
        ("a loop of one", vec![(data, 8, NEXT, 0)], vec![]),
        (
            "a loop of two",
            vec![(data, 8, NEXT, 1), (data, 8, NEXT, 0)],
            vec![],
        ),
        ("next behind the table", vec![(data, 8, NEXT, SIZE)], vec![]),
        (
            "next far behind the table",
            vec![(data, 8, NEXT, u16::MAX)],
            vec![],
        ),
        ("an empty buffer", vec![(data, 0, 0, 0)], vec![]),
        (
            "an empty buffer last",
            vec![(data, 8, NEXT, 1), (data, 0, WRITE, 0)],
            vec![],
        ),
        (
            "readable after writable",
            vec![(data, 8, WRITE | NEXT, 1), (data, 8, 0, 0)],
            vec![],
        ),
        ("a buffer behind memory", vec![(END, 1, 0, 0)], vec![]),
        (
            "a buffer across the end",
            vec![(END - 4, 8, WRITE, 0)],
            vec![],
        ),
        ("a buffer at the top", vec![(u64::MAX, 8, 0, 0)], vec![]),
        (
            "a buffer that wraps",
            vec![(u64::MAX - 3, u32::MAX, 0, 0)],
            vec![],
        ),
        (
            "a buffer of 4 GiB",
            vec![(data, u32::MAX, NEXT, 1), (data, 8, 0, 0)],
            vec![],
        ),
        ("an empty indirect table", indirect(0, 0), vec![]),
        (
            "a ragged indirect table",
            indirect(24, 0),
            vec![(data, 8, 0, 0), (data, 8, 0, 0)],
        ),
        (
            "an indirect table behind memory",
            vec![(END, 32, INDIRECT, 0)],
            vec![],
        ),
        (
            "an indirect table in a table",
            indirect(16, 0),
            vec![(DATA, 16, INDIRECT, 0)],
        ),
        (
            "a loop in a table",
            indirect(16, 0),
            vec![(data, 8, NEXT, 0)],
        ),
        (
            "next behind an indirect table",
            indirect(16, 0),
            vec![(data, 8, NEXT, 1)],
        ),
        (
            "an indirect table after a buffer, nested",
            vec![(data, 8, NEXT, 1), (DATA, 16, INDIRECT, 0)],
            vec![(DATA, 16, INDIRECT, 0)],
        ),
        (
            "more descriptors than the queue holds",
            indirect(16 * 17, 0),
            (1..=17)
                .map(|n| (data, 8, if n < 17 { NEXT } else { 0 }, n))
                .collect(),
        ),
    ]
}
