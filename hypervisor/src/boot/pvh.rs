//! The PVH boot protocol: 32-bit protected mode without paging, `hvm_start_info` in EBX (Xen
//! docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h).

use std::fs::File;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE,
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::elf::{self, ElfError, Image, Wanted};
use super::linux::LinuxError;
use super::ram::{self, CMDLINE, Kind, MEMORY_MAP, MODULE_LIST, MapEntry, START_INFO};
use crate::error::Error;
use crate::machine::memory::GuestMemory;

/// How a PVH guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Physical address of the first instruction.
    pub eip: u32,
    /// Physical address of `hvm_start_info`.
    pub ebx: u32,
}

/// Whether `kernel` is an ELF image with a PVH entry point.
///
/// # Errors
/// It is an ELF image that cannot be used.
pub fn is_offered(kernel: &File) -> Result<bool, ElfError> {
    if !elf::is_elf(kernel) {
        return Ok(false);
    }
    match Image::parse(kernel, Wanted::X86)?.pvh_entry() {
        Ok(_) => Ok(true),
        Err(ElfError::NoPvhNote) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Loads the image, its module and command line, and what it is told.
///
/// # Errors
/// A file cannot be used or does not fit.
pub fn load(
    memory: &GuestMemory,
    kernel: &File,
    initrd: Option<&File>,
    cmdline: &str,
    map: &[MapEntry],
    rsdp: Option<u64>,
) -> Result<Entry, Error> {
    let image = Image::parse(kernel, Wanted::X86)?;
    let eip = image.pvh_entry()?;
    image.load(memory)?;
    ram::write_cmdline(memory, cmdline, usize::MAX)?;
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    let module = match initrd {
        Some(file) => {
            let (_, image_end) = image.physical_range();
            let (paddr, size) = ram::load_initrd(memory, file, image_end, u64::MAX)?;
            info.nr_modules = 1;
            info.modlist_paddr = MODULE_LIST;
            Some(hvm_modlist_entry {
                paddr,
                size,
                ..hvm_modlist_entry::default()
            })
        }
        None => None,
    };
    let map: Vec<_> = map.iter().map(entry).collect();
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    if let Some(module) = module {
        params.set_modules(&[module], GuestAddress(MODULE_LIST));
    }
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|_| LinuxError::DoesNotFit {
        what: "the PVH start info",
    })?;
    Ok(Entry {
        eip,
        ebx: START_INFO as u32,
    })
}

fn entry((addr, size, kind): &MapEntry) -> hvm_memmap_table_entry {
    hvm_memmap_table_entry {
        addr: *addr,
        size: *size,
        type_: match kind {
            Kind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
            Kind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
        },
        reserved: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::{file, image};
    use super::*;
    use vm_memory::Bytes;

    fn probe() -> File {
        let mut note = Vec::new();
        for word in [4u32, 4, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(0x10_0000u32.to_le_bytes());
        file(&image(
            0x10_0000,
            &[
                (1, 7, 0x10_0000, 0x10_0000, b"\xf4", 0x1000),
                (4, 4, 0, 0, &note, 0),
            ],
        ))
    }

    #[test]
    fn an_entry_is_offered_by_an_elf_image_with_the_note() {
        let plain = file(&image(
            0x10_0000,
            &[(1, 5, 0x10_0000, 0x10_0000, b"\xf4", 1)],
        ));
        assert!(is_offered(&probe()).unwrap());
        assert!(!is_offered(&plain).unwrap());
        for other in [&b""[..], b"\x7fEL", b"a bzImage"] {
            assert!(!is_offered(&file(other)).unwrap(), "{other:?}");
        }
        assert!(is_offered(&file(b"\x7fELF, cut off")).is_err());
    }

    #[test]
    fn start_info_tells_what_was_loaded() {
        let memory = crate::machine::memory::create(4).unwrap();
        let initrd = file(b"archive");
        let map = ram::pc_map(&memory);
        let entry = load(
            &memory,
            &probe(),
            Some(&initrd),
            "a=b",
            &map,
            Some(0xe_0000),
        )
        .unwrap();
        assert_eq!(
            entry,
            Entry {
                eip: 0x10_0000,
                ebx: 0x6000
            }
        );
        let info: hvm_start_info = memory.read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!((info.magic, info.version), (0x336e_c578, 1));
        assert_eq!((info.rsdp_paddr, info.memmap_entries), (0xe_0000, 3));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x3f_f000, 7));
        let mut archive = [0; 7];
        memory
            .read_slice(&mut archive, GuestAddress(module.paddr))
            .unwrap();
        assert_eq!(&archive, b"archive");
        let reserved: hvm_memmap_table_entry = memory
            .read_obj(GuestAddress(info.memmap_paddr + 24))
            .unwrap();
        assert_eq!((reserved.addr, reserved.type_), (0xe_0000, 2));
    }

    #[test]
    fn images_without_the_note_are_refused() {
        let memory = crate::machine::memory::create(4).unwrap();
        let plain = file(&image(0, &[(1, 5, 0, 0x10_0000, b"x", 1)]));
        let error = load(&memory, &plain, None, "", &[], None).unwrap_err();
        assert_eq!(error.code(), "kernel-not-pvh");
    }
}
