//! A hostile driver of virtio-pmem, whose flushes are done at once, or never.
#![no_main]

mod driver;

use std::fs::File;
use std::sync::Arc;

use driver::{Script, drive};
use hypervisor::devices::virtio::pmem::{Defer, Pmem};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let file = rustix::fs::memfd_create("pmem", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let defer: Defer = match script.byte() & 1 {
        0 => Box::new(|work| {
            work();
            true
        }),
        _ => Box::new(|_| true),
    };
    let file = Arc::new(File::from(file));
    let device = Pmem::new(GuestAddress(1 << 32), 2 << 20, file, defer).expect("an eventfd");
    drive(Box::new(device), script);
});
