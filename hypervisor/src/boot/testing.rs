//! Kernel images for the loaders' tests.

use std::fs::File;
use std::io::Write;

use bulkhead_machine::{Image, Segment};

/// Writes `bytes` to a file without a name.
pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    file.write_all(bytes).unwrap();
    file
}

/// A segment for [`image`]: rights as `rwx`, physical address, bytes, memory length.
pub(crate) type Part<'a> = (&'a str, u64, &'a [u8], u64);

/// A file with these segments behind each other, and what the VMM is told of it.
pub(crate) fn image(entry: u64, parts: &[Part<'_>]) -> (File, Image) {
    let (mut bytes, mut segments) = (Vec::new(), Vec::new());
    for (rights, address, part, memory_len) in parts {
        segments.push(Segment {
            offset: bytes.len() as u64,
            file_len: part.len() as u64,
            address: *address,
            memory_len: *memory_len,
            write: rights.contains('w'),
            execute: rights.contains('x'),
        });
        bytes.extend_from_slice(part);
    }
    let image = Image {
        entry,
        pvh_entry: None,
        segments,
    };
    (file(&bytes), image)
}
