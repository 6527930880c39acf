//! Virtio 1.2 devices, and what connects them: queues, the transport and its front ends, and the
//! adapter to the event loop.
//!
//! The machine builds a device, puts it behind a front end ([`mmio::MmioTransport`]), that on
//! a bus and a [`subscriber::VirtioSubscriber`] into the event loop; it never calls a device.
//! Devices know nothing of transports, interrupts' delivery or the event loop.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod interrupt;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod subscriber;
#[cfg(test)]
mod testing;
pub mod transport;
mod vectored;
pub mod vhost_user;
pub mod vsock;

use std::os::fd::RawFd;
use std::time::Duration;

use bulkhead_machine::control::Resize;
use virtio_bindings::{virtio_config, virtio_ids, virtio_ring};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use queue::{QueueError, Virtqueue};

/// Device types (virtio 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    /// Block device, section 5.2.
    Block = virtio_ids::VIRTIO_ID_BLOCK,
    /// Console, section 5.3.
    Console = virtio_ids::VIRTIO_ID_CONSOLE,
    /// Entropy source, section 5.4.
    Entropy = virtio_ids::VIRTIO_ID_RNG,
    /// Network interface, section 5.1.
    Net = virtio_ids::VIRTIO_ID_NET,
    /// Traditional memory balloon, section 5.5.
    Balloon = virtio_ids::VIRTIO_ID_BALLOON,
    /// Sockets, section 5.10.
    Vsock = virtio_ids::VIRTIO_ID_VSOCK,
    /// File system, section 5.11.
    Fs = virtio_ids::VIRTIO_ID_FS,
    /// Memory, section 5.15.
    Mem = virtio_ids::VIRTIO_ID_MEM,
    /// Persistent memory, section 5.19 of virtio 1.3.
    Pmem = virtio_ids::VIRTIO_ID_PMEM,
}

/// Feature bits every device offers, whatever it is: a modern device, indirect descriptors, and
/// event indices to suppress needless notifications (virtio 1.2, section 6).
pub const COMMON_FEATURES: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1
    | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
    | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// Most bytes a device moves before it gives the event loop back, so that a guest that refills its
/// queue as fast as it is served cannot starve the control socket. A single request may be longer
/// only where its device says so.
pub const TURN_BYTES: u64 = 16 * 1024 * 1024;

/// Longest time for which a device whose host side may make it wait begins further requests in a
/// turn.
pub const TURN_TIME: Duration = Duration::from_millis(20);

/// What a device may touch while it works on its queues.
pub struct DeviceIo<'a> {
    /// Guest memory.
    pub memory: &'a GuestMemoryMmap,
    /// The device's queues, by index; one that the driver did not enable yields nothing.
    pub queues: &'a mut [Virtqueue],
    /// Set by the device when its configuration space has changed: the driver is told.
    pub config_changed: &'a mut bool,
}

/// What a device gets when its driver is ready.
pub struct Activation<'a> {
    /// The negotiated features: a subset of what was offered.
    pub features: u64,
    /// Guest memory.
    pub memory: &'a GuestMemoryMmap,
    /// The device's queues, by index, as the driver has set them up.
    pub queues: &'a mut [Virtqueue],
    /// The eventfd of each queue's doorbell. A device that serves its queues itself leaves them
    /// alone; one whose queues are foreign ([`VirtioDevice::queues_are_foreign`]) hands them on.
    pub doorbells: &'a [EventFd],
}

/// Whether a device has work left that nothing will announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All done, or waiting for a notification or a backend.
    Idle,
    /// The turn's share is used up; call again.
    More,
}

/// A host descriptor a device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The descriptor; open as long as the device lives.
    pub fd: RawFd,
    /// Readiness to wait for, level-triggered.
    pub events: EventSet,
}

/// Why a device cannot go on: the driver's fault, or a foreign back end's. The transport answers with
/// `DEVICE_NEEDS_RESET` (virtio 1.2, section 2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The queue or a chain on it breaks the format.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Guest memory could not be accessed after all.
    #[error("guest memory of a request is not accessible: {0}")]
    Memory(#[from] std::io::Error),
    /// What stands behind the device does not answer, or not as it should.
    #[error("the back end failed: {0}")]
    Backend(String),
    /// A well-formed chain that holds no request this device can answer.
    #[error("the request has no room for its answer")]
    Unanswerable,
}

/// Why a size is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The device has no size that changes.
    #[error("this device has no size to change")]
    Fixed,
    /// The size is not one the device can have; the text says which can.
    #[error("{0}")]
    OutOfRange(String),
    /// The host refused.
    #[error("the host refuses the new size: {0}")]
    Host(#[from] std::io::Error),
}

impl ResizeError {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Fixed => "resize-unsupported",
            Self::OutOfRange(_) => "resize-out-of-range",
            Self::Host(_) => "resize-failed",
        }
    }
}

/// A virtio device as its transport sees it.
///
/// ```text
///              activate                  process_queue, process_backend
///   inactive ------------> active  <------------------------------------+
///      ^                   |    |                                       |
///      |       reset       |    +---------------------------------------+
///      +-------------------+
///      |                   | a process_* call fails
///      |       reset       v
///      +-------------- needs reset     (no calls but reset and read_config)
/// ```
///
/// The transport calls `activate` when the driver has set `DRIVER_OK`, and guarantees that the
/// features are a subset of what was offered. `read_config` and
/// `write_config` may come in any state. `reset` returns the device to its state at construction,
/// except for what the host side has irrevocably done (input consumed, disk written).
pub trait VirtioDevice: Send {
    /// The device's type.
    fn device_type(&self) -> DeviceType;

    /// Device-specific feature bits it offers; the transport adds [`COMMON_FEATURES`].
    fn features(&self) -> u64;

    /// Largest size of each queue, each a power of two; its length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Fills `data` from the configuration space at `offset`; bytes past its end are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes a driver's write to the configuration space. Few devices have a writable field: the
    /// default ignores it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready.
    ///
    /// # Errors
    /// The device cannot be brought up with what the driver has set; it needs a reset.
    fn activate(&mut self, activation: Activation<'_>) -> Result<(), DeviceError>;

    /// Another process serves the queues and waits for their doorbells: `process_queue` is never
    /// called.
    fn queues_are_foreign(&self) -> bool {
        false
    }

    /// Name and value of each counter, for the supervisor.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Takes the size that the supervisor asks for, in any state: a driver that is not ready yet
    /// finds it when it is. A device whose configuration space shows it sets
    /// [`DeviceIo::config_changed`]. `resize` is of the kind that this device has.
    ///
    /// # Errors
    /// See [`ResizeError`]; nothing has changed then.
    fn resize(&mut self, _resize: &Resize, _io: &mut DeviceIo<'_>) -> Result<(), ResizeError> {
        Err(ResizeError::Fixed)
    }

    /// Brings the device to a point between two requests, because the partition pauses: requests
    /// that somebody else works on (io_uring, a foreign back end) are completed before it returns;
    /// what waits in a queue or for a descriptor stays where it is. No call follows but `counters`,
    /// `resize` and `read_config` until the partition goes on; then the event loop serves the device
    /// as before.
    ///
    /// # Errors
    /// As [`Self::process_queue`].
    fn quiesce(&mut self, _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Serves queue `index`, which the driver has notified (or might have).
    ///
    /// # Errors
    /// The driver broke the protocol; the device needs a reset.
    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError>;

    /// Host descriptors to wait for now, at most one entry for each descriptor.
    fn interests(&self) -> Vec<Interest> {
        Vec::new()
    }

    /// A descriptor of [`Self::interests`] is ready.
    ///
    /// # Errors
    /// As [`Self::process_queue`].
    fn process_backend(
        &mut self,
        _fd: RawFd,
        _io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        Ok(Progress::Idle)
    }

    /// Back to inactive.
    fn reset(&mut self);
}

/// Serves `config`, the bytes of a configuration space, to a read of `data.len()` bytes at
/// `offset`.
fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(tail) = usize::try_from(offset)
        .ok()
        .and_then(|start| config.get(start..))
    else {
        return;
    };
    for (to, from) in data.iter_mut().zip(tail) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_reads_stay_inside() {
        let config = [1, 2, 3, 4];
        for (offset, expected) in [
            (0, [1, 2]),
            (2, [3, 4]),
            (3, [4, 0]),
            (4, [0, 0]),
            (u64::MAX, [0, 0]),
        ] {
            let mut data = [0xff; 2];
            read_config_bytes(&config, offset, &mut data);
            assert_eq!(data, expected, "at {offset}");
        }
    }
}
