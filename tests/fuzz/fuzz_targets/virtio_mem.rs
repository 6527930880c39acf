//! A hostile driver of virtio-mem that is to have some of its region.
#![no_main]

mod driver;

use bulkhead_machine::control::Resize;
use driver::{Script, drive};
use hypervisor::devices::virtio::mem::{BLOCK, Mem};
use hypervisor::devices::virtio::{DeviceIo, VirtioDevice};
use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Blocks of the region, which lies at 4 GiB.
const BLOCKS: u64 = 64;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let mut device = Mem::new(GuestAddress(1 << 32), BLOCKS * BLOCK);
    let pluggable_mib = u64::from(script.byte()) % (BLOCKS + 1) * 2;
    let mut io = DeviceIo {
        memory: &GuestMemoryMmap::default(),
        queues: &mut [],
        config_changed: &mut false,
    };
    device
        .resize(&Resize::Memory { pluggable_mib }, &mut io)
        .expect("in the region");
    drive(Box::new(device), script);
});
