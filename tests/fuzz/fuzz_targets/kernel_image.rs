//! A hostile kernel image against each boot protocol: what the loader accepts enters inside guest
//! memory, or where the protocol says.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use hypervisor::boot::{bulkhead, linux, pvh};
use hypervisor::machine::memory;
use libfuzzer_sys::fuzz_target;

const MEMORY_MIB: u64 = 32;

fuzz_target!(|bytes: &[u8]| {
    let fd = rustix::fs::memfd_create("kernel", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let kernel = File::from(fd);
    kernel.write_all_at(bytes, 0).expect("write");
    for attempt in 0..3 {
        // Each loader may rely on memory that is still zero.
        let memory = memory::create(MEMORY_MIB).expect("memory");
        let _ = match attempt {
            0 => bulkhead::load(&memory, &kernel, &[]).map(drop),
            1 => linux::load(&memory, &kernel, Some(&kernel), "quiet", &[], 0).map(drop),
            _ => pvh::load(&memory, &kernel, Some(&kernel), "quiet", &[], None).map(drop),
        };
    }
});
