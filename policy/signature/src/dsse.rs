//! Envelopes as DSSE, version 1, defines them: a payload, its type, and signatures of both.
//!
//! Stricter than that specification in what it leaves open: unknown fields are refused, a signature
//! says by its `keyid` whose it is, each key signs once, and a signature that claims a trusted key and
//! is not its own condemns the envelope.

use crate::key::{KeyId, PrivateKey};
use crate::store::Trusted;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Longest envelope in bytes.
pub const MAX_ENVELOPE_BYTES: usize = 2 * 1024 * 1024;
/// Most signatures of one envelope.
pub const MAX_SIGNATURES: usize = 16;
/// Longest type of a payload in bytes.
const MAX_TYPE: usize = 200;

/// A payload and its signatures, none of which has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    payload_type: String,
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    key: String,
    bytes: [u8; 64],
}

/// The envelope as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<WrittenSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSignature {
    keyid: String,
    sig: String,
}

/// Why bytes are no envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is longer than [`MAX_ENVELOPE_BYTES`].
    #[error("an envelope is at most {MAX_ENVELOPE_BYTES} bytes long")]
    TooLong,
    /// Not JSON, or not with the fields of an envelope.
    #[error("no DSSE envelope: {0}")]
    Form(String),
    /// A field that is not base64.
    #[error("no DSSE envelope: `{0}` is not base64")]
    Base64(&'static str),
    /// The payload has a type that is empty or too long.
    #[error("no DSSE envelope: `payloadType` is empty or too long")]
    Type,
    /// There is no signature, or more than [`MAX_SIGNATURES`].
    #[error("an envelope has 1 to {MAX_SIGNATURES} signatures, this one {0}")]
    Signatures(usize),
    /// A signature that is not 64 bytes long, as those of Ed25519 are.
    #[error("a signature of {0} bytes is none of Ed25519")]
    Length(usize),
    /// Two signatures say that they are of one key.
    #[error("two signatures have the keyid `{0}`")]
    Duplicate(String),
}

/// Why an envelope proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The payload is of another type.
    #[error("the payload is of type `{}`, not `{expected}`", .found.escape_debug())]
    Type {
        /// What it says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
    /// A signature claims a trusted key, and is not of this payload.
    #[error("the signature of `{0}` is not of this payload: it was changed, or forged")]
    Forged(String),
    /// No trusted key has signed it.
    #[error("no trusted key has signed it, only {}", list(.0))]
    Untrusted(Vec<String>),
}

fn list(ids: &[String]) -> String {
    let ids: Vec<String> = ids
        .iter()
        .map(|id| format!("`{}`", id.escape_debug()))
        .collect();
    ids.join(", ")
}

/// What is signed: the pre-authentication encoding of DSSE, version 1.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let start = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    );
    [start.as_bytes(), payload].concat()
}

impl Envelope {
    /// Signs `payload`.
    ///
    /// # Errors
    /// The type is empty or too long, or the envelope would be too long.
    pub fn sign(
        payload_type: &str,
        payload: Vec<u8>,
        key: &PrivateKey,
    ) -> Result<Self, EnvelopeError> {
        if payload_type.is_empty() || payload_type.len() > MAX_TYPE {
            return Err(EnvelopeError::Type);
        }
        if payload.len() > MAX_ENVELOPE_BYTES / 2 {
            return Err(EnvelopeError::TooLong);
        }
        let mut envelope = Self {
            payload_type: payload_type.to_owned(),
            payload,
            signatures: Vec::new(),
        };
        envelope.add_signature(key)?;
        Ok(envelope)
    }

    /// Adds a signature by another key.
    ///
    /// # Errors
    /// The key has signed already, or there are too many signatures.
    pub fn add_signature(&mut self, key: &PrivateKey) -> Result<(), EnvelopeError> {
        let id = key.public().id().to_string();
        if self.signatures.iter().any(|signature| signature.key == id) {
            return Err(EnvelopeError::Duplicate(id));
        }
        if self.signatures.len() == MAX_SIGNATURES {
            return Err(EnvelopeError::Signatures(MAX_SIGNATURES + 1));
        }
        let bytes = key.sign(&pae(&self.payload_type, &self.payload));
        self.signatures.push(Signature { key: id, bytes });
        Ok(())
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLong);
        }
        let written: Written = serde_json::from_slice(bytes)
            .map_err(|error| EnvelopeError::Form(error.to_string()))?;
        let Written {
            payload,
            payload_type,
            signatures,
        } = written;
        if payload_type.is_empty() || payload_type.len() > MAX_TYPE {
            return Err(EnvelopeError::Type);
        }
        if !(1..=MAX_SIGNATURES).contains(&signatures.len()) {
            return Err(EnvelopeError::Signatures(signatures.len()));
        }
        let payload = decode("payload", &payload)?;
        let mut seen = BTreeSet::new();
        let mut read = Vec::new();
        for WrittenSignature { keyid, sig } in signatures {
            let sig = decode("sig", &sig)?;
            let length = sig.len();
            let bytes = sig.try_into();
            let bytes = bytes.map_err(|_| EnvelopeError::Length(length))?;
            if !seen.insert(keyid.clone()) {
                return Err(EnvelopeError::Duplicate(keyid.escape_debug().to_string()));
            }
            read.push(Signature { key: keyid, bytes });
        }
        Ok(Self {
            payload_type,
            payload,
            signatures: read,
        })
    }

    /// The envelope as it is written: JSON on lines of its own, for files.
    pub fn to_json(&self) -> String {
        let signature = |signature: &Signature| WrittenSignature {
            keyid: signature.key.clone(),
            sig: STANDARD.encode(signature.bytes),
        };
        let written = Written {
            payload: STANDARD.encode(&self.payload),
            payload_type: self.payload_type.clone(),
            signatures: self.signatures.iter().map(signature).collect(),
        };
        // Strings alone always become JSON.
        serde_json::to_string_pretty(&written).unwrap_or_default() + "\n"
    }

    /// The payload, which nobody may have signed: for those that show or check it, not for those
    /// that act on it.
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// The trusted keys that have signed it, at least one, in the order of their signatures.
    ///
    /// # Errors
    /// None has, a signature is not of this payload, or the payload is of another type.
    pub fn verify<'t>(
        &self,
        payload_type: &'static str,
        trusted: &'t [Trusted],
    ) -> Result<Vec<&'t Trusted>, VerifyError> {
        if self.payload_type != payload_type {
            return Err(VerifyError::Type {
                found: self.payload_type.clone(),
                expected: payload_type,
            });
        }
        let signed = pae(&self.payload_type, &self.payload);
        let mut signers: Vec<&Trusted> = Vec::new();
        for signature in &self.signatures {
            let is_its = |key: &&Trusted| signature.key == key.key.id().to_string();
            let Some(key) = trusted.iter().find(is_its) else {
                continue;
            };
            if !key.key.verifies(&signed, &signature.bytes) {
                return Err(VerifyError::Forged(key.name.clone()));
            }
            signers.push(key);
        }
        if signers.is_empty() {
            let ids = self.signatures.iter().map(|s| s.key.clone());
            return Err(VerifyError::Untrusted(ids.collect()));
        }
        Ok(signers)
    }

    /// Ids of the keys that it says have signed it.
    pub fn claimed_keys(&self) -> impl Iterator<Item = &str> {
        self.signatures
            .iter()
            .map(|signature| signature.key.as_str())
    }

    /// True when it says that the key with this id has signed it.
    pub fn claims(&self, id: KeyId) -> bool {
        self.claimed_keys().any(|key| key == id.to_string())
    }
}

/// Base64 in either alphabet, as the specification has it; padded, and without bits to spare.
fn decode(field: &'static str, text: &str) -> Result<Vec<u8>, EnvelopeError> {
    let decoded = STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text));
    decoded.map_err(|_| EnvelopeError::Base64(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{PublicKeyFile, Trust};
    use proptest::prelude::*;

    const TYPE: &str = "http://example.com/HelloWorld";

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from_seed(&[seed; 32])
    }

    fn trusted(seed: u8, name: &str) -> Trusted {
        let file = PublicKeyFile {
            key: key(seed).public(),
            comment: String::new(),
            trust: Some(Trust::Sign),
        };
        Trusted::new(name, &file).unwrap()
    }

    fn signed() -> Envelope {
        Envelope::sign(TYPE, b"hello world".to_vec(), &key(1)).unwrap()
    }

    /// The test vector of the DSSE protocol, version 1.
    #[test]
    fn the_encoding_of_the_specification() {
        assert_eq!(
            pae(TYPE, b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
        assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
        // Lengths are of bytes, not of characters.
        assert_eq!(
            pae("\u{e9}", "\u{20ac}".as_bytes()),
            "DSSEv1 2 \u{e9} 3 \u{20ac}".as_bytes()
        );
    }

    #[test]
    fn the_payload_of_the_specification_is_written_as_there() {
        let json: serde_json::Value = serde_json::from_str(&signed().to_json()).unwrap();
        assert_eq!(json["payload"], "aGVsbG8gd29ybGQ=");
        assert_eq!(json["payloadType"], TYPE);
    }

    #[test]
    fn trusted_signers_are_told() {
        let mut envelope = signed();
        let all = [trusted(3, "carol"), trusted(1, "alice"), trusted(2, "bob")];
        let names = |envelope: &Envelope| -> Vec<String> {
            let signers = envelope.verify(TYPE, &all).unwrap();
            signers.iter().map(|signer| signer.name.clone()).collect()
        };
        assert_eq!(names(&envelope), ["alice"]);
        envelope.add_signature(&key(2)).unwrap();
        // A stranger's signature neither helps nor hurts.
        envelope.add_signature(&key(9)).unwrap();
        let again = Envelope::parse(envelope.to_json().as_bytes()).unwrap();
        assert_eq!(again, envelope);
        assert_eq!(names(&again), ["alice", "bob"]);
        assert!(again.claims(key(9).public().id()));
        assert!(matches!(
            envelope.add_signature(&key(2)),
            Err(EnvelopeError::Duplicate(_))
        ));
    }

    #[test]
    fn what_is_not_signed_by_a_trusted_key_proves_nothing() {
        let envelope = signed();
        let alice = [trusted(1, "alice")];
        assert!(matches!(
            envelope.verify(TYPE, &[]),
            Err(VerifyError::Untrusted(_))
        ));
        assert!(matches!(
            envelope.verify(TYPE, &[trusted(2, "bob")]),
            Err(VerifyError::Untrusted(_))
        ));
        assert!(matches!(
            envelope.verify("text/plain", &alice),
            Err(VerifyError::Type { .. })
        ));
        let mut changed = envelope.clone();
        changed.payload.push(b'!');
        let forged = Err(VerifyError::Forged("alice".to_owned()));
        assert_eq!(changed.verify(TYPE, &alice), forged);
        // Bob's signature under Alice's id; it does not help that Bob is trusted too.
        let mut renamed = Envelope::sign(TYPE, b"hello world".to_vec(), &key(2)).unwrap();
        renamed.signatures[0].key = key(1).public().id().to_string();
        let both = [trusted(1, "alice"), trusted(2, "bob")];
        assert_eq!(renamed.verify(TYPE, &both), forged);
        // A signature of the payload alone is none of the envelope.
        let mut bare = envelope;
        bare.signatures[0].bytes = key(1).sign(b"hello world");
        assert_eq!(bare.verify(TYPE, &alice), forged);
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        let text = signed().to_json();
        let id = key(1).public().id().to_string();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let with = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = value.clone();
            change(&mut value);
            value.to_string()
        };
        let form = |text: &str| {
            let error = Envelope::parse(text.as_bytes()).unwrap_err();
            assert!(matches!(error, EnvelopeError::Form(_)), "{text}: {error}");
        };
        form("");
        form("[]");
        form("null");
        form(&with(&|v| v["more"] = 1.into()));
        form(&with(&|v| v["signatures"][0]["cert"] = "x".into()));
        form(&with(&|v| v["payload"] = 7.into()));
        form(&with(&|v| v["signatures"] = "x".into()));
        form(&with(&|v| {
            v["signatures"][0]["keyid"] = serde_json::Value::Null
        }));
        for field in ["payload", "payloadType", "signatures"] {
            form(&with(&|v| drop(v.as_object_mut().unwrap().remove(field))));
        }
        form(&text.replacen("\"payload\"", "\"payload\": \"\", \"payload\"", 1));
        let is = |text: String, expected: EnvelopeError| {
            assert_eq!(Envelope::parse(text.as_bytes()), Err(expected), "{text}");
        };
        is(
            with(&|v| v["signatures"] = serde_json::json!([])),
            EnvelopeError::Signatures(0),
        );
        let twice = |v: &mut serde_json::Value| {
            let one = v["signatures"][0].clone();
            v["signatures"] = serde_json::json!([one, one]);
        };
        is(with(&twice), EnvelopeError::Duplicate(id));
        let many = |v: &mut serde_json::Value| {
            let one = v["signatures"][0].clone();
            v["signatures"] = vec![one; MAX_SIGNATURES + 1].into();
        };
        is(with(&many), EnvelopeError::Signatures(MAX_SIGNATURES + 1));
        is(
            with(&|v| v["payload"] = "aGVsbG8gd29ybGQ".into()),
            EnvelopeError::Base64("payload"),
        );
        is(
            with(&|v| v["payload"] = "aGVsbG8gd29ybGR=".into()),
            EnvelopeError::Base64("payload"),
        );
        is(
            with(&|v| v["signatures"][0]["sig"] = "AAAA".into()),
            EnvelopeError::Length(3),
        );
        is(with(&|v| v["payloadType"] = "".into()), EnvelopeError::Type);
        let long = " ".repeat(MAX_ENVELOPE_BYTES + 1);
        is(long, EnvelopeError::TooLong);
    }

    #[test]
    fn either_alphabet_is_read() {
        let envelope = Envelope::sign(TYPE, vec![0xfb, 0xff], &key(1)).unwrap();
        let text = envelope.to_json().replace("+/8=", "-_8=");
        let url_safe = Envelope::parse(text.as_bytes()).unwrap();
        assert_eq!(url_safe, envelope);
    }

    proptest! {
        #[test]
        fn one_bit_more_or_less_and_it_proves_nothing(at in 0_usize..11, bit in 0_u8..8) {
            let mut envelope = signed();
            envelope.payload[at] ^= 1 << bit;
            prop_assert!(envelope.verify(TYPE, &[trusted(1, "alice")]).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Envelope::parse(&bytes).is_err());
        }
    }
}
