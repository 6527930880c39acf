//! The two address spaces a guest reaches devices through: I/O ports and memory-mapped registers.
//!
//! vCPU threads call [`Bus::read`] and [`Bus::write`]. Devices come and go while they do (PCI): an
//! access holds the list of devices for as long as it looks one up, and the device while it lasts.
//! Addresses that no device claims read as all ones and swallow writes, as on a PC.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What a guest can reach on a bus. Nothing a guest does here may fail or block for long.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` from the start of the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset` from the start of the device's range. A device that has
    /// nothing to write to swallows it.
    fn write(&mut self, _offset: u64, _data: &[u8]) {}
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

/// First address, last address, device.
type Claim = (u64, u64, SharedDevice);

/// One address space.
#[derive(Default)]
pub struct Bus {
    /// Ascending, without overlap.
    claims: RwLock<Vec<Claim>>,
}

impl Bus {
    /// Puts `device` at `start..start + len`.
    ///
    /// # Errors
    /// [`Overlap`].
    pub fn insert(&self, start: u64, len: u64, device: SharedDevice) -> Result<(), Overlap> {
        let overlap = Overlap { start, len };
        let last = len
            .checked_sub(1)
            .and_then(|more| start.checked_add(more))
            .ok_or(overlap)?;
        let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
        let at = claims.partition_point(|(_, end, _)| *end < start);
        if claims.get(at).is_some_and(|(first, _, _)| *first <= last) {
            return Err(overlap);
        }
        claims.insert(at, (start, last, device));
        Ok(())
    }

    /// Takes away the device whose range starts at `start`; an access that has begun goes on.
    pub fn remove(&self, start: u64) {
        let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|(first, _, _)| *first != start);
    }

    /// The lowest multiple of `size`, a power of two, in `within` where `size` bytes are free.
    pub fn find_free(&self, within: Range<u64>, size: u64) -> Option<u64> {
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        let mut start = within.start.checked_next_multiple_of(size)?;
        for (first, last, _) in claims.iter() {
            if *last < start {
                continue;
            }
            if first.checked_sub(start).is_some_and(|free| free >= size) {
                break;
            }
            start = last.checked_add(1)?.checked_next_multiple_of(size)?;
        }
        (start.checked_add(size)? <= within.end).then_some(start)
    }

    /// Serves a read of the guest.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => lock(&device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Serves a write of the guest.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(&device).write(offset, data);
        }
    }

    /// The device whose range holds `address`, and the offset in it. An access that crosses the end
    /// of the range reaches nobody.
    fn find(&self, address: u64, len: usize) -> Option<(u64, SharedDevice)> {
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        let after = claims.partition_point(|(first, _, _)| *first <= address);
        let (first, last, device) = claims.get(after.checked_sub(1)?)?;
        let last_byte = address.checked_add((len as u64).saturating_sub(1))?;
        (last_byte <= *last).then(|| (address - first, device.clone()))
    }
}

/// I/O ports. An access names one port; the bytes of a string instruction all go to that port.
#[derive(Default)]
pub struct PortBus {
    /// Devices whose registers are bytes.
    bytes: Bus,
    /// Devices with wider registers: they see accesses whole.
    words: Bus,
}

impl PortBus {
    /// Puts `device`, whose registers are bytes, at `count` ports from `first`.
    ///
    /// # Errors
    /// [`Overlap`].
    pub fn insert(&self, first: u16, count: u16, device: SharedDevice) -> Result<(), Overlap> {
        self.bytes.insert(first.into(), count.into(), device)
    }

    /// Puts `device`, which sees accesses as wide as they are, at `count` ports from `first`: none of
    /// a device of the other kind.
    ///
    /// # Errors
    /// [`Overlap`].
    pub fn insert_wide(&self, first: u16, count: u16, device: SharedDevice) -> Result<(), Overlap> {
        self.words.insert(first.into(), count.into(), device)
    }

    /// Serves `in` and `ins`.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match self.bytes.find(port.into(), 1) {
            Some((offset, device)) => {
                let mut device = lock(&device);
                for byte in data.chunks_mut(1) {
                    device.read(offset, byte);
                }
            }
            None => self.words.read(port.into(), data),
        }
    }

    /// Serves `out` and `outs`.
    pub fn write(&self, port: u16, data: &[u8]) {
        match self.bytes.find(port.into(), 1) {
            Some((offset, device)) => {
                let mut device = lock(&device);
                for byte in data.chunks(1) {
                    device.write(offset, byte);
                }
            }
            None => self.words.write(port.into(), data),
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
        let bus = Bus::default();
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
        let bus = Bus::default();
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
    fn ranges_are_found_and_come_free() {
        let bus = Bus::default();
        let within = 0x1080..0x5000;
        assert_eq!(bus.find_free(within.clone(), 0x1000), Some(0x2000));
        for (start, len) in [(0x800, 0x900), (0x2000, 0x10), (0x4000, 0x1000)] {
            bus.insert(start, len, recorder()).unwrap();
        }
        for (size, free) in [
            (0x10, 0x1100),
            (0x1000, 0x3000),
            (0x800, 0x1800),
            (0x4000, 0),
        ] {
            let want = (free != 0).then_some(free);
            assert_eq!(bus.find_free(within.clone(), size), want, "{size:#x}");
        }
        assert_eq!(bus.find_free(0x4000..0x5000, 1), None);
        bus.remove(0x4000);
        bus.remove(0x4800);
        assert_eq!(bus.find_free(0x4000..0x5000, 0x1000), Some(0x4000));
        assert_eq!(bus.find_free(u64::MAX - 8..u64::MAX, 16), None);
        let mut data = [0; 4];
        bus.read(0x4000, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn wide_registers_see_accesses_whole() {
        let device = recorder();
        let bus = PortBus::default();
        bus.insert_wide(0xcf8, 8, device.clone()).unwrap();
        bus.write(0xcf8, b"abcd");
        bus.write(0xcff, b"ef");
        assert_eq!(device.lock().unwrap().0, [(0, b"abcd".to_vec())]);
        let mut data = [0; 2];
        bus.read(0xcfe, &mut data);
        assert_eq!(data, [6; 2]);
    }

    #[test]
    fn string_output_goes_to_one_port() {
        let device = recorder();
        let bus = PortBus::default();
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
