//! PCI (PCI Local Bus 3.0): one bus of single functions behind a host bridge, their configuration
//! spaces, BARs and MSI-X, and hot plug by ACPI.
//!
//! [`host::PciHost`] routes; [`config::ConfigSpace`] and [`msix::Msix`] are what a function is made
//! of, a virtio device ([`crate::devices::virtio::pci`]) as well as one passed through: nothing here
//! knows virtio or KVM. There are no bridges, no I/O BARs and no interrupt pins.

pub mod config;
pub mod host;
pub mod hotplug;
pub mod msix;

use std::io;

use vmm_sys_util::eventfd::EventFd;

use msix::Message;

/// The bit of `slot` where each slot has one.
fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

/// A device on the bus: function 0 of its slot, and the only one.
///
/// vCPU threads call it, several at once; the host calls the configuration space one access at a
/// time.
pub trait PciFunction: Send + Sync {
    /// Fills `data` from the configuration space: 1, 2 or 4 bytes at `register`, aligned.
    fn read_config(&self, register: u16, data: &mut [u8]);

    /// Takes a write to the configuration space, of the same kind.
    fn write_config(&self, register: u16, data: &[u8]);

    /// The BARs there are.
    fn bars(&self) -> Vec<BarState>;

    /// Fills `data` from what BAR `bar` decodes.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Takes a write to what BAR `bar` decodes.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]);

    /// BAR `bar` answered at `from` and answers at `to` from now on; [`None`] is nowhere.
    fn bar_moved(&self, bar: u8, from: Option<u64>, to: Option<u64>);
}

/// A BAR of a function as it is programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarState {
    /// Its number, 0 to 5.
    pub bar: u8,
    /// Bytes it decodes, a power of two.
    pub size: u64,
    /// It has 64 bits, those of this register and the next.
    pub wide: bool,
    /// Where it is to answer; [`None`] when memory decoding is off.
    pub address: Option<u64>,
}

/// What a function needs of the machine.
pub trait Platform: Send + Sync {
    /// Interrupts a CPU.
    fn send(&self, message: Message);

    /// Makes a guest's write of any width to `address` signal `event`, without an exit.
    ///
    /// # Errors
    /// The host refuses; the write is then an exit.
    fn bind_doorbell(&self, event: &EventFd, address: u64) -> io::Result<()>;

    /// Undoes [`Self::bind_doorbell`].
    fn unbind_doorbell(&self, event: &EventFd, address: u64);
}

#[cfg(test)]
pub(crate) mod testing;
