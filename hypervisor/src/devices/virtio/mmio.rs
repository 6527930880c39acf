//! The virtio-mmio transport (virtio 1.2, section 4.2; version 2, no legacy interface): one
//! device's registers, its queues and its status. Any device fits; vCPU threads call `read` and
//! `write`, the event loop's [`super::subscriber`] calls the rest.
//!
//! The driver is not trusted with anything: a write that the specification does not allow in the
//! present state changes nothing, and the driver sees that when it reads the register back. What a
//! driver does wrong on a queue ends in `DEVICE_NEEDS_RESET`, and costs only its own device.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bulkhead_machine::control::Resize;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupt::Interrupt;
use super::queue::{QueueError, Virtqueue};
use super::{
    Activation, COMMON_FEATURES, DeviceError, DeviceIo, DeviceType, Interest, Progress,
    ResizeError, VirtioDevice,
};

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
/// Status bits in the order in which a driver must set them (section 3.1.1).
const PROGRESS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// The transport could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The host has no descriptor left.
    #[error("cannot create an eventfd for a virtio device: {0}")]
    EventFd(#[from] io::Error),
    /// The device asks for an impossible queue.
    #[error("cannot create a virtqueue: {0}")]
    Queue(#[from] QueueError),
}

/// What the driver has set; with the queues' positions and the device's own state, all that a
/// snapshot of the device needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    config_generation: u32,
}

/// One virtio device behind its MMIO window.
pub struct MmioTransport {
    // Outside the lock: a vCPU acknowledges an interrupt without waiting for the device's I/O.
    interrupt: Interrupt,
    queue_events: Vec<EventFd>,
    device_type: DeviceType,
    state: Mutex<State>,
}

struct State {
    registers: Registers,
    queues: Vec<Virtqueue>,
    memory: GuestMemoryMmap,
    device: Box<dyn VirtioDevice>,
    fault: Option<DeviceError>,
}

impl MmioTransport {
    /// Puts `device` behind a window; its queues lie in `memory`.
    ///
    /// # Errors
    /// No descriptors left, or the device names an impossible queue size.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
    ) -> Result<Self, TransportError> {
        let mut queues = Vec::new();
        let mut queue_events = Vec::new();
        for max_size in device.queue_max_sizes() {
            queues.push(Virtqueue::new(*max_size)?);
            queue_events.push(EventFd::new(EFD_NONBLOCK)?);
        }
        Ok(Self {
            interrupt: Interrupt::new()?,
            queue_events,
            device_type: device.device_type(),
            state: Mutex::new(State {
                registers: Registers::default(),
                queues,
                memory,
                device,
                fault: None,
            }),
        })
    }

    /// The device's type.
    pub fn device_type(&self) -> DeviceType {
        self.device_type
    }

    /// One eventfd a queue, to register with `KVM_IOEVENTFD` at [`QUEUE_NOTIFY`] with the queue's
    /// index as 32-bit datamatch. The transport also serves notifications that arrive as writes.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// The interrupt, to register its eventfd with `KVM_IRQFD`.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// What stopped the device until its next reset, for messages.
    pub fn fault(&self) -> Option<String> {
        self.state().fault.as_ref().map(ToString::to_string)
    }

    /// Serves a guest's read of `data.len()` bytes at `offset` into the window. Registers are 32
    /// bits wide and aligned (section 4.2.2.2); any other access to them reads zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.state().device.read_config(offset, data);
            return;
        }
        let Ok(register) = <&mut [u8; 4]>::try_from(&mut *data) else {
            data.fill(0);
            return;
        };
        let value = match offset as u32 {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_type as u32,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            other => self.state().read_register(other),
        };
        *register = value.to_le_bytes();
    }

    /// Serves a guest's write at `offset` into the window; what the specification does not allow
    /// now has no effect.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.state().device.write_config(offset, data);
            return;
        }
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            return;
        };
        match offset as u32 {
            VIRTIO_MMIO_QUEUE_NOTIFY => self.signal(value as usize),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            other => self.state().write_register(other, value),
        }
    }

    /// Lets the device serve queue `index` for a turn.
    pub fn process_queue(&self, index: usize) -> Progress {
        self.state().turn(&self.interrupt, |device, io| {
            device.process_queue(index, io)
        })
    }

    /// Lets the device serve its backend `fd` for a turn.
    pub fn process_backend(&self, fd: RawFd) -> Progress {
        self.state()
            .turn(&self.interrupt, |device, io| device.process_backend(fd, io))
    }

    /// Host descriptors the device waits for now.
    pub fn interests(&self) -> Vec<Interest> {
        let state = self.state();
        if state.running() {
            state.device.interests()
        } else {
            Vec::new()
        }
    }

    /// Gives the device a new size; see [`VirtioDevice::resize`].
    ///
    /// # Errors
    /// See [`ResizeError`].
    pub fn resize(&self, resize: &Resize) -> Result<(), ResizeError> {
        let mut outcome = Ok(());
        let _ = self.state().work(&self.interrupt, |device, io| {
            outcome = device.resize(resize, io);
            Ok(Progress::Idle)
        });
        outcome
    }

    /// Brings the device to a point between two requests; see [`VirtioDevice::quiesce`].
    pub fn quiesce(&self) {
        let _ = self.state().turn(&self.interrupt, |device, io| {
            device.quiesce(io).map(|()| Progress::Idle)
        });
    }

    /// Name and value of each of the device's counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.state().device.counters()
    }

    /// Makes the event loop serve queue `index`.
    pub(super) fn signal(&self, index: usize) {
        if let Some(event) = self.queue_events.get(index) {
            // Only a full counter refuses the write, and then the eventfd is signalled anyway.
            let _ = event.write(1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state holds no invariant that a panic elsewhere could break half-way: every value
        // in it is checked when it is used.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_status(&self, value: u32) {
        let mut state = self.state();
        if value == 0 {
            state.reset();
            self.interrupt.reset();
            drop(state);
            // The event loop learns that the device waits for nothing any more.
            self.signal(0);
            return;
        }
        if state.advance(value, &self.queue_events) {
            if state.fault.is_some() {
                self.interrupt.raise_config();
            }
            drop(state);
            // Buffers may have been made available before `DRIVER_OK`, unnoticed.
            for index in 0..self.queue_events.len() {
                self.signal(index);
            }
        }
    }
}

impl State {
    fn running(&self) -> bool {
        self.registers.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// One turn of the device; raises the interrupt for what it returned.
    fn turn(
        &mut self,
        interrupt: &Interrupt,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo<'_>) -> Result<Progress, DeviceError>,
    ) -> Progress {
        if self.running() {
            self.work(interrupt, work)
        } else {
            Progress::Idle
        }
    }

    /// As [`Self::turn`], in any state.
    fn work(
        &mut self,
        interrupt: &Interrupt,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo<'_>) -> Result<Progress, DeviceError>,
    ) -> Progress {
        let mut config_changed = false;
        let mut io = DeviceIo {
            memory: &self.memory,
            queues: &mut self.queues,
            config_changed: &mut config_changed,
        };
        let mut outcome = work(self.device.as_mut(), &mut io);
        for queue in &mut self.queues {
            match queue.take_notification(&self.memory) {
                Ok(true) => interrupt.raise_queue(),
                Ok(false) => {}
                Err(error) => outcome = Err(error.into()),
            }
        }
        if config_changed {
            self.registers.config_generation = self.registers.config_generation.wrapping_add(1);
            // A driver that is not at work may not be interrupted, and reads it all later.
            if self.running() {
                interrupt.raise_config();
            }
        }
        outcome.unwrap_or_else(|error| {
            self.registers.status |= NEEDS_RESET;
            self.fault = Some(error);
            interrupt.raise_config();
            Progress::Idle
        })
    }

    fn read_register(&self, register: u32) -> u32 {
        let registers = &self.registers;
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES => match registers.device_features_sel {
                0 => self.offered() as u32,
                1 => (self.offered() >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .selected()
                .map_or(0, |queue| u32::from(queue.ring().max_size())),
            VIRTIO_MMIO_QUEUE_READY => self
                .selected()
                .map_or(0, |queue| u32::from(queue.ring().ready())),
            VIRTIO_MMIO_STATUS => registers.status,
            // No shared memory region exists: length and base read as all ones (section 4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => registers.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_sel = value,
            VIRTIO_MMIO_QUEUE_READY if value == 0 => {
                if let Some(queue) = self.selected_mut() {
                    queue.ring_mut().set_ready(false);
                }
            }
            _ => self.configure_queue(register, value),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        let registers = &mut self.registers;
        if registers.status & (DRIVER | FEATURES_OK) != DRIVER {
            return;
        }
        let shift = match registers.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let mask = u64::from(u32::MAX) << shift;
        registers.driver_features = registers.driver_features & !mask | u64::from(value) << shift;
    }

    /// Registers of the selected queue, writable between `FEATURES_OK` and `DRIVER_OK` and while
    /// the queue is not ready.
    fn configure_queue(&mut self, register: u32, value: u32) {
        if self.registers.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return;
        }
        let Ok(index) = usize::try_from(self.registers.queue_sel) else {
            return;
        };
        let Some(queue) = self.queues.get_mut(index).map(Virtqueue::ring_mut) else {
            return;
        };
        if queue.ready() {
            return;
        }
        match register {
            // Sizes that do not fit 16 bits become 0, which no queue accepts.
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_READY => {
                queue.set_ready(true);
                let valid = queue.is_valid(&self.memory);
                queue.set_ready(valid);
            }
            _ => {}
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn selected(&self) -> Option<&Virtqueue> {
        self.queues
            .get(usize::try_from(self.registers.queue_sel).ok()?)
    }

    fn selected_mut(&mut self) -> Option<&mut Virtqueue> {
        self.queues
            .get_mut(usize::try_from(self.registers.queue_sel).ok()?)
    }

    /// Takes a non-zero status write; true when it made the device run.
    fn advance(&mut self, value: u32, doorbells: &[EventFd]) -> bool {
        // The driver writes back what it read, our `DEVICE_NEEDS_RESET` included.
        let wanted = value & !NEEDS_RESET;
        let current = self.registers.status & !NEEDS_RESET;
        // Bits are only ever added, save by a reset (section 2.1.1).
        if wanted & current != current {
            return false;
        }
        self.registers.status |= wanted & FAILED;
        let mut started = false;
        for bit in PROGRESS {
            if wanted & bit == 0 || self.registers.status & FAILED != 0 {
                break;
            }
            if self.registers.status & bit != 0 {
                continue;
            }
            if bit == FEATURES_OK && !self.features_acceptable() {
                break;
            }
            self.registers.status |= bit;
            if bit == DRIVER_OK {
                self.activate(doorbells);
                started = true;
            }
        }
        started
    }

    fn features_acceptable(&self) -> bool {
        let features = self.registers.driver_features;
        features & !self.offered() == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self, doorbells: &[EventFd]) {
        let features = self.registers.driver_features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.ring_mut().set_event_idx(event_idx);
        }
        let activation = Activation {
            features,
            memory: &self.memory,
            queues: &mut self.queues,
            doorbells,
        };
        if let Err(error) = self.device.activate(activation) {
            self.registers.status |= NEEDS_RESET;
            self.fault = Some(error);
        }
    }

    fn reset(&mut self) {
        self.registers = Registers {
            config_generation: self.registers.config_generation,
            ..Registers::default()
        };
        self.fault = None;
        for queue in &mut self.queues {
            queue.reset();
        }
        self.device.reset();
    }
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
