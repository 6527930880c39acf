//! An envelope from anybody: what is read is written and read again as it was, nobody else's
//! payload carries a trusted signature, and a payload is a manifest in its one form or is refused.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use bulkhead_manifest::{PAYLOAD_TYPE, parse_submission};
use bulkhead_signature::{Envelope, PrivateKey, PublicKeyFile, Trust, Trusted, canonical};
use libfuzzer_sys::fuzz_target;

/// The one document that the trusted key has signed; the seeds have the envelope.
const SIGNED: &[u8] = include_bytes!("../seeds/dsse/document");

/// A key whose secret the fuzzer does not look for: it would have to forge.
static TRUSTED: LazyLock<Vec<Trusted>> = LazyLock::new(|| {
    let file = PublicKeyFile {
        key: PrivateKey::from_seed(&[7; 32]).public(),
        comment: String::new(),
        trust: Some(Trust::Sign),
    };
    Trusted::new("alice", &file).into_iter().collect()
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = Envelope::parse(bytes) {
        let again = Envelope::parse(envelope.to_json().as_bytes());
        assert_eq!(again.as_ref(), Ok(&envelope));
        if envelope.verify(PAYLOAD_TYPE, &TRUSTED).is_ok() {
            assert_eq!(envelope.unverified_payload(), SIGNED.trim_ascii_end());
        }
    }
    if let Ok(submission) = parse_submission(bytes, Path::new("/srv/a.json")) {
        if let Some(envelope) = submission.envelope {
            assert_eq!(
                envelope.unverified_payload(),
                submission.manifest.document()
            );
        }
    }
    if let Ok(value) = canonical::from_slice(bytes) {
        assert_eq!(canonical::to_vec(&value).as_deref(), Ok(bytes));
    }
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(file) = text.parse::<PublicKeyFile>()
    {
        assert_eq!(file.to_string().parse(), Ok(file));
    }
});
