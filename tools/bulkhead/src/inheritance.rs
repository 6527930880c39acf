//! What partitions that are about to start are held to: each to the conditions beside its manifest, and to
//! those of its ancestors, which also say whether it may be started. Called by `run` and `up`.

use crate::failure::Failure;
use crate::policy::{Source, members, parse_held};
use bulkhead_capability::Adherence;
use bulkhead_capability::table::Moment;
use bulkhead_decision::{Act, Circumstances, Notes};
use bulkhead_manifest::{Partition, System};
use bulkhead_supervisor::{Admissions, PartitionConditions};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Conditions of a system's partitions, by their names.
pub(crate) type Held = BTreeMap<String, Arc<PartitionConditions>>;

/// What a partition without conditions of its own is held to beside those of its ancestors.
const PERMITTED: &str = "permit(principal, action, resource);";

/// What the partitions of a system are held to: each to the conditions beside its own manifest, or to
/// those beside the system's; and to those of its ancestors. `judge` has admitted those with manifests.
pub(crate) fn held(
    system: &System,
    of_system: Option<&Source>,
    own: &BTreeMap<String, Source>,
    judge: Option<&Admissions>,
) -> Result<Held, Failure> {
    let all: Vec<&Partition> = system.partitions.iter().collect();
    let mut held = Held::new();
    // Whoever was admitted as a child comes behind its parent.
    for partition in &system.partitions {
        let lineage = partition.lineage().to_vec();
        let mut inherited = Vec::new();
        if let Some(judge) = judge
            && let Some(parent) = Parent::of(partition, system, &held, judge)?
        {
            parent.start(partition, judge)?;
            inherited = parent.conditions.for_children_of(parent.name);
        }
        let name = &partition.name;
        let conditions = match (own.get(name), of_system) {
            (None, None) if partition.conditions == Adherence::Learn => {
                let message = format!("partition `{name}` learns, and has no conditions");
                let help = "put policy.cedar beside its manifest; an empty one would deny everything, \
                            so that everything is learnt";
                return Err(Failure::new("conditions", message).help(help));
            }
            (None, None) if inherited.is_empty() => continue,
            (None, None) => PartitionConditions {
                text: PERMITTED.to_owned(),
                world: members(&[partition]),
                lineage,
                adherence: Adherence::Enforce,
                inherited,
            },
            (Some(own), None) => own.hold(&[partition], partition, lineage, inherited)?,
            (None, Some(of_system)) => of_system.hold(&all, partition, lineage, inherited)?,
            (Some(own), Some(of_system)) => {
                let (own, other) = (own.path().display(), of_system.path().display());
                let message =
                    format!("partition `{name}` has conditions in `{own}` and in `{other}`");
                return Err(
                    Failure::new("conditions", message).help("put them into one of the two files")
                );
            }
        };
        held.insert(name.clone(), Arc::new(conditions));
    }
    Ok(held)
}

/// Says which partitions may do what their conditions would deny.
pub(crate) fn warn(held: &Held) {
    let learn = held
        .iter()
        .filter(|(_, held)| held.adherence == Adherence::Learn);
    for (name, _) in learn {
        let line = format!(
            "bulkhead: partition `{name}` LEARNS: what its conditions would deny is done, and on record\n"
        );
        // Without anybody to read it, `ps` and the record of the start say so.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// The parent of a partition, where it has conditions.
struct Parent<'p> {
    name: &'p str,
    system: String,
    /// When its system started, in seconds since 1970.
    started: Duration,
    conditions: Arc<PartitionConditions>,
}

impl<'p> Parent<'p> {
    fn of(
        partition: &'p Partition,
        system: &System,
        held: &Held,
        judge: &Admissions,
    ) -> Result<Option<Self>, Failure> {
        let mandate = partition.mandate.as_ref();
        let Some(name) = mandate.and_then(|mandate| mandate.parent.as_deref()) else {
            return Ok(None);
        };
        if system.partitions.iter().any(|other| other.name == name) {
            let conditions = held.get(name).cloned();
            return Ok(conditions.map(|conditions| Self {
                name,
                system: system.name.clone(),
                started: now(),
                conditions,
            }));
        }
        let gone = |message: String| {
            Failure::new("conditions-gone", message).help("start it again, and then its child")
        };
        let Some(found) = judge.system_of(name) else {
            return Err(gone(format!("parent `{name}` does not run any more")));
        };
        let Some(of_parent) = bulkhead_supervisor::conditions(found, name)? else {
            return Ok(None);
        };
        if !of_parent.answered {
            let message = format!("nothing answers for the conditions of parent `{name}` any more");
            return Err(gone(message));
        }
        Ok(Some(Self {
            name,
            system: found.name.clone(),
            started: Duration::from_secs(found.record.started),
            conditions: Arc::new(of_parent.conditions),
        }))
    }

    /// Asks its conditions whether it may start `child`, and has what they say recorded.
    fn start(&self, child: &Partition, judge: &Admissions) -> Result<(), Failure> {
        let role = child.mandate.as_ref().map(|mandate| mandate.role.clone());
        let act = Act::Spawn(role.unwrap_or_default(), judge.siblings(child));
        let who = Circumstances {
            system: self.system.clone(),
            partition: self.name.to_owned(),
            lineage: self.conditions.lineage.clone(),
            moment: Moment {
                now: now(),
                age: now().saturating_sub(self.started),
            },
            bytes: None,
        };
        let said = parse_held(&self.conditions)?.ask(&act, &who);
        if !said.allows() {
            return Err(judge.refuse_spawn(child, &said.ruling.to_string()).into());
        }
        let mut notes = Notes::default();
        notes.add(&act, said);
        let parent = format!("{}/{}", self.system, self.name);
        Ok(judge.record_spawn(parent, child, notes.into_detail())?)
    }
}

/// A clock before 1970 permits nothing that asks for the time.
fn now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}
