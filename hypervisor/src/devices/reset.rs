//! How a PC guest switches itself off or starts over: the ACPI sleep and reset registers of a
//! hardware-reduced platform, and the keyboard controller's reset line.
//!
//! The ports of ACPI are announced in the FADT.

use std::convert::Infallible;

use bulkhead_machine::control::Ended;
use bulkhead_machine::pc::reset::{RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_TYPE_S5};
use vm_superio::{I8042Device, Trigger};

use crate::machine::bus::BusDevice;
use crate::machine::ending::Ending;

/// `SLP_EN` and `SLP_TYP` of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// The keyboard controller's command port.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// Its offset among the controller's ports, which begin at 0x60.
const COMMAND_OFFSET: u8 = 4;

/// The ACPI registers.
#[derive(Debug)]
pub struct AcpiPorts {
    ending: Ending,
}

impl AcpiPorts {
    /// Reports to `ending`.
    pub fn new(ending: Ending) -> Self {
        Self { ending }
    }
}

impl BusDevice for AcpiPorts {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // No wake status, no sleep in progress.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        const SOFT_OFF: u8 = SLEEP_ENABLE | SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT;
        let Some(value) = data.first().copied() else {
            return;
        };
        if offset == u64::from(SLEEP_CONTROL) && value == SOFT_OFF {
            self.ending.end(Ended::PowerOff);
        } else if offset == u64::from(RESET) && value == RESET_VALUE {
            self.ending.end(Ended::Reset);
        }
    }
}

/// Ends the partition when the keyboard controller pulls the reset line.
#[derive(Debug)]
pub struct ResetLine(Ending);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.end(Ended::Reset);
        Ok(())
    }
}

/// The keyboard controller, of which only the command port exists; there is no keyboard.
pub struct KeyboardController(I8042Device<ResetLine>);

impl KeyboardController {
    /// Reports to `ending`.
    pub fn new(ending: Ending) -> Self {
        Self(I8042Device::new(ResetLine(ending)))
    }
}

impl BusDevice for KeyboardController {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(self.0.read(offset as u8));
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        for byte in data {
            let Ok(()) = self.0.write(COMMAND_OFFSET, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ending: &Ending) -> Option<Ended> {
        ending.outcome().map(|o| *o.as_ref().unwrap())
    }

    #[test]
    fn only_the_exact_values_end_the_partition() {
        for offset in 0..u64::from(bulkhead_machine::pc::reset::ACPI_PORT_COUNT) {
            for value in 0..=255 {
                let ending = Ending::new().unwrap();
                AcpiPorts::new(ending.clone()).write(offset, &[value]);
                let want = match (offset, value) {
                    (0, 0x34) => Some(Ended::PowerOff),
                    (2, 1) => Some(Ended::Reset),
                    _ => None,
                };
                assert_eq!(outcome(&ending), want, "{offset} {value:#x}");
            }
        }
    }

    #[test]
    fn the_keyboard_controller_resets_and_does_nothing_else() {
        for value in 0..=255 {
            let ending = Ending::new().unwrap();
            KeyboardController::new(ending.clone()).write(0, &[value]);
            let want = (value == 0xfe).then_some(Ended::Reset);
            assert_eq!(outcome(&ending), want, "{value:#x}");
        }
    }
}
