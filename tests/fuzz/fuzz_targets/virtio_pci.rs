//! A hostile driver of any device on a PCI bus: configuration space, common configuration, MSI-X
//! table, doorbells, rings and memory. Whatever it does, a reset and a proper driver make the device
//! work again.
#![no_main]

mod script;

use std::io;
use std::sync::{Arc, Mutex};

use hypervisor::devices::pci::host::PciHost;
use hypervisor::devices::pci::msix::Message;
use hypervisor::devices::pci::{Platform, config};
use hypervisor::devices::virtio::VirtioDevice;
use hypervisor::devices::virtio::console::Console;
use hypervisor::devices::virtio::pci::PciTransport;
use hypervisor::devices::virtio::rng::Entropy;
use hypervisor::devices::virtio::transport::Transport;
use hypervisor::machine::bus::Bus;
use libfuzzer_sys::fuzz_target;
use script::Script;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const WINDOW: u64 = 0xc000_0000;
/// Pages of the BAR, as the capabilities say.
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const MEMORY: usize = 0x1_0000;
const SIZE: u16 = 16;

/// Counts what is bound, so that what is unbound was bound.
#[derive(Default)]
struct Machine(Mutex<Vec<u64>>);

impl Platform for Machine {
    fn send(&self, message: Message) {
        assert_ne!(
            message.address & 3,
            1,
            "an entry's two lowest bits are zero"
        );
    }
    fn bind_doorbell(&self, _: &EventFd, address: u64) -> io::Result<()> {
        let mut bound = self.0.lock().expect("one thread");
        assert!(!bound.contains(&address));
        bound.push(address);
        Ok(())
    }
    fn unbind_doorbell(&self, _: &EventFd, address: u64) {
        let mut bound = self.0.lock().expect("one thread");
        let at = bound.iter().position(|old| *old == address);
        bound.swap_remove(at.expect("it was bound"));
    }
}

struct Guest {
    memory: GuestMemoryMmap,
    mmio: Arc<Bus>,
    host: PciHost,
    transport: Arc<Transport>,
    queues: u16,
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let device: Box<dyn VirtioDevice> = if script.byte() & 1 == 0 {
        Box::new(Entropy::new())
    } else {
        let null = std::fs::File::options().write(true).open("/dev/null");
        Box::new(Console::new(None, null.expect("/dev/null").into(), false))
    };
    let region = (GuestAddress(0), MEMORY);
    let memory = GuestMemoryMmap::from_ranges(&[region]).expect("memory");
    let mmio = Arc::new(Bus::default());
    let window = WINDOW..WINDOW + 0x10_0000;
    let host = PciHost::new(mmio.clone(), [window].into());
    let platform = Arc::new(Machine::default());
    let queues = device.queue_max_sizes().len() as u16;
    let function = PciTransport::new(device, memory.clone(), platform).expect("a function");
    let transport = function.transport().clone();
    host.insert(Arc::new(function)).expect("there is room");
    let guest = Guest {
        memory,
        mmio,
        host,
        transport,
        queues,
    };
    guest.bring_up();
    while !script.0.is_empty() {
        guest.step(&mut script);
    }
    guest.bring_up();
    guest.serve();
});

impl Guest {
    fn step(&self, script: &mut Script<'_>) {
        let op = script.byte();
        let at = u64::from(u16::from_le_bytes([script.byte(), script.byte()]));
        let value: [u8; 8] = std::array::from_fn(|_| script.byte());
        let width = [1, 2, 4, 4, 8][usize::from(op >> 4) % 5];
        let data = &value[..width];
        match op & 15 {
            0..3 => self.mmio.write(WINDOW + at % 64, data),
            3 => self.mmio.write(WINDOW + at % 0x8000, data),
            4 => self.mmio.read(WINDOW + at % 0x8000, &mut [0; 8][..width]),
            5 => self.mmio.write(WINDOW + TABLE + at % 64, data),
            6 | 7 => {
                let register = (at % 256) as u16 & !3;
                self.host.write_config(1, register, &value[..4]);
                self.host.read_config(1, register, &mut [0; 4]);
            }
            8 | 9 => {
                let _ = self.memory.write(data, GuestAddress(at));
            }
            10..13 => self.offer(at as u16 % self.queues, value[0].into()),
            _ => self.serve(),
        }
    }

    fn offer(&self, queue: u16, head: u16) {
        let [_, avail, _] = rings(queue);
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(avail + 2))
            .expect("memory");
        let slot = avail + 4 + 2 * u64::from(index % SIZE);
        let next = index.wrapping_add(1);
        for (value, address) in [(head, slot), (next, avail + 2)] {
            self.memory
                .write_obj(value, GuestAddress(address))
                .expect("memory");
        }
        self.mmio
            .write(WINDOW + NOTIFY + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    fn serve(&self) {
        for queue in 0..usize::from(self.queues) + 1 {
            let _ = self.transport.process_queue(queue);
        }
        for interest in self.transport.interests() {
            let _ = self.transport.process_backend(interest.fd);
        }
    }

    fn set(&self, offset: u64, data: &[u8]) {
        self.mmio.write(WINDOW + offset, data);
    }

    /// As section 3.1.1 says, with the BAR back where it was.
    fn bring_up(&self) {
        let base = (WINDOW as u32).to_le_bytes();
        self.host
            .write_config(1, config::COMMAND as u16, &6u16.to_le_bytes());
        self.host.write_config(1, config::BAR0 as u16, &base);
        for status in [0, 1, 3] {
            self.set(20, &[status]);
        }
        for (select, half) in [(0u32, 0u32), (1, 1)] {
            self.set(8, &select.to_le_bytes());
            self.set(12, &half.to_le_bytes());
        }
        self.set(20, &[11]);
        for queue in 0..self.queues {
            let places = rings(queue);
            for address in &places[1..] {
                self.memory
                    .write_obj(0u32, GuestAddress(*address))
                    .expect("memory");
            }
            self.set(22, &queue.to_le_bytes());
            self.set(24, &SIZE.to_le_bytes());
            self.set(26, &(queue + 1).to_le_bytes());
            for (offset, address) in [32, 40, 48].into_iter().zip(places) {
                self.set(offset, &address.to_le_bytes());
            }
            self.set(28, &1u16.to_le_bytes());
        }
        self.set(20, &[15]);
        let mut status = [0];
        self.mmio.read(WINDOW + 20, &mut status);
        assert_eq!(status, [15], "a proper driver is served");
    }
}

/// Addresses of the descriptor table, the available and the used ring of a queue.
fn rings(queue: u16) -> [u64; 3] {
    [0, 0x200, 0x400].map(|offset| 0x800 * u64::from(queue) + offset)
}
