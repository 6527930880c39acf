//! The ACPI tables of a hardware-reduced PC: what is there, where, and on which interrupt (ACPI 6.4).
//!
//! Whoever starts a VMM makes them from the description and hands them over as a file; the VMM puts
//! the bytes where [`bulkhead_machine::pc`] says, and knows nothing of ACPI. RSDP, XSDT, FADT, MADT,
//! WDAT and a DSDT, whose part about PCI is in `pci.rs`. There is no SCI and no power-management timer.
#![forbid(unsafe_code)]

mod pci;
mod platform;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use bulkhead_abi::machine::{VIRTIO_MMIO_BASE, VIRTIO_MMIO_STRIDE};
use bulkhead_machine::pc::{ACPI_TABLES, device_pins, reset, serial};
use bulkhead_machine::{Boot, Fd, MachineDescription, Transport};
use rustix::fs::{MemfdFlags, memfd_create};

const OEM: [u8; 6] = *b"BULKHD";
const TABLE: [u8; 8] = *b"BULKHEAD";
const REVISION: u32 = 1;
/// Where KVM puts its IOAPIC and LAPICs.
const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
const LAPIC_ADDRESS: u32 = 0xfee0_0000;
/// IAPC_BOOT_ARCH (table 5.10): "VGA not present" and "CMOS RTC not present".
const NO_VGA: u16 = 1 << 2;
const NO_RTC: u16 = 1 << 5;
/// DSDT revision from which integers have 64 bits.
const DSDT_REVISION: u8 = 2;

/// The tables of the PC that `description` describes, as they lie from [`ACPI_TABLES`] on.
pub fn tables(description: &MachineDescription) -> Vec<u8> {
    let mut blob = Blob::default();
    let rsdp_len = Rsdp::len();
    blob.bytes.resize(rsdp_len, 0);
    let dsdt = blob.add(dsdt(description).as_slice());
    let fadt = blob.add(&bytes_of(&fadt(description.time, dsdt)));
    let madt = blob.add(&bytes_of(&madt(description.vcpus)));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if description.watchdog {
        xsdt.add_entry(blob.add(platform::watchdog_table().as_slice()));
    }
    let xsdt = blob.add(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    blob.bytes.splice(..rsdp_len, rsdp);
    blob.bytes
}

/// [`tables`] in a file in memory.
///
/// # Errors
/// The host gives none.
pub fn file(description: &MachineDescription) -> io::Result<File> {
    let file = File::from(memfd_create("acpi", MemfdFlags::CLOEXEC)?);
    file.write_all_at(&tables(description), 0)?;
    Ok(file)
}

/// Gives a PC its tables: `pass` hands them to the VMM, by [`file()`], and says under which number it has
/// them. Other machines have no tables.
///
/// # Errors
/// Those of `pass`.
pub fn provide<E>(
    description: &mut MachineDescription,
    pass: impl FnOnce(&MachineDescription) -> Result<Fd, E>,
) -> Result<(), E> {
    if !matches!(description.boot, Boot::Linux { .. }) {
        return Ok(());
    }
    let number = pass(description)?;
    if let Boot::Linux { acpi, .. } = &mut description.boot {
        *acpi = number;
    }
    Ok(())
}

/// How many virtio devices it has in windows.
fn windows(description: &MachineDescription) -> usize {
    match description.transport {
        Transport::Pci => 0,
        Transport::Mmio => {
            usize::from(description.console.is_some())
                + usize::from(description.entropy)
                + usize::from(description.memory.pluggable_mib > 0)
                + description.devices.len()
        }
    }
}

/// The tables one behind the other.
#[derive(Default)]
struct Blob {
    bytes: Vec<u8>,
}

impl Blob {
    /// Appends a table on 16 bytes; its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = ACPI_TABLES + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(offset: u16) -> GAS {
    let address = u64::from(reset::ACPI_PORTS + offset);
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address,
    )
}

fn fadt(has_rtc: bool, dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.sleep_control_reg = port(reset::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(reset::SLEEP_STATUS);
    fadt.reset_reg = port(reset::RESET);
    fadt.reset_value = reset::RESET_VALUE;
    let no_rtc = if has_rtc { 0 } else { NO_RTC };
    fadt.iapc_boot_arch = (NO_VGA | no_rtc).into();
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    fadt.finalize()
}

fn madt(cpus: u32) -> MADT {
    let lapics = LocalInterruptController::Address(LAPIC_ADDRESS);
    let mut madt = MADT::new(OEM, TABLE, REVISION, lapics);
    for cpu in 0..cpus.min(255) as u8 {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_ADDRESS, 0));
    madt
}

fn dsdt(description: &MachineDescription) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, TABLE, REVISION);
    let s5 = aml::Package::new(vec![&reset::SLEEP_TYPE_S5]);
    dsdt.append_slice(&bytes_of(&aml::Name::new("_S5_".into(), &s5)));
    let mut devices = Vec::new();
    for cpu in 0..description.vcpus {
        devices.extend(cpu_device(cpu));
    }
    if description.console.is_some() {
        devices.extend(serial_device());
    }
    devices.extend(platform::panic_port());
    devices.extend(platform::generation_id());
    // The VMM refuses more devices than there are pins.
    for (number, pin) in (0..).zip(device_pins().take(windows(description))) {
        devices.extend(virtio_device(number, pin));
    }
    if description.transport == Transport::Pci {
        devices.extend(pci::host_bridge());
        devices.extend(pci::event_device());
    }
    dsdt.append_slice(&aml::Scope::raw("\\_SB_".into(), devices));
    dsdt
}

fn cpu_device(number: u32) -> Vec<u8> {
    let name = format!("C{number:03}");
    bytes_of(&aml::Device::new(
        name.as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0007"),
            &aml::Name::new("_UID".into(), &number),
        ],
    ))
}

fn serial_device() -> Vec<u8> {
    let count = serial::PORT_COUNT as u8;
    bytes_of(&aml::Device::new(
        "COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(serial::PORTS, serial::PORTS, 1, count),
                    &aml::Interrupt::new(true, true, false, false, serial::PIN),
                ]),
            ),
        ],
    ))
}

fn virtio_device(number: u32, pin: u32) -> Vec<u8> {
    let name = format!("V{number:03}");
    // The last of the windows ends below 4 GiB.
    let (base, len) = (VIRTIO_MMIO_BASE as u32, VIRTIO_MMIO_STRIDE as u32);
    bytes_of(&aml::Device::new(
        name.as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &number),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, base + number * len, len),
                    &aml::Interrupt::new(true, true, false, false, pin),
                ]),
            ),
        ],
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use bulkhead_machine::Console;
    use bulkhead_machine::device::{Balloon, Device, DeviceKind};
    use bulkhead_machine::pc::VM_GENERATION_ID;

    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    /// The table at `address`.
    fn table(all: &[u8], address: u64) -> &[u8] {
        let bytes = &all[(address - ACPI_TABLES) as usize..];
        let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        &bytes[..len as usize]
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn pc() -> MachineDescription {
        let boot = Boot::Linux {
            kernel: Fd(3),
            initrd: None,
            cmdline: String::new(),
            acpi: Fd(-1),
        };
        MachineDescription::new("test", Fd(1), Fd(2), Vec::new(), 64, boot)
    }

    fn count(tables: &[u8], name: &[u8]) -> usize {
        tables.windows(name.len()).filter(|w| *w == name).count()
    }

    fn console() -> Option<Console> {
        Some(Console {
            input: None,
            output: Fd(4),
            error: None,
            tty: false,
            ports: Vec::new(),
        })
    }

    #[test]
    fn every_table_is_found_and_sums_to_zero() {
        let all = tables(&MachineDescription {
            vcpus: 32,
            console: console(),
            watchdog: true,
            transport: Transport::Pci,
            ..pc()
        });
        assert!(all.len() as u64 <= VM_GENERATION_ID - ACPI_TABLES);
        let rsdp = &all[..36];
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        let xsdt = table(&all, word(rsdp, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let fadt = table(&all, word(xsdt, 36));
        assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
        let madt = table(&all, word(xsdt, 44));
        assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
        assert_eq!(madt.len(), 44 + 32 * 8 + 12);
        let wdat = table(&all, word(xsdt, 52));
        assert_eq!((&wdat[..4], sum(wdat)), (&b"WDAT"[..], 0));
        let dsdt = table(&all, word(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        assert_eq!(count(dsdt, b"ACPI0007"), 32);
        assert_eq!(count(dsdt, b"ACPI0013"), 1);
        assert_eq!(count(dsdt, b"_EJ0"), 31);
        assert_eq!(count(dsdt, b"COM1"), 1);
        assert_eq!(count(dsdt, b"LNRO0005"), 0);
        // Offsets of ACPI 6.4, table 5.9.
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), NO_VGA | NO_RTC);
        let register = |port: u16| {
            let [low, high] = port.to_le_bytes();
            [1, 8, 0, 1, low, high, 0, 0, 0, 0, 0, 0]
        };
        assert_eq!(fadt[116..128], register(0x602));
        assert_eq!(fadt[128], 1);
        assert_eq!(fadt[244..256], register(0x600));
        assert_eq!(fadt[256..268], register(0x601));
    }

    #[test]
    fn each_virtio_device_has_its_window_and_its_pin() {
        let balloon = Device {
            name: "balloon".to_owned(),
            kind: DeviceKind::Balloon(Balloon {
                target_mib: 0,
                deflate_on_oom: false,
                free_page_reporting: false,
            }),
        };
        let mut description = MachineDescription {
            console: console(),
            entropy: true,
            devices: vec![balloon; 2],
            ..pc()
        };
        description.memory.pluggable_mib = 128;
        let all = tables(&description);
        assert_eq!(count(&all, b"LNRO0005"), 5);
        // Memory32Fixed and Interrupt descriptors (ACPI 6.4, 6.4.3.4 and 6.4.3.6).
        for (window, pin) in [(0u32, 5u8), (1, 6), (2, 7), (3, 10), (4, 11)] {
            let [a, b, c, d] = (0xd000_0000 + window * 0x1000).to_le_bytes();
            let memory = [0x86, 9, 0, 1, a, b, c, d, 0, 0x10, 0, 0];
            let interrupt = [0x89, 6, 0, 3, 1, pin, 0, 0, 0];
            assert_eq!(count(&all, &[&memory[..], &interrupt].concat()), 1);
        }
        // One more than there are pins is the VMM's to refuse.
        description.devices = vec![description.devices[0].clone(); 40];
        let all = tables(&description);
        assert_eq!(count(&all, b"LNRO0005"), 17);
    }

    #[test]
    fn what_is_not_there_is_not_listed() {
        let all = tables(&MachineDescription { time: true, ..pc() });
        for name in [&b"LNRO0005"[..], b"COM1", b"PCI0", b"WDAT", b"ACPI0013"] {
            assert_eq!(count(&all, name), 0);
        }
        let xsdt = table(&all, word(&all, 24));
        let fadt = table(&all, word(xsdt, 36));
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), NO_VGA);
    }

    #[test]
    fn only_a_pc_is_given_tables() {
        let mut description = pc();
        let mut given = Vec::new();
        provide::<io::Error>(&mut description, |pc| {
            io::Read::read_to_end(&mut file(pc)?, &mut given)?;
            Ok(Fd(7))
        })
        .unwrap();
        assert_eq!(given, tables(&description));
        assert!(matches!(description.boot, Boot::Linux { acpi: Fd(7), .. }));
        description.boot = Boot::Pvh {
            kernel: Fd(3),
            initrd: None,
            cmdline: String::new(),
        };
        provide::<io::Error>(&mut description, |_| panic!("no PC")).unwrap();
    }
}
