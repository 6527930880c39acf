//! Where things lie in the memory of PC and PVH guests, and the memory map they are told.

use std::fs::File;
use std::io;

use bulkhead_machine::pc::{ACPI_TABLES, VM_GENERATION_ID};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::linux::LinuxError;
use crate::error::Error;
use crate::machine::memory::{FileAt, GuestMemory, expect_dense};
use crate::random::fill_random;

/// The GDT that the Linux boot protocol wants loaded.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of PVH guests.
pub const START_INFO: u64 = 0x6000;
/// Their module list.
pub const MODULE_LIST: u64 = 0x6100;
/// Their memory map.
pub const MEMORY_MAP: u64 = 0x6200;
/// `boot_params` of Linux guests: the zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Identity page tables of Linux guests: six pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line, at most [`CMDLINE_MAX`] bytes with its NUL.
pub const CMDLINE: u64 = 0x2_0000;
/// Most bytes of a command line; Linux takes 2048 on x86 and refuses none.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// End (exclusive) of usable memory below 1 MiB.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Start of memory above the legacy hole.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Where a jump into the BIOS goes, in real mode: F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// All the BIOS there is: it pulls the keyboard controller's reset line. Linux resets a
/// hardware-reduced platform through EFI, and where there is none, through this jump.
const RESET_CODE: [u8; 7] = [
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
];

/// What a range of the memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For the guest to use.
    Ram,
    /// Not for use: tables that must stay.
    Reserved,
}

/// One line of a memory map: start, length, kind.
pub type MapEntry = (u64, u64, Kind);

/// The map of a PC.
pub fn pc_map(memory: &GuestMemory) -> Vec<MapEntry> {
    let mut map = vec![
        (0, LOW_RAM_END, Kind::Ram),
        (ACPI_TABLES, HIGH_RAM_START - ACPI_TABLES, Kind::Reserved),
    ];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let end = start + region.len();
        let start = start.max(HIGH_RAM_START);
        if start < end {
            map.push((start, end - start, Kind::Ram));
        }
    }
    map
}

/// Writes the code at [`RESET_VECTOR`].
///
/// # Errors
/// Memory does not reach there.
pub fn write_reset_code(memory: &GuestMemory) -> Result<(), LinuxError> {
    memory
        .write_slice(&RESET_CODE, GuestAddress(RESET_VECTOR))
        .map_err(|_| LinuxError::DoesNotFit {
            what: "the reset vector",
        })
}

/// Writes a fresh [`VM_GENERATION_ID`]: by it a guest knows that it is no continuation of another.
///
/// # Errors
/// The host has no random bytes, or memory does not reach there.
pub fn write_generation_id(memory: &GuestMemory) -> Result<(), Error> {
    let mut id = [0; 16];
    fill_random(&mut id)?;
    memory
        .write_slice(&id, GuestAddress(VM_GENERATION_ID))
        .map_err(|_| LinuxError::DoesNotFit {
            what: "the generation id",
        })?;
    Ok(())
}

/// The map of a machine with nothing in it but RAM.
pub fn bare_map(memory: &GuestMemory) -> Vec<MapEntry> {
    let regions = memory.iter();
    regions
        .map(|region| (region.start_addr().raw_value(), region.len(), Kind::Ram))
        .collect()
}

/// End of RAM below 4 GiB.
pub fn low_end(memory: &GuestMemory) -> u64 {
    memory.iter().next().map_or(0, |region| region.len())
}

/// Writes the command line and its NUL to [`CMDLINE`].
///
/// # Errors
/// It holds a NUL byte, or is longer than `max` bytes without one.
pub fn write_cmdline(memory: &GuestMemory, cmdline: &str, max: usize) -> Result<(), LinuxError> {
    let max = max.min(CMDLINE_MAX - 1);
    if cmdline.len() > max {
        return Err(LinuxError::CmdlineTooLong {
            len: cmdline.len(),
            max,
        });
    }
    if cmdline.contains('\0') {
        return Err(LinuxError::CmdlineNul);
    }
    let bytes = [cmdline.as_bytes(), &[0]].concat();
    memory
        .write_slice(&bytes, GuestAddress(CMDLINE))
        .map_err(|_| LinuxError::DoesNotFit {
            what: "the command line",
        })
}

/// Loads the ACPI tables in `file`; the RSDP's address.
///
/// # Errors
/// They do not fit below 1 MiB, or cannot be read.
pub fn load_acpi(memory: &GuestMemory, file: &File) -> Result<u64, LinuxError> {
    let len = file.metadata().map_err(LinuxError::Acpi)?.len();
    if len > VM_GENERATION_ID - ACPI_TABLES {
        return Err(LinuxError::DoesNotFit {
            what: "the ACPI tables",
        });
    }
    read(memory, ACPI_TABLES, file, len).map_err(LinuxError::Acpi)?;
    Ok(ACPI_TABLES)
}

/// Loads an initial RAM filesystem as high as it goes: below `limit`, above `floor` and what this
/// room puts below 1 MiB. Its start and length.
///
/// # Errors
/// It does not fit, or cannot be read.
pub fn load_initrd(
    memory: &GuestMemory,
    file: &File,
    floor: u64,
    limit: u64,
) -> Result<(u64, u64), LinuxError> {
    let does_not_fit = LinuxError::DoesNotFit {
        what: "the initial RAM filesystem",
    };
    let len = file.metadata().map_err(LinuxError::Initrd)?.len();
    let end = low_end(memory).min(limit);
    let Some(start) = end.checked_sub(len).map(|start| start & !0xfff) else {
        return Err(does_not_fit);
    };
    if start < floor.max(HIGH_RAM_START) {
        return Err(does_not_fit);
    }
    expect_dense(memory, GuestAddress(start), len);
    read(memory, start, file, len).map_err(LinuxError::Initrd)?;
    Ok((start, len))
}

/// Reads `len` bytes of `file` to `start`.
fn read(memory: &GuestMemory, start: u64, file: &File, len: u64) -> io::Result<()> {
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut FileAt::new(file, 0), len as usize)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::super::testing::file;
    use super::*;

    #[test]
    fn the_pc_map_leaves_the_legacy_hole_and_the_tables_out() {
        let memory = crate::machine::memory::create(4).unwrap();
        assert_eq!(
            pc_map(&memory),
            [
                (0, 0x9_fc00, Kind::Ram),
                (0xe_0000, 0x2_0000, Kind::Reserved),
                (0x10_0000, 0x30_0000, Kind::Ram),
            ]
        );
        assert_eq!(bare_map(&memory), [(0, 0x40_0000, Kind::Ram)]);
    }

    #[test]
    fn command_lines_are_checked() {
        let memory = crate::machine::memory::create(2).unwrap();
        write_cmdline(&memory, "quiet", 5).unwrap();
        let mut got = [1; 6];
        memory.read_slice(&mut got, GuestAddress(CMDLINE)).unwrap();
        assert_eq!(&got, b"quiet\0");
        let code = |text: &str, max| write_cmdline(&memory, text, max).unwrap_err().code();
        assert_eq!(code("quieter", 5), "cmdline-too-long");
        assert_eq!(
            code(&"x".repeat(CMDLINE_MAX), usize::MAX),
            "cmdline-too-long"
        );
        assert_eq!(code("a\0b", 100), "cmdline-invalid");
    }

    #[test]
    fn initrds_go_high_or_are_refused() {
        let memory = crate::machine::memory::create(2).unwrap();
        let small = file(&[7; 5000]);
        assert_eq!(
            load_initrd(&memory, &small, 0x10_0000, u64::MAX).unwrap(),
            (0x1f_e000, 5000)
        );
        assert_eq!(
            load_initrd(&memory, &small, 0x10_0000, 0x18_0000).unwrap(),
            (0x17_e000, 5000)
        );
        for (floor, limit) in [
            (0x1f_f000, u64::MAX),
            (0x10_0000, 0x1000),
            (0, 4999),
            // A kernel may end below 1 MiB, where tables lie.
            (0x1000, 0x10_1000),
        ] {
            let error = load_initrd(&memory, &small, floor, limit).unwrap_err();
            assert_eq!(error.code(), "memory-too-small");
        }
    }
}
