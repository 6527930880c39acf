//! Virtio 1.2 devices, and what connects them: queues, the interrupt, the MMIO transport, and the
//! adapter to the event loop.
//!
//! The machine builds a device, wraps it in an [`mmio::MmioTransport`], puts the transport on the
//! MMIO bus and a [`subscriber::VirtioSubscriber`] into the event loop; it never calls a device.
//! Devices know nothing of transports, interrupts' delivery or the event loop.

pub mod blk;
pub mod console;
pub mod interrupt;
pub mod mmio;
pub mod queue;
pub mod rng;
pub mod subscriber;
#[cfg(test)]
mod testing;

use std::os::fd::RawFd;
use std::time::Duration;

use virtio_bindings::{virtio_config, virtio_ids, virtio_ring};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

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

/// Why a device cannot go on; always the driver's fault. The transport answers with
/// `DEVICE_NEEDS_RESET` (virtio 1.2, section 2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The queue or a chain on it breaks the format.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Guest memory could not be accessed after all.
    #[error("guest memory of a request is not accessible: {0}")]
    Memory(#[from] std::io::Error),
    /// A well-formed chain that holds no request this device can answer.
    #[error("the request has no room for its answer")]
    Unanswerable,
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
/// The transport calls `activate` when the driver has set `DRIVER_OK`, with the negotiated
/// features, and guarantees that they are a subset of what was offered. `read_config` and
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

    /// Takes a driver's write to the configuration space. None of today's devices has a writable
    /// field: the default ignores it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready; `features` are the negotiated ones.
    fn activate(&mut self, features: u64);

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
