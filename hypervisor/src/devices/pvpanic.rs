//! The port by which a guest's kernel says that it has crashed (QEMU's pvpanic specification).

use crate::machine::bus::BusDevice;
use crate::machine::notices::{Notice, Notices};

/// The one event it knows: the kernel panicked.
const PANICKED: u8 = 1;

/// See the module.
pub struct PanicPort(Notices);

impl PanicPort {
    /// Tells `notices`.
    pub fn new(notices: Notices) -> Self {
        Self(notices)
    }
}

impl BusDevice for PanicPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|events| events & PANICKED != 0) {
            self.0.give(Notice::GuestPanicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_and_nothing_else() {
        for (value, told) in [(0, false), (1, true), (2, false), (3, true), (0xff, true)] {
            let notices = Notices::new().unwrap();
            let mut port = PanicPort::new(notices.clone());
            let mut events = [0];
            port.read(0, &mut events);
            assert_eq!(events, [PANICKED]);
            port.write(0, &[value]);
            assert_eq!(notices.take(Notice::GuestPanicked), told, "{value}");
        }
    }
}
