//! The first bytes of a guest's TLS: whatever they are, they name one server, in letters that a rule
//! could have, or none; and no byte that follows changes what was said
#![no_main]

use bulkhead_proxy::client_hello::{FirstBytes, MAX_BYTES, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes);
    if let FirstBytes::Tls(Some(name)) = &whole {
        assert!(!name.is_empty() && name.len() <= 253);
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase())
        );
    }
    if bytes.len() >= MAX_BYTES {
        assert_ne!(whole, FirstBytes::Incomplete, "nobody waits for ever");
    }
    // In pieces: the first that tells something tells what the whole does.
    let step = bytes.len() / 16 + 1;
    for end in (0..bytes.len()).step_by(step) {
        let early = read(&bytes[..end]);
        if early != FirstBytes::Incomplete {
            assert_eq!(early, whole);
        }
    }
});
