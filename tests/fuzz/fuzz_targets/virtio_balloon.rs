//! A hostile driver of virtio-balloon, with all that it offers, or without free page reporting.
#![no_main]

mod driver;

use bulkhead_machine::device::Balloon as Described;
use driver::{Script, drive};
use hypervisor::devices::virtio::balloon::Balloon;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let described = Described {
        target_mib: 1,
        deflate_on_oom: true,
        free_page_reporting: script.byte() & 1 == 0,
    };
    drive(
        Box::new(Balloon::new(&described, 64).expect("a balloon")),
        script,
    );
});
