//! Signatures of manifests and checkpoints: Ed25519, DSSE envelopes, canonical JSON, the key store.
#![forbid(unsafe_code)]
