//! A function's configuration space (PCI Local Bus 3.0, section 6): header type 0, BARs, and a list of
//! capabilities. What a guest may write is a mask; everything else keeps its value.

use super::BarState;

/// Bytes of a configuration space.
pub const LEN: usize = 256;
/// BARs of a function.
pub const BARS: u8 = 6;

/// Command: the function answers in its memory BARs.
pub const MEMORY_SPACE: u16 = 1 << 1;
/// Command: the function may read and write memory, and send messages.
const BUS_MASTER: u16 = 1 << 2;
/// Command: no interrupt by pin.
const INTERRUPT_DISABLE: u16 = 1 << 10;
/// Status: there is a list of capabilities.
const CAPABILITIES: u16 = 1 << 4;

/// Register of the command.
pub const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE: usize = 0x0c;
/// Register of the first BAR.
pub const BAR0: usize = 0x10;
const CAPABILITY_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// First byte behind the header.
const HEADER_END: usize = 0x40;

/// Memory BAR: 64 bits wide, this register and the next.
const BAR_64: u32 = 0b100;
/// Memory BAR: reads have no side effects.
const BAR_PREFETCHABLE: u32 = 0b1000;

/// Registers in which a write may move a BAR: the command register and the BARs.
pub fn moves_bars(register: u16) -> bool {
    let register = usize::from(register);
    (COMMAND..STATUS).contains(&register)
        || (BAR0..BAR0 + 4 * usize::from(BARS)).contains(&register)
}

/// Who a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, from the highest byte of 24 bits.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// Kinds of memory BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB.
    Memory32,
    /// Anywhere; takes two registers.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// What a function asks for does not fit a configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The BAR's register is taken or absent, or its size is not a power of two it can decode.
    #[error("bar {0} is taken, or of no possible size")]
    Bar(u8),
    /// The list of capabilities is longer than the space.
    #[error("the capabilities do not fit")]
    Full,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
    /// Bits a guest may change.
    writable: [u8; LEN],
    bars: Vec<Bar>,
    /// Where the next capability goes.
    end: usize,
    /// Where its offset is noted.
    link: usize,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    index: u8,
    size: u64,
    kind: BarKind,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            bars: Vec::new(),
            end: HEADER_END,
            link: CAPABILITY_POINTER,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(
            0x08,
            &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes(),
        );
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        let command = MEMORY_SPACE | BUS_MASTER | INTERRUPT_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(CACHE_LINE, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds BAR `index` of `size` bytes.
    ///
    /// # Errors
    /// [`ConfigError::Bar`].
    pub fn add_bar(&mut self, index: u8, size: u64, kind: BarKind) -> Result<(), ConfigError> {
        let registers = match kind {
            BarKind::Memory32 => index..index.saturating_add(1),
            BarKind::Memory64 { .. } => index..index.saturating_add(2),
        };
        let fits = match kind {
            BarKind::Memory32 => size <= 1 << 31,
            BarKind::Memory64 { .. } => true,
        };
        let taken = registers.clone().any(|register| self.is_taken(register));
        if registers.end > BARS || taken || !fits || !size.is_power_of_two() || size < 16 {
            return Err(ConfigError::Bar(index));
        }
        let at = BAR0 + 4 * usize::from(index);
        let mask = !(size - 1);
        self.allow(at, &(mask as u32).to_le_bytes());
        if let BarKind::Memory64 { prefetchable } = kind {
            let flags = BAR_64 | if prefetchable { BAR_PREFETCHABLE } else { 0 };
            self.put(at, &flags.to_le_bytes());
            self.allow(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        self.bars.push(Bar { index, size, kind });
        Ok(())
    }

    fn is_taken(&self, register: u8) -> bool {
        self.bars.iter().any(|bar| {
            let wide = bar.kind != BarKind::Memory32;
            bar.index == register || wide && bar.index + 1 == register
        })
    }

    /// Appends the capability `id` with `body` behind its two-byte head, of which a guest may change
    /// `writable`; where it begins.
    ///
    /// # Errors
    /// [`ConfigError::Full`].
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u8, ConfigError> {
        let at = self.end;
        let end = at + 2 + body.len();
        let offset = u8::try_from(at).map_err(|_| ConfigError::Full)?;
        if end > LEN || writable.len() > body.len() {
            return Err(ConfigError::Full);
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(self.link, &[offset]);
        self.link = at + 1;
        self.end = end.next_multiple_of(4);
        let status = self.half(STATUS) | CAPABILITIES;
        self.put(STATUS, &status.to_le_bytes());
        Ok(offset)
    }

    /// Serves a guest's read; bytes behind the space are zero.
    pub fn read(&self, register: u16, data: &mut [u8]) {
        for (to, at) in data.iter_mut().zip(usize::from(register)..) {
            *to = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Takes a guest's write.
    pub fn write(&mut self, register: u16, data: &[u8]) {
        let start = usize::from(register);
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(start);
        for ((to, mask), from) in bytes.zip(data) {
            *to = *to & !mask | from & mask;
        }
    }

    /// The two bytes at `register`.
    pub fn half(&self, register: usize) -> u16 {
        let mut data = [0; 2];
        self.read(register as u16, &mut data);
        u16::from_le_bytes(data)
    }

    /// The four bytes at `register`.
    pub fn word(&self, register: usize) -> u32 {
        let mut data = [0; 4];
        self.read(register as u16, &mut data);
        u32::from_le_bytes(data)
    }

    /// The function answers in its BARs.
    pub fn decodes_memory(&self) -> bool {
        self.half(COMMAND) & MEMORY_SPACE != 0
    }

    /// The BARs as they are programmed.
    pub fn bars(&self) -> Vec<BarState> {
        let state = |bar: &Bar| {
            let at = BAR0 + 4 * usize::from(bar.index);
            let wide = bar.kind != BarKind::Memory32;
            let mut address = u64::from(self.word(at));
            if wide {
                address |= u64::from(self.word(at + 4)) << 32;
            }
            BarState {
                bar: bar.index,
                size: bar.size,
                wide,
                address: self.decodes_memory().then_some(address & !0xf),
            }
        };
        self.bars.iter().map(state).collect()
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(data) {
            *to = *from;
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(at).zip(mask) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_8000,
        subsystem_vendor: 0x1af4,
        subsystem: 2,
    };

    /// A function with a BAR of each kind and a capability with a writable part.
    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(IDENTITY);
        space.add_bar(0, 0x8000, BarKind::Memory32).unwrap();
        let wide = BarKind::Memory64 { prefetchable: true };
        space.add_bar(2, 1 << 33, wide).unwrap();
        space.add_capability(0x11, &[1, 2, 3], &[0, 0xf0]).unwrap();
        space.add_capability(0x09, &[7; 6], &[]).unwrap();
        space
    }

    #[test]
    fn a_guest_sizes_and_places_bars() {
        let mut space = space();
        assert!(
            space.bars().iter().all(|bar| bar.address.is_none()),
            "decoding is off"
        );
        for register in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
            space.write(register, &[0xff; 4]);
        }
        let words = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map(|at| space.word(at));
        assert_eq!(words, [0xffff_8000, 0, 0x0000_000c, 0xffff_fffe, 0, 0, 0]);
        space.write(0x10, &0xe000_4321u32.to_le_bytes());
        space.write(0x18, &[0xff; 4]);
        space.write(0x1c, &0x12u32.to_le_bytes());
        space.write(0x04, &[0xff; 2]);
        assert_eq!(space.half(0x04), 0x0406);
        let bars: Vec<_> = space
            .bars()
            .iter()
            .map(|bar| (bar.bar, bar.address))
            .collect();
        assert_eq!(bars, [(0, Some(0xe000_0000)), (2, Some(0x12_0000_0000))]);
    }

    #[test]
    fn capabilities_are_a_list() {
        let space = space();
        assert_eq!(space.half(STATUS) & CAPABILITIES, CAPABILITIES);
        let first = space.half(CAPABILITY_POINTER) as u8;
        assert_eq!((first, space.half(0x40)), (0x40, 0x4811));
        assert_eq!(space.half(0x48), 0x0009);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut space = space();
        let wide = BarKind::Memory64 {
            prefetchable: false,
        };
        for (index, size, kind) in [
            (0, 16, BarKind::Memory32),
            (3, 16, BarKind::Memory32),
            (1, 16, wide),
            (5, 16, wide),
            (6, 16, BarKind::Memory32),
            (u8::MAX, 16, wide),
            (4, 24, BarKind::Memory32),
            (4, 8, BarKind::Memory32),
            (4, 0, BarKind::Memory32),
            (4, 1 << 32, BarKind::Memory32),
        ] {
            assert_eq!(
                space.add_bar(index, size, kind),
                Err(ConfigError::Bar(index))
            );
        }
        while space.add_capability(0x09, &[0; 14], &[]).is_ok() {}
        assert_eq!(
            space.add_capability(0x09, &[0; 200], &[]),
            Err(ConfigError::Full)
        );
        assert_eq!(
            space.add_capability(0x09, &[0], &[0; 2]),
            Err(ConfigError::Full)
        );
    }

    proptest! {
        /// Whatever is written, bits that are not the guest's keep their value, and BARs are
        /// aligned to their size.
        #[test]
        fn read_only_bits_never_change(writes in vec((any::<u16>(), vec(any::<u8>(), 0..9)), 0..64)) {
            let mut space = space();
            let before = space.clone();
            for (register, data) in writes {
                space.write(register % 0x110, &data);
            }
            for at in 0..LEN {
                prop_assert_eq!((space.bytes[at] ^ before.bytes[at]) & !before.writable[at], 0);
            }
            for bar in space.bars() {
                prop_assert!(bar.address.is_none_or(|address| address % bar.size == 0));
            }
        }
    }
}
