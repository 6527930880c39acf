//! ACPI tables of a hardware-reduced PC: what is there, where, and on which interrupt (ACPI 6.4).
//!
//! RSDP, XSDT, FADT, MADT, WDAT and a DSDT, whose part about PCI is in `acpi/pci.rs`. There is no SCI
//! and no power-management timer.

mod pci;
mod platform;

use std::ops::Range;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use super::linux::LinuxError;
use super::ram::{ACPI_TABLES, VM_GENERATION_ID};
use crate::devices::{reset, serial};
use crate::machine::memory::GuestMemory;

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

/// A virtio device behind an MMIO window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its first register; below 4 GiB.
    pub base: u32,
    /// Bytes of registers.
    pub len: u32,
    /// Its interrupt, an IOAPIC pin.
    pub gsi: u32,
}

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct Platform<'a> {
    /// Number of CPUs; APIC IDs are 0 and up.
    pub cpus: u32,
    /// There is a serial port.
    pub serial: bool,
    /// There is a CMOS clock.
    pub rtc: bool,
    /// There is a watchdog.
    pub watchdog: bool,
    /// Virtio devices in windows.
    pub windows: &'a [Window],
    /// There is a PCI bus.
    pub pci: Option<Pci>,
}

/// A PCI bus with hot plug.
#[derive(Clone, Debug)]
pub struct Pci {
    /// Where BARs may lie; below 4 GiB.
    pub window: Range<u64>,
    /// Interrupt of the generic event device, an IOAPIC pin.
    pub ged_pin: u32,
}

/// Writes the tables to [`ACPI_TABLES`]; the RSDP's address.
///
/// # Errors
/// They do not fit below 1 MiB.
pub fn write(memory: &GuestMemory, platform: &Platform<'_>) -> Result<u64, LinuxError> {
    let mut blob = Blob::default();
    let rsdp_len = Rsdp::len();
    blob.bytes.resize(rsdp_len, 0);
    let dsdt = blob.add(dsdt(platform).as_slice());
    let fadt = blob.add(&bytes_of(&fadt(platform, dsdt)));
    let madt = blob.add(&bytes_of(&madt(platform.cpus)));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if platform.watchdog {
        xsdt.add_entry(blob.add(platform::watchdog_table().as_slice()));
    }
    let xsdt = blob.add(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    blob.bytes.splice(..rsdp_len, rsdp);
    let does_not_fit = LinuxError::DoesNotFit {
        what: "the ACPI tables",
    };
    if blob.bytes.len() as u64 > VM_GENERATION_ID - ACPI_TABLES {
        return Err(does_not_fit);
    }
    memory
        .write_slice(&blob.bytes, GuestAddress(ACPI_TABLES))
        .map_err(|_| does_not_fit)?;
    Ok(ACPI_TABLES)
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

fn fadt(platform: &Platform<'_>, dsdt: u64) -> acpi_tables::fadt::FADT {
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
    let no_rtc = if platform.rtc { 0 } else { NO_RTC };
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

fn dsdt(platform: &Platform<'_>) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, TABLE, REVISION);
    let s5 = aml::Package::new(vec![&reset::SLEEP_TYPE_S5]);
    dsdt.append_slice(&bytes_of(&aml::Name::new("_S5_".into(), &s5)));
    let mut devices = Vec::new();
    for cpu in 0..platform.cpus {
        devices.extend(cpu_device(cpu));
    }
    if platform.serial {
        devices.extend(serial_device());
    }
    devices.extend(platform::panic_port());
    devices.extend(platform::generation_id());
    for (number, window) in (0..).zip(platform.windows) {
        devices.extend(virtio_device(number, window));
    }
    if let Some(bus) = &platform.pci {
        devices.extend(pci::host_bridge(&bus.window));
        devices.extend(pci::event_device(bus.ged_pin));
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
    let ports = serial::PORTS as u8;
    bytes_of(&aml::Device::new(
        "COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(serial::COM1, serial::COM1, 1, ports),
                    &aml::Interrupt::new(true, true, false, false, serial::IRQ),
                ]),
            ),
        ],
    ))
}

fn virtio_device(number: u32, window: &Window) -> Vec<u8> {
    let name = format!("V{number:03}");
    bytes_of(&aml::Device::new(
        name.as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &number),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, window.base, window.len),
                    &aml::Interrupt::new(true, true, false, false, window.gsi),
                ]),
            ),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    /// Length and bytes of the table at `address`.
    fn table(memory: &GuestMemory, address: u64) -> Vec<u8> {
        let len: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_and_sums_to_zero() {
        let memory = crate::machine::memory::create(2).unwrap();
        let windows = [Window {
            base: 0xd000_0000,
            len: 0x1000,
            gsi: 5,
        }; 18];
        let platform = Platform {
            cpus: 32,
            serial: true,
            rtc: false,
            watchdog: true,
            windows: &windows,
            pci: Some(Pci {
                window: 0xc000_0000..0xd000_0000,
                ged_pin: 9,
            }),
        };
        let rsdp_at = write(&memory, &platform).unwrap();
        let mut rsdp = [0; 36];
        memory.read_slice(&mut rsdp, GuestAddress(rsdp_at)).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(&memory, word(&rsdp, 24));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let fadt = table(&memory, word(&xsdt, 36));
        assert_eq!((&fadt[..4], sum(&fadt)), (&b"FACP"[..], 0));
        let madt = table(&memory, word(&xsdt, 44));
        assert_eq!((&madt[..4], sum(&madt)), (&b"APIC"[..], 0));
        assert_eq!(madt.len(), 44 + 32 * 8 + 12);
        let dsdt = table(&memory, word(&fadt, 140));
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
        assert_eq!(dsdt.windows(8).filter(|w| w == b"LNRO0005").count(), 18);
        assert_eq!(dsdt.windows(8).filter(|w| w == b"ACPI0007").count(), 32);
        assert_eq!(dsdt.windows(8).filter(|w| w == b"ACPI0013").count(), 1);
        assert_eq!(dsdt.windows(4).filter(|w| w == b"_EJ0").count(), 31);
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
    fn what_is_not_there_is_not_listed() {
        let memory = crate::machine::memory::create(2).unwrap();
        let platform = Platform {
            cpus: 1,
            serial: false,
            rtc: true,
            watchdog: false,
            windows: &[],
            pci: None,
        };
        write(&memory, &platform).unwrap();
        let mut all = vec![0; 0x2_0000];
        memory
            .read_slice(&mut all, GuestAddress(ACPI_TABLES))
            .unwrap();
        assert!(!all.windows(8).any(|w| w == b"LNRO0005"));
        assert!(!all.windows(4).any(|w| w == b"COM1" || w == b"PCI0"));
    }
}
