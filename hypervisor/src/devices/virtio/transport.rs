//! What every virtio transport has in common (virtio 1.2, sections 2.1 to 2.3, 3.1 and 4): one device,
//! its queues, the negotiation, the status, and the turns in which the device works.
//!
//! A front end (such as [`super::mmio`]) names registers and owns their layout; vCPU threads
//! come in through it. The event loop's [`super::subscriber`] and the control socket call the rest.
//!
//! The driver is not trusted with anything: a write that the specification does not allow in the
//! present state changes nothing, and the driver sees that when it reads the register back. What a
//! driver does wrong on a queue ends in `DEVICE_NEEDS_RESET`, and costs only its own device.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_machine::control::Resize;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::{QueueError, Virtqueue};
use super::{
    Activation, COMMON_FEATURES, DeviceError, DeviceIo, DeviceType, Interest, Progress,
    ResizeError, VirtioDevice,
};

/// Status bits in the order in which a driver must set them (section 3.1.1).
const PROGRESS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// How a front end tells the driver that something happened. Called with the device locked: an
/// implementation takes no lock that is held while a register of the transport is accessed.
pub trait Interrupt: Send + Sync {
    /// Used buffers wait in queue `index`.
    fn raise_queue(&self, index: usize);
    /// The status or the configuration changed.
    fn raise_config(&self);
    /// The driver has reset the device.
    fn reset(&self);
}

/// The transport could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The host has no descriptor left.
    #[error("cannot create an eventfd for a virtio device: {0}")]
    EventFd(#[from] io::Error),
    /// The device asks for an impossible queue.
    #[error("cannot create a virtqueue: {0}")]
    Queue(#[from] QueueError),
    /// The device has more queues than the transport has room for.
    #[error("{0} virtqueues are more than the transport holds")]
    TooManyQueues(usize),
}

/// The registers that all transports have, wherever they lie. Where one acts on a queue, it is the
/// one [`Self::QueueSelect`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Which 32 of the offered features [`Self::DeviceFeatures`] shows.
    DeviceFeaturesSelect,
    /// Offered features.
    DeviceFeatures,
    /// Which 32 of the accepted features [`Self::DriverFeatures`] is.
    DriverFeaturesSelect,
    /// Accepted features.
    DriverFeatures,
    /// Device status.
    Status,
    /// Changes with every change of the configuration space.
    ConfigGeneration,
    /// The queue that the registers below are about.
    QueueSelect,
    /// Largest size of the queue; 0: there is no such queue.
    QueueMaxSize,
    /// Size of the queue.
    QueueSize,
    /// The queue is in use.
    QueueReady,
    /// Lower half of the descriptor table's address.
    QueueDescLow,
    /// Upper half.
    QueueDescHigh,
    /// Lower half of the available ring's address.
    QueueAvailLow,
    /// Upper half.
    QueueAvailHigh,
    /// Lower half of the used ring's address.
    QueueUsedLow,
    /// Upper half.
    QueueUsedHigh,
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

/// One virtio device behind some front end.
pub struct Transport {
    device_type: DeviceType,
    queues_are_foreign: bool,
    interrupt: Arc<dyn Interrupt>,
    queue_events: Vec<EventFd>,
    wake: EventFd,
    state: Mutex<State>,
}

struct State {
    registers: Registers,
    queues: Vec<Virtqueue>,
    memory: GuestMemoryMmap,
    device: Box<dyn VirtioDevice>,
    fault: Option<DeviceError>,
}

impl Transport {
    /// Puts `device` behind a front end that interrupts through `interrupt`; its queues lie in
    /// `memory`.
    ///
    /// # Errors
    /// No descriptors left, or the device names an impossible queue size.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, TransportError> {
        let mut queues = Vec::new();
        let mut queue_events = Vec::new();
        for max_size in device.queue_max_sizes() {
            queues.push(Virtqueue::new(*max_size)?);
            queue_events.push(EventFd::new(EFD_NONBLOCK)?);
        }
        Ok(Self {
            device_type: device.device_type(),
            queues_are_foreign: device.queues_are_foreign(),
            interrupt,
            queue_events,
            wake: EventFd::new(EFD_NONBLOCK)?,
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

    /// One eventfd a queue, its doorbell, to register with `KVM_IOEVENTFD`. The transport also
    /// serves notifications that arrive as writes.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// Another process waits for the doorbells: nobody here may read them.
    pub fn queues_are_foreign(&self) -> bool {
        self.queues_are_foreign
    }

    /// Signalled when what the device waits for may have changed, and nothing else says so.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// What stopped the device until its next reset, for messages.
    pub fn fault(&self) -> Option<String> {
        self.state().fault.as_ref().map(ToString::to_string)
    }

    /// Name and value of each of the device's counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.state().device.counters()
    }

    /// Lets the device serve queue `index` for a turn.
    pub fn process_queue(&self, index: usize) -> Progress {
        self.turn(|device, io| device.process_queue(index, io))
    }

    /// Lets the device serve its backend `fd` for a turn.
    pub fn process_backend(&self, fd: RawFd) -> Progress {
        self.turn(|device, io| device.process_backend(fd, io))
    }

    /// Gives the device a new size; see [`VirtioDevice::resize`].
    ///
    /// # Errors
    /// See [`ResizeError`].
    pub fn resize(&self, resize: &Resize) -> Result<(), ResizeError> {
        let interrupt = self.interrupt.as_ref();
        let outcome = self
            .state()
            .work(interrupt, |device, io| device.resize(resize, io));
        self.wake();
        outcome
    }

    /// Brings the device to a point between two requests; see [`VirtioDevice::quiesce`].
    pub fn quiesce(&self) {
        let _ = self.turn(|device, io| device.quiesce(io).map(|()| Progress::Idle));
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

    /// Makes the event loop, or whoever else waits for it, serve queue `index`.
    pub fn signal(&self, index: usize) {
        if let Some(event) = self.queue_events.get(index) {
            // Only a full counter refuses the write, and then the eventfd is signalled anyway.
            let _ = event.write(1);
        }
    }

    /// Makes the event loop look again at what the device waits for.
    pub(super) fn wake(&self) {
        // As in `signal`.
        let _ = self.wake.write(1);
    }

    /// Fills `data` from the device's configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.state().device.read_config(offset, data);
    }

    /// Takes a write to the device's configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.state().device.write_config(offset, data);
    }

    /// The value of `register`.
    pub fn read_register(&self, register: Register) -> u32 {
        self.state().read_register(register)
    }

    /// Takes the driver's write; what the specification does not allow now has no effect.
    pub fn write_register(&self, register: Register, value: u32) {
        if register != Register::Status {
            self.state().write_register(register, value);
            return;
        }
        let mut state = self.state();
        if value == 0 {
            state.reset();
            self.interrupt.reset();
            drop(state);
            // The event loop learns that the device waits for nothing any more.
            self.wake();
            return;
        }
        if state.advance(value, &self.queue_events) {
            if state.fault.is_some() {
                self.interrupt.raise_config();
            }
            drop(state);
            self.wake();
            // Buffers may have been made available before `DRIVER_OK`, unnoticed.
            for index in 0..self.queue_events.len() {
                self.signal(index);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state holds no invariant that a panic elsewhere could break half-way: every value
        // in it is checked when it is used.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One turn of the device, if it is running.
    fn turn(
        &self,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo<'_>) -> Result<Progress, DeviceError>,
    ) -> Progress {
        let mut state = self.state();
        if !state.running() {
            return Progress::Idle;
        }
        let outcome = state.work(self.interrupt.as_ref(), work);
        outcome.unwrap_or_else(|error| {
            state.fail(error);
            self.interrupt.raise_config();
            Progress::Idle
        })
    }
}

impl State {
    fn running(&self) -> bool {
        self.registers.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    fn fail(&mut self, error: DeviceError) {
        self.registers.status |= NEEDS_RESET;
        self.fault = Some(error);
    }

    /// Calls the device, then tells the driver what came of it.
    fn work<T>(
        &mut self,
        interrupt: &dyn Interrupt,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo<'_>) -> T,
    ) -> T {
        let mut config_changed = false;
        let mut io = DeviceIo {
            memory: &self.memory,
            queues: &mut self.queues,
            config_changed: &mut config_changed,
        };
        let outcome = work(self.device.as_mut(), &mut io);
        for (index, queue) in self.queues.iter_mut().enumerate() {
            match queue.take_notification(&self.memory) {
                Ok(true) => interrupt.raise_queue(index),
                Ok(false) => {}
                Err(error) => {
                    self.registers.status |= NEEDS_RESET;
                    self.fault = Some(error.into());
                    interrupt.raise_config();
                }
            }
        }
        if config_changed {
            self.registers.config_generation = self.registers.config_generation.wrapping_add(1);
            // A driver that is not at work may not be interrupted, and reads it all later.
            if self.running() {
                interrupt.raise_config();
            }
        }
        outcome
    }

    fn read_register(&self, register: Register) -> u32 {
        let registers = &self.registers;
        let half = |select, value: u64| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        let ring = self.selected().map(Virtqueue::ring);
        match register {
            Register::DeviceFeaturesSelect => registers.device_features_sel,
            Register::DeviceFeatures => half(registers.device_features_sel, self.offered()),
            Register::DriverFeaturesSelect => registers.driver_features_sel,
            Register::DriverFeatures => {
                half(registers.driver_features_sel, registers.driver_features)
            }
            Register::Status => registers.status,
            Register::ConfigGeneration => registers.config_generation,
            Register::QueueSelect => registers.queue_sel,
            Register::QueueMaxSize => ring.map_or(0, |ring| ring.max_size().into()),
            Register::QueueSize => ring.map_or(0, |ring| ring.size().into()),
            Register::QueueReady => ring.map_or(0, |ring| ring.ready().into()),
            Register::QueueDescLow => ring.map_or(0, |ring| half(0, ring.desc_table())),
            Register::QueueDescHigh => ring.map_or(0, |ring| half(1, ring.desc_table())),
            Register::QueueAvailLow => ring.map_or(0, |ring| half(0, ring.avail_ring())),
            Register::QueueAvailHigh => ring.map_or(0, |ring| half(1, ring.avail_ring())),
            Register::QueueUsedLow => ring.map_or(0, |ring| half(0, ring.used_ring())),
            Register::QueueUsedHigh => ring.map_or(0, |ring| half(1, ring.used_ring())),
        }
    }

    fn write_register(&mut self, register: Register, value: u32) {
        match register {
            Register::DeviceFeaturesSelect => self.registers.device_features_sel = value,
            Register::DriverFeaturesSelect => self.registers.driver_features_sel = value,
            Register::DriverFeatures => self.write_driver_features(value),
            Register::QueueSelect => self.registers.queue_sel = value,
            Register::QueueReady if value == 0 => {
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
    fn configure_queue(&mut self, register: Register, value: u32) {
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
            Register::QueueSize => queue.set_size(u16::try_from(value).unwrap_or(0)),
            Register::QueueDescLow => queue.set_desc_table_address(Some(value), None),
            Register::QueueDescHigh => queue.set_desc_table_address(None, Some(value)),
            Register::QueueAvailLow => queue.set_avail_ring_address(Some(value), None),
            Register::QueueAvailHigh => queue.set_avail_ring_address(None, Some(value)),
            Register::QueueUsedLow => queue.set_used_ring_address(Some(value), None),
            Register::QueueUsedHigh => queue.set_used_ring_address(None, Some(value)),
            Register::QueueReady => {
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
            self.fail(error);
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
