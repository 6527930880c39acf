//! A qcow2 image that somebody forged, as the base of a disk.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use bulkhead_machine::device::ImageFormat::{Qcow2, Raw};
use hypervisor::devices::virtio::blk::image::Image;
use libfuzzer_sys::fuzz_target;

/// Length of the disk; images may be longer.
const LEN: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let (Some(chained), image) = (
        bytes.first().map(|byte| byte & 1 != 0),
        &bytes[1.min(bytes.len())..],
    ) else {
        return;
    };
    let top = memfd(&[]);
    top.set_len(LEN).expect("length");
    let base = memfd(image);
    let mut bases = vec![(base.try_clone().expect("clone"), Qcow2)];
    if chained {
        bases.push((memfd(&[0x77; 5000]), Raw));
    }
    if let Ok(disk) = Image::open(top, Some((memfd(&[]), bases)), false) {
        let mut buffer = vec![0; 3 * 65536];
        for offset in (0..LEN - buffer.len() as u64).step_by(65536 + 512) {
            let whole = disk.read(offset, &mut buffer);
            // A part that is damaged makes the whole so.
            for at in (0..buffer.len()).step_by(65536) {
                let mut part = vec![0; 65536];
                let read = disk.read(offset + at as u64, &mut part);
                assert!(whole.is_err() || read.is_ok() && part == buffer[at..at + 65536]);
            }
        }
        let _ = disk.write(512, &[1; 512]).and_then(|()| disk.flush());
    }
    let mut now = vec![0; image.len()];
    base.read_exact_at(&mut now, 0).expect("read");
    assert!(now == image, "a base does not change");
});

fn memfd(contents: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("image", flags).expect("memfd"));
    file.write_all_at(contents, 0).expect("write");
    file
}
