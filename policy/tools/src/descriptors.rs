//! The descriptors that a description names: what this process keeps of those that it was started with.

use bulkhead_toolbox::{Fd, ToolsDescription};

/// All of them.
pub(crate) fn named(description: &ToolsDescription) -> impl Iterator<Item = Fd> {
    let directories = description.directories.iter().map(|each| each.file);
    directories
        .chain(description.ledger)
        .chain(description.approvals)
        .chain(description.conditions)
        .chain(description.counters)
        .chain(description.own_counters)
        .chain(description.gateway)
        .chain([description.listener, description.backups])
}
