//! A hostile driver of virtio-blk, against a read-only and a writable disk.
#![no_main]

mod driver;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use driver::{Script, drive};
use hypervisor::devices::virtio::blk::Block;
use libfuzzer_sys::fuzz_target;

/// Length of the disk in bytes.
const LEN: usize = 8192;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let read_only = script.byte() & 1 == 0;
    let file = File::from(memfd());
    let contents: Vec<u8> = (0..LEN).map(|n| (n / 512) as u8).collect();
    file.write_all_at(&contents, 0).expect("write");
    let disk = file.try_clone().expect("clone");
    drive(Box::new(Block::new("fuzz", disk.into(), read_only).expect("disk")), script);
    let mut now = vec![0; LEN];
    file.read_exact_at(&mut now, 0).expect("read");
    assert_eq!(file.metadata().expect("metadata").len(), LEN as u64);
    assert!(!read_only || now == contents, "a read-only disk does not change");
});

fn memfd() -> OwnedFd {
    rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd")
}
