//! Interrupt controllers, and the eventfds that raise interrupts in a guest.
//!
//! Three machines: none at all, LAPICs alone with messages as the only way in (Bulkhead kernels), or
//! the PC's PIC, IOAPIC and LAPICs (Linux). All are KVM's own. They are created after the
//! memory slots: see [`super::memory::register`].

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::Error;

/// Message address that reaches the LAPIC of CPU 0 (Intel SDM volume 3, section 11.11.1).
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// Gives `vm` LAPICs; interrupts from devices come as messages.
///
/// # Errors
/// [`Error::Kvm`].
pub fn create_lapics(vm: &VmFd) -> Result<(), Error> {
    let mut capability = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..kvm_enable_cap::default()
    };
    // No GSI is kept for an IOAPIC in this process: there is none.
    capability.args[0] = 0;
    vm.enable_cap(&capability)
        .map_err(Error::kvm("KVM_CAP_SPLIT_IRQCHIP"))
}

/// Gives `vm` the PC's interrupt controllers. It has no PIT: a hardware-reduced PC has none, Linux
/// takes its time from the LAPIC, and a guest could make KVM's PIT wake the host every 200 us.
///
/// # Errors
/// [`Error::Kvm`].
pub fn create_pc_controllers(vm: &VmFd) -> Result<(), Error> {
    vm.create_irq_chip()
        .map_err(Error::kvm("KVM_CREATE_IRQCHIP"))
}

/// Raises `vector` on CPU 0 at once. A vector raised from this process needs no route, and a route
/// costs milliseconds on some hosts.
///
/// # Errors
/// [`Error::Kvm`].
pub fn raise_message(vm: &VmFd, vector: u8) -> Result<(), Error> {
    let message = kvm_msi {
        address_lo: MSI_ADDRESS,
        data: vector.into(),
        ..kvm_msi::default()
    };
    // Zero: the guest keeps the vector masked. That is its own affair.
    vm.signal_msi(message)
        .map(drop)
        .map_err(Error::kvm("KVM_SIGNAL_MSI"))
}

/// Makes GSI n raise `vectors[n]` on CPU 0. Only for machines with LAPICs alone.
///
/// # Errors
/// [`Error::Kvm`], or more vectors than KVM routes.
pub fn route_messages(vm: &VmFd, vectors: &[u8]) -> Result<(), Error> {
    let entries: Vec<_> = (0..)
        .zip(vectors)
        .map(|(gsi, v)| message(gsi, *v))
        .collect();
    let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| Error::TooMany {
        what: "interrupt routes",
        count: entries.len(),
        max: 4096,
    })?;
    vm.set_gsi_routing(&routing)
        .map_err(Error::kvm("KVM_SET_GSI_ROUTING"))
}

fn message(gsi: u32, vector: u8) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.msi.address_lo = MSI_ADDRESS;
    // Fixed delivery, edge: the vector is all there is (section 11.11.2).
    entry.u.msi.__bindgen_anon_1 = Default::default();
    entry.u.msi.data = vector.into();
    entry
}

/// An eventfd that raises `gsi` when it is written.
///
/// # Errors
/// [`Error::Kvm`], or the host gives no eventfd.
pub fn line(vm: &VmFd, gsi: u32) -> Result<EventFd, Error> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(Error::io("cannot make an eventfd"))?;
    vm.register_irqfd(&event, gsi)
        .map_err(Error::kvm("KVM_IRQFD"))?;
    Ok(event)
}
