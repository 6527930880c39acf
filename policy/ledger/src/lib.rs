//! The tamper-evident ledger: append-only segments, a Merkle tree, signed checkpoints.
#![forbid(unsafe_code)]
