//! What an asker and `bulkhead-decision` say to each other: packets of a `SOCK_SEQPACKET` socket, each
//! one request or one answer, as JSON.

use crate::{Act, Ruling};
use serde::{Deserialize, Serialize};

/// Most bytes of a request; an act that is described at greater length is not asked about, and denied.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Most bytes of an answer.
pub const MAX_ANSWER_BYTES: usize = 8 * 1024;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// A number that comes back with the answer.
    pub id: u64,
    /// What is about to be done.
    pub act: Act,
    /// How many bytes it announces, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What the conditions say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The request's number.
    pub id: u64,
    /// See there.
    pub ruling: Ruling,
    /// Whether they are held to.
    pub enforced: bool,
}
