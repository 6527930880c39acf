//! What is known of a system from outside: written by its supervisor, read by `ps` and `down`.

use crate::lifecycle::State;
use bulkhead_capability::Adherence;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest record that is read, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// A system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemRecord {
    /// Process id of its supervisor.
    pub supervisor: u32,
    /// When it was started, in seconds since 1970.
    pub started: u64,
    /// Every partition has ended.
    pub finished: bool,
    /// `bulkhead stop --all --now` has halted it.
    #[serde(default)]
    pub halted: bool,
    /// Its partitions, in the order of the manifest.
    pub partitions: Vec<PartitionRecord>,
    /// Directories of its control groups.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Its name.
    pub name: String,
    /// `native`, `linux-abi` or `linux`.
    pub kernel: String,
    /// Where it stands.
    pub state: State,
    /// Process id of its VMM.
    pub vmm: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Layers of the jail that this host does not offer.
    pub jail_gaps: Vec<String>,
    /// Whether conditions hold for it, if there are any.
    #[serde(default)]
    pub conditions: Option<Adherence>,
    /// The exit status that it would give `bulkhead run`, when it has ended.
    pub status: Option<u8>,
}

impl SystemRecord {
    /// Reads a record; nothing when there is none, or none that makes sense.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let mut json = Vec::new();
        File::open(path)
            .ok()?
            .take(MAX_BYTES)
            .read_to_end(&mut json)
            .ok()?;
        serde_json::from_slice(&json).ok()
    }
}
