//! The limits of one partition's tools that its manifest names (`tools.limits`). Read once, when the
//! system starts: what holds is what the record of the start names, whatever becomes of the file, also
//! when the guest reboots. They narrow the host's own, and never widen them.

use crate::conditions::digest;
use crate::error::Error;
use crate::files::{is_as_judged, open_regular};
use bulkhead_manifest::System;
use bulkhead_toolbox::{Limits, MAX_LIMITS_BYTES};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What it is, in messages.
const FILE: &str = "file of limits";

/// Limits of a partition, as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionLimits {
    pub(crate) limits: Limits,
    /// SHA-256 of their text, for the record of the start.
    pub(crate) digest: String,
}

/// Those of the partitions of a system that name some, by their names.
pub(crate) fn of(system: &System) -> Result<BTreeMap<String, PartitionLimits>, Error> {
    let mut found = BTreeMap::new();
    for partition in &system.partitions {
        let mandate = partition.mandate.as_ref();
        if let Some(path) = mandate.and_then(|mandate| mandate.tool_limits.as_deref()) {
            let file = open_regular(FILE, path)?;
            is_as_judged(partition, path, &file)?;
            found.insert(partition.name.clone(), read(path, file)?);
        }
    }
    Ok(found)
}

/// Checks the file of limits at `path`, which may not be there yet.
///
/// # Errors
/// It cannot be read, or is no such file.
pub fn check_tool_limits(path: &Path) -> Result<(), Error> {
    match open_regular(FILE, path) {
        Ok(file) => read(path, file).map(drop),
        Err(Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn read(path: &Path, file: File) -> Result<PartitionLimits, Error> {
    let mut text = String::new();
    // One byte more than it may have, for whoever parses it to refuse.
    let read = file
        .take(MAX_LIMITS_BYTES as u64 + 1)
        .read_to_string(&mut text);
    read.map_err(|source| Error::Open {
        what: FILE,
        path: path.to_owned(),
        source,
    })?;
    let limits = Limits::parse_narrowing(&text).map_err(|error| Error::ToolsPolicy {
        path: path.to_owned(),
        error,
    })?;
    let digest = digest(&text);
    Ok(PartitionLimits { limits, digest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn what_is_no_file_of_limits_is_refused_with_its_line() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("tools.toml");
        check_tool_limits(&path).unwrap();
        std::fs::write(&path, "[partition]\ncalls = 3\n").unwrap();
        check_tool_limits(&path).unwrap();
        let found = read(&path, File::open(&path).unwrap()).unwrap();
        assert_eq!(found.limits.partition.calls, 3);
        assert_eq!(found.limits.partition.writes, u32::MAX, "not named");
        assert_eq!(found.digest.len(), 64);
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            check_tool_limits(&path).unwrap_err()
        };
        let wrong = refused(b"[partition]\ncall = 3\n");
        assert_eq!(wrong.code(), "tools-policy");
        let said = wrong.to_string();
        assert!(
            said.contains("tools.toml") && said.contains("line 2"),
            "{said}"
        );
        let long = refused(&vec![b'#'; MAX_LIMITS_BYTES + 1]);
        assert_eq!(long.code(), "tools-policy");
        refused(b"\xff");
        assert_eq!(
            check_tool_limits(dir.path()).unwrap_err().code(),
            "file-kind"
        );
    }
}
