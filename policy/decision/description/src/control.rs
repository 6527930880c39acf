//! What a supervisor and `bulkhead-decision` say to each other: packets of a `SOCK_SEQPACKET` socket,
//! as JSON.

use serde::{Deserialize, Serialize};

/// Largest message either way.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// Most processes that ask at a time.
pub const MAX_CLIENTS: usize = 256;

/// What the supervisor wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// The descriptor that comes with this is the process's end of a socket on which it is asked.
    Client,
}

/// What the process tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// The conditions hold from now on.
    Running {
        /// Layers of the jail that the host does not offer.
        jail_gaps: Vec<String>,
    },
    /// They cannot; the process ends.
    Failed {
        /// A stable code.
        code: String,
        /// A sentence.
        message: String,
    },
}
