//! The kernel maps a program's file where it lies: what the reader accepts stays inside the file
//! and inside the address space, and is never writable and executable.
#![no_main]

use bulkhead_kernel_core::elf::Image;
use libfuzzer_sys::fuzz_target;

const PAGE: u64 = 4096;

fuzz_target!(|bytes: &[u8]| {
    // The fixed part of the header first, so that the fuzzer need not find it.
    let mut file = bytes.to_vec();
    let header = [
        (0, &[0x7f, b'E', b'L', b'F', 2, 1, 1][..]),
        (16, &[2, 0, 62, 0]),
        (54, &[56, 0]),
    ];
    for (at, fixed) in header {
        if let Some(place) = file.get_mut(at..at + fixed.len()) {
            place.copy_from_slice(fixed);
        }
    }
    for file in [bytes, &file] {
        let Ok(image) = Image::parse(file) else {
            continue;
        };
        let mut entered = false;
        for segment in image.segments() {
            let segment = segment.expect("the image was accepted");
            assert!(!(segment.write && segment.execute));
            assert_eq!(segment.address % PAGE, 0);
            let pages = segment.file_pages + segment.zero_pages;
            assert!(segment.address.checked_add(pages * PAGE).is_some());
            if segment.file_pages > 0 {
                assert_eq!(segment.offset % PAGE, 0);
                let last = segment.offset + (segment.file_pages - 1) * PAGE;
                assert!(
                    last < file.len() as u64,
                    "page {last:#x} is behind the file"
                );
            }
            let in_file = segment.address..segment.address + segment.file_pages * PAGE;
            entered |= segment.execute && in_file.contains(&image.entry);
        }
        assert!(entered, "the entry point is in no executable segment");
    }
});
