//! The segments of a kernel image, from the file into guest memory.

use std::fs::File;
use std::io;

use bulkhead_machine::Image;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::error::Error;
use crate::machine::memory::{FileAt, GuestMemory};

/// Reads all segments of `kernel` into `memory`, which is still all zero.
///
/// # Errors
/// A segment lies outside memory, or beyond the end of the file.
pub fn load(memory: &GuestMemory, kernel: &File, image: &Image) -> Result<(), Error> {
    for segment in &image.segments {
        let at = GuestAddress(segment.address);
        // Of the two lengths the file's is not above the other.
        let len = usize::try_from(segment.memory_len.max(segment.file_len));
        if !len.is_ok_and(|len| memory.check_range(at, len)) {
            return Err(Error::KernelOutsideMemory { end: segment.end() });
        }
        let mut source = FileAt::new(kernel, segment.offset);
        memory
            .read_exact_volatile_from(at, &mut source, segment.file_len as usize)
            .map_err(|e| Error::KernelUnreadable(io::Error::other(e)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::image;
    use crate::machine::memory::create;

    #[test]
    fn segments_are_loaded_and_the_rest_is_zero() {
        let parts: &[(&str, u64, &[u8], u64)] = &[
            ("x", 0x20_1000, b"code", 4),
            ("w", 0x20_4000, b"data", 0x3000),
        ];
        let (kernel, image) = image(0, parts);
        assert_eq!(image.physical_range(), (0x20_1000, 0x20_7000));
        let memory = create(4).unwrap();
        load(&memory, &kernel, &image).unwrap();
        for (at, want) in [(0x20_1000, b"code\0"), (0x20_4000, b"data\0")] {
            let mut got = [1; 5];
            memory.read_slice(&mut got, GuestAddress(at)).unwrap();
            assert_eq!(&got, want);
        }
    }

    #[test]
    fn numbers_that_lead_out_of_memory_or_file_are_refused() {
        let memory = create(4).unwrap();
        let outside = "kernel-outside-memory";
        type Change = fn(&mut bulkhead_machine::Segment);
        let cases: [(Change, &str); 6] = [
            (|s| s.address = 0x40_0000, outside),
            (|s| s.address = u64::MAX, outside),
            (|s| s.memory_len = 0x40_0001, outside),
            (|s| s.file_len = u64::MAX, outside),
            (|s| s.file_len = 2, "kernel-unreadable"),
            (|s| s.offset = u64::MAX, "kernel-unreadable"),
        ];
        for (index, (change, code)) in cases.into_iter().enumerate() {
            let (kernel, mut image) = image(0, &[("x", 0, b"x", 1)]);
            change(&mut image.segments[0]);
            let error = load(&memory, &kernel, &image).unwrap_err();
            assert_eq!(error.code(), code, "case {index}");
        }
    }
}
