//! What the tables say of the panic port, the watchdog and the generation id.

use acpi_tables::aml;
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use bulkhead_machine::pc::{VM_GENERATION_ID, pvpanic, watchdog};

use super::{OEM, REVISION, TABLE, bytes_of};

/// Instructions and actions of the table below.
const READ_VALUE: u8 = 0;
const READ_COUNTDOWN: u8 = 1;
const WRITE_VALUE: u8 = 2;
const WRITE_COUNTDOWN: u8 = 3;
const RESET: u8 = 1;
const QUERY_COUNTDOWN: u8 = 4;
const SET_COUNTDOWN: u8 = 6;
const QUERY_RUNNING: u8 = 8;
const SET_RUNNING: u8 = 9;
const QUERY_STOPPED: u8 = 10;
const SET_STOPPED: u8 = 11;
/// Revision of the table.
const WATCHDOG_REVISION: u8 = 1;
/// Flag: the watchdog may be used.
const ENABLED: u32 = 1;

/// The port that a crashed kernel writes to, by the name that QEMU has made known.
pub(super) fn panic_port() -> Vec<u8> {
    bytes_of(&aml::Device::new(
        "PVP_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::IO::new(
                    pvpanic::PORT,
                    pvpanic::PORT,
                    1,
                    1,
                )]),
            ),
        ],
    ))
}

/// The virtual machine generation id (Microsoft, "Virtual Machine Generation ID"): where its 16 bytes
/// are.
pub(super) fn generation_id() -> Vec<u8> {
    let low = VM_GENERATION_ID as u32;
    let high = (VM_GENERATION_ID >> 32) as u32;
    let address = aml::Package::new(vec![&low, &high]);
    bytes_of(&aml::Device::new(
        "VGEN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMUVGID"),
            &aml::Name::new("_CID".into(), &"VM_GEN_COUNTER"),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &aml::Name::new("ADDR".into(), &address),
        ],
    ))
}

/// The Watchdog Action Table (Microsoft, "Hardware Watchdog Timers Design Specification"): how a
/// driver works the ports of [`watchdog`].
pub(super) fn watchdog_table() -> Sdt {
    let actions: [(u8, u8, u16, u8, u8); 7] = [
        (RESET, WRITE_VALUE, watchdog::FEED, 1, 0xff),
        (
            QUERY_COUNTDOWN,
            READ_COUNTDOWN,
            watchdog::COUNTDOWN,
            0,
            0xff,
        ),
        (SET_COUNTDOWN, WRITE_COUNTDOWN, watchdog::COUNTDOWN, 0, 0xff),
        (QUERY_RUNNING, READ_VALUE, watchdog::CONTROL, 1, 1),
        (SET_RUNNING, WRITE_VALUE, watchdog::CONTROL, 1, 1),
        (QUERY_STOPPED, READ_VALUE, watchdog::CONTROL, 0, 1),
        (SET_STOPPED, WRITE_VALUE, watchdog::CONTROL, 0, 1),
    ];
    let mut table = Sdt::new(*b"WDAT", 36, WATCHDOG_REVISION, OEM, TABLE, REVISION);
    table.append(32u32); // bytes of the header that follows
    table.append(0x00ffu16); // no PCI device: segment,
    table.append([0xffu8; 3]); // bus, device, function
    table.append([0u8; 3]);
    table.append(watchdog::PERIOD_MS);
    table.append(u32::from(watchdog::MAX_COUNT));
    table.append(1u32); // least count
    table.append(ENABLED);
    table.append(actions.len() as u32);
    for (action, instruction, register, value, mask) in actions {
        let port = u64::from(watchdog::PORTS + register);
        table.append([action, instruction, 0, 0]);
        table.append_slice(&bytes_of(&GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            port,
        )));
        table.append(u32::from(value));
        table.append(u32::from(mask));
    }
    table
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_table_has_the_shape_drivers_read() {
        let table = watchdog_table();
        let bytes = table.as_slice();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(word(4) as usize, bytes.len());
        assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert_eq!((word(36), word(40), word(44)), (32, 0xffff_00ff, 0xff));
        assert_eq!((word(48), word(52), word(56)), (1000, 255, 1));
        assert_eq!((word(60), word(64)), (ENABLED, 7));
        assert_eq!(bytes.len(), 68 + 7 * 24);
        for entry in bytes[68..].chunks(24) {
            assert_eq!(entry[4..8], [1, 8, 0, 1], "a byte-wide port");
            let port = u16::from_le_bytes([entry[8], entry[9]]);
            assert!((0x608..0x60b).contains(&port));
        }
        assert_eq!(bytes[68..72], [RESET, WRITE_VALUE, 0, 0]);
        assert_eq!(bytes[76..78], 0x60au16.to_le_bytes());
    }
}
