//! Partitions that are held to the conditions of ancestors, which others may take the place of while both
//! run: who they are, and that none begins with conditions that hold no more.

use super::{LiveHost, manifests};
use crate::conditions::PartitionConditions;
use crate::control::conditions;
use crate::error::Error;
use crate::state_dir::{Found, Standing, StateRoot, SystemDir};
use bulkhead_manifest::System;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every partition that names a parent and runs, or is about to, with its system.
///
/// # Errors
/// What runs cannot be told.
pub fn children(root: &StateRoot) -> Result<Vec<(Found, String)>, Error> {
    let mut all = Vec::new();
    for found in root.list()? {
        if found.standing != Standing::Live {
            continue;
        }
        for manifest in manifests(&found.path)? {
            if manifest.mandate().parent.is_some() {
                all.push((found.clone(), manifest.identity().to_owned()));
            }
        }
    }
    Ok(all)
}

/// Looks once more, when the documents of a system's partitions are written, whether those who are held to
/// conditions of their ancestors are held to those that hold now: whoever replaces them does that first, and
/// then tells all who have a document ([`children`]).
///
/// # Errors
/// Others hold meanwhile, or who has started it does not say.
pub(crate) fn check_inherited(
    system: &System,
    held: &BTreeMap<String, Arc<PartitionConditions>>,
    root: &StateRoot,
    directory: &SystemDir,
) -> Result<(), Error> {
    for partition in &system.partitions {
        let mandate = partition.mandate.as_ref();
        let Some(parent) = mandate.and_then(|mandate| mandate.parent.as_ref()) else {
            continue;
        };
        let within = system.partitions.iter().any(|other| other.name == *parent);
        let inherits = (held.get(&partition.name)).filter(|held| !held.inherited.is_empty());
        let Some(own) = inherits.filter(|_| !within) else {
            continue;
        };
        let host = LiveHost::look(root, Some(directory.path()))?;
        let now = match host.system_of(parent) {
            Some(found) => conditions(found, parent)?,
            None => None,
        };
        let now = now.map(|now| now.conditions.for_children_of(parent));
        if now.as_ref() != Some(&own.inherited) {
            return Err(Error::ConditionsChanged {
                partition: partition.name.clone(),
                parent: parent.clone(),
            });
        }
    }
    Ok(())
}
