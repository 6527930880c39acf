//! The registers of virtio-mmio (virtio 1.2, section 4.2; version 2, no legacy interface): one window
//! for one device. vCPU threads call `read` and `write`; all else is [`super::transport`]'s.

use std::sync::Arc;

use virtio_bindings::virtio_mmio::*;
use vm_memory::GuestMemoryMmap;

use super::VirtioDevice;
use super::interrupt::StatusInterrupt;
use super::transport::{Register, Transport, TransportError};

/// Offset of `QueueNotify`, for `KVM_IOEVENTFD`: queue `n` is notified by writing `n` as 32 bits.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// `MagicValue`: "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// `Version` of the interface without legacy.
const VERSION: u32 = 2;
/// `VendorID`.
const VENDOR: u32 = u32::from_le_bytes(*b"BKHD");
/// Offset of the configuration space.
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// One virtio device's window.
pub struct MmioTransport {
    // Beside the transport: a vCPU acknowledges an interrupt without waiting for the device's I/O.
    interrupt: Arc<StatusInterrupt>,
    transport: Arc<Transport>,
}

impl MmioTransport {
    /// Puts `device` behind a window; its queues lie in `memory`.
    ///
    /// # Errors
    /// As [`Transport::new`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
    ) -> Result<Self, TransportError> {
        let interrupt = Arc::new(StatusInterrupt::new()?);
        Ok(Self {
            transport: Arc::new(Transport::new(device, memory, interrupt.clone())?),
            interrupt,
        })
    }

    /// The device and its queues. Doorbell n is rung at [`QUEUE_NOTIFY`] with n as 32-bit
    /// datamatch.
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// The interrupt, to register its eventfd with `KVM_IRQFD`.
    pub fn interrupt(&self) -> &StatusInterrupt {
        &self.interrupt
    }

    /// Serves a guest's read of `data.len()` bytes at `offset` into the window. Registers are 32
    /// bits wide and aligned (section 4.2.2.2); any other access to them reads zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.transport.read_config(offset, data);
            return;
        }
        let Ok(word) = <&mut [u8; 4]>::try_from(&mut *data) else {
            data.fill(0);
            return;
        };
        let value = match offset as u32 {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.transport.device_type() as u32,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            // No shared memory region exists: length and base read as all ones (section 4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            other => readable(other).map_or(0, |register| self.transport.read_register(register)),
        };
        *word = value.to_le_bytes();
    }

    /// Serves a guest's write at `offset` into the window; what the specification does not allow
    /// now has no effect.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.transport.write_config(offset, data);
            return;
        }
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            return;
        };
        match offset as u32 {
            VIRTIO_MMIO_QUEUE_NOTIFY => self.transport.signal(value as usize),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            other => {
                if let Some(register) = writable(other) {
                    self.transport.write_register(register, value);
                }
            }
        }
    }
}

fn readable(offset: u32) -> Option<Register> {
    Some(match offset {
        VIRTIO_MMIO_DEVICE_FEATURES => Register::DeviceFeatures,
        VIRTIO_MMIO_QUEUE_NUM_MAX => Register::QueueMaxSize,
        VIRTIO_MMIO_QUEUE_READY => Register::QueueReady,
        VIRTIO_MMIO_STATUS => Register::Status,
        VIRTIO_MMIO_CONFIG_GENERATION => Register::ConfigGeneration,
        _ => return None,
    })
}

fn writable(offset: u32) -> Option<Register> {
    Some(match offset {
        VIRTIO_MMIO_DEVICE_FEATURES_SEL => Register::DeviceFeaturesSelect,
        VIRTIO_MMIO_DRIVER_FEATURES_SEL => Register::DriverFeaturesSelect,
        VIRTIO_MMIO_DRIVER_FEATURES => Register::DriverFeatures,
        VIRTIO_MMIO_STATUS => Register::Status,
        VIRTIO_MMIO_QUEUE_SEL => Register::QueueSelect,
        VIRTIO_MMIO_QUEUE_NUM => Register::QueueSize,
        VIRTIO_MMIO_QUEUE_READY => Register::QueueReady,
        VIRTIO_MMIO_QUEUE_DESC_LOW => Register::QueueDescLow,
        VIRTIO_MMIO_QUEUE_DESC_HIGH => Register::QueueDescHigh,
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => Register::QueueAvailLow,
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => Register::QueueAvailHigh,
        VIRTIO_MMIO_QUEUE_USED_LOW => Register::QueueUsedLow,
        VIRTIO_MMIO_QUEUE_USED_HIGH => Register::QueueUsedHigh,
        _ => return None,
    })
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
