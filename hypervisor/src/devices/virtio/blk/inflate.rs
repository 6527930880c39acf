//! Compressed clusters of qcow2 images. Used by `qcow2` alone; both decoders are safe Rust, and
//! neither makes more than a cluster and a window of [`MAX_WINDOW`].

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;

/// How far back a zstd stream may refer: more than any cluster needs, four times QEMU's.
const MAX_WINDOW: u64 = 8 * 1024 * 1024;

/// How an image compresses its clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Deflate without a header, which the format calls zlib.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// The `len` bytes that `packed` holds; what follows them in `packed` does not matter. None when it
/// does not hold that many.
pub(super) fn inflate(compression: Compression, packed: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    let whole = match compression {
        Compression::Deflate => {
            let input = std::iter::once(packed);
            miniz_oxide::inflate::decompress_slice_iter_to_slice(&mut bytes, input, false, true)
                .is_ok_and(|inflated| inflated == len)
        }
        Compression::Zstd => StreamingDecoder::new_with_max_window_size(packed, MAX_WINDOW)
            .is_ok_and(|mut stream| stream.read_exact(&mut bytes).is_ok()),
    };
    whole.then_some(bytes)
}
