//! Partitions that are held to the conditions of ancestors, which others may take the place of while both
//! run: who they are, and that none begins with conditions that hold no more.

use super::{LiveHost, document_path};
use crate::conditions::PartitionConditions;
use crate::control::conditions;
use crate::error::Error;
use crate::state_dir::{Found, StateRoot, SystemDir};
use bulkhead_capability::Adherence;
use bulkhead_conditions::Inherited;
use bulkhead_manifest::{Host, Manifest, Partition, System, lineage};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

/// Every partition that descends from `ancestor` and runs, or is about to, with its system. One whose
/// ancestors do not all run may not descend from it: what it is held to tells.
///
/// # Errors
/// What runs cannot be told.
pub fn descendants(root: &StateRoot, ancestor: &str) -> Result<Vec<(Found, String)>, Error> {
    let host = LiveHost::look(root, None)?;
    let runs = |name: &String| host.running().iter().any(|one| one.identity() == name);
    let may_descend = |manifest: &Manifest| {
        let lineage = lineage(manifest, &host);
        lineage.iter().any(|name| name == ancestor)
            || lineage.last().is_some_and(|last| !runs(last))
    };
    let descend = host.running().iter().filter(|one| may_descend(one));
    let all = descend.filter_map(|one| {
        let found = host.system_of(one.identity())?;
        Some((found.clone(), one.identity().to_owned()))
    });
    Ok(all.collect())
}

/// Waits until nobody else replaces conditions of a partition with a manifest, and holds others off while the
/// file is open; nothing where it has no manifest, and so no descendants.
///
/// # Errors
/// The host does not let us.
pub fn lock_lineage(found: &Found, partition: &str) -> Result<Option<File>, Error> {
    let path = document_path(&found.path, partition);
    let failed = |source| Error::StateDir {
        path: path.clone(),
        source,
    };
    let document = match File::open(&path) {
        Ok(document) => document,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    while let Err(errno) = flock(&document, FlockOperation::LockExclusive) {
        if errno != rustix::io::Errno::INTR {
            return Err(failed(errno.into()));
        }
    }
    // The partition may have ended while we waited, and another may have its name.
    let locked = document.metadata().map_err(failed)?;
    let same = std::fs::symlink_metadata(&path).is_ok_and(|now| now.ino() == locked.ino());
    match same {
        true => Ok(Some(document)),
        false => Err(Error::NotRunning(found.name.clone())),
    }
}

/// Looks once more, when the documents of a system's partitions are written, whether those who are held to
/// conditions of their ancestors are held to those that hold now: whoever replaces them does that first, and
/// then tells all who have a document ([`descendants`]).
///
/// # Errors
/// Others hold meanwhile, or whose they are does not say.
pub(crate) fn check_inherited(
    system: &System,
    held: &BTreeMap<String, Arc<PartitionConditions>>,
    root: &StateRoot,
    directory: &SystemDir,
) -> Result<(), Error> {
    // Only who has a manifest has a parent; and conditions within the system are what it starts with.
    let with_manifest = || system.partitions.iter().filter(|one| one.mandate.is_some());
    let own = |name: &String| with_manifest().any(|one| one.name == *name);
    let heirs: Vec<(&Partition, &Inherited)> = with_manifest()
        .filter_map(|one| Some((one, held.get(&one.name)?)))
        .flat_map(|(one, held)| held.inherited.iter().map(move |inherited| (one, inherited)))
        .filter(|(_, inherited)| !own(&inherited.ancestor))
        .collect();
    if heirs.is_empty() {
        return Ok(());
    }
    let host = LiveHost::look(root, Some(directory.path()))?;
    for (partition, inherited) in heirs {
        let ancestor = &inherited.ancestor;
        let now = match host.system_of(ancestor) {
            Some(found) => conditions(found, ancestor)?,
            None => None,
        };
        // Whether anybody answers for them now is that one's own affair: it may be rebooting.
        let holds = now.is_some_and(|now| {
            let learn = now.conditions.adherence == Adherence::Learn;
            now.conditions.text == inherited.text && learn == inherited.learn
        });
        if !holds {
            return Err(Error::ConditionsChanged {
                partition: partition.name.clone(),
                ancestor: ancestor.clone(),
            });
        }
    }
    Ok(())
}
