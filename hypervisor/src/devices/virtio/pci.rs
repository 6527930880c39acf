//! The registers of virtio-pci (virtio 1.2, section 4.1; no legacy interface): a PCI function with one
//! BAR that holds them all, and an MSI-X vector for each queue and one for the configuration.
//!
//! vCPU threads come in through [`PciFunction`]; all else is [`super::transport`]'s. The BAR, a page
//! for each kind of register:
//!
//! | offset | what |
//! | --- | --- |
//! | 0x0000 | common configuration |
//! | 0x1000 | interrupt status |
//! | 0x2000 | device configuration |
//! | 0x3000 | doorbells, 4 bytes for each queue |
//! | 0x4000 | MSI-X table |
//! | 0x5000 | MSI-X pending bits |

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;

use super::transport::{Interrupt, Register, Transport, TransportError};
use super::{DeviceType, VirtioDevice};
use crate::devices::pci::config::{BarKind, ConfigError, ConfigSpace, Identity};
use crate::devices::pci::msix::{self, Message, Msix};
use crate::devices::pci::{BarState, PciFunction, Platform};

/// PCI vendor of virtio devices, and what is added to their type (section 4.1.2).
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const REVISION: u8 = 1;
/// The vendor's capability, in which virtio says where its registers are (section 4.1.4).
const VENDOR_CAPABILITY: u8 = 0x09;

/// The BAR, and the pages in it.
const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;

/// Bytes of the common configuration.
const COMMON_LEN: u32 = 56;
/// Bytes of a doorbell.
const NOTIFY_MULTIPLIER: u32 = 4;
/// Most queues: a vector for each and one more fill a page.
const MAX_QUEUES: usize = (PAGE / msix::ENTRY_LEN) as usize - 1;
/// No vector (section 4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// Structure types (section 4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI: u8 = 5;
/// Offsets in the capability through which the BAR is reached without mapping it (section 4.1.4.9).
const CAP_PCI_BAR: u16 = 4;
const CAP_PCI_OFFSET: u16 = 8;
const CAP_PCI_LENGTH: u16 = 12;
const CAP_PCI_DATA: u16 = 16;

/// Causes in the interrupt status (section 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// One virtio device as a PCI function.
pub struct PciTransport {
    transport: Arc<Transport>,
    interrupt: Arc<MsixInterrupt>,
    platform: Arc<dyn Platform>,
    space: Mutex<ConfigSpace>,
    /// Where the capabilities are that are more than a description.
    msix_capability: u16,
    pci_capability: u16,
}

impl PciTransport {
    /// Makes `device` a PCI function of `platform`; its queues lie in `memory`.
    ///
    /// # Errors
    /// As [`Transport::new`], or too many queues for the BAR.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        platform: Arc<dyn Platform>,
    ) -> Result<Self, TransportError> {
        let queues = device.queue_max_sizes().len();
        if queues > MAX_QUEUES {
            return Err(TransportError::TooManyQueues(queues));
        }
        let device_type = device.device_type();
        let interrupt = Arc::new(MsixInterrupt::new(queues, platform.clone()));
        let transport = Transport::new(device, memory, interrupt.clone())?;
        // What this function has fits its space: a test builds it.
        let built = space(device_type, &lock(&interrupt.msix), queues);
        let (space, msix_capability, pci_capability) =
            built.map_err(|_| TransportError::TooManyQueues(queues))?;
        Ok(Self {
            transport: Arc::new(transport),
            interrupt,
            platform,
            space: Mutex::new(space),
            msix_capability,
            pci_capability,
        })
    }

    /// The device and its queues.
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    fn space(&self) -> MutexGuard<'_, ConfigSpace> {
        lock(&self.space)
    }

    /// What an access to the data register of the PCI capability reaches: offset and length.
    fn indirect(&self, register: u16, len: usize) -> Option<(u64, usize)> {
        if register != self.pci_capability + CAP_PCI_DATA {
            return None;
        }
        let space = self.space();
        let at = |offset| usize::from(self.pci_capability + offset);
        let bar = space.half(at(CAP_PCI_BAR)) as u8;
        let offset = space.word(at(CAP_PCI_OFFSET));
        let length = space.word(at(CAP_PCI_LENGTH));
        let valid = bar == BAR && length as usize == len && offset.is_multiple_of(length.max(1));
        valid.then_some((offset.into(), len))
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // 64-bit registers are two of 32 (section 4.1.3.1).
        if let Some((low, high)) = data.split_at_mut_checked(4)
            && high.len() == 4
        {
            self.read_common(offset, low);
            return self.read_common(offset + 4, high);
        }
        let Some((field, 4 | 2 | 1)) = field(offset, data.len()).zip(Some(data.len())) else {
            return;
        };
        let value = match field {
            Field::Common(register) => self.transport.read_register(register),
            Field::Queues => self.transport.queue_events().len() as u32,
            Field::ConfigVector => lock(&self.interrupt.vectors).config.into(),
            Field::QueueVector => {
                let vectors = lock(&self.interrupt.vectors);
                let vector = vectors.queues.get(self.selected());
                vector.copied().unwrap_or(NO_VECTOR).into()
            }
            Field::NotifyOffset => self.transport.read_register(Register::QueueSelect),
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        if let Some((low, high)) = data.split_at_checked(4)
            && high.len() == 4
        {
            self.write_common(offset, low);
            return self.write_common(offset + 4, high);
        }
        let Some(field) = field(offset, data.len()) else {
            return;
        };
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        match field {
            // A queue is only taken out of use by a reset (section 4.1.4.3.2).
            Field::Common(Register::QueueReady) if value != 1 => {}
            Field::Common(
                Register::DeviceFeatures | Register::QueueMaxSize | Register::ConfigGeneration,
            ) => {}
            Field::Common(register) => self.transport.write_register(register, value),
            Field::ConfigVector => {
                let vector = self.interrupt.valid(value as u16);
                lock(&self.interrupt.vectors).config = vector;
            }
            Field::QueueVector => {
                let (index, vector) = (self.selected(), self.interrupt.valid(value as u16));
                if let Some(entry) = lock(&self.interrupt.vectors).queues.get_mut(index) {
                    *entry = vector;
                }
            }
            Field::Queues | Field::NotifyOffset => {}
        }
    }

    fn selected(&self) -> usize {
        self.transport.read_register(Register::QueueSelect) as usize
    }

    /// Where queue `index` is notified when the BAR is at `base`.
    fn doorbell(base: u64, index: usize) -> u64 {
        base + NOTIFY + u64::from(NOTIFY_MULTIPLIER) * index as u64
    }
}

/// Registers of the common configuration (section 4.1.4.3).
enum Field {
    Common(Register),
    Queues,
    ConfigVector,
    QueueVector,
    NotifyOffset,
}

/// The register at `offset`, when it is `len` bytes wide.
fn field(offset: u64, len: usize) -> Option<Field> {
    Some(match (offset, len) {
        (0, 4) => Field::Common(Register::DeviceFeaturesSelect),
        (4, 4) => Field::Common(Register::DeviceFeatures),
        (8, 4) => Field::Common(Register::DriverFeaturesSelect),
        (12, 4) => Field::Common(Register::DriverFeatures),
        (16, 2) => Field::ConfigVector,
        (18, 2) => Field::Queues,
        (20, 1) => Field::Common(Register::Status),
        (21, 1) => Field::Common(Register::ConfigGeneration),
        (22, 2) => Field::Common(Register::QueueSelect),
        (24, 2) => Field::Common(Register::QueueSize),
        (26, 2) => Field::QueueVector,
        (28, 2) => Field::Common(Register::QueueReady),
        (30, 2) => Field::NotifyOffset,
        (32, 4) => Field::Common(Register::QueueDescLow),
        (36, 4) => Field::Common(Register::QueueDescHigh),
        (40, 4) => Field::Common(Register::QueueAvailLow),
        (44, 4) => Field::Common(Register::QueueAvailHigh),
        (48, 4) => Field::Common(Register::QueueUsedLow),
        (52, 4) => Field::Common(Register::QueueUsedHigh),
        _ => return None,
    })
}

/// The configuration space of a device with `queues`, and where its MSI-X and PCI capabilities are.
fn space(
    device_type: DeviceType,
    msix: &Msix,
    queues: usize,
) -> Result<(ConfigSpace, u16, u16), ConfigError> {
    let id = device_type as u16;
    let mut space = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + id,
        revision: REVISION,
        class: match device_type {
            DeviceType::Block => 0x01_8000,
            DeviceType::Net => 0x02_0000,
            DeviceType::Console => 0x07_8000,
            _ => 0xff_0000,
        },
        subsystem_vendor: VENDOR,
        subsystem: DEVICE_BASE + id,
    });
    space.add_bar(BAR, BAR_SIZE, BarKind::Memory32)?;
    let doorbells = NOTIFY_MULTIPLIER * queues as u32;
    // Ordered as drivers look for them.
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    for (kind, offset, len, more) in [
        (CAP_COMMON, COMMON, COMMON_LEN, &[][..]),
        (CAP_ISR, ISR, 1, &[]),
        (CAP_NOTIFY, NOTIFY, doorbells, &multiplier),
        (CAP_DEVICE, DEVICE, PAGE as u32, &[]),
    ] {
        let body = capability(kind, offset as u32, len, more);
        space.add_capability(VENDOR_CAPABILITY, &body, &[])?;
    }
    let (body, writable) = msix.capability(BAR, MSIX_TABLE as u32, MSIX_PENDING as u32);
    let msix_at = space.add_capability(msix::CAPABILITY, &body, &writable)?;
    let body = capability(CAP_PCI, 0, 0, &[0; 4]);
    let mut writable = vec![0; body.len()];
    for at in [CAP_PCI_BAR, CAP_PCI_OFFSET, CAP_PCI_LENGTH] {
        let len = if at == CAP_PCI_BAR { 1 } else { 4 };
        // The body begins behind the capability's first two bytes.
        for mask in writable.iter_mut().skip(usize::from(at) - 2).take(len) {
            *mask = 0xff;
        }
    }
    let pci_at = space.add_capability(VENDOR_CAPABILITY, &body, &writable)?;
    Ok((space, msix_at.into(), pci_at.into()))
}

/// `struct virtio_pci_cap` behind its first two bytes (section 4.1.4).
fn capability(kind: u8, offset: u32, len: u32, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, kind, BAR, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    body
}

impl PciFunction for PciTransport {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        match self.indirect(register, data.len()) {
            Some((offset, _)) => self.read_bar(BAR, offset, data),
            None => self.space().read(register, data),
        }
    }

    fn write_config(&self, register: u16, data: &[u8]) {
        if let Some((offset, _)) = self.indirect(register, data.len()) {
            return self.write_bar(BAR, offset, data);
        }
        let mut space = self.space();
        space.write(register, data);
        let control = self.msix_capability + 2;
        if register & !3 == self.msix_capability {
            let control = space.half(control.into());
            drop(space);
            let released = lock(&self.interrupt.msix).set_control(control);
            for message in released {
                self.platform.send(message);
            }
        }
    }

    fn bars(&self) -> Vec<BarState> {
        self.space().bars()
    }

    fn read_bar(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        let within = offset % PAGE;
        match offset - within {
            COMMON => self.read_common(within, data),
            ISR => {
                data.fill(0);
                if let (0, Some(status)) = (within, data.first_mut()) {
                    *status = self.interrupt.isr.swap(0, Ordering::SeqCst);
                }
            }
            DEVICE => self.transport.read_config(within, data),
            MSIX_TABLE => lock(&self.interrupt.msix).read_table(within, data),
            MSIX_PENDING => lock(&self.interrupt.msix).read_pending(within, data),
            _ => data.fill(0),
        }
    }

    fn write_bar(&self, _bar: u8, offset: u64, data: &[u8]) {
        let within = offset % PAGE;
        match offset - within {
            COMMON => self.write_common(within, data),
            DEVICE => self.transport.write_config(within, data),
            NOTIFY => {
                let index = within / u64::from(NOTIFY_MULTIPLIER);
                self.transport.signal(index as usize);
            }
            MSIX_TABLE => {
                let released = lock(&self.interrupt.msix).write_table(within, data);
                if let Some(message) = released {
                    self.platform.send(message);
                }
            }
            _ => {}
        }
    }

    fn bar_moved(&self, _bar: u8, from: Option<u64>, to: Option<u64>) {
        for (index, event) in self.transport.queue_events().iter().enumerate() {
            if let Some(from) = from {
                self.platform
                    .unbind_doorbell(event, Self::doorbell(from, index));
            }
            if let Some(to) = to {
                // Where the host refuses, notifications come as writes.
                let _ = self
                    .platform
                    .bind_doorbell(event, Self::doorbell(to, index));
            }
        }
    }
}

/// A vector for the configuration and one for each queue, as the driver has chosen them.
struct MsixInterrupt {
    platform: Arc<dyn Platform>,
    isr: AtomicU8,
    vectors: Mutex<Vectors>,
    msix: Mutex<Msix>,
}

struct Vectors {
    config: u16,
    queues: Vec<u16>,
}

impl MsixInterrupt {
    fn new(queues: usize, platform: Arc<dyn Platform>) -> Self {
        Self {
            platform,
            isr: AtomicU8::new(0),
            vectors: Mutex::new(Vectors {
                config: NO_VECTOR,
                queues: vec![NO_VECTOR; queues],
            }),
            // At most MAX_QUEUES and one.
            msix: Mutex::new(Msix::new(queues as u16 + 1)),
        }
    }

    /// `vector`, or [`NO_VECTOR`] where there is none of that number: what the driver reads back.
    fn valid(&self, vector: u16) -> u16 {
        if vector < lock(&self.msix).vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn raise(&self, vector: u16) {
        let message: Option<Message> = lock(&self.msix).raise(vector);
        if let Some(message) = message {
            self.platform.send(message);
        }
    }
}

impl Interrupt for MsixInterrupt {
    fn raise_queue(&self, index: usize) {
        let vector = lock(&self.vectors).queues.get(index).copied();
        let vector = vector.unwrap_or(NO_VECTOR);
        if vector == NO_VECTOR {
            self.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
        }
        self.raise(vector);
    }

    fn raise_config(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        let vector = lock(&self.vectors).config;
        self.raise(vector);
    }

    fn reset(&self) {
        self.isr.store(0, Ordering::SeqCst);
        let mut vectors = lock(&self.vectors);
        vectors.config = NO_VECTOR;
        vectors.queues.fill(NO_VECTOR);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
