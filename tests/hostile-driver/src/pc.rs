//! The way in on a PC: by the PVH protocol, in 32-bit mode without paging (Xen
//! docs/misc/pvh.pandoc), and from there to where the microkernel would be entered, with the same
//! address space.

use core::arch::global_asm;
use core::ptr;

use bulkhead_abi::layout::DIRECT_MAP;
use bulkhead_abi::machine::EXIT_PORT;

use crate::machine::{BYTES, Memory};

/// `hvm_start_info`: where the command line, the memory map and the number of its entries are.
const CMDLINE: u64 = 24;
const MEMORY_MAP: u64 = 40;
const MEMORY_MAP_ENTRIES: u64 = 48;
/// `hvm_memmap_table_entry`: its length, and its fields behind the address.
const ENTRY_BYTES: u64 = 24;
const ENTRY_LEN: u64 = 8;
const ENTRY_KIND: u64 = 16;
const KIND_RAM: u32 = 1;
/// Where the driver plays: far behind its own image.
const PLAYGROUND: u64 = 16 << 20;
/// Most bytes of the command line.
pub(crate) const MAX_CMDLINE: usize = 64;

// The first and the fourth GiB are mapped where they are, and in the direct map; the first also at
// the kernel's base. The fourth holds the PCI window and the virtio windows.
global_asm!(
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18", // XEN_ELFNOTE_PHYS32_ENTRY
    ".asciz \"Xen\"",
    ".long pc_start_physical",
    ".popsection",
    ".pushsection .data.pc, \"aw\", @progbits",
    ".balign 4096",
    ".global pc_root, pc_low, pc_high, pc_first, pc_fourth, pc_gdt, pc_gdt_pointer",
    "pc_root: .quad pc_low_physical + 3",
    ".fill 255, 8, 0",
    ".quad pc_low_physical + 3", // the direct map
    ".fill 254, 8, 0",
    ".quad pc_high_physical + 3",
    "pc_low: .quad pc_first_physical + 3, 0, 0, pc_fourth_physical + 3",
    ".fill 508, 8, 0",
    "pc_high: .fill 510, 8, 0",
    ".quad pc_first_physical + 3, 0",
    ".set pc_n, 0",
    "pc_first: .rept 512",
    ".quad (pc_n << 21) + 0x83",
    ".set pc_n, pc_n + 1",
    ".endr",
    "pc_fourth: .rept 512",
    ".quad (pc_n << 21) + (2 << 30) + 0x93",
    ".set pc_n, pc_n + 1",
    ".endr",
    "pc_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "pc_gdt_pointer: .word 23",
    ".long pc_gdt_physical",
    ".popsection",
    ".pushsection .bss.pc, \"aw\", @nobits",
    ".balign 16",
    ".skip 65536",
    "pc_stack_top:",
    ".popsection",
    ".code32",
    ".global pc_start, pc_long",
    "pc_start:",
    "cli",
    "cld",
    "mov eax, cr4",
    "or eax, 0x20", // PAE
    "mov cr4, eax",
    "mov eax, offset pc_root_physical",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER
    "rdmsr",
    "or eax, 0x100", // LME
    "wrmsr",
    "lgdt [pc_gdt_pointer_physical]",
    "mov eax, cr0",
    "or eax, 0x80000001", // paging, protection
    "mov cr0, eax",
    ".byte 0xea", // jmp 0x08:pc_long
    ".long pc_long_physical",
    ".word 0x08",
    ".code64",
    "pc_long:",
    "mov eax, 0x10",
    "mov ss, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov edi, ebx",
    "movabs rsp, offset pc_stack_top",
    "movabs rax, offset pc_mapped",
    "jmp rax",
    "pc_mapped:",
    "call {main}",
    "mov dx, {exit}",
    "out dx, al",
    "4: jmp 4b",
    main = sym main,
    exit = const EXIT_PORT,
);

extern "C" fn main(start_info: u64) -> u8 {
    crate::run_on_pc(start_info)
}

fn get<T: Copy>(address: u64) -> T {
    // SAFETY: the callers read what the VMM has written for a PVH guest, below 1 MiB, where nobody
    // writes any more; every value there is an integer.
    unsafe { ptr::read_unaligned((DIRECT_MAP + address) as *const T) }
}

/// Takes memory: from the RAM that lies below 3 GiB.
pub(crate) fn set_up(start_info: u64) -> Option<Memory> {
    let map: u64 = get(start_info + MEMORY_MAP);
    let entries: u32 = get(start_info + MEMORY_MAP_ENTRIES);
    let mut end_of_ram = 0;
    for number in 0..u64::from(entries) {
        let entry = map + number * ENTRY_BYTES;
        let end = get::<u64>(entry) + get::<u64>(entry + ENTRY_LEN);
        if get::<u32>(entry + ENTRY_KIND) == KIND_RAM && end < 3 << 30 {
            end_of_ram = end.max(end_of_ram);
        }
    }
    (end_of_ram >= PLAYGROUND + BYTES).then_some(Memory {
        start: PLAYGROUND,
        end_of_ram,
    })
}

/// The command line.
pub(crate) fn command_line(start_info: u64, buffer: &mut [u8; MAX_CMDLINE]) -> &str {
    let address: u64 = get(start_info + CMDLINE);
    let mut len = 0;
    for (byte, at) in buffer.iter_mut().zip(address..) {
        *byte = get(at);
        if *byte == 0 {
            break;
        }
        len += 1;
    }
    core::str::from_utf8(buffer.get(..len).unwrap_or_default()).unwrap_or_default()
}
