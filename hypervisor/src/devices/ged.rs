//! The generic event device of hardware-reduced ACPI (ACPI 6.4, section 5.6.9): one interrupt, and a
//! register that says why. The `_EVT` method in the DSDT reads it, and notifies whom it concerns.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_machine::pc::ged::Cause;
use vmm_sys_util::eventfd::EventFd;

use crate::machine::bus::BusDevice;

/// See the module.
#[derive(Debug)]
pub struct Ged {
    causes: AtomicU32,
    line: EventFd,
}

impl Ged {
    /// A device whose interrupt is raised by `line`.
    pub fn new(line: EventFd) -> Self {
        Self {
            causes: AtomicU32::new(0),
            line,
        }
    }

    /// Tells the guest of `cause`.
    pub fn raise(&self, cause: Cause) {
        self.causes.fetch_or(cause as u32, Ordering::SeqCst);
        // A full counter is signalled already.
        let _ = self.line.write(1);
    }
}

/// The register on the port bus.
pub struct GedPorts(pub Arc<Ged>);

impl BusDevice for GedPorts {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = self.0.causes.swap(0, Ordering::SeqCst).to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_machine::pc::ged::Cause;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn causes_are_read_once() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let ged = Arc::new(Ged::new(line.try_clone().unwrap()));
        let mut ports = GedPorts(ged.clone());
        let mut word = [0xff; 4];
        ports.read(0, &mut word);
        assert_eq!(word, [0; 4]);
        ged.raise(Cause::PciHotPlug);
        assert_eq!(line.read().unwrap(), 1);
        ports.read(0, &mut [0; 2]);
        ports.read(0, &mut word);
        assert_eq!(word, [1, 0, 0, 0]);
        ports.read(0, &mut word);
        assert_eq!(word, [0; 4]);
    }
}
