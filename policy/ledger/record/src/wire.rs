//! What a client and the writer say to each other: packets of a `SOCK_SEQPACKET` socket, each one
//! request or one answer, as JSON.

use serde::{Deserialize, Serialize};

use crate::{Entry, MAX_ENTRY_BYTES};

/// Most bytes of a request.
pub const MAX_REQUEST_BYTES: usize = MAX_ENTRY_BYTES + 256;
/// Most bytes of an answer.
pub const MAX_ANSWER_BYTES: usize = 4096;

/// An entry to be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// A number that comes back with the answer.
    pub id: u64,
    /// The entry.
    pub entry: Entry,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The request's number.
    pub id: u64,
    /// See there.
    pub outcome: Outcome,
}

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// It is durable, as this record.
    Recorded(u64),
    /// The ledger cannot be written.
    NotWritten(String),
    /// This client may not record that.
    Refused(String),
}
