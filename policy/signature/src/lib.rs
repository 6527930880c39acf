//! Signatures of manifests and checkpoints: Ed25519 keys, DSSE envelopes, canonical JSON, and the
//! store of an operator's keys.
//!
//! What is signed is always the canonical form ([`canonical`]) inside an [`Envelope`]; who may sign
//! is whoever's key lies in the [`KeyStore`]'s directory of trust. Private keys are cleared from
//! memory when they are let go of.
#![forbid(unsafe_code)]

pub mod canonical;
mod dsse;
mod key;
mod store;

pub use canonical::CanonicalError;
pub use dsse::{Envelope, EnvelopeError, MAX_ENVELOPE_BYTES, MAX_SIGNATURES, VerifyError, pae};
pub use key::{KeyError, KeyId, PrivateKey, PublicKey, PublicKeyFile, Trust};
pub use store::{KeyStore, Listed, StoreError, Trusted};
