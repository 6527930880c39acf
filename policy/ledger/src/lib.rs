//! The tamper-evident ledger: append-only segments of records, a Merkle tree over all of them (RFC 6962),
//! and a signed checkpoint behind each commit.
//!
//! - [`Log`] writes; several processes may at once. Used by the process `bulkhead-ledger` alone, which is
//!   [`writer`].
//! - [`verify`] reads everything and names the first bad record; [`Reader`] reads and proves. Used by
//!   the command line.
//!
//! docs/ledger.md has the format, and what is detected. What is recorded, and how a process asks for
//! it, is `bulkhead-record`'s.
#![forbid(unsafe_code)]

mod checkpoint;
mod error;
mod inspect;
mod key;
mod log;
mod note;
mod place;
mod proof;
mod read;
mod record;
mod segment;
pub mod tree;
mod verify;
pub mod writer;

pub use checkpoint::Checkpoint;
pub use error::LogError;
pub use key::{PUBLIC, signer, verifier};
pub use log::{Log, SEGMENT_BYTES};
pub use note::{NoteError, Signer, Verifier};
pub use place::{directory, latest};
pub use proof::{Proof, ProofError};
pub use read::{Reader, Segment};
pub use record::Record;
pub use segment::Problem;
pub use verify::{Report, Voucher, verify};

#[cfg(test)]
mod tests;
