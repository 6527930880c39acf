//! The interrupt of a virtio-mmio device: a status word the driver reads and acknowledges, and an
//! eventfd that KVM turns into an interrupt (irqfd). Called by the transport.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::transport::Interrupt;

/// See the module. Edge-triggered: each cause signals the eventfd once.
#[derive(Debug)]
pub struct StatusInterrupt {
    status: AtomicU32,
    event: EventFd,
}

impl StatusInterrupt {
    /// An interrupt that is not raised.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            status: AtomicU32::new(0),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// The eventfd to register with `KVM_IRQFD`.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::SeqCst);
        // Only a full counter (2^64 - 2 raises that nobody read) refuses the write, and then the
        // eventfd is signalled anyway.
        let _ = self.event.write(1);
    }

    /// `InterruptStatus`: the causes that are not acknowledged.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// `InterruptACK`: forgets `causes`.
    pub fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::SeqCst);
    }
}

impl Interrupt for StatusInterrupt {
    fn raise_queue(&self, _index: usize) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn raise_config(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_accumulate_until_acknowledged() {
        let interrupt = StatusInterrupt::new().unwrap();
        assert_eq!(interrupt.status(), 0);
        assert!(interrupt.event().read().is_err(), "not signalled yet");
        interrupt.raise_queue(0);
        interrupt.raise_config();
        assert_eq!(
            interrupt.status(),
            VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG
        );
        assert_eq!(interrupt.event().read().unwrap(), 2);
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING | 0xff00);
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_CONFIG);
        interrupt.reset();
        assert_eq!(interrupt.status(), 0);
    }
}
