//! A `system.toml` from anybody: refused with a report, or a system within its bounds.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match bulkhead_manifest::parse(bytes, Path::new("system.toml")) {
        Ok(system) => assert!(!system.partitions.is_empty()),
        Err(rejected) => {
            assert!(!rejected.diagnostics.is_empty());
            assert!(!rejected.to_string().is_empty());
        }
    }
});
