//! A guest's driver of one virtio device, for the tests of devices that other processes serve: it
//! works the registers of virtio-mmio, and real rings in memory that is shared.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use hypervisor::devices::virtio::VirtioDevice;
use hypervisor::devices::virtio::mmio::MmioTransport;
use hypervisor::devices::virtio::subscriber::VirtioSubscriber;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Entries of each queue.
const SIZE: u16 = 64;
/// Bytes of each of the two regions of memory.
const REGION: u64 = 0x20_0000;
/// Where requests lie, and where answers: in different regions.
const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x20_0000;
/// How long a device may take; only a hang takes it.
const PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Driver {
    pub(crate) transport: Arc<MmioTransport>,
    memory: GuestMemoryMmap,
    manager: EventManager<VirtioSubscriber>,
    /// Chains offered so far in each queue.
    offered: Vec<u16>,
}

impl Driver {
    /// A driver of `device`, which has `queues` queues.
    pub(crate) fn new(device: Box<dyn VirtioDevice>, queues: usize) -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 2 * REGION).unwrap();
        let file = Arc::new(File::from(file));
        let regions = [0, REGION].map(|start| {
            let file = FileOffset::from_arc(file.clone(), start);
            (GuestAddress(start), REGION as usize, Some(file))
        });
        let memory = GuestMemoryMmap::from_ranges_with_files(regions).unwrap();
        let transport = Arc::new(MmioTransport::new(device, memory.clone()).unwrap());
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(VirtioSubscriber::new(transport.transport().clone()));
        Self {
            transport,
            memory,
            manager,
            offered: vec![0; queues],
        }
    }

    fn set(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        let mut value = [0; 4];
        self.transport.read(VIRTIO_MMIO_STATUS.into(), &mut value);
        u32::from_le_bytes(value)
    }

    /// Resets the device, and brings it up with every feature it offers; its status then.
    pub(crate) fn bring_up(&mut self) -> u32 {
        self.set(VIRTIO_MMIO_STATUS, 0);
        self.set(VIRTIO_MMIO_STATUS, 1);
        self.set(VIRTIO_MMIO_STATUS, 3);
        for half in [0, 1] {
            self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let mut features = [0; 4];
            self.transport
                .read(VIRTIO_MMIO_DEVICE_FEATURES.into(), &mut features);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, u32::from_le_bytes(features));
        }
        self.set(VIRTIO_MMIO_STATUS, 11);
        for queue in 0..self.offered.len() {
            self.offered[queue] = 0;
            let base = rings(queue);
            self.memory
                .write_slice(&[0; 0x1_0000], GuestAddress(base))
                .unwrap();
            self.set(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
            self.set(VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
            self.set(VIRTIO_MMIO_QUEUE_DESC_LOW, base as u32);
            self.set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, base as u32 + 0x4000);
            self.set(VIRTIO_MMIO_QUEUE_USED_LOW, base as u32 + 0x8000);
            self.set(VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.set(VIRTIO_MMIO_STATUS, 15);
        self.status()
    }

    /// Makes one chain available: `request` to read, and `rooms` to write.
    pub(crate) fn offer(&mut self, queue: usize, request: &[u8], rooms: &[u32]) {
        self.memory
            .write_slice(request, GuestAddress(REQUEST))
            .unwrap();
        let mut buffers = vec![(REQUEST, request.len() as u32, 0u16)];
        let mut at = ANSWER;
        for room in rooms {
            buffers.push((at, *room, 2));
            at += u64::from(*room);
        }
        let base = rings(queue);
        let last = buffers.len() - 1;
        for (index, (address, len, write)) in buffers.into_iter().enumerate() {
            let next = if index < last { 1 } else { 0 };
            let entry = [
                &address.to_le_bytes()[..],
                &len.to_le_bytes(),
                &(write | next).to_le_bytes(),
                &(index as u16 + 1).to_le_bytes(),
            ]
            .concat();
            self.memory
                .write_slice(&entry, GuestAddress(base + 16 * index as u64))
                .unwrap();
        }
        let index = self.offered[queue];
        let slot = base + 0x4004 + 2 * u64::from(index % SIZE);
        self.memory.write_obj(0u16, GuestAddress(slot)).unwrap();
        self.offered[queue] = index.wrapping_add(1);
        // The interrupt is wanted at the next used entry.
        let used_event = base + 0x4004 + 2 * u64::from(SIZE);
        self.memory
            .write_obj(index, GuestAddress(used_event))
            .unwrap();
        self.memory
            .store(
                self.offered[queue],
                GuestAddress(base + 0x4002),
                std::sync::atomic::Ordering::SeqCst,
            )
            .unwrap();
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Lets the event loop run until `done`; false when that takes too long.
    pub(crate) fn wait(&mut self, mut done: impl FnMut(&Self) -> bool) -> bool {
        let began = Instant::now();
        while !done(self) {
            if began.elapsed() > PATIENCE {
                return false;
            }
            self.manager.run_with_timeout(10).unwrap();
        }
        true
    }

    /// Makes more chains available than the queue holds.
    pub(crate) fn break_ring(&mut self, queue: usize) {
        let index = GuestAddress(rings(queue) + 0x4002);
        self.memory.write_obj(u16::MAX, index).unwrap();
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Offers a chain and waits for it; what was written into it. `None` when it does not come back.
    pub(crate) fn request(
        &mut self,
        queue: usize,
        request: &[u8],
        rooms: &[u32],
    ) -> Option<Vec<u8>> {
        self.set(VIRTIO_MMIO_INTERRUPT_ACK, 3);
        self.offer(queue, request, rooms);
        let used = rings(queue) + 0x8000;
        let offered = self.offered[queue];
        let back = self.wait(|driver| {
            let index: u16 = driver.memory.read_obj(GuestAddress(used + 2)).unwrap();
            index == offered && driver.transport.interrupt().status() & 1 != 0
        });
        if !back {
            return None;
        }
        let slot = used + 4 + 8 * u64::from(offered.wrapping_sub(1) % SIZE);
        let [_, len]: [u32; 2] = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let mut answer = vec![0; len as usize];
        self.memory
            .read_slice(&mut answer, GuestAddress(ANSWER))
            .unwrap();
        Some(answer)
    }
}

fn rings(queue: usize) -> u64 {
    0x1_0000 * queue as u64
}
