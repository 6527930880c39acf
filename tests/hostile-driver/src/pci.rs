//! Functions of the PCI bus, and where a virtio device's registers are in their BAR (virtio 1.2,
//! section 4.1.4).

use crate::machine::{Window, in_word, out_word};
use crate::transport::{Device, Place};

/// The ports of configuration mechanism 1.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Slots of the bus.
pub(crate) const SLOTS: u32 = 32;

/// Registers of a configuration space.
pub(crate) const COMMAND: u32 = 0x04;
pub(crate) const BAR0: u32 = 0x10;
const CAPABILITIES: u32 = 0x34;
/// Command: memory decoding, bus mastering.
pub(crate) const DECODE: u32 = 2;
pub(crate) const MASTER: u32 = 4;
/// Capabilities: the vendor's, MSI-X.
const VENDOR: u32 = 0x09;
const MSIX: u32 = 0x11;
/// Vendor of virtio devices, and what is added to their type.
const VIRTIO: u32 = 0x1af4;
const DEVICE_BASE: u32 = 0x1040;

/// A virtio function: its slot, and where its structures are.
#[derive(Clone, Copy, Default)]
pub(crate) struct Function {
    pub(crate) slot: u32,
    /// Where its BAR was when it was found.
    pub(crate) bar: u64,
    common: u64,
    notify: u64,
    multiplier: u32,
    isr: u64,
    device: u64,
    /// The MSI-X capability, and the table.
    pub(crate) msix: u32,
    pub(crate) table: u64,
    /// The capability through which the BAR is reached without mapping it.
    pub(crate) indirect: u32,
}

/// Reads a register of slot `slot`.
pub(crate) fn read(slot: u32, register: u32) -> u32 {
    out_word(ADDRESS, ENABLE | slot << 11 | register & 0xfc);
    in_word(DATA)
}

/// Writes it.
pub(crate) fn write(slot: u32, register: u32, value: u32) {
    out_word(ADDRESS, ENABLE | slot << 11 | register & 0xfc);
    out_word(DATA, value);
}

impl Function {
    /// The virtio device in `slot`, if there is one; switched on.
    pub(crate) fn find(slot: u32) -> Option<Device> {
        let identity = read(slot, 0);
        if identity & 0xffff != VIRTIO {
            return None;
        }
        let mut function = Self {
            slot,
            bar: u64::from(read(slot, BAR0) & !0xf),
            ..Self::default()
        };
        let mut at = read(slot, CAPABILITIES) & 0xff;
        while at != 0 {
            let head = read(slot, at);
            let offset = u64::from(read(slot, at + 8));
            match (head & 0xff, head >> 24) {
                (VENDOR, 1) => function.common = offset,
                (VENDOR, 2) => {
                    function.notify = offset;
                    function.multiplier = read(slot, at + 16);
                }
                (VENDOR, 3) => function.isr = offset,
                (VENDOR, 4) => function.device = offset,
                (VENDOR, 5) => function.indirect = at,
                (MSIX, _) => {
                    function.msix = at;
                    function.table = u64::from(read(slot, at + 4) & !7);
                }
                _ => {}
            }
            at = head >> 8 & 0xff;
        }
        write(slot, COMMAND, DECODE | MASTER);
        Some(Device {
            kind: (identity >> 16).wrapping_sub(DEVICE_BASE),
            place: Place::Pci(function),
        })
    }

    /// The same function with its BAR at `bar`.
    pub(crate) fn at(&self, bar: u64) -> Self {
        Self { bar, ..*self }
    }

    fn structure(&self, offset: u64) -> Window {
        Window::new(self.bar + offset)
    }

    pub(crate) fn common(&self) -> Window {
        self.structure(self.common)
    }

    pub(crate) fn interrupt_status(&self) -> Window {
        self.structure(self.isr)
    }

    pub(crate) fn device_config(&self) -> Window {
        self.structure(self.device)
    }

    pub(crate) fn msix_table(&self) -> Window {
        self.structure(self.table)
    }

    /// Rings the bell of `queue`; those of queues that do not exist lie behind the others.
    pub(crate) fn notify(&self, queue: u32) {
        let offset = u64::from(self.multiplier) * u64::from(queue & 0x3ff);
        self.structure(self.notify).set(offset, queue as u16);
    }
}
