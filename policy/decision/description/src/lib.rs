//! Asking the conditions of a partition while it runs, and what the process that answers is started
//! with.
//!
//! Conditions are in Cedar, which is in `bulkhead-decision` and in the command line alone. A process
//! that enforces grants links this crate: it describes what is about to be done as an [`Act`], and has
//! an [`Asker`] ask. It asks only when a grant has allowed the act; conditions allow nothing.
//!
//! To start a `bulkhead-decision`:
//! 1. make a `SOCK_SEQPACKET` socketpair for [`DecisionDescription::control`];
//! 2. write the description as JSON into a memfd or pipe, and spawn `bulkhead-decision
//!    --description-fd N` with these open and nothing else. Standard error is for people;
//! 3. for each process that asks, make a `SOCK_SEQPACKET` socketpair and send one end with
//!    [`control::Command::Client`]. What is sent before the process is ready waits for it.
//!
//! It jails itself, checks the conditions and says [`control::Event::Running`], or says
//! [`control::Event::Failed`] and ends. It ends when the supervisor closes the control socket, or dies.
#![forbid(unsafe_code)]

mod act;
mod asker;
pub mod control;
mod notes;
mod ruling;
pub mod wire;

pub use act::Act;
pub use asker::{Asker, PATIENCE};
pub use notes::{CONDITIONS, Denied, Notes, WOULD_DENY, denied};
pub use ruling::{Ruling, Said};

use bulkhead_capability::Grants;
use bulkhead_machine::{Fd, Jail};
use serde::{Deserialize, Serialize};

/// Version of this format; `bulkhead-decision` refuses any other.
pub const VERSION: u32 = 1;
/// Longest text of conditions in bytes.
pub const MAX_TEXT_BYTES: usize = 128 * 1024;
/// Largest description in bytes, as JSON.
pub const MAX_DESCRIPTION_BYTES: u64 = 4 * 1024 * 1024;

/// What the process works with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionDescription {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the system.
    pub system: String,
    /// Name of the partition that acts.
    pub partition: String,
    /// Its ancestors, the nearest first.
    #[serde(default)]
    pub lineage: Vec<String>,
    /// When it started first, in seconds since 1970.
    pub started: u64,
    /// The conditions, in Cedar.
    pub text: String,
    /// What they would deny is told, and done all the same.
    #[serde(default)]
    pub learn: bool,
    /// What they may speak of: the partitions of the manifest and what each was granted.
    pub world: Vec<Member>,
    /// Conditions of its ancestors, the nearest first: they have to permit what it does as well.
    #[serde(default)]
    pub inherited: Vec<Inherited>,
    /// The process's end of the control socket.
    pub control: Fd,
    /// How far the process locks itself in before it reads the conditions.
    pub jail: Jail,
}

/// Conditions of an ancestor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inherited {
    /// Whose.
    pub ancestor: String,
    /// In Cedar.
    pub text: String,
    /// What they would deny is told, and done all the same.
    #[serde(default)]
    pub learn: bool,
    /// What they may speak of.
    pub world: Vec<Member>,
}

/// A partition of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What it was granted.
    pub grants: Grants,
}
