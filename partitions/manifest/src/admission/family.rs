//! The rules about other running partitions. The fourth: it asks for no more than its parent has. The
//! fifth: its parent may start it. The eighth: nobody else has its identity.

use super::bounds::Bounds;
use super::{Case, Host, Rejection, Rule};
use crate::mandate::{Lifetime, SpawnBudget};
use crate::manifest::Manifest;
use bulkhead_capability::Capability;
use std::path::Path;

/// Most generations that are looked at; no manifest has as many.
const MAX_GENERATIONS: usize = 64;

fn find<'c>(case: &Case<'c>, identity: &str) -> Option<&'c Manifest> {
    let mut running = case.host.running().iter();
    running.find(|other| other.identity() == identity)
}

/// Its parent, if it has one.
pub(super) fn check_parent<'c>(case: &Case<'c>) -> Result<Option<&'c Manifest>, Box<Rejection>> {
    let Some(name) = &case.mandate().parent else {
        return Ok(None);
    };
    let Some(parent) = find(case, name) else {
        let message = format!("its parent `{name}` does not run");
        let help = "start the parent first, or leave `parent` out";
        let span = case.manifest.spans().parent.clone();
        return Err(case.reject(Rule::Parent, "identity.parent", span, message, help));
    };
    let files: Vec<_> = (parent.boot_files().iter())
        .map(|file| case.host.real_path(&file.value))
        .collect();
    // What the parent has a copy of, it can hand on.
    let may_copy = |path: &Path| files.iter().any(|held| path.starts_with(held));
    let (partition, mandate) = (parent.partition(), parent.mandate());
    Bounds {
        rule: Rule::Parent,
        whose: format!("parent `{name}`"),
        grants: &partition.grants,
        memory_mib: partition.memory.mib + partition.memory.pluggable_mib,
        vcpus: partition.vcpus,
        autonomy: partition.autonomy,
        tool_limits: (mandate.tool_limits.as_ref()).map(|file| case.host.real_path(file)),
        conditions: partition.conditions,
        limits: partition.limits,
        lifetime: mandate.lifetime,
        spawn: SpawnBudget {
            count: mandate.spawn.count,
            depth: mandate.spawn.depth.saturating_sub(1),
        },
        budget: &mandate.budget,
        may_copy: &may_copy,
    }
    .check(case)?;
    Ok(Some(parent))
}

/// The ancestors of a manifest, the nearest first; the last may not run.
pub fn lineage(manifest: &Manifest, host: &dyn Host) -> Vec<String> {
    let mut lineage: Vec<String> = Vec::new();
    let mut next = manifest.mandate().parent.clone();
    while let Some(name) = next.take().filter(|name| !lineage.contains(name)) {
        let mut running = host.running().iter();
        let parent = running.find(|other| other.identity() == name);
        next = parent.and_then(|parent| parent.mandate().parent.clone());
        lineage.push(name);
    }
    lineage
}

/// What is left of the lifetimes of these partitions, in seconds, if one of them ends: nobody outlives
/// whoever it descends from.
pub(super) fn left(lineage: &[String], host: &dyn Host) -> Option<u64> {
    let of_one = |running: &Manifest| match running.mandate().lifetime {
        Lifetime::Seconds(all) => Some(all.saturating_sub(host.age(running.identity()).as_secs())),
        Lifetime::Unlimited => None,
    };
    let running = host.running().iter();
    let ancestors = running.filter(|one| lineage.iter().any(|name| name == one.identity()));
    ancestors.filter_map(of_one).min()
}

/// The parent may start it, there is room for one more, and it is not too many generations down.
pub(super) fn check_spawn(
    case: &Case<'_>,
    parent: Option<&Manifest>,
) -> Result<(), Box<Rejection>> {
    let Some(parent) = parent else {
        return Ok(());
    };
    let role = &case.mandate().role;
    let name = parent.identity();
    let reject = |field, span, message: String| {
        let help = "end another child, or have the parent's `spawn` widened";
        Err(case.reject(Rule::Spawn, field, span, message, help))
    };
    let spans = case.manifest.spans();
    let most = parent
        .partition()
        .grants
        .capabilities()
        .filter_map(|held| match held {
            Capability::PartitionSpawn(spawn) if spawn.role() == role => Some(spawn.count()),
            _ => None,
        })
        .max();
    let Some(most) = most else {
        let message = format!("parent `{name}` may not start a partition of role `{role}`");
        return reject("identity.role", spans.role.clone(), message);
    };
    let is_child = |other: &&Manifest| other.mandate().parent.as_deref() == Some(name);
    let children: Vec<&Manifest> = case.host.running().iter().filter(is_child).collect();
    let same = children.iter().filter(|c| c.mandate().role == *role);
    if same.count() >= most as usize {
        let message = format!("parent `{name}` has {most} children of role `{role}` already");
        return reject("identity.parent", spans.parent.clone(), message);
    }
    let count = parent.mandate().spawn.count;
    if children.len() >= count as usize {
        let message = format!("parent `{name}` has {count} children already");
        return reject("identity.parent", spans.parent.clone(), message);
    }
    let mut ancestor = Some(parent);
    for generation in 1..=MAX_GENERATIONS {
        let Some(above) = ancestor else {
            return Ok(());
        };
        let depth = above.mandate().spawn.depth;
        if generation > depth as usize {
            let message = format!(
                "it would be {generation} generations below `{}`, which allows {depth}",
                above.identity()
            );
            return reject("identity.parent", spans.parent.clone(), message);
        }
        let next = above.mandate().parent.as_deref();
        ancestor = next.and_then(|next| find(case, next));
    }
    let message = format!("`{name}` has too many ancestors");
    reject("identity.parent", spans.parent.clone(), message)
}

/// Nobody who runs has its identity.
pub(super) fn check_identity(case: &Case<'_>) -> Result<(), Box<Rejection>> {
    let identity = case.manifest.identity();
    if find(case, identity).is_none() {
        return Ok(());
    }
    let message = format!("a partition with the identity `{identity}` runs already");
    let help = "give this one another name, or end the other";
    let span = case.manifest.spans().name.clone();
    Err(case.reject(Rule::Identity, "identity.name", span, message, help))
}
