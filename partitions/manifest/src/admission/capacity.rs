//! The sixth rule: the host has what it asks for.

use super::{Case, Rejection, Rule};

/// What the host has, and what is taken of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// MiB of memory and swap.
    pub memory_mib: u64,
    /// MiB that running partitions were promised.
    pub promised_mib: u64,
    /// CPUs.
    pub cpus: u32,
}

/// Memory that is promised is there for everybody who was promised it, and each vCPU has a CPU.
pub(super) fn check(case: &Case<'_>) -> Result<(), Box<Rejection>> {
    let capacity = case.host.capacity();
    let partition = case.partition();
    let spans = case.manifest.spans();
    let asked = partition.memory.mib + partition.memory.pluggable_mib;
    let left = capacity.memory_mib.saturating_sub(capacity.promised_mib);
    if asked > left {
        let message =
            format!("{asked} MiB of memory are asked for, and the host has {left} MiB left");
        let help = "ask for less, or end another partition";
        let span = spans.memory.clone();
        return Err(case.reject(Rule::Capacity, "resources.memory", span, message, help));
    }
    if partition.vcpus > capacity.cpus {
        let message = format!(
            "{} vCPUs are asked for, and the host has {} CPUs",
            partition.vcpus, capacity.cpus
        );
        let span = spans.vcpus.clone();
        let help = "ask for as many as there are, or fewer";
        return Err(case.reject(Rule::Capacity, "resources.vcpus", span, message, help));
    }
    Ok(())
}
