//! The ports of a PIT, which a PC of ours has not. All ones, as ports without a device read, look to
//! Linux like a counter that stands still: without kvmclock it reads them 100,000 times before it
//! gives up (`quick_pit_calibrate` in arch/x86/kernel/tsc.c). At zeros it gives up at once.

use crate::machine::bus::BusDevice;

/// First port.
pub const PORTS: u16 = 0x40;
/// How many there are.
pub const PORT_COUNT: u16 = 4;

/// Reads as zeros.
pub struct NoPit;

impl BusDevice for NoPit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::machine::bus::PortBus;

    /// What `quick_pit_calibrate` does first.
    #[test]
    fn linux_does_not_wait_for_it() {
        let ports = PortBus::default();
        let pit = Arc::new(Mutex::new(NoPit));
        ports.insert(PORTS, PORT_COUNT, pit).unwrap();
        // Mode 0, counting down from 0xffff.
        ports.write(0x43, &[0xb0]);
        ports.write(0x42, &[0xff]);
        ports.write(0x42, &[0xff]);
        let mut byte = [1];
        let waits = (0..50_000).take_while(|_| {
            ports.read(0x42, &mut byte);
            ports.read(0x42, &mut byte);
            byte == [0xff]
        });
        assert_eq!(waits.count(), 0);
    }
}
