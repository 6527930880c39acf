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
    /// The descriptor that comes with this is a file with other conditions in it, which are to hold in
    /// the place of those that do. The answer is [`Event::Reloaded`].
    Reload {
        /// A number that comes back with the answer.
        id: u64,
        /// They may permit what the others do not.
        widen: bool,
        /// The ancestor whose they are; without, the partition's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<String>,
    },
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
    /// The answer to [`Command::Reload`].
    Reloaded {
        /// The command's number.
        id: u64,
        /// How it went.
        outcome: Reloaded,
    },
}

/// How a reload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reloaded {
    /// Every answer from here on is by the new conditions.
    Done {
        /// Why they permit what the others did not, if they do.
        widened: Option<String>,
    },
    /// Those that held still hold.
    Refused {
        /// A stable code.
        code: String,
        /// A sentence.
        message: String,
    },
}
