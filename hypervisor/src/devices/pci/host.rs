//! The host bridge and bus 0 behind it: routes configuration accesses to functions (the ports of
//! configuration mechanism 1, PCI Local Bus 3.0, section 3.2.2.3.2), and keeps BARs on the memory bus.
//!
//! The machine inserts functions, before the guest runs or while it does, and gives each BAR an
//! address, as firmware would. The guest may program others: a BAR answers where it was programmed to
//! if that lies in a window of the bridge and nobody else answers there, and otherwise nowhere. With
//! decoding turned off a BAR stays where it is until somebody else is put there, so that a guest which
//! measures BARs does not make the host move them back and forth.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_machine::pc::pci::SLOTS;

use super::config::{self, ConfigSpace, Identity};
use super::{BarState, PciFunction, bit};
use crate::machine::bus::{Bus, BusDevice};

/// Offset of the data register.
const DATA: u64 = 4;
/// Address register: accesses to the data register are configuration accesses.
const ENABLE: u32 = 1 << 31;

/// The generic host bridge of Red Hat's range, which no driver has quirks for.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0,
    subsystem: 0,
};

/// A function could not be put on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// Every slot has a device.
    #[error("all {} slots of the PCI bus are taken", SLOTS - 1)]
    NoSlot,
    /// No window has room for a BAR.
    #[error("no room for a PCI window of {0} bytes")]
    NoRoom(u64),
}

/// See the module.
pub struct PciHost {
    mmio: Arc<Bus>,
    windows: Vec<Range<u64>>,
    slots: Mutex<Vec<Option<Slot>>>,
    /// A bit for each slot whose function is gone and whose owner has not been told yet: until then
    /// nobody else gets it.
    removed: AtomicU32,
}

struct Slot {
    function: Arc<dyn PciFunction>,
    /// BAR and address of each that is on the memory bus.
    mapped: Vec<(u8, u64)>,
}

impl PciHost {
    /// A bus whose functions answer within `windows` of `mmio`; those above 4 GiB take 64-bit BARs.
    pub fn new(mmio: Arc<Bus>, windows: Vec<Range<u64>>) -> Self {
        let bridge = Slot {
            function: Arc::new(HostBridge(Mutex::new(ConfigSpace::new(HOST_BRIDGE)))),
            mapped: Vec::new(),
        };
        let mut slots: Vec<_> = (0..SLOTS).map(|_| None).collect();
        slots.insert(0, Some(bridge));
        slots.truncate(SLOTS.into());
        Self {
            mmio,
            windows,
            slots: Mutex::new(slots),
            removed: AtomicU32::new(0),
        }
    }

    /// Puts `function` into the first free slot, and its BARs where there is room; the slot.
    ///
    /// # Errors
    /// [`InsertError`]; the bus is as it was.
    pub fn insert(&self, function: Arc<dyn PciFunction>) -> Result<u8, InsertError> {
        let mut slots = self.slots();
        let removed = self.removed.load(Ordering::SeqCst);
        let mut free = (0..).zip(slots.iter());
        let free = free.find(|(slot, entry)| entry.is_none() && removed & bit(*slot) == 0);
        let (free, _) = free.ok_or(InsertError::NoSlot)?;
        let mut slot = Slot {
            function,
            mapped: Vec::new(),
        };
        for bar in slot.function.bars() {
            let placed = self.place(&mut slot, bar);
            if let Err(error) = placed {
                self.unmap(&mut slot);
                return Err(error);
            }
        }
        let command = config::MEMORY_SPACE.to_le_bytes();
        slot.function.write_config(config::COMMAND as u16, &command);
        if let Some(entry) = slots.get_mut(usize::from(free)) {
            *entry = Some(slot);
        }
        Ok(free)
    }

    /// Takes the function in `slot` off the bus; the slot is free once [`Self::take_removed`] has
    /// told of it. The host bridge stays.
    pub fn remove(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        let mut slots = self.slots();
        let entry = slots.get_mut(usize::from(slot)).filter(|_| slot != 0)?;
        let mut taken = entry.take()?;
        self.removed.fetch_or(bit(slot), Ordering::SeqCst);
        self.unmap(&mut taken);
        Some(taken.function)
    }

    /// The slots whose function was removed since the last call.
    pub fn take_removed(&self) -> impl Iterator<Item = u8> {
        let slots = self.removed.swap(0, Ordering::SeqCst);
        (0..SLOTS).filter(move |slot| slots & bit(*slot) != 0)
    }

    /// Serves a read of the configuration space in `slot`: as PCI does, all ones where nobody is.
    pub fn read_config(&self, slot: u8, register: u16, data: &mut [u8]) {
        match self.slots().get(usize::from(slot)) {
            Some(Some(slot)) if is_natural(register, data.len()) => {
                slot.function.read_config(register, data);
            }
            _ => data.fill(0xff),
        }
    }

    /// Takes a write to the configuration space in `slot`.
    pub fn write_config(&self, slot: u8, register: u16, data: &[u8]) {
        let mut slots = self.slots();
        let index = usize::from(slot);
        match slots.get(index) {
            Some(Some(slot)) if is_natural(register, data.len()) => {
                slot.function.write_config(register, data);
            }
            _ => return,
        }
        if config::moves_bars(register) {
            self.follow(&mut slots, index);
        }
    }

    /// Programs `bar` of a function that is not on the bus yet.
    fn place(&self, slot: &mut Slot, bar: BarState) -> Result<(), InsertError> {
        let fits = |window: &&Range<u64>| bar.wide || window.end <= 1 << 32;
        // 64-bit BARs go above 4 GiB first.
        let mut windows: Vec<_> = self.windows.iter().filter(fits).collect();
        windows.sort_by_key(|window| bar.wide != (window.start >= 1 << 32));
        let address = windows
            .into_iter()
            .find_map(|window| self.mmio.find_free(window.clone(), bar.size))
            .ok_or(InsertError::NoRoom(bar.size))?;
        let register = config::BAR0 as u16 + 4 * u16::from(bar.bar);
        let halves = [address as u32, (address >> 32) as u32];
        let count = if bar.wide { 2 } else { 1 };
        for (at, half) in (register..).step_by(4).zip(halves).take(count) {
            slot.function.write_config(at, &half.to_le_bytes());
        }
        self.map(slot, bar, address);
        Ok(())
    }

    /// Puts `bar` at `address` of the memory bus, if it may be there.
    fn map(&self, slot: &mut Slot, bar: BarState, address: u64) -> bool {
        let end = address.checked_add(bar.size);
        let inside = |window: &Range<u64>| {
            address >= window.start && end.is_some_and(|end| end <= window.end)
        };
        if !self.windows.iter().any(inside) {
            return false;
        }
        let device = Arc::new(Mutex::new(BarWindow {
            function: slot.function.clone(),
            bar: bar.bar,
        }));
        let done = self.mmio.insert(address, bar.size, device).is_ok();
        if done {
            slot.mapped.push((bar.bar, address));
            slot.function.bar_moved(bar.bar, None, Some(address));
        }
        done
    }

    fn unmap(&self, slot: &mut Slot) {
        for (bar, address) in slot.mapped.drain(..) {
            self.mmio.remove(address);
            slot.function.bar_moved(bar, Some(address), None);
        }
    }

    /// Moves the BARs of slot `index` to where they are programmed now.
    fn follow(&self, slots: &mut [Option<Slot>], index: usize) {
        let Some(Some(slot)) = slots.get(index) else {
            return;
        };
        for bar in slot.function.bars() {
            let Some(address) = bar.address else {
                continue;
            };
            let Some(Some(slot)) = slots.get_mut(index) else {
                return;
            };
            let old = slot
                .mapped
                .iter()
                .position(|(number, _)| *number == bar.bar);
            let old = old.map(|at| slot.mapped.swap_remove(at).1);
            if old == Some(address) {
                slot.mapped.push((bar.bar, address));
                continue;
            }
            if let Some(old) = old {
                self.mmio.remove(old);
                slot.function.bar_moved(bar.bar, Some(old), None);
            }
            if self.map(slot, bar, address) {
                continue;
            }
            // Those whose decoding is off make room; they come back when it is on again.
            for (_, other) in slots.iter_mut().enumerate().filter(|(at, _)| *at != index) {
                if let Some(other) = other
                    && other
                        .function
                        .bars()
                        .iter()
                        .all(|bar| bar.address.is_none())
                {
                    self.unmap(other);
                }
            }
            if let Some(Some(slot)) = slots.get_mut(index) {
                self.map(slot, bar, address);
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Option<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_natural(register: u16, len: usize) -> bool {
    matches!(len, 1 | 2 | 4) && usize::from(register).is_multiple_of(len)
}

/// What a BAR decodes, on the memory bus.
struct BarWindow {
    function: Arc<dyn PciFunction>,
    bar: u8,
}

impl BusDevice for BarWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.function.read_bar(self.bar, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.function.write_bar(self.bar, offset, data);
    }
}

struct HostBridge(Mutex<ConfigSpace>);

impl PciFunction for HostBridge {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        let space = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        space.read(register, data);
    }

    fn write_config(&self, register: u16, data: &[u8]) {
        let mut space = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        space.write(register, data);
    }

    fn bars(&self) -> Vec<BarState> {
        Vec::new()
    }

    fn read_bar(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn bar_moved(&self, _bar: u8, _from: Option<u64>, _to: Option<u64>) {}
}

/// The two registers of mechanism 1, on the port bus.
pub struct ConfigPorts {
    host: Arc<PciHost>,
    address: u32,
}

impl ConfigPorts {
    /// The way to the functions of `host`.
    pub fn new(host: Arc<PciHost>) -> Self {
        Self { host, address: 0 }
    }

    /// Slot and register that an access at `offset` is for.
    fn target(&self, offset: u64) -> Option<(u8, u16)> {
        let [register, function, bus, _] = self.address.to_le_bytes();
        // Only function 0 of bus 0 is there.
        let exists = self.address & ENABLE != 0 && bus == 0 && function & 7 == 0;
        let byte = offset.checked_sub(DATA).filter(|_| exists)?;
        Some((function >> 3, u16::from(register & !3) + byte as u16))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (self.target(offset), <&mut [u8; 4]>::try_from(&mut *data)) {
            (Some((slot, register)), _) => self.host.read_config(slot, register, data),
            (None, Ok(word)) if offset == 0 => *word = self.address.to_le_bytes(),
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (self.target(offset), <[u8; 4]>::try_from(data)) {
            (Some((slot, register)), _) => self.host.write_config(slot, register, data),
            (None, Ok(word)) if offset == 0 => self.address = u32::from_le_bytes(word),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
