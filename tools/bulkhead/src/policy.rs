//! `bulkhead policy`: what a manifest and the conditions beside it say, tried on acts before anything
//! runs.

mod learn;
mod reload;

use crate::cli::PolicyCommand;
use crate::failure::Failure;
use crate::input;
use bulkhead_capability::table::{Moment, Verdict};
use bulkhead_capability::{Adherence, Grants};
use bulkhead_decision::{
    Act, Case, CaseFile, Circumstances, Conditions, ConditionsError, Family, Kin, Policy, World,
};
use bulkhead_manifest::{MAX_BYTES, Manifest, Partition, parse};
use bulkhead_supervisor::{Inherited, Member, PartitionConditions};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file of conditions beside a manifest.
const CONDITIONS: &str = "policy.cedar";
/// Longest text that is read; what is longer is refused by whoever parses it.
const MAX_TEXT: usize = 2 * 1024 * 1024;
/// Exit status when a case says otherwise.
const STATUS_CASE_FAILED: u8 = 1;

pub(crate) fn run(command: &PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::Test { file } => test(file),
        PolicyCommand::Explain {
            manifest,
            partition,
        } => explain(manifest, partition.as_deref()),
        PolicyCommand::Learn(args) => learn::run(args),
        PolicyCommand::Reload(args) => reload::run(args),
    }
}

/// The conditions beside a manifest, as they were read: once, so that what is checked is what holds.
pub(crate) struct Source {
    path: PathBuf,
    text: String,
}

/// Reads the conditions of a manifest, if it has any.
pub(crate) fn beside(manifest: &Path) -> Result<Option<Source>, Failure> {
    let path = manifest.with_file_name(CONDITIONS);
    let bytes = input::read_if_there(&path, MAX_TEXT, "file", "policy-unreadable")?;
    let source = bytes.map(|bytes| {
        let text = text_of(&path, bytes)?;
        Ok(Source { path, text })
    });
    source.transpose()
}

impl Source {
    /// Checks them for the partitions of their manifest.
    fn check(&self, partitions: &[&Partition]) -> Result<Conditions, Failure> {
        let checked = Conditions::parse(&self.text, &world(partitions));
        checked.map_err(|error| refused(&self.path, &error))
    }

    /// Whether what is beside `manifest` is this file.
    pub(crate) fn is_beside(&self, manifest: &Path) -> bool {
        let path = manifest.with_file_name(CONDITIONS).canonicalize().ok();
        path.is_some_and(|path| self.path.canonicalize().is_ok_and(|own| own == path))
    }

    /// Checks them, and has them hold for `whose`, which is one of those partitions, beside those of its
    /// ancestors.
    pub(crate) fn hold(
        &self,
        partitions: &[&Partition],
        whose: &Partition,
        lineage: Vec<String>,
        inherited: Vec<Inherited>,
    ) -> Result<PartitionConditions, Failure> {
        let checked = Conditions::parse_to_hold(&self.text, &world(partitions));
        checked.map_err(|error| refused(&self.path, &error))?;
        Ok(PartitionConditions {
            text: self.text.clone(),
            world: members(partitions),
            lineage,
            adherence: whose.conditions,
            inherited,
        })
    }

    /// Where they stand.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// What conditions may speak of, as it is passed on.
pub(crate) fn members(partitions: &[&Partition]) -> Vec<Member> {
    let member = |partition: &&Partition| Member {
        name: partition.name.clone(),
        grants: partition.grants.clone(),
    };
    partitions.iter().map(member).collect()
}

fn refused(path: &Path, error: &ConditionsError) -> Failure {
    Failure::new("conditions", format!("{}: {error}", path.display()))
        .help("docs/policy.md has what conditions can speak of")
}

/// The conditions of a partition that runs, and those of its ancestors.
pub(crate) fn parse_held(held: &PartitionConditions) -> Result<Family, Failure> {
    let parse = |text: &str, world: &[Member]| {
        Conditions::parse(text, &World::of(world))
            .map_err(|error| Failure::new("conditions", format!("those that hold: {error}")))
    };
    let own = Kin {
        ancestor: None,
        conditions: parse(&held.text, &held.world)?,
        learn: held.adherence == Adherence::Learn,
    };
    let ancestors = held.inherited.iter().map(|inherited| {
        Ok::<_, Failure>(Kin {
            ancestor: Some(inherited.ancestor.clone()),
            conditions: parse(&inherited.text, &inherited.world)?,
            learn: inherited.learn,
        })
    });
    Ok(Family::new(own, ancestors.collect::<Result<_, _>>()?))
}

fn world<'p>(partitions: &[&'p Partition]) -> World<'p> {
    let partitions = partitions.iter();
    World {
        partitions: partitions.map(|p| (p.name.as_str(), &p.grants)).collect(),
    }
}

/// The partitions of a manifest, and the conditions beside it.
pub(crate) struct Loaded {
    /// Name of the system; of a partition with a manifest of its own, the partition's.
    pub(crate) system: String,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) conditions: Option<Family>,
    /// The manifest, where it is one partition's own.
    pub(crate) manifest: Option<Manifest>,
}

impl Loaded {
    pub(crate) fn read(manifest: &Path) -> Result<Self, Failure> {
        let (system, partitions, own) = if is_of_one_partition(&text(manifest)?) {
            let manifest = crate::manifest::read(manifest)?.manifest;
            let partition = manifest.partition().clone();
            (partition.name.clone(), vec![partition], Some(manifest))
        } else {
            let bytes = input::read(manifest, MAX_BYTES, "manifest", "manifest-unreadable")?;
            let system = parse(&bytes, manifest)?;
            (system.name.clone(), system.partitions.clone(), None)
        };
        let all: Vec<&Partition> = partitions.iter().collect();
        let source = beside(manifest)?;
        let conditions = source.map(|source| source.check(&all)).transpose()?;
        let conditions = conditions.map(Family::from);
        Ok(Self {
            system,
            partitions,
            conditions,
            manifest: own,
        })
    }

    /// The partition of this name; the only one where there is no name.
    pub(crate) fn partition(&self, name: Option<&str>) -> Result<&Partition, Failure> {
        let all = &self.partitions;
        let found = match name {
            Some(name) => all.iter().find(|partition| partition.name == name),
            None if all.len() == 1 => all.first(),
            None => None,
        };
        let known: Vec<&str> = all
            .iter()
            .map(|partition| partition.name.as_str())
            .collect();
        found.ok_or_else(|| {
            let system = &self.system;
            let message = match name {
                Some(name) => format!("system `{system}` has no partition `{name}`"),
                None => format!("system `{system}` has several partitions"),
            };
            Failure::new("no-such-partition", message)
                .help(format!("name one of {}", known.join(", ")))
        })
    }
}

/// A manifest of one partition has an identity, and an envelope around it is JSON.
fn is_of_one_partition(text: &str) -> bool {
    let has_identity = || {
        text.lines()
            .any(|line| line.trim_start().starts_with("[identity]"))
    };
    text.trim_start().starts_with('{') || has_identity()
}

fn text(path: &Path) -> Result<String, Failure> {
    let bytes = input::read(path, MAX_TEXT, "file", "policy-unreadable")?;
    text_of(path, bytes)
}

fn text_of(path: &Path, bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|_| {
        let message = format!("`{}` is not UTF-8", path.display());
        Failure::new("policy-unreadable", message)
    })
}

/// A file of cases, and the manifest that it is about.
struct Tried {
    loaded: Loaded,
    file: CaseFile,
    acts: Vec<Act>,
}

impl Tried {
    fn read(path: &Path) -> Result<Self, Failure> {
        let (file, acts) = CaseFile::parse(&text(path)?).map_err(|error| {
            Failure::new("policy-cases", format!("{}: {error}", path.display()))
                .help("docs/policy.md has the form of a file of cases")
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        let loaded = Loaded::read(&base.join(&file.manifest))?;
        Ok(Self { loaded, file, acts })
    }

    /// Each case with its act and the partition that acts.
    fn cases(&self) -> Result<Vec<(&Case, &Act, &Partition)>, Failure> {
        let cases = self.file.cases.iter().zip(&self.acts);
        cases
            .map(|(case, act)| {
                let name = case.partition.as_deref().or(self.file.partition.as_deref());
                Ok((case, act, self.loaded.partition(name)?))
            })
            .collect()
    }

    fn circumstances(&self, case: &Case, partition: &Partition) -> Circumstances {
        Circumstances {
            system: self.loaded.system.clone(),
            partition: partition.name.clone(),
            lineage: Vec::new(),
            moment: Moment {
                now: Duration::from_secs(case.time),
                age: Duration::from_secs(case.age),
            },
            bytes: case.bytes,
        }
    }
}

/// A verdict as a file of cases has it.
pub(crate) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "allow",
        Verdict::Ask => "ask",
        Verdict::Denied => "deny",
    }
}

fn test(path: &Path) -> Result<(), Failure> {
    let tried = Tried::read(path)?;
    let cases = tried.cases()?;
    let mut report = String::new();
    let mut failed = 0;
    for (number, (case, act, partition)) in cases.iter().enumerate() {
        let Some(expected) = case.expect else {
            let message = format!("{}: case {} expects nothing", path.display(), number + 1);
            return Err(Failure::new("policy-cases", message)
                .help("add one of expect = \"allow\", \"ask\" or \"deny\""));
        };
        let policy = Policy::new(&partition.grants, tried.loaded.conditions.as_ref());
        let answer = policy.decide(act, &tried.circumstances(case, partition));
        let name = case
            .name
            .clone()
            .unwrap_or_else(|| act.request().to_string());
        let _ = match answer.verdict == expected.verdict() {
            true => writeln!(report, "ok      {name}"),
            false => {
                failed += 1;
                let (found, expected) = (word(answer.verdict), word(expected.verdict()));
                let reason = answer.reason();
                writeln!(
                    report,
                    "FAILED  {name}: {found} instead of {expected}: {reason}"
                )
            }
        };
    }
    crate::print(report.as_bytes())?;
    match failed {
        0 => Ok(()),
        _ => {
            let message = format!("{failed} of {} cases failed", cases.len());
            Err(Failure::new("policy-test", message).status(STATUS_CASE_FAILED))
        }
    }
}

fn explain(manifest: &Path, name: Option<&str>) -> Result<(), Failure> {
    let loaded = Loaded::read(manifest)?;
    let partitions: Vec<&Partition> = match name {
        Some(_) => vec![loaded.partition(name)?],
        None => loaded.partitions.iter().collect(),
    };
    let mut text = String::new();
    for partition in partitions {
        let _ = writeln!(text, "{}/{}", loaded.system, partition.name);
        text += &grants(&partition.grants);
        if partition.conditions == Adherence::Learn {
            text += "  learns: what conditions would deny is done, and on record\n";
        }
    }
    for (name, permits, policy) in loaded
        .conditions
        .iter()
        .flat_map(|family| family.own().iter())
    {
        let effect = if permits { "permits" } else { "forbids" };
        let _ = writeln!(text, "condition {name} {effect}");
        for line in policy.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    crate::print(text.as_bytes())
}

fn grants(grants: &Grants) -> String {
    let mut text = String::new();
    for grant in grants.iter() {
        let enforcer = grant.capability().name().enforcer();
        let _ = writeln!(text, "  grants {grant} ({enforcer})");
    }
    for denied in grants.denied() {
        let _ = writeln!(text, "  denies {denied}");
    }
    if text.is_empty() {
        text += "  grants nothing\n";
    }
    text
}
