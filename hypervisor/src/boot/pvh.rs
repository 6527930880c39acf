//! The PVH boot protocol: 32-bit protected mode without paging, `hvm_start_info` in EBX (Xen
//! docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h).

use std::fs::File;

use bulkhead_machine::Image;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE,
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::linux::LinuxError;
use super::ram::{self, CMDLINE, Kind, MEMORY_MAP, MODULE_LIST, MapEntry, START_INFO};
use super::segments;
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

/// Loads the image with its entry point `eip`, its module and command line, and what it is told.
///
/// # Errors
/// A file cannot be used or does not fit.
pub fn load(
    memory: &GuestMemory,
    kernel: &File,
    (image, eip): (&Image, u32),
    initrd: Option<&File>,
    cmdline: &str,
    map: &[MapEntry],
    rsdp: Option<u64>,
) -> Result<Entry, Error> {
    segments::load(memory, kernel, image)?;
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
    use super::super::testing::{file, image};
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn start_info_tells_what_was_loaded() {
        let memory = crate::machine::memory::create(4).unwrap();
        let initrd = file(b"archive");
        let map = ram::pc_map(&memory);
        let (kernel, image) = image(0, &[("x", 0x10_0000, b"\xf4", 0x1000)]);
        let entry = load(
            &memory,
            &kernel,
            (&image, 0x10_0000),
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
}
