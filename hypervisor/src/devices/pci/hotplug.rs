//! Hot plug of PCI devices by ACPI: three registers that the methods in the DSDT use, after a
//! notification through the generic event device. docs/devices.md describes them.
//!
//! The guest reads which slots have got a device, and which devices it is asked to let go of; it
//! writes which it has let go of (`_EJ0`). The event loop asks and is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_machine::pc::ged::Cause;
use bulkhead_machine::pc::pci::SLOTS;
use vmm_sys_util::eventfd::EventFd;

use super::bit;
use super::host::PciHost;
use crate::devices::ged::Ged;
use crate::machine::bus::BusDevice;

/// Offset of the slots that have got a device since the last read.
pub const ADDED: u64 = 0;
/// Offset of the slots whose device the guest is asked to let go of since the last read.
pub const EJECT_REQUESTED: u64 = 4;
/// Offset to which the guest writes the slots it has let go of.
pub const EJECT: u64 = 8;

/// See the module.
pub struct HotPlug {
    host: Arc<PciHost>,
    ged: Arc<Ged>,
    added: AtomicU32,
    eject_requested: AtomicU32,
    event: EventFd,
}

impl HotPlug {
    /// Hot plug on the bus of `host`; `event` is signalled when the guest has let go of a device.
    pub fn new(host: Arc<PciHost>, ged: Arc<Ged>, event: EventFd) -> Self {
        Self {
            host,
            ged,
            added: AtomicU32::new(0),
            eject_requested: AtomicU32::new(0),
            event,
        }
    }

    /// Tells the guest of the device in `slot`. It is not asked to let go of it, whatever it was
    /// asked of the device before.
    pub fn announce(&self, slot: u8) {
        self.eject_requested.fetch_and(!bit(slot), Ordering::SeqCst);
        self.added.fetch_or(bit(slot), Ordering::SeqCst);
        self.ged.raise(Cause::PciHotPlug);
    }

    /// Asks the guest to let go of the device in `slot`.
    pub fn request_eject(&self, slot: u8) {
        self.eject_requested.fetch_or(bit(slot), Ordering::SeqCst);
        self.ged.raise(Cause::PciHotPlug);
    }

    /// Signalled when [`Self::take_ejected`] has something.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The slots whose device has left the bus since the last call, from the lowest.
    pub fn take_ejected(&self) -> impl Iterator<Item = u8> {
        self.host.take_removed()
    }

    fn eject(&self, slots: u32) {
        for slot in (0..SLOTS).filter(|slot| slots & bit(*slot) != 0) {
            if self.host.remove(slot).is_some() {
                // A full counter is signalled already.
                let _ = self.event.write(1);
            }
        }
    }
}

/// The registers on the port bus.
pub struct HotPlugPorts(pub Arc<HotPlug>);

impl BusDevice for HotPlugPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Ok(word) = <&mut [u8; 4]>::try_from(&mut *data) else {
            data.fill(0xff);
            return;
        };
        let value = match offset {
            ADDED => self.0.added.swap(0, Ordering::SeqCst),
            EJECT_REQUESTED => self.0.eject_requested.swap(0, Ordering::SeqCst),
            _ => 0,
        };
        *word = value.to_le_bytes();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (EJECT, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            self.0.eject(u32::from_le_bytes(word));
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::super::testing::Function;
    use super::*;
    use crate::machine::bus::Bus;

    #[test]
    fn a_request_to_let_go_of_one_device_is_not_heard_by_the_next() {
        let host = Arc::new(PciHost::new(Arc::new(Bus::default()), Vec::new()));
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let hotplug = Arc::new(HotPlug::new(
            host.clone(),
            Arc::new(Ged::new(event())),
            event(),
        ));
        let slot = host.insert(Function::new(&[])).unwrap();
        let mut ports = HotPlugPorts(hotplug.clone());
        ports.write(EJECT, &[0xff; 4]);
        hotplug.request_eject(slot);
        assert_eq!(hotplug.take_ejected().collect::<Vec<_>>(), [slot]);
        assert_eq!(host.insert(Function::new(&[])), Ok(slot));
        hotplug.announce(slot);
        let mut word = [0xee; 4];
        ports.read(EJECT_REQUESTED, &mut word);
        assert_eq!(word, [0; 4]);
    }

    #[test]
    fn slots_come_and_go() {
        let window = 0xc000_0000..0xd000_0000;
        let host = Arc::new(PciHost::new(Arc::new(Bus::default()), vec![window]));
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let ged = Arc::new(Ged::new(line.try_clone().unwrap()));
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let hotplug = Arc::new(HotPlug::new(host.clone(), ged, event));
        let mut ports = HotPlugPorts(hotplug.clone());
        let mut read = |offset| {
            let mut word = [0xee; 4];
            ports.read(offset, &mut word);
            u32::from_le_bytes(word)
        };
        let slot = host.insert(Function::new(&[(0, 0x1000, false)])).unwrap();
        hotplug.announce(slot);
        assert_eq!(line.read().unwrap(), 1);
        assert_eq!((read(ADDED), read(ADDED), read(EJECT_REQUESTED)), (2, 0, 0));
        hotplug.request_eject(slot);
        assert_eq!(
            (read(EJECT_REQUESTED), read(EJECT_REQUESTED), read(EJECT)),
            (2, 0, 0)
        );
        assert_eq!(hotplug.take_ejected().count(), 0);
        // All at once, and slots where nobody is.
        HotPlugPorts(hotplug.clone()).write(EJECT, &[0xff; 4]);
        assert_eq!(hotplug.event().read().unwrap(), 1);
        assert_eq!(hotplug.take_ejected().collect::<Vec<_>>(), [slot]);
        HotPlugPorts(hotplug.clone()).write(EJECT, &[0xff; 4]);
        assert_eq!(hotplug.take_ejected().count(), 0);
        let mut bridge = [0; 2];
        host.read_config(0, 0, &mut bridge);
        assert_eq!(bridge, [0x36, 0x1b], "the host bridge stays");
    }
}
