//! A hostile root filesystem of a Linux-ABI partition: the personality walks the archive, builds
//! its tree, and reads each file as a program.
#![no_main]

use bulkhead_linux::fs::Tree;
use bulkhead_linux::platform::Settings;
use bulkhead_linux::{cpio, elf};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for entry in cpio::entries(bytes).map_while(Result::ok) {
        check(entry.data);
    }
    let _ = Tree::new(Some(bytes), &Settings::default());
    // The file itself as a program too, so that the fuzzer need not find an archive around it.
    check(bytes);
});

fn check(file: &[u8]) {
    let Ok(image) = elf::parse(file) else { return };
    let mut end = 0;
    for segment in &image.segments {
        assert!(segment.bytes.len() as u64 <= segment.size);
        assert!(segment.address >= end, "segments overlap");
        end = segment
            .address
            .checked_add(segment.size)
            .expect("no segment wraps round");
    }
    assert_eq!(image.end(), end);
}
