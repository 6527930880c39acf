//! The PCI bus in the DSDT: the host bridge with a device for each slot, and the generic event device
//! through which the guest learns of their changes. docs/devices.md describes the registers.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Method, MethodCall, Name, Notify,
    OpRegion, OpRegionSpace, Path, ResourceTemplate, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use bulkhead_machine::pc::ged::{self, Cause};
use bulkhead_machine::pc::pci::{
    CONFIG_PORT_COUNT, CONFIG_PORTS, HOT_PLUG_PORT_COUNT, HOT_PLUG_PORTS, SLOTS, WINDOW,
};

use super::bytes_of;

/// Values of `Notify`: a device has come; let it go (ACPI 6.4, table 5.186).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// AML that is written out already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The host bridge of bus 0.
pub(super) fn host_bridge() -> Vec<u8> {
    let (first, last) = (WINDOW.start as u32, (WINDOW.end - 1) as u32);
    let slots: Vec<u8> = (1..SLOTS).flat_map(slot_device).collect();
    let fields = [*b"PCIA", *b"PCIR", *b"PCIE"];
    bytes_of(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::<u16>::new_bus_number(0, 0),
                    &IO::new(CONFIG_PORTS, CONFIG_PORTS, 1, CONFIG_PORT_COUNT as u8),
                    &AddressSpace::<u32>::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        first,
                        last,
                        None,
                    ),
                ]),
            ),
            &registers("PCHP", HOT_PLUG_PORTS, HOT_PLUG_PORT_COUNT, &fields),
            &Raw(slots),
            &Method::new("PCHG".into(), 0, true, vec![&Raw(changes())]),
        ],
    ))
}

/// The generic event device.
pub(super) fn event_device() -> Vec<u8> {
    bytes_of(&Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(true, true, false, false, ged::PIN)]),
            ),
            &registers("GEDR", ged::PORTS, ged::PORT_COUNT, &[*b"GEDC"]),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &Path::new("GEDC")),
                    &If::new(
                        &And::new(&ZERO, &Local(0), &(Cause::PciHotPlug as u32)),
                        vec![&MethodCall::new("\\_SB_.PCI0.PCHG".into(), vec![])],
                    ),
                ],
            ),
        ],
    ))
}

/// Registers of 32 bits in I/O space.
fn registers(name: &str, port: u16, count: u16, fields: &[[u8; 4]]) -> Raw {
    let fields = fields.iter().map(|field| FieldEntry::Named(*field, 32));
    let mut bytes = bytes_of(&OpRegion::new(
        name.into(),
        OpRegionSpace::SystemIO,
        &port,
        &count,
    ));
    bytes.extend(bytes_of(&Field::new(
        name.into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        fields.collect(),
    )));
    Raw(bytes)
}

fn slot_name(slot: u8) -> Path {
    Path::new(&format!("S{slot:03}"))
}

/// A slot: by `_EJ0` the guest says that it has let go of the device.
fn slot_device(slot: u8) -> Vec<u8> {
    let (address, bit) = (u32::from(slot) << 16, 1u32 << slot);
    let register = Path::new("PCIE");
    bytes_of(&Device::new(
        slot_name(slot),
        vec![
            &Name::new("_ADR".into(), &address),
            &Name::new("_SUN".into(), &slot),
            &Method::new("_EJ0".into(), 1, true, vec![&Store::new(&register, &bit)]),
        ],
    ))
}

/// Reads which slots have changed, and notifies each.
fn changes() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (local, register) in [(Local(0), "PCIA"), (Local(1), "PCIR")] {
        bytes.extend(bytes_of(&Store::new(&local, &Path::new(register))));
    }
    for slot in 1..SLOTS {
        let (name, bit) = (slot_name(slot), 1u32 << slot);
        for (local, value) in [(Local(0), DEVICE_CHECK), (Local(1), EJECT_REQUEST)] {
            bytes.extend(bytes_of(&If::new(
                &And::new(&ZERO, &local, &bit),
                vec![&Notify::new(&name, &value)],
            )));
        }
    }
    bytes
}
