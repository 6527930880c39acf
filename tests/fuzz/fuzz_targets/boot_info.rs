//! The kernel reads what the VMM wrote: no blob may make it leave the blob's bounds.
#![no_main]

use bulkhead_abi::boot::BootInfoView;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The magic and the version first, so that the fuzzer need not find them. The blob is aligned
    // as the page that holds it.
    let mut words = vec![0u64; bytes.len() / 8 + 3];
    for (word, chunk) in words.iter_mut().skip(2).zip(bytes.chunks(8)) {
        let mut le = [0; 8];
        le[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(le);
    }
    let size = (words.len() * 8) as u64;
    words[0] = bulkhead_abi::boot::MAGIC;
    words[1] = u64::from(bulkhead_abi::boot::VERSION) | size << 32;
    let blob: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for blob in [bytes, &blob] {
        if let Ok(view) = BootInfoView::parse(blob) {
            // Tables may overlap one another, but each is within the blob.
            let bytes_of = |table: usize| assert!(table <= blob.len());
            bytes_of(view.args().map(<[u8]>::len).sum());
            bytes_of(view.env().map(<[u8]>::len).sum());
            bytes_of(size_of_val(view.regions()));
            bytes_of(size_of_val(view.modules()));
            bytes_of(size_of_val(view.devices()));
        }
    }
});
