//! Hostile guests, made at run time: ELF images that take the microkernel's place and do one bad
//! thing with the privileges of a guest kernel. A few dozen bytes of machine code each, so that
//! the suites depend on nothing that the code under test builds.

use bulkhead_abi::layout::{KERNEL_BASE, KERNEL_LOAD};
use bulkhead_abi::machine::{EXIT_PORT, VIRTIO_MMIO_BASE};

/// Offset of the page tables in the image; the code lies before them.
const TABLES: u64 = 0x1000;
/// Offset of the code in the file.
const HEADER: u64 = 0x1000;
/// PML4, two PDPTs, two page directories.
const TABLE_PAGES: u64 = 5;

/// Ends at once with `status`: the proof that these images boot at all.
pub fn exits(status: u8) -> Vec<u8> {
    image(&exit(status))
}

/// Loses its interrupt table and faults until the CPU gives up.
pub fn triple_faults() -> Vec<u8> {
    image(&[
        0x0f, 0x01, 0x1d, 0x02, 0x00, 0x00, 0x00, // lidt [rip + 2]
        0x0f, 0x0b, // ud2
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // limit 0
    ])
}

/// Turns interrupts off and never does anything else.
pub fn spins_with_interrupts_off() -> Vec<u8> {
    image(&[0xfa, 0xeb, 0xfe]) // cli; jmp $
}

/// Stops its CPU for ever: a partition that is there and costs nothing.
pub fn sleeps() -> Vec<u8> {
    image(&[0xfa, 0xf4, 0xeb, 0xfd]) // cli; hlt; jmp -3
}

/// Writes to the first serial port for ever.
pub fn floods_the_serial_port() -> Vec<u8> {
    image(&[
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'x', // mov al, 'x'
        0xee, // out dx, al
        0xeb, 0xfd, // jmp -3
    ])
}

/// Writes to the console doorbell for ever, with whatever lies in the mailbox.
pub fn floods_the_console() -> Vec<u8> {
    image(&[
        0x66, 0xba, 0xb0, 0x00, // mov dx, CONSOLE_PORT
        0xee, // out dx, al
        0xeb, 0xfd, // jmp -3
    ])
}

/// Writes to every I/O port but those that end the partition and those of `avoid` (first port and
/// number of ports), in all widths, reads every port, then ends with `status`.
pub fn sweeps_every_port(status: u8, avoid: &[(u16, u8)]) -> Vec<u8> {
    let mut avoid = avoid.to_vec();
    avoid.push((EXIT_PORT, 1));
    let mut code = vec![0x31, 0xc9]; // xor ecx, ecx
    let top = code.len();
    let mut to_next = 11 * avoid.len() as u8;
    for (first, count) in avoid {
        // A wide write to one of the three ports before would reach it.
        code.extend([0x8d, 0x81]); // lea eax, [rcx + ...]: distance from the first port to avoid
        code.extend(0u32.wrapping_sub(u32::from(first) - 3).to_le_bytes());
        code.extend([0x83, 0xf8, count + 2]); // cmp eax, count + 2
        code.extend([0x76, to_next]); // jbe next
        to_next -= 11;
    }
    code.extend([0x89, 0xca]); // mov edx, ecx
    code.extend([0xb8, 0x02, 0x02, 0x02, 0x02]); // mov eax, 0x02020202: no port resets by it
    code.extend([0xee]); // out dx, al
    code.extend([0x66, 0xef]); // out dx, ax
    code.extend([0xef]); // out dx, eax
    // next:
    code.extend([0xff, 0xc1]); // inc ecx
    code.extend([0x81, 0xf9, 0x00, 0x00, 0x01, 0x00]); // cmp ecx, 0x10000
    code.extend([0x75, back(code.len() + 2, top)]); // jne top
    code.extend([0x31, 0xc9]); // xor ecx, ecx
    let top = code.len();
    code.extend([0x89, 0xca]); // mov edx, ecx
    code.extend([0xec, 0xed]); // in al, dx; in eax, dx
    code.extend([0xff, 0xc1]); // inc ecx
    code.extend([0x81, 0xf9, 0x00, 0x00, 0x01, 0x00]); // cmp ecx, 0x10000
    code.extend([0x75, back(code.len() + 2, top)]); // jne top
    code.extend(exit(status));
    image(&code)
}

/// Writes four patterns, in ascending and thus absurd order, to every register of the first eight
/// virtio windows and to their configuration spaces, reads them all, then ends with `status`.
pub fn scribbles_on_virtio(status: u8) -> Vec<u8> {
    let mut code = own_tables();
    for pattern in [0xffff_ffffu32, 0x0000_0001, 0x8080_8080, 0x1234_5678] {
        code.push(0xbb); // mov ebx, VIRTIO_MMIO_BASE
        code.extend((VIRTIO_MMIO_BASE as u32).to_le_bytes());
        let top = code.len();
        code.push(0xb8); // mov eax, pattern
        code.extend(pattern.to_le_bytes());
        code.extend([0x89, 0x03]); // mov [rbx], eax
        code.extend([0x88, 0x03]); // mov [rbx], al
        code.extend([0x8b, 0x03]); // mov eax, [rbx]
        code.extend([0x83, 0xc3, 0x04]); // add ebx, 4
        code.extend([0x89, 0xd8]); // mov eax, ebx
        code.extend([0x25, 0xff, 0x0f, 0x00, 0x00]); // and eax, 0xfff
        code.extend([0x3d, 0x40, 0x01, 0x00, 0x00]); // cmp eax, 0x140
        code.extend([0x75, 6]); // jne + 6
        code.extend([0x81, 0xc3, 0xc0, 0x0e, 0x00, 0x00]); // add ebx, 0xec0: the next window
        code.extend([0x81, 0xfb]); // cmp ebx, the end
        code.extend((VIRTIO_MMIO_BASE as u32 + 0x8000).to_le_bytes());
        code.extend([0x75, back(code.len() + 2, top)]); // jne top
    }
    code.extend(exit(status));
    image(&code)
}

/// Reads the magic number of the `index`-th virtio window and ends with its lowest byte: 0x76 (`v`)
/// where there is a device, 0xff where there is nothing.
pub fn looks_for_virtio(index: u32) -> Vec<u8> {
    let mut code = own_tables();
    code.push(0xbb); // mov ebx, window
    code.extend((VIRTIO_MMIO_BASE as u32 + index * 0x1000).to_le_bytes());
    code.extend([0x8b, 0x03]); // mov eax, [rbx]
    code.extend([0x66, 0xba]); // mov dx, EXIT_PORT
    code.extend(EXIT_PORT.to_le_bytes());
    code.extend([0xee, 0xeb, 0xfe]); // out dx, al; jmp $
    image(&code)
}

/// The same guest in the place of a Linux kernel: entered by the 64-bit boot protocol at its
/// physical address, on a PC.
pub fn for_pc(mut image: Vec<u8>) -> Vec<u8> {
    const ENTRY: usize = 24;
    const VIRTUAL_ADDRESSES: [usize; 2] = [64 + 16, 64 + 56 + 16];
    for at in VIRTUAL_ADDRESSES.into_iter().chain([ENTRY]) {
        let field: &mut [u8; 8] = (&mut image[at..at + 8]).try_into().expect("eight bytes");
        *field = (u64::from_le_bytes(*field) - KERNEL_BASE).to_le_bytes();
    }
    image
}

/// `mov al, status; mov dx, EXIT_PORT; out dx, al; jmp $`.
fn exit(status: u8) -> Vec<u8> {
    let [low, high] = EXIT_PORT.to_le_bytes();
    vec![0xb0, status, 0x66, 0xba, low, high, 0xee, 0xeb, 0xfe]
}

/// `mov eax, tables; mov cr3, rax`: the first and the fourth GiB at their physical addresses.
fn own_tables() -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(((KERNEL_LOAD + TABLES) as u32).to_le_bytes());
    code.extend([0x0f, 0x22, 0xd8]);
    code
}

/// Displacement of a short jump that ends at `from` and goes back to `to`.
fn back(from: usize, to: usize) -> u8 {
    let distance = i8::try_from(to as i64 - from as i64).expect("the loop is short");
    distance.to_le_bytes()[0]
}

/// An ELF64 image that the Bulkhead boot protocol accepts: a segment with code, and one with page
/// tables.
fn image(code: &[u8]) -> Vec<u8> {
    const READ_EXECUTE: u32 = 5;
    const READ_WRITE: u32 = 6;
    assert!(code.len() as u64 <= TABLES);
    let entry = KERNEL_BASE + KERNEL_LOAD;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2, 0, 62, 0]); // ET_EXEC, EM_X86_64
    elf.extend(1u32.to_le_bytes());
    elf.extend(entry.to_le_bytes());
    elf.extend(64u64.to_le_bytes()); // program headers
    elf.extend(0u64.to_le_bytes()); // no sections
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    for (flags, at, length) in [
        (READ_EXECUTE, 0, TABLES),
        (READ_WRITE, TABLES, TABLE_PAGES * 0x1000),
    ] {
        elf.extend(1u32.to_le_bytes()); // PT_LOAD
        elf.extend(flags.to_le_bytes());
        let (offset, vaddr, paddr) = (HEADER + at, entry + at, KERNEL_LOAD + at);
        for word in [offset, vaddr, paddr, length, length, 0x1000] {
            elf.extend(word.to_le_bytes());
        }
    }
    elf.resize(HEADER as usize, 0);
    elf.extend(code);
    elf.resize((HEADER + TABLES) as usize, 0);
    elf.extend(tables(KERNEL_LOAD + TABLES));
    elf
}

/// Page tables at guest-physical `at`: the first and the fourth GiB identity-mapped, and the first
/// GiB at [`KERNEL_BASE`], where the code runs.
fn tables(at: u64) -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let page = |index: u64| (at + index * 0x1000) | PRESENT_WRITABLE;
    let mut words = vec![0u64; (TABLE_PAGES * 512) as usize];
    let mut set = |table: usize, entry: usize, value: u64| words[table * 512 + entry] = value;
    set(0, 0, page(1));
    set(0, 511, page(2));
    set(1, 0, page(3));
    set(1, 3, page(4));
    set(2, 510, page(3));
    for entry in 0..512u64 {
        set(3, entry as usize, (entry << 21) | LARGE | PRESENT_WRITABLE);
        let fourth = (3 << 30) | (entry << 21);
        set(4, entry as usize, fourth | LARGE | PRESENT_WRITABLE);
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_land_on_their_targets() {
        assert_eq!(back(10, 10), 0);
        assert_eq!(back(12, 10), 0xfe);
    }

    #[test]
    fn a_pc_enters_at_physical_addresses() {
        let image = for_pc(exits(7));
        let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
        assert_eq!(word(24), KERNEL_LOAD);
        assert_eq!(word(64 + 16), word(64 + 24));
        assert_eq!(word(64 + 56 + 16), word(64 + 56 + 24));
    }

    #[test]
    fn images_are_elf_with_their_code_at_the_entry() {
        let elf = exits(7);
        assert_eq!(&elf[..4], b"\x7fELF");
        assert_eq!(&elf[0x1000..0x1009], exit(7));
        assert_eq!(elf.len(), 0x2000 + 5 * 4096);
    }
}
