//! A virtio driver that does what the fuzzer says: it writes registers, rings, descriptors and
//! memory, right or wrong, and lets the device work in between.

#[path = "../script/mod.rs"]
mod script;

use std::sync::Arc;

use hypervisor::devices::virtio::VirtioDevice;
use hypervisor::devices::virtio::mmio::MmioTransport;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use script::Script;

/// Two regions that meet, so that buffers may lie in both.
const REGIONS: [(u64, usize); 2] = [(0, 0xc000), (0xc000, 0x4000)];
/// Entries of each queue that is set up properly.
const SIZE: u16 = 16;

const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
/// The bit of the status that says that a device has failed.
const NEEDS_RESET: u8 = 64;

/// What a device stands on.
pub struct Host<'e> {
    /// All of guest memory.
    pub memory: GuestMemoryMmap,
    /// What happens on the host between two turns.
    pub elsewhere: &'e dyn Fn(),
    /// The device may break for good.
    pub breaks: bool,
}

impl Default for Host<'_> {
    fn default() -> Self {
        let regions = REGIONS.map(|(start, len)| (GuestAddress(start), len));
        Self {
            memory: GuestMemoryMmap::from_ranges(&regions).expect("memory"),
            elsewhere: &|| (),
            breaks: false,
        }
    }
}

struct Driver<'e> {
    host: Host<'e>,
    transport: Arc<MmioTransport>,
    queues: u16,
}

/// Drives `device` by `script`, to its end.
#[allow(dead_code, reason = "each target uses one of the two")]
pub fn drive(device: Box<dyn VirtioDevice>, script: Script<'_>) {
    drive_on(Host::default(), device, script);
}

/// As [`drive`], on a host of its own.
pub fn drive_on(host: Host<'_>, device: Box<dyn VirtioDevice>, mut script: Script<'_>) {
    let queues = device.queue_max_sizes().len() as u16;
    let transport = MmioTransport::new(device, host.memory.clone()).expect("transport");
    let driver = Driver {
        host,
        transport: Arc::new(transport),
        queues,
    };
    let features = script.byte();
    driver.bring_up(features);
    while !script.0.is_empty() {
        driver.step(&mut script);
    }
    driver.serve();
    // Whatever happened, a reset and a proper driver make it work again.
    driver.bring_up(features);
    driver.serve();
}

impl Driver<'_> {
    fn step(&self, script: &mut Script<'_>) {
        match script.byte() {
            op @ 0..0x30 => {
                let offset = u64::from(script.short() % 0x210);
                let value = script.bytes::<8>();
                let width = [1, 2, 4, 4, 4, 8][usize::from(op % 6)];
                self.transport.write(offset, &value[..width]);
                self.transport.read(offset, &mut [0; 8][..width]);
            }
            0x30..0x60 => {
                let (address, value) = (script.short(), script.bytes::<8>());
                let _ = self.host.memory.write(&value, GuestAddress(address.into()));
            }
            op @ 0x60..0xa0 => {
                let (queue, index) = (u16::from(op) % self.queues, script.byte());
                let [table, ..] = rings(queue);
                let at = table + 16 * u64::from(index % SIZE as u8);
                let high = if op & 0x10 == 0 { 0 } else { script.word() };
                let address = u64::from(script.short()) | u64::from(high) << 32;
                let len = u32::from(script.short()) | high & 0xffff_0000;
                let _ = self.host.memory.write_obj(address, GuestAddress(at));
                let _ = self.host.memory.write_obj(len, GuestAddress(at + 8));
                let _ = self
                    .host
                    .memory
                    .write_obj(script.word(), GuestAddress(at + 12));
            }
            op @ 0xa0..0xe0 => self.offer(u16::from(op) % self.queues, script.byte().into()),
            0xf0..0xf8 => self.transport.transport().quiesce(),
            _ => self.serve(),
        }
    }

    fn offer(&self, queue: u16, head: u16) {
        let [_, avail, _] = rings(queue);
        let index: u16 = self
            .host
            .memory
            .read_obj(GuestAddress(avail + 2))
            .expect("in memory");
        let slot = avail + 4 + 2 * u64::from(index % SIZE);
        self.host
            .memory
            .write_obj(head, GuestAddress(slot))
            .expect("in memory");
        let next = index.wrapping_add(1);
        self.host
            .memory
            .write_obj(next, GuestAddress(avail + 2))
            .expect("in memory");
        self.transport
            .write(QUEUE_NOTIFY, &u32::from(queue).to_le_bytes());
    }

    /// What the event loop would do, once for each queue and each backend.
    fn serve(&self) {
        (self.host.elsewhere)();
        for queue in 0..usize::from(self.queues) + 1 {
            let _ = self.transport.transport().process_queue(queue);
        }
        for interest in self.transport.transport().interests() {
            let _ = self.transport.transport().process_backend(interest.fd);
        }
    }

    fn set(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// As section 3.1.1 says; bits 0 and 1 of `features` choose indirect descriptors and event
    /// indices, bit 2 all that the device itself offers.
    fn bring_up(&self, features: u8) {
        for status in [0, 1, 3] {
            self.set(STATUS, status);
        }
        let mut own = [0; 4];
        self.set(0x14, 0);
        if features & 4 != 0 {
            self.transport.read(0x10, &mut own);
        }
        let own = u32::from_le_bytes(own) & 0x00ff_ffff;
        for (select, value) in [(0, u32::from(features & 3) << 28 | own), (1, 1)] {
            self.set(0x24, select);
            self.set(0x20, value);
        }
        self.set(STATUS, 11);
        for queue in 0..self.queues {
            let [table, avail, used] = rings(queue);
            for address in [avail, used] {
                self.host
                    .memory
                    .write_obj(0u32, GuestAddress(address))
                    .expect("in memory");
            }
            for (register, value) in [
                (0x30, queue.into()),
                (0x38, SIZE.into()),
                (0x80, table as u32),
                (0x90, avail as u32),
                (0xa0, used as u32),
                (0x44, 1),
            ] {
                self.set(register, value);
            }
        }
        self.set(STATUS, 15);
        let mut status = [0; 4];
        self.transport.read(STATUS, &mut status);
        let broken = self.host.breaks && status[0] & NEEDS_RESET != 0;
        assert!(
            broken || status == [15, 0, 0, 0],
            "a proper driver is served"
        );
    }
}

/// Addresses of the descriptor table, the available and the used ring of a queue.
fn rings(queue: u16) -> [u64; 3] {
    [0, 0x200, 0x400].map(|offset| 0x800 * u64::from(queue) + offset)
}
