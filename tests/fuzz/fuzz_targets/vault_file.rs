//! A vault's file that somebody forged, with a checksum that fits: taken apart within its bounds, or
//! refused before a key is derived at a cost that the file names; and what is given for its key.
#![no_main]

use bulkhead_vault::{KeyMaterial, Sealed, Secret};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(|bytes: &[u8]| {
    // As it came, and as a forger would finish it: no fuzzer finds a SHA-256 by itself.
    let _ = Sealed::parse(bytes);
    let mut file = bytes.to_vec();
    file.extend(Sha256::digest(bytes));
    if let Ok(sealed) = Sealed::parse(&file) {
        let cost = sealed.cost();
        assert!((8..=1024 * 1024).contains(&cost.memory_kib));
        assert!(u64::from(cost.memory_kib) * u64::from(cost.passes) <= 4 * 1024 * 1024);
        assert!((1..=4).contains(&cost.lanes));
    }
    let _ = KeyMaterial::new(Secret::new(bytes.to_vec()), "an input");
});
