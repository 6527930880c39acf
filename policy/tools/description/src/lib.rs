//! What the supervisor hands to `bulkhead-tools`, the process that runs the tools of one partition.
//!
//! The supervisor links this crate and never `bulkhead-tools`. To start one it
//!
//! 1. listens on `vsock.sock_1024` ([`PORT`]) beside the partition's `vsock.sock`, which is where
//!    the guest's connections to that port of the host arrive;
//! 2. opens each granted directory, and the private one for back-ups (`O_PATH | O_DIRECTORY`), and
//!    the files of counters (read and write): the one that all partitions share, and the partition's
//!    own, which is the same for every process that serves it while it lives;
//! 3. spawns `bulkhead-tools --description-fd N` with exactly the descriptors that the description
//!    names. It ends with the thread that spawned it (`PR_SET_PDEATHSIG`), or when it is killed.
//!
//! What the description does not grant no tool does; without a ledger no tool runs at all.
#![forbid(unsafe_code)]

pub mod limits;

use std::path::PathBuf;

use bulkhead_capability::{Autonomy, Grants};
pub use bulkhead_machine::{Fd, Jail};
use serde::{Deserialize, Serialize};

pub use limits::{Limits, MAX_LIMITS_BYTES, ParseLimitsError, Rates, ToolLimit};

/// Version of this format; `bulkhead-tools` refuses any other.
pub const VERSION: u32 = 1;
/// Largest description in bytes, as JSON.
pub const MAX_DESCRIPTION_BYTES: u64 = 1024 * 1024;
/// The tools that reach web servers, by way of the partition's gateway.
pub const WEB_TOOLS: [&str; 2] = ["http.get", "http.request"];
/// Where the guest finds its tools: this port of the host (CID 2) on vsock.
pub const PORT: u32 = 1024;

/// The tools of one partition, as JSON on the descriptor named by `bulkhead-tools --description-fd N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolsDescription {
    /// [`VERSION`].
    pub version: u32,
    /// Who calls, as records have it: `system/partition`.
    pub actor: String,
    /// A listening Unix stream socket: each connection speaks MCP.
    pub listener: Fd,
    /// The way to the writer of the ledger (`SOCK_SEQPACKET`). Absent: no tool runs.
    #[serde(default)]
    pub ledger: Option<Fd>,
    /// The way to whoever asks a person (`SOCK_SEQPACKET`, as `bulkhead-approval` has it). Absent:
    /// nobody can be asked, and what takes a person's consent is not done.
    #[serde(default)]
    pub approvals: Option<Fd>,
    /// The way to what answers for the conditions (`SOCK_SEQPACKET`, as `bulkhead-conditions` has it).
    /// Absent: there are none.
    #[serde(default)]
    pub conditions: Option<Fd>,
    /// Directory for what rolling back needs, empty or as the process before this one left it.
    pub backups: Fd,
    /// The file of counters that limit all partitions together. Absent: only this one is limited.
    #[serde(default)]
    pub counters: Option<Fd>,
    /// The file in which the partition's own calls are counted. Absent: they count as long as this
    /// process lives.
    #[serde(default)]
    pub own_counters: Option<Fd>,
    /// The way to the partition's gateway (`SOCK_SEQPACKET`, as `bulkhead-network` has it in `tools`).
    /// Absent: no tool reaches the network.
    #[serde(default)]
    pub gateway: Option<Fd>,
    /// What the partition was granted; `tool.call`, `exec` and `net.connect` matter here.
    pub grants: Grants,
    /// When the partition started first, in seconds since 1970.
    pub started: u64,
    /// The directories of its grants of `fs.read` and `fs.write`.
    #[serde(default)]
    pub directories: Vec<Directory>,
    /// Which calls wait for a person, beside those that a grant or `limits` names.
    pub autonomy: Autonomy,
    /// How often, and when to ask.
    #[serde(default)]
    pub limits: Limits,
    /// Most calls that the partition may make while it lives. Absent: that is not limited.
    #[serde(default)]
    pub budget: Option<u64>,
    /// How far the process locks itself in before it accepts the first connection. `BestEffort`
    /// needs at least Landlock.
    pub jail: Jail,
}

/// A directory of the host, which has the same path in calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Its absolute path as it was granted.
    pub path: PathBuf,
    /// The directory, `O_PATH | O_DIRECTORY`.
    pub file: Fd,
    /// It may be changed.
    pub write: bool,
}

/// What harm a call can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Risk {
    /// It changes nothing.
    Read,
    /// It changes something that can be changed back.
    Write,
    /// It may destroy something.
    Destructive,
    /// It reaches other machines.
    Network,
}

impl Risk {
    /// True when a call of this risk waits for a person whatever else is said.
    pub fn asks_under(self, autonomy: Autonomy) -> bool {
        match autonomy {
            Autonomy::Full => false,
            Autonomy::Supervised => matches!(self, Self::Destructive | Self::Network),
            Autonomy::Manual => self != Self::Read,
        }
    }

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Destructive => "destructive",
            Self::Network => "network",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_asks_for_the_risks_above_its_bound() {
        use Autonomy::{Full, Manual, Supervised};
        use Risk::{Destructive, Network, Read, Write};
        for (risk, asking) in [
            (Read, &[][..]),
            (Write, &[Manual]),
            (Destructive, &[Manual, Supervised]),
            (Network, &[Manual, Supervised]),
        ] {
            for autonomy in [Manual, Supervised, Full] {
                let asks = asking.contains(&autonomy);
                assert_eq!(risk.asks_under(autonomy), asks, "{risk:?} {autonomy:?}");
            }
        }
    }
}
