//! A `partition.toml` from anybody, and a role and a deny list: refused with a report, or a manifest
//! whose document means the same from wherever it is read, and that is within itself.
#![no_main]

use std::path::Path;

use bulkhead_manifest::{
    Difference, Plan, Rejected, parse_deny_list, parse_document, parse_manifest, parse_role,
};
use libfuzzer_sys::fuzz_target;

fn is_told(rejected: &Rejected) {
    assert!(!rejected.diagnostics.is_empty());
    assert!(!rejected.to_string().is_empty());
}

fuzz_target!(|bytes: &[u8]| {
    let file = Path::new("/srv/agent/partition.toml");
    match parse_manifest(bytes, file) {
        Ok(manifest) => {
            let again = parse_document(manifest.document(), Path::new("/elsewhere/a.json"));
            let again = again.expect("a document is a manifest");
            assert_eq!(again.document(), manifest.document());
            assert_eq!(again.partition(), manifest.partition());
            assert_eq!(Plan::of(&again), Plan::of(&manifest));
            assert!(Difference::between(&manifest, &again).is_none());
            // Each grant is one that the partition holds, and has its place in the text.
            for grant in manifest.grants() {
                assert!(
                    manifest
                        .partition()
                        .grants
                        .iter()
                        .any(|held| *held == grant.value)
                );
                assert!(grant.span.is_some());
            }
        }
        Err(rejected) => is_told(&rejected),
    }
    if let Err(rejected) = parse_role(bytes, file) {
        is_told(&rejected);
    }
    match parse_deny_list(bytes, file) {
        // A denial of a thing denies that thing.
        Ok(list) => assert!(list.iter().all(|denied| denied.is_denied_by(denied))),
        Err(rejected) => is_told(&rejected),
    }
});
