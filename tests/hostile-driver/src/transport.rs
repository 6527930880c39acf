//! A virtio device as its driver finds it, behind either transport (virtio 1.2, sections 4.1.4.3 and
//! 4.2.2): the same registers, at other places.

use crate::machine::Window;
use crate::pci::Function;

pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;

/// virtio-mmio: notifications, interrupts, and the configuration space.
const MMIO_NOTIFY: u64 = 0x50;
const MMIO_INTERRUPT_ACK: u64 = 0x64;
const MMIO_CONFIG: u64 = 0x100;
const MMIO_MAGIC: u32 = u32::from_le_bytes(*b"virt");
const MMIO_DEVICE_ID: u64 = 8;

/// Registers that both transports have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    FeaturesSelect,
    Features,
    DriverFeaturesSelect,
    DriverFeatures,
    Status,
    QueueSelect,
    QueueMax,
    QueueSize,
    QueueReady,
    Table,
    Avail,
    Used,
}

/// Where a device's registers are.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    Mmio(Window),
    Pci(Function),
}

/// A device.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    /// Its type (section 5).
    pub(crate) kind: u32,
    pub(crate) place: Place,
}

impl Device {
    /// The device in the window at `start`, if there is one.
    pub(crate) fn in_window(start: u64) -> Option<Self> {
        let window = Window::new(start);
        (window.get::<u32>(0) == MMIO_MAGIC).then(|| Self {
            kind: window.get(MMIO_DEVICE_ID),
            place: Place::Mmio(window),
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            1 => "net",
            2 => "blk",
            3 => "console",
            4 => "rng",
            5 => "balloon",
            19 => "vsock",
            24 => "mem",
            26 => "fs",
            27 => "pmem",
            _ => "unknown",
        }
    }

    pub(crate) fn read(&self, register: Register) -> u32 {
        match self.place {
            Place::Mmio(window) => window.get(mmio(register)),
            Place::Pci(function) => {
                let window = function.common();
                match common(register) {
                    (at, 1) => window.get::<u8>(at).into(),
                    (at, 2) => window.get::<u16>(at).into(),
                    (at, _) => window.get(at),
                }
            }
        }
    }

    pub(crate) fn write(&self, register: Register, value: u32) {
        match self.place {
            Place::Mmio(window) => window.set(mmio(register), value),
            Place::Pci(function) => {
                let window = function.common();
                match common(register) {
                    (at, 1) => window.set(at, value as u8),
                    (at, 2) => window.set(at, value as u16),
                    (at, _) => window.set(at, value),
                }
            }
        }
    }

    /// Writes the address of a ring: two halves.
    pub(crate) fn write_ring(&self, register: Register, address: u64) {
        let (window, at) = match self.place {
            Place::Mmio(window) => (window, mmio(register)),
            Place::Pci(function) => (function.common(), common(register).0),
        };
        window.set(at, address as u32);
        window.set(at + 4, (address >> 32) as u32);
    }

    /// Rings the bell of `queue`, which need not exist.
    pub(crate) fn notify(&self, queue: u32) {
        match self.place {
            Place::Mmio(window) => window.set(MMIO_NOTIFY, queue),
            Place::Pci(function) => function.notify(queue),
        }
    }

    /// Forgets what the device interrupted for.
    pub(crate) fn acknowledge_interrupts(&self) {
        match self.place {
            Place::Mmio(window) => window.set(MMIO_INTERRUPT_ACK, u32::MAX),
            Place::Pci(function) => {
                let _: u8 = function.interrupt_status().get(0);
            }
        }
    }

    /// The configuration space.
    pub(crate) fn config(&self) -> (Window, u64) {
        match self.place {
            Place::Mmio(window) => (window, MMIO_CONFIG),
            Place::Pci(function) => (function.device_config(), 0),
        }
    }

    /// A field of the configuration space.
    pub(crate) fn config_word(&self, offset: u64) -> u32 {
        let (window, start) = self.config();
        window.get(start + offset)
    }

    /// Resets the device and goes as far as `FEATURES_OK`, with all that is offered.
    pub(crate) fn negotiate(&self) -> bool {
        self.write(Register::Status, 0);
        self.write(Register::Status, ACKNOWLEDGE | DRIVER);
        for half in [0, 1] {
            self.write(Register::FeaturesSelect, half);
            self.write(Register::DriverFeaturesSelect, half);
            self.write(Register::DriverFeatures, self.read(Register::Features));
        }
        self.write(Register::Status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.read(Register::Status) & FEATURES_OK != 0
    }

    /// Places queue `index` at `rings` with `size` entries; true when the device takes it.
    pub(crate) fn place_queue(&self, index: u32, size: u32, rings: [u64; 3]) -> bool {
        self.write(Register::QueueSelect, index);
        self.write(Register::QueueSize, size);
        let registers = [Register::Table, Register::Avail, Register::Used];
        for (register, address) in registers.into_iter().zip(rings) {
            self.write_ring(register, address);
        }
        self.write(Register::QueueReady, 1);
        self.read(Register::QueueReady) == 1
    }

    pub(crate) fn start(&self) {
        let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        self.write(Register::Status, ready);
    }

    /// How many queues there are.
    pub(crate) fn queues(&self) -> u32 {
        let exists = |index: &u32| {
            self.write(Register::QueueSelect, *index);
            self.read(Register::QueueMax) != 0
        };
        (0..).take_while(exists).count() as u32
    }
}

fn mmio(register: Register) -> u64 {
    match register {
        Register::Features => 0x10,
        Register::FeaturesSelect => 0x14,
        Register::DriverFeatures => 0x20,
        Register::DriverFeaturesSelect => 0x24,
        Register::QueueSelect => 0x30,
        Register::QueueMax => 0x34,
        Register::QueueSize => 0x38,
        Register::QueueReady => 0x44,
        Register::Status => 0x70,
        Register::Table => 0x80,
        Register::Avail => 0x90,
        Register::Used => 0xa0,
    }
}

/// Place and width in the common configuration. The largest size of a queue is what its size reads
/// until the driver writes it.
fn common(register: Register) -> (u64, u64) {
    match register {
        Register::FeaturesSelect => (0, 4),
        Register::Features => (4, 4),
        Register::DriverFeaturesSelect => (8, 4),
        Register::DriverFeatures => (12, 4),
        Register::Status => (20, 1),
        Register::QueueSelect => (22, 2),
        Register::QueueMax | Register::QueueSize => (24, 2),
        Register::QueueReady => (28, 2),
        Register::Table => (32, 4),
        Register::Avail => (40, 4),
        Register::Used => (48, 4),
    }
}
