//! The Linux 64-bit boot protocol, for bzImage and vmlinux, told apart by their first bytes
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bulkhead_machine::Image;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::page_tables::{PageTables, Rights};
use super::ram::{self, CMDLINE, GDT, HIGH_RAM_START, Kind, MapEntry, PAGE_TABLES, ZERO_PAGE};
use super::segments;
use crate::error::Error;
use crate::machine::memory::{FileAt, GuestMemory, expect_dense};

/// Offset of the setup header in a bzImage, and in the zero page.
const SETUP_HEADER: u64 = 0x1f1;
/// `header`: the magic of a boot protocol of version 2.00 or later.
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
/// `version` from which `xloadflags` and `pref_address` exist: 2.12.
const OLDEST_VERSION: u16 = 0x020c;
/// Distance of the 64-bit entry point from the load address.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader`: no loader with a number of its own.
const LOADER_OTHER: u8 = 0xff;
/// `boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// The command line's limit for a vmlinux, which does not tell its own: Linux on x86.
const VMLINUX_CMDLINE_MAX: usize = 2047;

/// GDT with a null entry, 64-bit code at 0x10 and data at 0x18, as the protocol wants it.
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Limit of that GDT.
pub const GDT_LIMIT: u16 = (size_of::<[u64; 4]>() - 1) as u16;

/// Why a Linux kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// linux-loader refused it.
    #[error("the kernel image cannot be loaded: {0}")]
    Loader(String),
    /// The initial RAM filesystem cannot be read.
    #[error("the initial RAM filesystem cannot be read: {0}")]
    Initrd(io::Error),
    /// The ACPI tables cannot be read.
    #[error("the ACPI tables cannot be read: {0}")]
    Acpi(io::Error),
    /// Too little guest memory.
    #[error("memory does not hold {what}; give the partition more")]
    DoesNotFit {
        /// What does not fit.
        what: &'static str,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes; this kernel takes {max}")]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// The command line would end early.
    #[error("the kernel command line holds a NUL byte")]
    CmdlineNul,
}

impl LinuxError {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Loader(_) => "kernel-invalid",
            Self::Initrd(_) => "initrd-unreadable",
            Self::Acpi(_) => "acpi-unreadable",
            Self::DoesNotFit { .. } => "memory-too-small",
            Self::CmdlineTooLong { .. } => "cmdline-too-long",
            Self::CmdlineNul => "cmdline-invalid",
        }
    }
}

/// How a Linux kernel is entered: 64-bit mode, identity map, [`GDT`] loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First instruction.
    pub rip: u64,
    /// The zero page.
    pub rsi: u64,
    /// Page tables.
    pub cr3: u64,
}

/// A kernel in memory, before its parameters.
struct Loaded {
    entry: u64,
    /// First byte behind what the kernel uses before it reads its memory map.
    end: u64,
    header: setup_header,
    cmdline_max: usize,
    initrd_limit: u64,
}

/// Loads the kernel, the initial RAM filesystem, and the zero page with `map` and `rsdp`.
///
/// # Errors
/// A file cannot be used or does not fit.
pub fn load(
    memory: &GuestMemory,
    kernel: &File,
    image: Option<&Image>,
    initrd: Option<&File>,
    cmdline: &str,
    map: &[MapEntry],
    rsdp: u64,
) -> Result<Entry, Error> {
    let loaded = match image {
        Some(image) => load_vmlinux(memory, kernel, image)?,
        None => load_bzimage(memory, kernel)?,
    };
    ram::write_cmdline(memory, cmdline, loaded.cmdline_max)?;
    let mut params = boot_params {
        hdr: loaded.header,
        acpi_rsdp_addr: rsdp,
        ..boot_params::default()
    };
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    if let Some(file) = initrd {
        let (start, len) = ram::load_initrd(memory, file, loaded.end, loaded.initrd_limit)?;
        // Both lie below 4 GiB: low memory ends at 3 GiB.
        params.hdr.ramdisk_image = start as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    let mut e820_table = params.e820_table;
    for (slot, (addr, size, kind)) in e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: *addr,
            size: *size,
            // E820_TYPE_RAM, E820_TYPE_RESERVED.
            r#type: match kind {
                Kind::Ram => 1,
                Kind::Reserved => 2,
            },
        };
    }
    params.e820_table = e820_table;
    params.e820_entries = map.len().min(e820_table.len()) as u8;
    let does_not_fit = |_| LinuxError::DoesNotFit {
        what: "the zero page",
    };
    memory
        .write_obj(params, GuestAddress(ZERO_PAGE))
        .map_err(does_not_fit)?;
    memory
        .write_slice(
            zerocopy::IntoBytes::as_bytes(&GDT_ENTRIES),
            GuestAddress(GDT),
        )
        .map_err(does_not_fit)?;
    let tables = identity_map();
    tables.write_to(memory).map_err(does_not_fit)?;
    Ok(Entry {
        rip: loaded.entry,
        rsi: ZERO_PAGE,
        cr3: tables.root(),
    })
}

/// The first 4 GiB at their own addresses.
fn identity_map() -> PageTables {
    const LARGE_PAGE: usize = 2 << 20;
    let rights = Rights {
        write: true,
        execute: true,
        global: false,
    };
    let mut tables = PageTables::new(PAGE_TABLES);
    for at in (0..1u64 << 32).step_by(LARGE_PAGE) {
        tables.map_large(at, at, rights);
    }
    tables
}

fn load_vmlinux(memory: &GuestMemory, kernel: &File, image: &Image) -> Result<Loaded, Error> {
    segments::load(memory, kernel, image)?;
    let (_, end) = image.physical_range();
    Ok(Loaded {
        entry: image.entry,
        end,
        header: setup_header {
            boot_flag: BOOT_FLAG,
            header: HDRS,
            version: OLDEST_VERSION,
            ..setup_header::default()
        },
        cmdline_max: VMLINUX_CMDLINE_MAX,
        initrd_limit: u64::MAX,
    })
}

fn load_bzimage(memory: &GuestMemory, kernel: &File) -> Result<Loaded, Error> {
    let size = kernel.metadata().map_err(Error::KernelUnreadable)?.len();
    let mut header = setup_header::default();
    kernel
        .read_exact_at(header.as_mut_slice(), SETUP_HEADER)
        .map_err(Error::KernelUnreadable)?;
    // The decompressor works in place at `pref_address`; it needs `init_size` there.
    let in_place_end = header.pref_address.saturating_add(header.init_size.into());
    if in_place_end > ram::low_end(memory) {
        return Err(Error::MemoryTooSmall {
            what: "the kernel while it unpacks itself",
            memory_mib: ram::low_end(memory) >> 20,
            needed_mib: in_place_end.div_ceil(1 << 20),
        });
    }
    let start = GuestAddress(HIGH_RAM_START);
    let mut source = FileAt::new(kernel, 0);
    expect_dense(memory, start, size);
    let result = BzImage::load(memory, Some(start), &mut source, Some(start))
        .map_err(|e| LinuxError::Loader(e.to_string()))?;
    Ok(Loaded {
        entry: HIGH_RAM_START + ENTRY_64,
        end: in_place_end.max(result.kernel_end),
        header: result.setup_header.unwrap_or(header),
        cmdline_max: header.cmdline_size as usize,
        initrd_limit: u64::from(header.initrd_addr_max).saturating_add(1),
    })
}

#[cfg(test)]
mod tests {
    use super::super::page_tables::tests::walk;
    use super::super::testing::{file, image};
    use super::*;

    const RSDP: u64 = 0xe_0000;

    /// A bzImage of three setup sectors and `payload`.
    fn bzimage(change: impl FnOnce(&mut setup_header)) -> Vec<u8> {
        let mut header = setup_header {
            setup_sects: 2,
            syssize: 0x100 / 16,
            boot_flag: BOOT_FLAG,
            header: HDRS,
            version: 0x020f,
            loadflags: 1,
            code32_start: 0x10_0000,
            xloadflags: 1,
            initrd_addr_max: 0x7fff_ffff,
            cmdline_size: 2047,
            pref_address: 0x20_0000,
            init_size: 0x10_0000,
            ..setup_header::default()
        };
        change(&mut header);
        let mut bytes = vec![0; 3 * 512 + 0x100];
        bytes[3 * 512..].fill(0xcc);
        let at = SETUP_HEADER as usize;
        bytes[at..at + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        bytes
    }

    fn try_load(kernel: &[u8]) -> Result<Entry, Error> {
        let memory = crate::machine::memory::create(4).unwrap();
        load(
            &memory,
            &file(kernel),
            None,
            None,
            "",
            &ram::pc_map(&memory),
            RSDP,
        )
    }

    #[test]
    fn a_bzimage_gets_its_zero_page() {
        let memory = crate::machine::memory::create(4).unwrap();
        let initrd = file(b"cpio");
        let map = ram::pc_map(&memory);
        let kernel = file(&bzimage(|_| {}));
        let entry = load(&memory, &kernel, None, Some(&initrd), "quiet", &map, RSDP).unwrap();
        assert_eq!((entry.rip, entry.rsi), (0x10_0200, ZERO_PAGE));
        let params: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let header = params.hdr;
        assert_eq!({ header.header }, HDRS);
        assert_eq!({ header.ramdisk_image }, 0x3f_f000);
        assert_eq!({ header.ramdisk_size }, 4);
        assert_eq!({ header.cmd_line_ptr }, CMDLINE as u32);
        assert_eq!({ params.acpi_rsdp_addr }, RSDP);
        assert_eq!(params.e820_entries, 3);
        let byte: u8 = memory.read_obj(GuestAddress(0x10_00ff)).unwrap();
        assert_eq!(byte, 0xcc);
        for va in [0, 0x10_0200, 0xffff_ffff] {
            assert_eq!(walk(&memory, entry.cr3, va), Some((va, true, true)));
        }
        assert_eq!(walk(&memory, entry.cr3, 1 << 32), None);
    }

    #[test]
    fn a_vmlinux_is_entered_where_it_says() {
        let memory = crate::machine::memory::create(4).unwrap();
        let (kernel, image) = image(0x10_0100, &[("x", 0x10_0000, b"code", 0x1000)]);
        let map = ram::pc_map(&memory);
        let entry = load(&memory, &kernel, Some(&image), None, "", &map, RSDP).unwrap();
        assert_eq!(entry.rip, 0x10_0100);
    }

    #[test]
    fn a_bzimage_that_cannot_be_loaded_is_named() {
        for (kernel, code) in [
            (Vec::new(), "kernel-unreadable"),
            (vec![0; 4096], "kernel-invalid"),
            (bzimage(|h| h.init_size = 0x1000_0000), "memory-too-small"),
            (bzimage(|h| h.pref_address = u64::MAX), "memory-too-small"),
            (bzimage(|h| h.loadflags = 0), "kernel-invalid"),
        ] {
            assert_eq!(try_load(&kernel).unwrap_err().code(), code);
        }
    }

    #[test]
    fn any_changed_header_byte_is_survived() {
        let whole = bzimage(|_| {});
        let memory = crate::machine::memory::create(4).unwrap();
        for at in SETUP_HEADER as usize..SETUP_HEADER as usize + size_of::<setup_header>() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = load(&memory, &file(&bytes), None, None, "", &[], RSDP);
            }
        }
    }
}
