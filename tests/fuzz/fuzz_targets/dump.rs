//! The page tables of a guest, as a dump finds them in the memory that a VMM has written. The first
//! bytes are the control registers, the others the memory.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use bulkhead_machine::control::{DUMP_HEAD, DumpedRegion, Registers};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

const MEMORY: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some(([large, root], memory)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let file = File::from(memfd_create("dump", MemfdFlags::CLOEXEC).expect("a file"));
    file.set_len(DUMP_HEAD + 2 * MEMORY).expect("room");
    let memory = &memory[..memory.len().min(MEMORY as usize)];
    file.write_all_at(memory, DUMP_HEAD).expect("written");
    let region = |start, offset| DumpedRegion {
        start,
        len: MEMORY,
        offset,
    };
    let regions = [region(0, DUMP_HEAD), region(1 << 32, DUMP_HEAD + MEMORY)];
    // Paging in 64-bit mode, with four levels or five.
    let registers = Registers {
        cr0: 1 << 31,
        cr3: u64::from(*root) << 12,
        cr4: u64::from(large & 1) << 12,
        efer: 1 << 10,
        ..Registers::default()
    };
    bulkhead_dump::finish(&file, &regions, &[registers]).expect("a core file");
    // The memory is as it was.
    let mut after = vec![0; memory.len()];
    file.read_exact_at(&mut after, DUMP_HEAD).expect("read");
    assert_eq!(after, memory);
});
