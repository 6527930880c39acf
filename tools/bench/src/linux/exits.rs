//! How often a guest has left for its host, by KVM's own counters: exact on a busy machine too, where
//! a time is not.

use std::path::PathBuf;

use crate::error::Error;

/// A directory for each VM, named by the process that made it and its descriptor.
const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// Metric, what it is, and the counters that it adds up.
pub(super) const METRICS: [(&str, &str, &[&str]); 3] = [
    ("exits", "exits until the first process", &["exits"]),
    (
        "exits-memory",
        "of these: the guest's memory had to be mapped",
        &["pf_taken"],
    ),
    (
        "exits-devices",
        "of these: accesses to ports and registers",
        &["io_exits", "mmio_exits"],
    ),
];

/// The counters of the VM that process `pid` has made.
pub(super) struct Counters(PathBuf);

impl Counters {
    /// Finds them.
    ///
    /// # Errors
    /// There are none: debugfs is not mounted.
    pub(super) fn of(pid: u32) -> Result<Self, Error> {
        let failed = || {
            Error::io(format!(
                "finding the counters of process {pid} in {COUNTERS}"
            ))
        };
        let prefix = format!("{pid}-");
        for entry in std::fs::read_dir(COUNTERS).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                return Ok(Self(entry.path()));
            }
        }
        Err(failed()(std::io::ErrorKind::NotFound.into()))
    }

    /// The sum of the counters `names`.
    pub(super) fn sum(&self, names: &[&str]) -> Result<u64, Error> {
        let mut sum = 0;
        for name in names {
            let path = self.0.join(name);
            let failed = || Error::io(format!("reading {}", path.display()));
            let text = std::fs::read_to_string(&path).map_err(failed())?;
            let value = text.trim().parse::<u64>();
            sum += value.map_err(|error| failed()(std::io::Error::other(error)))?;
        }
        Ok(sum)
    }
}
