//! What the supervisor hands to `bulkhead-fs`, the process that serves one shared directory to one
//! partition.
//!
//! For each shared directory the supervisor
//!
//! 1. opens the directory (`O_PATH | O_DIRECTORY`), once, as the user who exports it;
//! 2. makes a listening Unix stream socket (`bind` in a private directory, `listen(1)`), connects
//!    to it, and unlinks its name: the connected end goes into the machine description as the
//!    vhost-user device's socket, the listening one into [`FsDescription::socket`]. A connection
//!    that waits in the queue is enough: neither process has to wait for the other's start;
//! 3. spawns `bulkhead-fs --description-fd N` with exactly the descriptors that the description
//!    names. It serves the one connection it accepts, and ends when the VMM closes it, or with its
//!    parent (`PR_SET_PDEATHSIG`). A VMM whose back end ends finds the device in
//!    `DEVICE_NEEDS_RESET`; starting another back end does not bring it back.
//!
//! What the guest mounts by is the device's configuration, which the VMM serves and not this
//! process: the tag, and `num_request_queues`, always [`REQUEST_QUEUES`]. With the high-priority
//! queue the device has [`QUEUES`] queues of [`QUEUE_SIZE`] entries.
//!
//! Exit status: 0 when the connection ended in order, 125 otherwise; then one sentence is on
//! standard error and, as [`Event::Failed`](bulkhead_machine::control::Event), on the control socket.

#![forbid(unsafe_code)]

use bulkhead_machine::{Fd, Jail};
use serde::{Deserialize, Serialize};

/// Version of this format; `bulkhead-fs` refuses any other.
pub const VERSION: u32 = 1;
/// Queues of the device: the high-priority queue, then the request queues.
pub const QUEUES: u16 = 1 + REQUEST_QUEUES;
/// Request queues of the device; Linux before 6.10 uses no more than one.
pub const REQUEST_QUEUES: u16 = 1;
/// Most entries of each queue.
pub const QUEUE_SIZE: u16 = 1024;

/// One shared directory, as JSON on the descriptor named by `bulkhead-fs --description-fd N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsDescription {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the share, for messages.
    pub name: String,
    /// A listening Unix stream socket, on which the front end connects (or has connected).
    pub socket: Fd,
    /// The control socket (`SOCK_SEQPACKET`), apart from the VMM's: one
    /// [`Event::Running`](bulkhead_machine::control::Event) with the jail's gaps when the process is locked
    /// in, before it accepts the connection; or `Failed`. Absent: standard error only.
    #[serde(default)]
    pub control: Option<Fd>,
    /// The exported directory, `O_PATH | O_DIRECTORY`. Nothing above it, and no other filesystem
    /// mounted below it, can be reached: entering such a mount point fails with `EXDEV`.
    pub directory: Fd,
    /// Refuse everything that would change the directory, with `EROFS`.
    pub read_only: bool,
    /// Whose files they are.
    pub ownership: Ownership,
    /// How far the process locks itself in before it accepts the connection. `BestEffort` needs at
    /// least Landlock, or a mount namespace: without either the process refuses to serve.
    pub jail: Jail,
}

/// How users of the guest and users of the host correspond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ownership {
    /// The same numbers on both sides: files belong to whom the guest's user and group ids say,
    /// `chown` works. The process has to be root, and then keeps `CAP_CHOWN`, `CAP_DAC_OVERRIDE`,
    /// `CAP_FOWNER`, `CAP_FSETID`, `CAP_SETGID` and `CAP_SETUID`; without them it refuses to serve.
    /// The guest decides, so the directory should not be one that users of the host trust: its
    /// parent wants mode 0700.
    Guest,
    /// On the host everything belongs to the user who runs the process, and is done with that
    /// user's rights. The guest sees that user's files as `uid:gid`, and all others as 65534;
    /// `chown` to anything but what a file has fails with `EPERM`. The process keeps no capability,
    /// whoever runs it.
    Exporter {
        /// User id that the guest sees.
        uid: u32,
        /// Group id that the guest sees.
        gid: u32,
    },
}
