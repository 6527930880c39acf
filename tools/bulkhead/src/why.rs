//! `bulkhead why`: which grant, denial or condition decides on an act of a partition, and what would
//! allow it.

use crate::act;
use crate::cli::{ActArgs, ListFormat, WhyArgs};
use crate::failure::Failure;
use crate::policy::{self, Loaded, word};
use bulkhead_capability::table::{Moment, Verdict};
use bulkhead_capability::{Adherence, Grants};
use bulkhead_decision::{Act, ActDraft, Circumstances, Policy, propose};
use bulkhead_manifest::Manifest;
use bulkhead_supervisor::{Bounds, Standing};
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is printed as JSON.
#[derive(Serialize)]
struct Report {
    verdict: &'static str,
    act: String,
    partition: String,
    reason: String,
    /// Lines of a manifest and conditions, where it is denied.
    would_allow: Vec<String>,
    /// Who does not allow it whatever the manifest says: its role, an ancestor, the host.
    in_the_way: Vec<String>,
}

pub(crate) fn run(args: &WhyArgs) -> Result<(), Failure> {
    let act = Act::try_from(draft(&args.act)).map_err(|error| {
        Failure::new("usage", error.to_string()).help("see bulkhead why --help")
    })?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = args
        .time
        .map_or(clock.unwrap_or_default(), Duration::from_secs);
    let report = match Path::new(&args.target).is_file() {
        true => of_manifest(args, &act, now)?,
        false => of_running(args, &act, now)?,
    };
    match args.format {
        ListFormat::Json => {
            let json = serde_json::to_string_pretty(&report).unwrap_or_default();
            crate::print(format!("{json}\n").as_bytes())
        }
        ListFormat::Table => crate::print(report.text().as_bytes()),
    }
}

fn draft(args: &ActArgs) -> ActDraft {
    ActDraft {
        net: args.net.clone(),
        address: args.address,
        method: args.method.clone(),
        path: args.path.clone(),
        dns: args.dns.clone(),
        tool: args.tool.clone(),
        paths: args.argument.clone(),
        secret: args.secret.clone(),
        model: args.model.clone(),
        file: args.file.clone(),
        write: args.write,
        exec: args.exec.clone(),
        spawn: args.spawn.clone(),
    }
}

/// As it would be decided if the manifest were started.
fn of_manifest(args: &WhyArgs, act: &Act, now: Duration) -> Result<Report, Failure> {
    let loaded = Loaded::read(Path::new(&args.target))?;
    let partition = loaded.partition(args.partition.as_deref())?;
    let who = Circumstances {
        system: loaded.system.clone(),
        partition: partition.name.clone(),
        lineage: Vec::new(),
        moment: Moment {
            now,
            age: Duration::ZERO,
        },
        bytes: None,
    };
    let policy = Policy::new(&partition.grants, loaded.conditions.as_ref());
    let (mut report, _) = report(&policy, partition.conditions, act, &who);
    // With it the manifest would not be started.
    report.in_the_way = in_the_way(loaded.manifest.as_ref(), act, &who);
    Ok(report)
}

/// As it is decided for a partition that runs, by what it was granted when it started and the conditions that
/// hold now.
fn of_running(args: &WhyArgs, act: &Act, now: Duration) -> Result<Report, Failure> {
    let (found, partition) = act::find(&args.target)?;
    let none = Grants::none();
    let all = found.grants()?;
    let held = match found.standing {
        Standing::Live => bulkhead_supervisor::conditions(&found, &partition)?,
        Standing::Finished => None,
    };
    let answered = held.as_ref().filter(|held| held.answered);
    let conditions = answered
        .map(|held| policy::parse_held(&held.conditions))
        .transpose()?;
    let started = Duration::from_secs(found.record.started);
    let who = Circumstances {
        system: found.name.clone(),
        partition: partition.clone(),
        lineage: (held.as_ref()).map_or_else(Vec::new, |held| held.conditions.lineage.clone()),
        moment: Moment {
            now,
            age: now.saturating_sub(started),
        },
        bytes: None,
    };
    let grants = all.get(&partition).unwrap_or(&none);
    let policy = Policy::new(grants, conditions.as_ref());
    let (mut report, granted) = report(&policy, Adherence::Enforce, act, &who);
    if granted == Verdict::Denied {
        let manifest = bulkhead_supervisor::manifest_of(&found, &partition)?;
        report.in_the_way = in_the_way(manifest.as_ref(), act, &who);
    }
    if held.is_some() && conditions.is_none() && report.verdict != word(Verdict::Denied) {
        report.verdict = word(Verdict::Denied);
        report.reason = "nothing answers for the conditions any more".to_owned();
    }
    Ok(report)
}

/// With it, what the grants alone say. `adherence` is that of conditions that do not know it themselves, as
/// those of a whole system.
fn report(
    policy: &Policy<'_>,
    adherence: Adherence,
    act: &Act,
    who: &Circumstances,
) -> (Report, Verdict) {
    let answer = policy.decide(act, who);
    let (mut verdict, mut reason) = (word(answer.verdict), answer.reason());
    let granted = answer.decision.verdict;
    let is_done = adherence == Adherence::Learn || answer.verdict != Verdict::Denied;
    if is_done
        && answer
            .ruling
            .as_ref()
            .is_some_and(|ruling| !ruling.is_permitted())
    {
        verdict = word(granted);
        reason = format!(
            "{}; it learns, and else it would be {reason}",
            answer.decision.reason
        );
    }
    let (mut would_allow, conditions) = propose(&who.partition, &[(act, answer)]);
    would_allow.extend(conditions);
    let report = Report {
        verdict,
        act: act.request().to_string(),
        partition: format!("{}/{}", who.system, who.partition),
        reason,
        would_allow,
        in_the_way: Vec::new(),
    };
    (report, granted)
}

/// Who would not let a partition with this manifest be granted what the act takes: a child has no more than
/// its role, its ancestors and anybody on the host.
fn in_the_way(manifest: Option<&Manifest>, act: &Act, who: &Circumstances) -> Vec<String> {
    let Some(manifest) = manifest else {
        return Vec::new();
    };
    let bounds = match Bounds::of(manifest) {
        Ok(bounds) => bounds,
        Err(error) => return vec![format!("who else has a say cannot be told: {error}")],
    };
    let mut sentences = Vec::new();
    let mut hold = |whose: String, grants: Option<&Grants>, otherwise: &str| match grants {
        None => sentences.push(format!("{whose} {otherwise}")),
        Some(grants) => {
            let policy = Policy::new(grants, None);
            let decision = policy.decide(act, who).decision;
            if decision.verdict == Verdict::Denied {
                sentences.push(format!("{whose} does not allow it: {}", decision.reason));
            }
        }
    };
    let role = format!("role `{}`", bounds.role);
    hold(
        role,
        bounds.of_role.as_ref(),
        "is described nowhere on this host",
    );
    let mut kinship = "parent";
    for (name, grants) in &bounds.ancestors {
        hold(
            format!("{kinship} `{name}`"),
            grants.as_ref(),
            "does not run",
        );
        kinship = "ancestor";
    }
    let wanted = act.request().capability();
    if let Some(denied) = wanted.and_then(|wanted| bounds.denied(&wanted).cloned()) {
        sentences.push(format!("`{denied}` is denied to everybody on this host"));
    }
    sentences
}

impl Report {
    fn text(&self) -> String {
        let Self {
            verdict,
            act,
            partition,
            reason,
            would_allow,
            in_the_way,
        } = self;
        let mut text = format!("{verdict}: {act}, of {partition}\n  {reason}\n");
        for line in would_allow {
            let _ = writeln!(text, "  would allow it: {line}");
        }
        for who in in_the_way {
            let _ = writeln!(text, "  in the way: {who}");
        }
        text
    }
}
