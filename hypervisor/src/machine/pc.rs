//! The machines that speak PC: for Linux kernels the whole of one, for other PVH guests a bare CPU.
//!
//! A PC has KVM's interrupt controllers and timer, hardware-reduced ACPI, COM1, the reset line, with
//! `time` a CMOS clock, and virtio devices on IOAPIC pins of their own. Both kinds have the exit port.

use std::fs::File;
use std::sync::{Arc, Mutex};

use bulkhead_abi::machine::EXIT_PORT;
use bulkhead_machine::pc as layout;
use bulkhead_machine::{Fd, Image, Transport, trace as phase};
use kvm_ioctls::VcpuFd;

use super::{Parts, interrupts, pci, plug, registers, virtio};
use crate::boot::{linux, pvh, ram};
use crate::devices::exit::ExitPort;
use crate::devices::ged::{Ged, GedPorts};
use crate::devices::pit::{self, NoPit};
use crate::devices::pvpanic::PanicPort;
use crate::devices::reset::{AcpiPorts, KEYBOARD_COMMAND, KeyboardController};
use crate::devices::rtc::{self, Rtc};
use crate::devices::streams::Output;
use crate::devices::{serial, watchdog};
use crate::error::Error;

/// Where KVM may put three pages for real mode on older Intel CPUs, and one for its page table:
/// below the LAPICs, where nothing else is (KVM api.rst, KVM_SET_TSS_ADDR).
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// What a guest is started with: kernel, initial RAM filesystem, command line.
pub(super) struct Guest<'a>(pub(super) Fd, pub(super) Option<Fd>, pub(super) &'a str);

/// Builds a PC with the tables in `acpi`; its boot CPU is ready to run.
pub(super) fn build(
    parts: &mut Parts<'_>,
    guest: &Guest<'_>,
    acpi: Fd,
) -> Result<Vec<VcpuFd>, Error> {
    parts
        .vm
        .set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    parts
        .vm
        .set_tss_address(TSS_ADDRESS)
        .map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    interrupts::create_pc_controllers(&parts.vm)?;
    let (vcpus, features) = parts.create_vcpus(true)?;
    let boot_cpu = vcpus.first().ok_or(Error::NoVcpu)?;
    parts.trace.mark(phase::VCPU);

    add_serial(parts, true)?;
    let reset = KeyboardController::new(parts.ending.clone());
    parts.add_ports(KEYBOARD_COMMAND, 1, reset)?;
    parts.add_ports(pit::PORTS, pit::PORT_COUNT, NoPit)?;
    let (first, count) = (layout::reset::ACPI_PORTS, layout::reset::ACPI_PORT_COUNT);
    parts.add_ports(first, count, AcpiPorts::new(parts.ending.clone()))?;
    let clock = Rtc::new(parts.description.time);
    parts.add_ports(rtc::PORTS, rtc::PORT_COUNT, clock)?;
    parts.add_ports(EXIT_PORT, 1, ExitPort::new(parts.ending.clone()))?;
    let panic_port = PanicPort::new(parts.notices.clone());
    parts.add_ports(layout::pvpanic::PORT, 1, panic_port)?;
    add_watchdog(parts)?;
    if parts.description.transport == Transport::Pci {
        let ged = add_ged(parts)?;
        let pci = pci::build(parts, ged)?;
        parts.plug.set_pci(pci);
        parts.room += plug::ROOM;
    }
    let pins: Vec<u32> = layout::device_pins().collect();
    virtio::add(parts, true, &pins)?;
    parts.trace.mark(phase::DEVICES);

    let acpi = parts.descriptors.take("the ACPI tables", acpi)?;
    let (kernel, initrd) = open(parts, guest)?;
    let map = ram::pc_map(&parts.ram);
    let rsdp = ram::load_acpi(&parts.memory, &acpi)?;
    ram::write_reset_code(&parts.memory)?;
    ram::write_generation_id(&parts.memory)?;
    let cmdline = cmdline(parts, guest.2, boot_cpu)?;
    let (memory, initrd) = (&parts.memory, initrd.as_ref());
    let entry = if let Some(image) = pvh_image(parts) {
        let entry = pvh::load(memory, &kernel, image, initrd, &cmdline, &map, Some(rsdp))?;
        registers::Entry::Pvh(entry)
    } else {
        let image = parts.description.image.as_ref();
        let entry = linux::load(memory, &kernel, image, initrd, &cmdline, &map, rsdp)?;
        registers::Entry::Linux(entry)
    };
    parts.trace.mark(phase::LOAD);
    registers::set(boot_cpu, entry, features)?;
    Ok(vcpus)
}

/// Builds a machine with nothing but CPU, RAM, COM1 and the exit port.
pub(super) fn build_bare(parts: &mut Parts<'_>, guest: &Guest<'_>) -> Result<Vec<VcpuFd>, Error> {
    if parts.description.vcpus != 1 {
        return Err(Error::Description(
            "a bare machine has one vcpu: there is nothing to start others with".into(),
        ));
    }
    if parts.description.entropy || !parts.description.devices.is_empty() {
        return Err(Error::Description(
            "a bare machine has no virtio devices".into(),
        ));
    }
    let (vcpus, features) = parts.create_vcpus(false)?;
    let boot_cpu = vcpus.first().ok_or(Error::NoVcpu)?;
    parts.trace.mark(phase::VCPU);
    add_serial(parts, false)?;
    parts.add_ports(EXIT_PORT, 1, ExitPort::new(parts.ending.clone()))?;
    parts.trace.mark(phase::DEVICES);
    let (kernel, initrd) = open(parts, guest)?;
    let map = ram::bare_map(&parts.ram);
    let image = pvh_image(parts)
        .ok_or_else(|| Error::Description("its kernel image has no PVH entry".into()))?;
    let (memory, initrd) = (&parts.memory, initrd.as_ref());
    let entry = pvh::load(memory, &kernel, image, initrd, guest.2, &map, None)?;
    parts.trace.mark(phase::LOAD);
    registers::set(boot_cpu, registers::Entry::Pvh(entry), features)?;
    Ok(vcpus)
}

/// The kernel image and its PVH entry point, where it has one.
fn pvh_image<'a>(parts: &Parts<'a>) -> Option<(&'a Image, u32)> {
    let image = parts.description.image.as_ref()?;
    Some((image, image.pvh_entry?))
}

fn open(parts: &mut Parts<'_>, guest: &Guest<'_>) -> Result<(File, Option<File>), Error> {
    let kernel = parts.descriptors.take("the kernel", guest.0)?;
    let initrd = match guest.1 {
        Some(fd) => Some(parts.descriptors.take("the initial RAM filesystem", fd)?),
        None => None,
    };
    Ok((kernel, initrd))
}

/// What the kernel is told. Without `time` there is no kvmclock, and hardware-reduced ACPI leaves
/// Linux no timer it could measure the TSC with: it is told the frequency.
fn cmdline(parts: &Parts<'_>, given: &str, boot_cpu: &VcpuFd) -> Result<String, Error> {
    if parts.description.time {
        return Ok(given.into());
    }
    let khz = boot_cpu
        .get_tsc_khz()
        .map_err(Error::kvm("KVM_GET_TSC_KHZ"))?;
    let tsc = format!("tsc_early_khz={khz} tsc=reliable");
    // Behind ` -- ` stand the arguments of init.
    let (kernel, init) = given.split_at(given.find(" -- ").unwrap_or(given.len()));
    Ok(format!("{kernel} {tsc}{init}"))
}

/// COM1, with the `console` grant. On a PC its input is the virtio console's to take.
fn add_serial(parts: &mut Parts<'_>, is_pc: bool) -> Result<(), Error> {
    let Some(console) = &parts.description.console else {
        return Ok(());
    };
    let output = parts.descriptors.take("console output", console.output)?;
    let output = Output::new(output, parts.ending.clone(), parts.trace.clone());
    let line = if is_pc {
        Some(interrupts::line(&parts.vm, layout::serial::PIN)?)
    } else {
        None
    };
    let input = match console.input {
        Some(fd) if !is_pc => Some(parts.descriptors.take("console input", fd)?),
        _ => None,
    };
    let (port, pump) = serial::build(output, line, input)?;
    if let Some(pump) = pump {
        parts.tasks.push(Box::new(pump));
    }
    let (first, count) = (layout::serial::PORTS, layout::serial::PORT_COUNT);
    Ok(parts.ports.insert(first, count, port)?)
}

fn add_watchdog(parts: &mut Parts<'_>) -> Result<(), Error> {
    if !parts.description.watchdog {
        return Ok(());
    }
    let (ports, timer) = watchdog::build(parts.notices.clone(), parts.ending.clone())?;
    parts.tasks.push(Box::new(timer));
    let (first, count) = (layout::watchdog::PORTS, layout::watchdog::PORT_COUNT);
    parts.add_ports(first, count, ports)
}

/// The generic event device.
fn add_ged(parts: &Parts<'_>) -> Result<Arc<Ged>, Error> {
    let ged = Arc::new(Ged::new(interrupts::line(&parts.vm, layout::ged::PIN)?));
    let causes = Arc::new(Mutex::new(GedPorts(ged.clone())));
    let (first, count) = (layout::ged::PORTS, layout::ged::PORT_COUNT);
    parts.ports.insert_wide(first, count, causes)?;
    Ok(ged)
}
