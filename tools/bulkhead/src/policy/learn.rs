//! `bulkhead policy learn`: what would have to be granted and permitted for acts that are denied: those of a
//! file of cases, or those of partitions that learnt, as the ledger has them.

use super::{CONDITIONS, Tried};
use crate::cli::{ListFormat, PolicyLearnArgs};
use crate::failure::Failure;
use crate::ledger;
use bulkhead_capability::table::Reason;
use bulkhead_decision::{Act, Answer, Denied, Policy, Ruling, WOULD_DENY, denied, permit, propose};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

pub(super) fn run(args: &PolicyLearnArgs) -> Result<(), Failure> {
    match &args.file {
        Some(file) => from_cases(file),
        None => from_ledger(args.partition.as_deref(), args.format),
    }
}

fn from_cases(path: &Path) -> Result<(), Failure> {
    let tried = Tried::read(path)?;
    let cases = tried.cases()?;
    let mut text = String::new();
    for partition in &tried.loaded.partitions {
        let policy = Policy::new(&partition.grants, tried.loaded.conditions.as_ref());
        let own = cases
            .iter()
            .filter(|(_, _, whose)| whose.name == partition.name);
        let acts: Vec<(&Act, Answer<'_>)> = own
            .map(|(case, act, _)| {
                (
                    *act,
                    policy.decide(act, &tried.circumstances(case, partition)),
                )
            })
            .collect();
        text += &proposal(&partition.name, &acts);
    }
    if text.is_empty() {
        text += "# nothing is denied\n";
    }
    crate::print(text.as_bytes())
}

/// What would allow the acts that are denied, as lines to look at and copy; empty if none is.
fn proposal(partition: &str, acts: &[(&Act, Answer<'_>)]) -> String {
    let (grants, conditions) = propose(partition, acts);
    let mut text = String::new();
    if !grants.is_empty() {
        let _ = writeln!(text, "# grants of partition {partition}:\ngrants = [");
        for grant in grants {
            let _ = writeln!(text, "    {grant},");
        }
        text += "]\n";
    }
    if !conditions.is_empty() {
        let _ = writeln!(text, "# {CONDITIONS}, for partition {partition}:");
        for condition in conditions {
            let _ = writeln!(text, "{condition}");
        }
    }
    for (act, answer) in acts {
        if let Reason::Denied(_) = answer.decision.reason {
            let reason = &answer.decision.reason;
            let _ = writeln!(text, "# no grant mends it: {}: {reason}", act.request());
            continue;
        }
        let ruling = answer.ruling.as_ref();
        let ruling =
            ruling.filter(|ruling| !ruling.is_permitted() && **ruling != Ruling::NotPermitted);
        if let Some(ruling) = ruling {
            let _ = writeln!(text, "# no permit mends it: {}: {ruling}", act.request());
        }
    }
    text
}

/// What one partition did although conditions would deny it.
#[derive(Default, Serialize)]
struct Learnt {
    /// The narrowest conditions that would have permitted what none did.
    permits: BTreeSet<String>,
    /// What a condition forbids: a permit does not mend it.
    forbidden: BTreeSet<Told>,
    /// What could not be decided, because a condition cannot be evaluated.
    failed: BTreeSet<Told>,
    /// Records that do not say what was done, since it takes too many words.
    unsaid: Vec<u64>,
}

/// An act that no permit would mend.
#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Told {
    act: String,
    why: String,
}

/// As JSON.
#[derive(Serialize)]
struct Row {
    /// SYSTEM/PARTITION.
    partition: String,
    #[serde(flatten)]
    learnt: Learnt,
}

impl Learnt {
    /// Takes in what a record says.
    fn add(&mut self, actor: &str, index: u64, detail: &BTreeMap<String, String>) {
        let Some(all) = denied(detail) else {
            return self.unsaid.push(index);
        };
        let partition = actor
            .split_once('/')
            .map_or(actor, |(_, partition)| partition);
        for Denied { act, ruling } in all {
            let told = match &ruling {
                Ruling::Permitted(_) => continue,
                Ruling::NotPermitted => {
                    self.permits.insert(permit(partition, &act));
                    continue;
                }
                Ruling::Forbidden(_) | Ruling::NotPermittedBy(_) => &mut self.forbidden,
                Ruling::Failed(_) | Ruling::Unanswered(_) => &mut self.failed,
            };
            told.insert(Told {
                act: act.request().to_string().escape_debug().to_string(),
                why: ruling.to_string().escape_debug().to_string(),
            });
        }
    }

    fn text(&self, partition: &str) -> String {
        let mut text = format!("// {CONDITIONS}, for partition {partition}:\n");
        for permit in &self.permits {
            let _ = writeln!(text, "{permit}");
        }
        for Told { act, why } in &self.forbidden {
            let _ = writeln!(text, "// no permit mends it: {act}: {why}");
        }
        for Told { act, why } in &self.failed {
            let _ = writeln!(text, "// nothing was decided: {act}: {why}");
        }
        for index in &self.unsaid {
            let _ = writeln!(
                text,
                "// record {index} does not say what was done: it takes too many words"
            );
        }
        text
    }
}

fn from_ledger(partition: Option<&str>, format: ListFormat) -> Result<(), Failure> {
    let mut all: BTreeMap<String, Learnt> = BTreeMap::new();
    ledger::each(partition, |record| {
        let entry = &record.entry;
        if entry.detail.contains_key(WOULD_DENY) {
            let learnt = all.entry(entry.actor.clone()).or_default();
            learnt.add(&entry.actor, record.index, &entry.detail);
        }
    })?;
    match format {
        ListFormat::Json => {
            let rows = all.into_iter();
            let rows: Vec<Row> = rows
                .map(|(partition, learnt)| Row { partition, learnt })
                .collect();
            let json = serde_json::to_string_pretty(&rows);
            let json = json.map_err(|error| Failure::new("output", error.to_string()))?;
            crate::print(format!("{json}\n").as_bytes())
        }
        ListFormat::Table => {
            let texts = all.iter();
            let texts =
                texts.map(|(partition, learnt)| learnt.text(&partition.escape_debug().to_string()));
            let mut text: String = texts.collect();
            if text.is_empty() {
                text += "// nothing would be denied\n";
            }
            crate::print(text.as_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> Act {
        Act::Tool(name.to_owned(), Vec::new())
    }

    #[test]
    fn a_permit_is_proposed_for_what_no_condition_permitted_and_for_nothing_else() {
        let by = || vec!["no deletion".to_owned()];
        let all = [
            (tool("fs.read"), Ruling::NotPermitted),
            (tool("fs.read"), Ruling::NotPermitted),
            (tool("fs.delete"), Ruling::Forbidden(by())),
            (tool("fs.edit"), Ruling::Failed("an overflow".to_owned())),
        ];
        let all = all.map(|(act, ruling)| Denied { act, ruling });
        let acts = serde_json::to_string(&all).unwrap();
        let detail = BTreeMap::from([("acts".to_owned(), acts)]);
        let mut learnt = Learnt::default();
        learnt.add("shop/agent", 7, &detail);
        learnt.add("shop/agent", 8, &BTreeMap::new());
        assert_eq!(
            learnt.text("shop/agent"),
            "// policy.cedar, for partition shop/agent:\n\
             permit(principal == Partition::\"agent\", action == Action::\"tool.call\", \
             resource == Tool::\"fs.read\");\n\
             // no permit mends it: tool.call fs.delete: forbidden by condition no deletion\n\
             // nothing was decided: tool.call fs.edit: a condition could not be evaluated: an overflow\n\
             // record 8 does not say what was done: it takes too many words\n"
        );
    }
}
