//! A hostile kernel image against each boot protocol, as it is checked before the VMM starts and then
//! loaded by it: what is accepted enters inside guest memory, or where the protocol says.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use bulkhead_machine::{Boot, Fd};
use hypervisor::boot::{bulkhead, linux, pvh};
use hypervisor::machine::memory;
use libfuzzer_sys::fuzz_target;

const MEMORY_MIB: u64 = 32;

fuzz_target!(|bytes: &[u8]| {
    let fd = rustix::fs::memfd_create("kernel", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let kernel = File::from(fd);
    kernel.write_all_at(bytes, 0).expect("write");
    let fd = Fd(-1);
    let native = Boot::Bulkhead {
        kernel: fd,
        modules: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        trace_syscalls: false,
    };
    let linux = Boot::Linux {
        kernel: fd,
        initrd: None,
        cmdline: String::new(),
        acpi: fd,
    };
    for boot in [native, linux] {
        let Ok(image) = bulkhead_image::image(&kernel, &boot) else {
            continue;
        };
        // Each loader may rely on memory that is still zero.
        let memory = memory::create(MEMORY_MIB).expect("memory");
        let initrd = Some(&kernel);
        let image = image.as_ref();
        let entered = image.and_then(|image| Some((image, image.pvh_entry?)));
        let _ = match (&boot, entered) {
            (Boot::Bulkhead { .. }, _) => {
                let image = image.expect("a native kernel is an ELF image");
                bulkhead::load(&memory, &kernel, image, &[]).map(drop)
            }
            (_, Some(image)) => {
                pvh::load(&memory, &kernel, image, initrd, "quiet", &[], None).map(drop)
            }
            _ => linux::load(&memory, &kernel, image, initrd, "quiet", &[], 0).map(drop),
        };
    }
});
