//! The PC of [`crate::Boot::Linux`]: what the VMM has where, and the ACPI tables say of it.
//! docs/devices.md has the whole map.

use std::ops::Range;

/// The ACPI tables, the RSDP first; up to [`VM_GENERATION_ID`].
pub const ACPI_TABLES: u64 = 0xe_0000;
/// The generation id of the virtual machine: 16 bytes, others on each start.
pub const VM_GENERATION_ID: u64 = 0xf_ff00;

/// Pins of KVM's IOAPIC.
const IOAPIC_PINS: u32 = 24;
/// The pin a PC's CMOS clock has.
const CLOCK_PIN: u32 = 8;

/// The pins of virtio devices in windows, in their order; those below COM1's stay free.
pub fn device_pins() -> impl Iterator<Item = u32> {
    (serial::PIN + 1..IOAPIC_PINS).filter(|pin| ![CLOCK_PIN, ged::PIN].contains(pin))
}

/// COM1.
pub mod serial {
    /// First port.
    pub const PORTS: u16 = 0x3f8;
    /// Ports of a 16550.
    pub const PORT_COUNT: u16 = 8;
    /// Its interrupt.
    pub const PIN: u32 = 4;
}

/// The port by which a guest's kernel says that it has crashed (QEMU's pvpanic specification).
pub mod pvpanic {
    /// The port.
    pub const PORT: u16 = 0x505;
}

/// Sleep and reset registers of hardware-reduced ACPI (ACPI 6.4: sleep control 4.8.3.7, reset
/// register 4.8.3.6).
pub mod reset {
    /// First of the three ports.
    pub const ACPI_PORTS: u16 = 0x600;
    /// How many there are.
    pub const ACPI_PORT_COUNT: u16 = 3;
    /// Sleep control register, as an offset from [`ACPI_PORTS`].
    pub const SLEEP_CONTROL: u16 = 0;
    /// Sleep status register.
    pub const SLEEP_STATUS: u16 = 1;
    /// Reset register.
    pub const RESET: u16 = 2;
    /// What a guest writes to the reset register.
    pub const RESET_VALUE: u8 = 1;
    /// `SLP_TYP` of S5, soft off.
    pub const SLEEP_TYPE_S5: u8 = 5;
}

/// The watchdog.
pub mod watchdog {
    /// First port.
    pub const PORTS: u16 = 0x608;
    /// How many there are.
    pub const PORT_COUNT: u16 = 3;
    /// 1 where it runs: as an offset from [`PORTS`].
    pub const CONTROL: u16 = 0;
    /// Written: how many periods it waits; read: how many are left.
    pub const COUNTDOWN: u16 = 1;
    /// Written with anything: it waits anew.
    pub const FEED: u16 = 2;
    /// Milliseconds of a period.
    pub const PERIOD_MS: u32 = 1000;
    /// Most periods.
    pub const MAX_COUNT: u8 = u8::MAX;
}

/// The generic event device (ACPI 6.4, section 5.6.9).
pub mod ged {
    /// First port of the register of causes, 32 bits wide; reading it forgets them.
    pub const PORTS: u16 = 0x610;
    /// How many.
    pub const PORT_COUNT: u16 = 4;
    /// Its interrupt, that of ACPI on other PCs.
    pub const PIN: u32 = 9;

    /// Why the interrupt came: bits of the register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    pub enum Cause {
        /// A PCI slot has changed, or is to: see [`super::pci`].
        PciHotPlug = 1 << 0,
    }
}

/// The PCI bus and its hot plug.
pub mod pci {
    use super::Range;

    /// Slots of the bus; the host bridge is in slot 0.
    pub const SLOTS: u8 = 32;
    /// Where BARs lie: right above the RAM below 4 GiB.
    pub const WINDOW: Range<u64> = 0xc000_0000..0xd000_0000;
    /// First of the ports of configuration mechanism 1: an address register and a data register of
    /// four ports each.
    pub const CONFIG_PORTS: u16 = 0xcf8;
    /// How many.
    pub const CONFIG_PORT_COUNT: u16 = 8;
    /// First of the ports of hot plug: three registers of 32 bits, a bit for each slot.
    pub const HOT_PLUG_PORTS: u16 = 0x620;
    /// How many.
    pub const HOT_PLUG_PORT_COUNT: u16 = 12;
}
