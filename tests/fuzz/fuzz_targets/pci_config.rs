//! A guest at the ports of PCI configuration mechanism 1: functions with BARs of both widths and a
//! table of messages. Whatever it writes, read-only registers keep their value, BARs answer only
//! inside the windows and never two at one address, and nothing is interrupted that is masked.
#![no_main]

use std::sync::{Arc, Mutex};

use hypervisor::devices::pci::config::{BarKind, ConfigSpace, Identity};
use hypervisor::devices::pci::host::{ConfigPorts, PciHost};
use hypervisor::devices::pci::msix::{self, Msix};
use hypervisor::devices::pci::{BarState, PciFunction};
use hypervisor::machine::bus::{Bus, BusDevice};
use libfuzzer_sys::fuzz_target;

const LOW: std::ops::Range<u64> = 0xc000_0000..0xc010_0000;
const HIGH: std::ops::Range<u64> = 0x40_0000_0000..0x41_0000_0000;
const VECTORS: u16 = 5;

/// BAR 0 holds the table of messages, and behind it the pending bits; BAR 2 is empty.
struct Function {
    space: Mutex<ConfigSpace>,
    capability: u16,
    msix: Mutex<Msix>,
    /// Where each BAR answers.
    places: Mutex<[Option<u64>; 6]>,
}

impl Function {
    fn new(size: u64) -> Arc<Self> {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: size as u16,
            revision: 1,
            class: 0xff_0000,
            subsystem_vendor: 1,
            subsystem: 2,
        });
        space
            .add_bar(0, 0x2000, BarKind::Memory32)
            .expect("a fresh space");
        let kind = BarKind::Memory64 { prefetchable: true };
        space.add_bar(2, size, kind).expect("a fresh space");
        let msix = Msix::new(VECTORS);
        let (body, writable) = msix.capability(0, 0, 0x1000);
        let capability = space
            .add_capability(msix::CAPABILITY, &body, &writable)
            .expect("a fresh space");
        Arc::new(Self {
            space: Mutex::new(space),
            capability: capability.into(),
            msix: Mutex::new(msix),
            places: Mutex::default(),
        })
    }
}

impl PciFunction for Function {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        self.space.lock().expect("one thread").read(register, data);
    }
    fn write_config(&self, register: u16, data: &[u8]) {
        let mut space = self.space.lock().expect("one thread");
        space.write(register, data);
        let control = space.half(usize::from(self.capability) + 2);
        self.msix.lock().expect("one thread").set_control(control);
    }
    fn bars(&self) -> Vec<BarState> {
        self.space.lock().expect("one thread").bars()
    }
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let msix = self.msix.lock().expect("one thread");
        match (bar, offset.checked_sub(0x1000)) {
            (0, None) => msix.read_table(offset, data),
            (0, Some(offset)) => msix.read_pending(offset, data),
            _ => data.fill(bar),
        }
    }
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar == 0 && offset < 0x1000 {
            self.msix
                .lock()
                .expect("one thread")
                .write_table(offset, data);
        }
    }
    fn bar_moved(&self, bar: u8, from: Option<u64>, to: Option<u64>) {
        let mut places = self.places.lock().expect("one thread");
        let place = &mut places[usize::from(bar)];
        assert_eq!(*place, from, "moves follow each other");
        *place = to;
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four"))
}

fuzz_target!(|bytes: &[u8]| {
    let mmio = Arc::new(Bus::default());
    let host = Arc::new(PciHost::new(mmio.clone(), vec![LOW, HIGH]));
    let mut ports = ConfigPorts::new(host.clone());
    let functions = [0x1000, 0x4000, 0x8000].map(Function::new);
    for function in &functions {
        host.insert(function.clone()).expect("there is room");
    }
    for step in bytes.chunks_exact(10) {
        let (port, len, slot) = (
            step[1] % 8,
            [1, 2, 4, 4][usize::from(step[2] % 4)],
            step[3] % 4,
        );
        let (select, value) = (word(&step[2..6]), word(&step[6..]));
        let data = &value.to_le_bytes()[..len];
        match step[0] % 8 {
            // Any access to the ports.
            0 => ports.write(port.into(), data),
            1 => ports.read(port.into(), &mut vec![0; len]),
            2 => ports.write(0, &select.to_le_bytes()),
            // A BAR of a function, at a place that may be right.
            3 => {
                let register = [0x10, 0x14, 0x18, 0x1c][usize::from(step[4] % 4)];
                let near = LOW.start as u32 + (value & 0xf_f000);
                host.write_config(slot, register, &near.to_le_bytes());
            }
            4 => host.write_config(slot, 4, &value.to_le_bytes()[..2]),
            5 => host.write_config(slot, u16::from(step[4]), data),
            // The table, wherever it is now.
            6 => {
                let address = LOW.start + u64::from(select & 0xf_ffff);
                mmio.write(address, data);
                mmio.read(address, &mut vec![0; len]);
            }
            _ => {
                let function = &functions[usize::from(slot) % 3];
                let vector = step[4].into();
                let mut msix = function.msix.lock().expect("one thread");
                let masked = msix.message(vector).is_none();
                let sent = msix.raise(vector);
                assert!(sent.is_none() || !masked, "a masked vector is silent");
            }
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for function in &functions {
            let space = function.space.lock().expect("one thread");
            assert_eq!((space.half(0), space.half(6)), (0x1234, 0x10));
            assert_eq!(space.word(0x2c), 0x2_0001);
            assert_eq!(space.half(function.capability.into()), 0x0011);
            assert_eq!(
                space.half(usize::from(function.capability) + 2) & 0x7ff,
                VECTORS - 1
            );
            let places = function.places.lock().expect("one thread");
            for bar in space.bars() {
                if let Some(start) = places[usize::from(bar.bar)] {
                    ranges.push((start, start + bar.size));
                }
            }
        }
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(ranges.iter().all(|(start, end)| {
            [LOW, HIGH]
                .iter()
                .any(|window| window.start <= *start && *end <= window.end)
        }));
    }
});
