//! What the third and the fourth rule have in common: a manifest is held to bounds, those of its role
//! or of its parent.

use super::{Case, Rejection, Rule};
use crate::draft::At;
use crate::mandate::{Budget, Lifetime, SpawnBudget};
use crate::system::Limits;
use bulkhead_capability::{Adherence, Autonomy, Capability, Grant, Grants};
use std::path::{Path, PathBuf};

/// Most that a manifest may ask for.
pub(super) struct Bounds<'b> {
    pub(super) rule: Rule,
    /// Whose they are, for a sentence: "role `coder`".
    pub(super) whose: String,
    pub(super) grants: &'b Grants,
    pub(super) memory_mib: u64,
    pub(super) vcpus: u32,
    pub(super) autonomy: Autonomy,
    /// The file that limits tools beside the host's own, without links on its way.
    pub(super) tool_limits: Option<PathBuf>,
    pub(super) conditions: Adherence,
    pub(super) limits: Limits,
    pub(super) lifetime: Lifetime,
    pub(super) spawn: SpawnBudget,
    pub(super) budget: &'b Budget,
    /// Whether a file of the host, without links on its way, may be copied into the guest.
    pub(super) may_copy: &'b dyn Fn(&Path) -> bool,
}

impl Bounds<'_> {
    /// Holds the manifest to them.
    pub(super) fn check(&self, case: &Case<'_>) -> Result<(), Box<Rejection>> {
        self.check_grants(case)?;
        self.check_files(case)?;
        self.check_machine(case)?;
        self.check_terms(case)
    }

    fn reject(
        &self,
        case: &Case<'_>,
        field: &'static str,
        span: Option<std::ops::Range<usize>>,
        message: String,
    ) -> Box<Rejection> {
        let help = match self.rule {
            Rule::Parent => "ask for less: a child has at most what its parent has",
            _ => "ask for less, or have the ceiling of the role raised",
        };
        case.reject(self.rule, field, span, message, help)
    }

    fn check_grants(&self, case: &Case<'_>) -> Result<(), Box<Rejection>> {
        let denied: Vec<Capability> = case.partition().grants.denied().cloned().collect();
        for At { value: grant, span } in case.manifest.grants() {
            let alone: Grants = [grant.clone()].into_iter().collect();
            if !alone
                .denying(denied.clone())
                .is_narrower_or_equal(self.grants)
            {
                let message = format!("{} does not allow `{grant}`", self.whose);
                return Err(self.reject(case, "grants", span.clone(), message));
            }
        }
        // One by one they may be within quotas that together they exceed.
        if !case.partition().grants.is_narrower_or_equal(self.grants) {
            let message = format!(
                "{} does not allow so much to all grants together",
                self.whose
            );
            return Err(self.reject(case, "grants", None, message));
        }
        // Files behind a disk are no grants of their own, and yet read and written.
        for At { value: file, span } in case.manifest.disk_files() {
            let alone: Grants = [Grant::from(file.clone())].into_iter().collect();
            if !alone.is_narrower_or_equal(self.grants) {
                let message = format!("{} does not allow `{file}`", self.whose);
                return Err(self.reject(case, "grants", span.clone(), message));
            }
        }
        Ok(())
    }

    fn check_files(&self, case: &Case<'_>) -> Result<(), Box<Rejection>> {
        for At { value: file, span } in case.manifest.boot_files() {
            let real = case.host.real_path(file);
            if !(self.may_copy)(&real) {
                let message = format!(
                    "{} does not allow to copy `{}` into the guest",
                    self.whose,
                    real.display()
                );
                return Err(self.reject(case, "boot", span.clone(), message));
            }
        }
        Ok(())
    }

    fn check_machine(&self, case: &Case<'_>) -> Result<(), Box<Rejection>> {
        let partition = case.partition();
        let spans = case.manifest.spans();
        let memory = partition.memory.mib + partition.memory.pluggable_mib;
        if memory > self.memory_mib {
            let message = format!(
                "{} allows {} MiB of memory, not {memory}",
                self.whose, self.memory_mib
            );
            return Err(self.reject(case, "resources.memory", spans.memory.clone(), message));
        }
        if partition.vcpus > self.vcpus {
            let message = format!(
                "{} allows {} vCPUs, not {}",
                self.whose, self.vcpus, partition.vcpus
            );
            return Err(self.reject(case, "resources.vcpus", spans.vcpus.clone(), message));
        }
        // Whoever calls no tools has nothing to ask a person about.
        if partition.calls_tools() && partition.autonomy > self.autonomy {
            let message = format!(
                "{} allows `{}` autonomy, not `{}`",
                self.whose,
                self.autonomy.as_str(),
                partition.autonomy.as_str()
            );
            return Err(self.reject(case, "tools.autonomy", spans.autonomy.clone(), message));
        }
        if partition.calls_tools() {
            self.check_tool_limits(case)?;
        }
        if partition.conditions > self.conditions {
            let message = format!(
                "{} does not allow to learn from what conditions would deny",
                self.whose
            );
            return Err(self.reject(case, "conditions", spans.conditions.clone(), message));
        }
        let own = partition.limits;
        let pairs = [
            ("cpu", own.cpu_percent, self.limits.cpu_percent),
            (
                "memory_overhead",
                own.memory_overhead_mib,
                self.limits.memory_overhead_mib,
            ),
            ("pids", own.pids, self.limits.pids),
        ];
        let exceeds = |(_, own, most): &(&str, Option<u64>, Option<u64>)| {
            most.is_some_and(|most| own.is_none_or(|own| own > most))
        };
        if let Some((key, _, most)) = pairs.into_iter().find(exceeds) {
            let most = most.unwrap_or_default();
            let message = format!("{} allows `{key}` of {most} and no more", self.whose);
            return Err(self.reject(case, "resources.limits", spans.limits.clone(), message));
        }
        Ok(())
    }

    /// What a file says only its reader knows: so it is the same one, or none where none is asked for.
    fn check_tool_limits(&self, case: &Case<'_>) -> Result<(), Box<Rejection>> {
        let Some(most) = &self.tool_limits else {
            return Ok(());
        };
        let own = case.mandate().tool_limits.as_ref();
        if own.is_some_and(|own| case.host.real_path(own) == *most) {
            return Ok(());
        }
        let message = format!(
            "{} has the limits of tools in `{}`",
            self.whose,
            most.display()
        );
        let help = "name the same file: limits, in [tools]";
        let span = case.manifest.spans().tool_limits.clone();
        Err(case.reject(self.rule, "tools.limits", span, message, help))
    }

    fn check_terms(&self, case: &Case<'_>) -> Result<(), Box<Rejection>> {
        let mandate = case.mandate();
        let spans = case.manifest.spans();
        if !mandate.lifetime.is_within(self.lifetime) {
            let message = format!("{} does not allow so long a lifetime", self.whose);
            return Err(self.reject(case, "lifetime", spans.lifetime.clone(), message));
        }
        let (own, most) = (mandate.spawn, self.spawn);
        if own.count > most.count {
            let message = format!(
                "{} allows to start {} partitions, not {}",
                self.whose, most.count, own.count
            );
            return Err(self.reject(case, "spawn.count", spans.spawn.clone(), message));
        }
        if own.depth > most.depth {
            let message = format!(
                "{} allows {} generations, not {}",
                self.whose, most.depth, own.depth
            );
            return Err(self.reject(case, "spawn.depth", spans.spawn.clone(), message));
        }
        if let Some(key) = mandate.budget.exceeds(self.budget) {
            let message = format!("{} does not allow so much: `{key}`", self.whose);
            return Err(self.reject(case, "budget", spans.budget.clone(), message));
        }
        Ok(())
    }
}
