//! The PCI bus of a PC: its windows, and KVM behind its functions.
//!
//! docs/devices.md has the address map. An interrupt of a function is a message sent at once
//! (`KVM_SIGNAL_MSI`): no route has to be made for it, which costs milliseconds on some hosts. A device
//! whose interrupts are raised by somebody else, as one passed through, will route an irqfd of its own
//! for each vector ([`crate::devices::pci::msix`]).

use std::io;
use std::sync::{Arc, Mutex};

use bulkhead_machine::pc::pci::{
    CONFIG_PORT_COUNT, CONFIG_PORTS, HOT_PLUG_PORT_COUNT, HOT_PLUG_PORTS, WINDOW,
};
use kvm_bindings::kvm_msi;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Parts;
use crate::devices::ged::Ged;
use crate::devices::pci::Platform;
use crate::devices::pci::host::{ConfigPorts, PciHost};
use crate::devices::pci::hotplug::{HotPlug, HotPlugPorts};
use crate::devices::pci::msix::Message;
use crate::error::Error;

/// The bus, and what functions on it need.
pub(super) struct Pci {
    pub(super) host: Arc<PciHost>,
    pub(super) hotplug: Arc<HotPlug>,
    pub(super) platform: Arc<dyn Platform>,
}

/// Puts an empty bus into the machine; `ged` tells the guest of its changes.
///
/// # Errors
/// The host refuses.
pub(super) fn build(parts: &Parts<'_>, ged: Arc<Ged>) -> Result<Pci, Error> {
    let host = Arc::new(PciHost::new(parts.mmio.clone(), vec![WINDOW]));
    let event = EventFd::new(EFD_NONBLOCK).map_err(Error::io("cannot make an eventfd"))?;
    let hotplug = Arc::new(HotPlug::new(host.clone(), ged, event));
    let ports = &parts.ports;
    let config = Arc::new(Mutex::new(ConfigPorts::new(host.clone())));
    ports.insert_wide(CONFIG_PORTS, CONFIG_PORT_COUNT, config)?;
    let slots = Arc::new(Mutex::new(HotPlugPorts(hotplug.clone())));
    ports.insert_wide(HOT_PLUG_PORTS, HOT_PLUG_PORT_COUNT, slots)?;
    Ok(Pci {
        host,
        hotplug,
        platform: Arc::new(KvmPlatform(parts.vm.clone())),
    })
}

struct KvmPlatform(Arc<VmFd>);

impl Platform for KvmPlatform {
    fn send(&self, message: Message) {
        // A guest that sends its messages nowhere loses them, as on a PC.
        let _ = self.0.signal_msi(kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..kvm_msi::default()
        });
    }

    fn bind_doorbell(&self, event: &EventFd, address: u64) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.register_ioevent(event, &address, NoDatamatch)?)
    }

    fn unbind_doorbell(&self, event: &EventFd, address: u64) {
        // One that could not be bound is not there.
        let address = IoEventAddress::Mmio(address);
        let _ = self.0.unregister_ioevent(event, &address, NoDatamatch);
    }
}
