//! A hostile driver of virtio-pmem, whose flushes are done at once, later, or by nobody.
#![no_main]

mod driver;

use std::fs::File;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock};
use std::thread;

use driver::{Script, drive};
use hypervisor::devices::virtio::pmem::{Defer, Pmem};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

/// A thread that does what it is sent, and outlives each run.
static LATER: LazyLock<Sender<Box<dyn FnOnce() + Send>>> = LazyLock::new(|| {
    let (sender, work) = channel::<Box<dyn FnOnce() + Send>>();
    thread::spawn(move || work.into_iter().for_each(|work| work()));
    sender
});

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let file = rustix::fs::memfd_create("pmem", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let defer: Defer = match script.byte() % 3 {
        0 => Box::new(|work| {
            work();
            true
        }),
        1 => Box::new(|work| LATER.send(work).is_ok()),
        _ => Box::new(|_| false),
    };
    let file = Arc::new(File::from(file));
    let device = Pmem::new(GuestAddress(1 << 32), 2 << 20, file, defer).expect("an eventfd");
    drive(Box::new(device), script);
});
