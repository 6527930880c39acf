//! The two address spaces a guest reaches devices through: I/O ports and memory-mapped registers.
//!
//! vCPU threads call [`Bus::read`] and [`Bus::write`]; the machine builds a bus once, before they
//! start, and never changes it. Addresses that no device claims read as all ones and swallow writes,
//! as on a PC.

use std::sync::{Arc, Mutex, PoisonError};

/// What a guest can reach on a bus. Nothing a guest does here may fail or block for long.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` from the start of the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset` from the start of the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the bus holds it: the event loop may hold the other reference.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Two devices claim one address, or a range is empty or leaves the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range {start:#x}+{len:#x} is taken or no range")]
pub struct Overlap {
    start: u64,
    len: u64,
}

/// One address space.
#[derive(Default)]
pub struct Bus {
    /// First address, last address, device; ascending, without overlap.
    ranges: Vec<(u64, u64, SharedDevice)>,
}

impl Bus {
    /// Puts `device` at `start..start + len`.
    ///
    /// # Errors
    /// [`Overlap`].
    pub fn insert(&mut self, start: u64, len: u64, device: SharedDevice) -> Result<(), Overlap> {
        let overlap = Overlap { start, len };
        let last = len
            .checked_sub(1)
            .and_then(|more| start.checked_add(more))
            .ok_or(overlap)?;
        let at = self.ranges.partition_point(|(first, _, _)| *first < start);
        let before = at.checked_sub(1).and_then(|i| self.ranges.get(i));
        let clear_below = before.is_none_or(|(_, end, _)| *end < start);
        let clear_above = self
            .ranges
            .get(at)
            .is_none_or(|(first, _, _)| last < *first);
        if !(clear_below && clear_above) {
            return Err(overlap);
        }
        self.ranges.insert(at, (start, last, device));
        Ok(())
    }

    /// Serves a read of the guest.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => lock(device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Serves a write of the guest.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).write(offset, data);
        }
    }

    /// The device whose range holds `address`, and the offset in it. An access that crosses the end
    /// of the range reaches nobody.
    fn find(&self, address: u64, len: usize) -> Option<(u64, &SharedDevice)> {
        let after = self
            .ranges
            .partition_point(|(first, _, _)| *first <= address);
        let (first, last, device) = self.ranges.get(after.checked_sub(1)?)?;
        let last_byte = address.checked_add((len as u64).saturating_sub(1))?;
        (last_byte <= *last).then_some((address - first, device))
    }
}

/// I/O ports. An access names one port; the bytes of a string instruction all go to that port.
#[derive(Default)]
pub struct PortBus(Bus);

impl PortBus {
    /// Puts `device` at `count` ports from `first`.
    ///
    /// # Errors
    /// [`Overlap`].
    pub fn insert(&mut self, first: u16, count: u16, device: SharedDevice) -> Result<(), Overlap> {
        self.0.insert(first.into(), count.into(), device)
    }

    /// Serves `in` and `ins`.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match self.0.find(port.into(), 1) {
            Some((offset, device)) => {
                let mut device = lock(device);
                for byte in data.chunks_mut(1) {
                    device.read(offset, byte);
                }
            }
            None => data.fill(0xff),
        }
    }

    /// Serves `out` and `outs`.
    pub fn write(&self, port: u16, data: &[u8]) {
        if let Some((offset, device)) = self.0.find(port.into(), 1) {
            let mut device = lock(device);
            for byte in data.chunks(1) {
                device.write(offset, byte);
            }
        }
    }
}

fn lock(device: &SharedDevice) -> std::sync::MutexGuard<'_, dyn BusDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn recorder() -> Arc<Mutex<Recorder>> {
        Arc::default()
    }

    #[test]
    fn ranges_may_touch_but_not_overlap() {
        let mut bus = Bus::default();
        bus.insert(0x10, 0x10, recorder()).unwrap();
        bus.insert(0x20, 0x10, recorder()).unwrap();
        bus.insert(0, 0x10, recorder()).unwrap();
        bus.insert(u64::MAX, 1, recorder()).unwrap();
        for (start, len) in [
            (0x1f, 1),
            (0x2f, 2),
            (0, 1),
            (0x40, 0),
            (u64::MAX, 2),
            (8, 0x100),
        ] {
            assert!(bus.insert(start, len, recorder()).is_err(), "{start:#x}");
        }
    }

    #[test]
    fn accesses_reach_the_device_that_claims_all_of_them() {
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, recorder()).unwrap();
        for (address, len, want) in [
            (0x100, 1, 0),
            (0x10f, 1, 0xf),
            (0x10c, 4, 0xc),
            (0x10d, 4, 0xff),
            (0xff, 1, 0xff),
            (0x110, 1, 0xff),
            (u64::MAX, 8, 0xff),
        ] {
            let mut data = vec![0xaa; len];
            bus.read(address, &mut data);
            assert_eq!(data, vec![want; len], "{address:#x}");
            bus.write(address, &data);
        }
    }

    #[test]
    fn string_output_goes_to_one_port() {
        let device = recorder();
        let mut bus = PortBus::default();
        bus.insert(0x3f8, 8, device.clone()).unwrap();
        bus.write(0x3f8, b"ab");
        bus.write(0x3ff, b"c");
        bus.write(0x400, b"d");
        assert_eq!(
            device.lock().unwrap().0,
            [(0, b"a".to_vec()), (0, b"b".to_vec()), (7, b"c".to_vec())]
        );
        let mut data = [0; 4];
        bus.read(0x2f8, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
