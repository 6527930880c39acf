//! A map of an overlay that somebody forged: each sector comes from the top or from the base, and a
//! map that was accepted goes on to work.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use bulkhead_machine::device::ImageFormat::Raw;
use hypervisor::devices::virtio::blk::image::Image;
use libfuzzer_sys::fuzz_target;

/// Length of the disk: no whole number of clusters.
const LEN: usize = 5 * 65536 + 1024;
const TOP: u8 = 0x11;
const BASE: u8 = 0x22;
const NEW: u8 = 0x33;

fuzz_target!(|bytes: &[u8]| {
    let (top, map, base) = (memfd(&[TOP; LEN]), memfd(bytes), memfd(&[BASE; LEN]));
    let open = || {
        let clone = |file: &File| file.try_clone().expect("clone");
        Image::open(
            clone(&top),
            Some((clone(&map), vec![(clone(&base), Raw)])),
            false,
        )
    };
    let Ok(disk) = open() else {
        return;
    };
    let mut expected = read(&disk);
    assert!(expected.iter().all(|byte| matches!(*byte, TOP | BASE)));
    let at = bytes.len() % (LEN / 512) * 512;
    disk.write(at as u64, &[NEW; 512])
        .expect("the files take it");
    expected[at..at + 512].fill(NEW);
    assert!(read(&disk) == expected);
    disk.flush().expect("the files take it");
    let again = open().expect("a map that we wrote");
    assert!(read(&again) == expected);
});

fn read(disk: &Image) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    disk.read(0, &mut bytes).expect("the files are there");
    bytes
}

fn memfd(contents: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("image", flags).expect("memfd"));
    file.write_all_at(contents, 0).expect("write");
    file
}
