//! What the supervisor hands to `bulkhead-ledger`, the process that writes the ledger, and what the
//! two say to each other.
//!
//! To start one:
//! 1. open the ledger's directory, the second place and the directory of keys;
//! 2. make a `SOCK_SEQPACKET` socketpair for [`LedgerDescription::control`];
//! 3. write the description as JSON into a memfd or pipe, and spawn `bulkhead-ledger --description-fd N`
//!    with these open and nothing else. Standard error is for people;
//! 4. it opens the ledger, jails itself and says [`Event::Running`], or says [`Event::Failed`] and
//!    ends. Commands and requests that were sent before wait for it. It ends when the supervisor
//!    closes the control socket, or dies.

use bulkhead_machine::{Fd, Jail};
use serde::{Deserialize, Serialize};

/// Version of this format; the writer refuses any other.
pub const VERSION: u32 = 1;
/// Largest description in bytes, as JSON.
pub const MAX_DESCRIPTION_BYTES: u64 = 4096;
/// Largest message on the control socket.
pub const MAX_MESSAGE_BYTES: usize = 4096;
/// Most clients at a time.
pub const MAX_CLIENTS: usize = 1024;

/// What the writer works with: all of it is open in its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerDescription {
    /// [`VERSION`].
    pub version: u32,
    /// The directory of the segments.
    pub directory: Fd,
    /// The second place: a directory.
    pub second: Fd,
    /// The directory of keys, in which the ledger's is made if there is none.
    pub keys: Fd,
    /// The writer's end of the control socket.
    pub control: Fd,
    /// How far the process locks itself in before it takes the first request.
    pub jail: Jail,
}

/// What the supervisor wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// The descriptor that comes with this is the writer's end of a client's socket.
    Client {
        /// Whom the client may name as the actor: this one, and any below it (`a` is above `a/b`).
        actor: String,
    },
}

/// What the writer tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// The ledger is open, the process locked in.
    Running {
        /// Layers of the jail that the host does not offer.
        jail_gaps: Vec<String>,
    },
    /// It cannot be; the process ends.
    Failed {
        /// A stable code.
        code: String,
        /// A sentence.
        message: String,
    },
}
