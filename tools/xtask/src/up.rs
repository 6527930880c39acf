//! `up`: boots a system. What this host's KVM cannot run goes through the lab.

use std::fs;
use std::path::Path;
use std::process::Command;

use bulkhead_manifest::KernelKind;

use crate::build;
use crate::failure::{At, Failure, Result};
use crate::lab;
use crate::process::output_of_any_status;
use crate::repo::Repo;
use crate::say::Say;

/// The system that shows everything.
pub(crate) const HELLO: &str = "docs/examples/hello/system.toml";

/// Builds, then boots the system in `file`; the worst of the statuses.
pub(crate) fn run(repo: &Repo, file: &Path) -> Result<i32> {
    let say = Say::new("up");
    // Nobody wants to wait for a build to be told of a typing error.
    let partitions = partitions(file)?;
    build::run_all(repo)?;
    let kinds = runnable(repo)?;
    let (here, lab): (Vec<_>, Vec<_>) =
        (partitions.iter()).partition(|(_, kind)| kinds.contains(kind));
    let mut status = 0;
    if !here.is_empty() {
        let mut command = Command::new(repo.dist().join("bin/bulkhead"));
        command.arg("up").arg(file);
        if !lab.is_empty() {
            command.args(only(&here));
        }
        let ended = command
            .status()
            .map_err(|error| Failure::new(format!("cannot start bulkhead: {error}")))?;
        status = ended.code().unwrap_or(125);
    }
    if !lab.is_empty() {
        let names: Vec<&str> = lab.iter().map(|(name, _)| name.as_str()).collect();
        say.line(&format!(
            "this host's KVM cannot run {}: through the lab",
            names.join(", ")
        ));
        let inside = in_lab(repo, file)?;
        let mut command = vec!["bulkhead".to_owned(), "up".to_owned(), inside];
        if !here.is_empty() {
            command.extend(only(&lab));
        }
        let options = lab::Options::default();
        status = status.max(lab::run_here(repo, &options, &command)?);
    }
    Ok(status)
}

fn only(partitions: &[&(String, KernelKind)]) -> Vec<String> {
    partitions
        .iter()
        .flat_map(|(name, _)| ["--only".to_owned(), name.clone()])
        .collect()
}

/// Names and kinds, from the manifest.
fn partitions(file: &Path) -> Result<Vec<(String, KernelKind)>> {
    let bytes = fs::read(file).at("read", file)?;
    let system = bulkhead_manifest::parse(&bytes, file)
        .map_err(|rejected| Failure::new(rejected.to_string()))?;
    Ok(system
        .partitions
        .iter()
        .map(|partition| (partition.name.clone(), partition.kernel.kind()))
        .collect())
}

/// The kinds of partition that `bulkhead doctor` finds this host able to run.
fn runnable(repo: &Repo) -> Result<Vec<KernelKind>> {
    let mut doctor = Command::new(repo.dist().join("bin/bulkhead"));
    // Its status says whether the host is fit; the report says what for.
    let report = output_of_any_status(doctor.args(["doctor", "--format", "json"]))?;
    kinds(&report).ok_or_else(|| Failure::new("bulkhead doctor gave no report"))
}

fn kinds(report: &str) -> Option<Vec<KernelKind>> {
    let report: serde_json::Value = serde_json::from_str(report).ok()?;
    let verdicts = report.get("verdicts")?.as_array()?;
    Some(
        KernelKind::ALL
            .into_iter()
            .filter(|kind| {
                verdicts.iter().any(|verdict| {
                    verdict.get("partition").and_then(|name| name.as_str()) == Some(kind.as_str())
                        && verdict.get("runs").and_then(|runs| runs.as_bool()) == Some(true)
                })
            })
            .collect(),
    )
}

/// The file's path in the lab, which holds a copy of docs/examples.
fn in_lab(repo: &Repo, file: &Path) -> Result<String> {
    let full = fs::canonicalize(file).at("find", file)?;
    let root = fs::canonicalize(repo.root()).at("find", repo.root())?;
    match full.strip_prefix(root) {
        Ok(inside) if inside.starts_with("docs/examples") => Ok(inside.display().to_string()),
        _ => Err(Failure::new(format!(
            "{} is not below docs/examples, which is all that the lab has of this host",
            file.display()
        ))
        .remedy("cargo xtask lab --with DIRECTORY -- bulkhead up DIRECTORY/system.toml")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_become_kinds() {
        let report = r#"{"verdicts":[{"partition":"native","runs":true},
            {"partition":"linux-abi","runs":true},{"partition":"linux","runs":false}]}"#;
        assert_eq!(
            kinds(report),
            Some(vec![KernelKind::Native, KernelKind::LinuxAbi])
        );
        assert_eq!(kinds(r#"{"verdicts":[]}"#), Some(vec![]));
        assert_eq!(kinds("no report"), None);
        assert_eq!(kinds("{}"), None);
    }
}
