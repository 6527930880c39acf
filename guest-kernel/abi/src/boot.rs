//! `BootInfo`: what the VMM tells a Bulkhead kernel. Written by the VMM before the first
//! instruction, read by the kernel, shown read-only to the initial program.
//!
//! The blob is [`BootInfo`] followed by its tables; each table is named by a byte offset from the
//! start of the blob and a count. A reader checks every offset against [`BootInfo::size`] before
//! it follows one: see [`BootInfoView`].

use zerocopy::{FromBytes, Immutable, KnownLayout};

pub use crate::generated::boot::*;
use crate::machine::MAX_CPUS;

/// Why a blob was refused. The VMM is at fault in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootInfoError {
    /// Shorter than its head, or `size` is outside its bounds.
    Size,
    /// The first bytes are not [`MAGIC`].
    Magic,
    /// Another version than [`VERSION`].
    Version,
    /// A table leaves the blob or is misaligned.
    Table,
    /// A range wraps round, or `tsc_khz` is zero.
    Range,
}

/// A checked blob: every accessor is in bounds by construction.
#[derive(Clone, Copy, Debug)]
pub struct BootInfoView<'a> {
    head: &'a BootInfo,
    regions: &'a [MemoryRegion],
    modules: &'a [Module],
    devices: &'a [Device],
    args: &'a [u8],
    env: &'a [u8],
}

/// Slots of a program's first CNode in bits: at least.
pub const ROOT_RADIX_MIN: u32 = 10;
/// Slots of a program's first CNode in bits: at most.
pub const ROOT_RADIX_MAX: u32 = 16;

impl<'a> BootInfoView<'a> {
    /// Slots of the program's first CNode in bits: one for each 16 KiB of free memory, within
    /// bounds.
    #[must_use]
    pub fn root_radix(&self) -> u32 {
        let free = self.regions().iter().filter(|r| r.kind == REGION_UNTYPED);
        let bytes = free.fold(0_u64, |sum, region| sum.saturating_add(region.range.len));
        let radix = bytes.max(1).ilog2().saturating_sub(14);
        radix.clamp(ROOT_RADIX_MIN, ROOT_RADIX_MAX)
    }

    /// Checks `blob`, which may be longer than the `size` it names.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse(blob: &'a [u8]) -> Result<Self, BootInfoError> {
        let (head, _) = BootInfo::ref_from_prefix(blob).map_err(|_| BootInfoError::Size)?;
        if head.magic != MAGIC {
            return Err(BootInfoError::Magic);
        }
        if head.version != VERSION {
            return Err(BootInfoError::Version);
        }
        if head.size > MAX_SIZE || (head.size as usize) < size_of::<BootInfo>() {
            return Err(BootInfoError::Size);
        }
        let blob = blob.get(..head.size as usize).ok_or(BootInfoError::Size)?;
        let ranges = [
            head.boot_info,
            head.kernel,
            head.page_tables,
            head.boot_stack,
        ];
        if head.tsc_khz == 0 || ranges.iter().any(|r| r.start.checked_add(r.len).is_none()) {
            return Err(BootInfoError::Range);
        }
        let view = Self {
            head,
            regions: table(blob, head.regions)?,
            modules: table(blob, head.modules)?,
            devices: table(blob, head.devices)?,
            args: table(blob, head.args)?,
            env: table(blob, head.env)?,
        };
        let mut ranges = (view.regions.iter().map(|r| r.range))
            .chain(view.modules.iter().map(|m| m.range))
            .chain(view.devices.iter().map(|d| d.registers));
        if ranges.any(|r| r.start.checked_add(r.len).is_none()) {
            return Err(BootInfoError::Range);
        }
        Ok(view)
    }

    /// The head of the blob.
    pub fn head(&self) -> &'a BootInfo {
        self.head
    }
    /// Memory, see [`MemoryRegion`].
    pub fn regions(&self) -> &'a [MemoryRegion] {
        self.regions
    }
    /// Modules, see [`Module`].
    pub fn modules(&self) -> &'a [Module] {
        self.modules
    }
    /// Granted devices, see [`Device`].
    pub fn devices(&self) -> &'a [Device] {
        self.devices
    }
    /// Arguments of the initial program, without their NULs.
    pub fn args(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        strings(self.args)
    }
    /// Environment of the initial program, without the NULs.
    pub fn env(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        strings(self.env)
    }
    /// How many CPUs the kernel uses: at least one.
    pub fn cpus(&self) -> u64 {
        self.head.vcpus.clamp(1, MAX_CPUS as u64)
    }
    /// True when all bits of `flag` are set.
    pub fn has(&self, flag: u64) -> bool {
        self.head.flags & flag == flag
    }
}

fn table<T: FromBytes + Immutable + KnownLayout>(
    blob: &[u8],
    at: Table,
) -> Result<&[T], BootInfoError> {
    let tail = blob.get(at.offset as usize..).ok_or(BootInfoError::Table)?;
    let (entries, _) = <[T]>::ref_from_prefix_with_elems(tail, at.count as usize)
        .map_err(|_| BootInfoError::Table)?;
    Ok(entries)
}

/// Splits a table of NUL-terminated strings.
fn strings(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split_inclusive(|b| *b == 0)
        .map(|s| s.strip_suffix(&[0]).unwrap_or(s))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use zerocopy::IntoBytes;

    use super::*;

    /// A blob with one entry in each table, on 8 bytes.
    fn blob(spoil: impl FnOnce(&mut BootInfo)) -> Vec<u64> {
        let head_len = size_of::<BootInfo>() as u32;
        let range = PhysRange {
            start: 0x10_0000,
            len: 0x1000,
        };
        let mut tail = Vec::new();
        let mut table = |bytes: &[u8], count: u32| {
            let offset = head_len + tail.len() as u32;
            tail.extend_from_slice(bytes);
            tail.resize(tail.len().next_multiple_of(8), 0);
            Table { offset, count }
        };
        let region = MemoryRegion {
            range,
            kind: REGION_UNTYPED,
            reserved: 0,
        };
        let module = Module {
            range,
            kind: MODULE_PROGRAM,
            reserved: 0,
        };
        let device = Device {
            registers: range,
            kind: DEVICE_VIRTIO_MMIO,
            virtio_id: 4,
            vector: 0x40,
            reserved: 0,
            name: [0; 32],
        };
        let mut head = BootInfo {
            magic: MAGIC,
            version: VERSION,
            size: 0,
            flags: FLAG_CONSOLE | FLAG_TIME,
            tsc_khz: 1,
            wall_clock_ns: 0,
            wall_clock_tsc: 0,
            entropy_seed: [0; 32],
            boot_info: range,
            kernel: range,
            page_tables: range,
            boot_stack: range,
            console_mailbox: 0x1000,
            regions: table(region.as_bytes(), 1),
            modules: table(module.as_bytes(), 1),
            devices: table(device.as_bytes(), 1),
            args: table(b"one\0two\0", 8),
            env: table(b"A=1\0", 4),
            vcpus: 2,
        };
        head.size = head_len + tail.len() as u32;
        spoil(&mut head);
        let mut words = vec![0; (head_len as usize + tail.len()) / 8];
        let bytes = words.as_mut_slice().as_mut_bytes();
        bytes[..head_len as usize].copy_from_slice(head.as_bytes());
        bytes[head_len as usize..].copy_from_slice(&tail);
        words
    }

    fn parse(spoil: impl FnOnce(&mut BootInfo)) -> Result<(), BootInfoError> {
        BootInfoView::parse(blob(spoil).as_bytes()).map(|_| ())
    }

    #[test]
    fn a_good_blob_shows_its_tables() {
        let blob = blob(|_| {});
        let view = BootInfoView::parse(blob.as_bytes()).unwrap();
        let counts = (
            view.regions().len(),
            view.modules().len(),
            view.devices().len(),
        );
        assert_eq!(counts, (1, 1, 1));
        assert!(view.args().eq([b"one".as_slice(), b"two"]));
        assert!(view.env().eq([b"A=1".as_slice()]));
        assert!(view.has(FLAG_CONSOLE | FLAG_TIME) && !view.has(FLAG_ENTROPY | FLAG_TIME));
    }

    #[test]
    fn broken_rules_are_named() {
        let far = PhysRange {
            start: u64::MAX,
            len: 2,
        };
        assert_eq!(parse(|_| {}), Ok(()));
        assert_eq!(parse(|h| h.magic += 1), Err(BootInfoError::Magic));
        assert_eq!(parse(|h| h.version += 1), Err(BootInfoError::Version));
        assert_eq!(parse(|h| h.size = 8), Err(BootInfoError::Size));
        assert_eq!(parse(|h| h.size += 8), Err(BootInfoError::Size));
        assert_eq!(parse(|h| h.size = MAX_SIZE + 1), Err(BootInfoError::Size));
        assert_eq!(parse(|h| h.tsc_khz = 0), Err(BootInfoError::Range));
        assert_eq!(parse(|h| h.kernel = far), Err(BootInfoError::Range));
        assert_eq!(parse(|h| h.regions.count = 99), Err(BootInfoError::Table));
        assert_eq!(
            parse(|h| h.regions.count = u32::MAX),
            Err(BootInfoError::Table)
        );
        assert_eq!(parse(|h| h.modules.offset += 1), Err(BootInfoError::Table));
        assert_eq!(
            parse(|h| h.devices.offset = u32::MAX),
            Err(BootInfoError::Table)
        );
        assert_eq!(parse(|h| h.args.count = 4096), Err(BootInfoError::Table));
    }

    #[test]
    fn every_truncation_is_refused() {
        let blob = blob(|_| {});
        let bytes = blob.as_bytes();
        for len in 0..bytes.len() {
            assert!(BootInfoView::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
    }
}
