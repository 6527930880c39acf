//! What would have to be granted for acts that were denied: the narrowest lines, for a person to
//! look at. Nothing is granted by it.

use crate::entities::host_id;
use crate::policy::Answer;
use bulkhead_capability::table::{Reason, Verdict};
use bulkhead_conditions::{Act, Ruling};
use std::collections::{BTreeMap, BTreeSet};

/// The grants, as lines of a manifest, and the conditions, in Cedar, that would allow these acts of a
/// partition: each act with what policy says of it today. What is allowed needs nothing, and nothing allows what
/// a condition forbids or a denial is about.
pub fn propose(partition: &str, acts: &[(&Act, Answer<'_>)]) -> (Vec<String>, Vec<String>) {
    let mut grants: BTreeMap<String, Requests> = BTreeMap::new();
    let mut conditions = BTreeSet::new();
    for (act, answer) in acts {
        // Whoever learns does what conditions do not permit.
        let permitted = answer.ruling.as_ref().is_none_or(Ruling::is_permitted);
        if answer.verdict != Verdict::Denied && permitted {
            continue;
        }
        if matches!(answer.decision.reason, Reason::Denied(_)) {
            continue;
        }
        if answer.decision.verdict == Verdict::Denied {
            let Some(capability) = act.request().capability() else {
                continue;
            };
            let requests = grants.entry(capability.to_string()).or_default();
            match act {
                Act::Connect {
                    http: Some((method, path)),
                    ..
                } => {
                    requests.methods.insert(method.clone());
                    requests.paths.insert(path.clone());
                }
                Act::Tool(_, paths) if !paths.is_empty() => {
                    let own = paths.iter().map(|path| path.display().to_string());
                    requests.below.extend(own);
                }
                _ => requests.plain = true,
            }
        } else if answer.ruling == Some(Ruling::NotPermitted) {
            conditions.insert(permit(partition, act));
        }
    }
    let grants = grants.iter().map(|(name, requests)| requests.line(name));
    (grants.collect(), conditions.into_iter().collect())
}

/// How one capability was used.
#[derive(Default)]
struct Requests {
    methods: BTreeSet<String>,
    paths: BTreeSet<String>,
    below: BTreeSet<String>,
    /// Also in a way that no constraint can say.
    plain: bool,
}

impl Requests {
    fn line(&self, capability: &str) -> String {
        let list = |list: &BTreeSet<String>| {
            let quoted: Vec<String> = list.iter().map(|text| quote(text)).collect();
            quoted.join(", ")
        };
        let name = quote(capability);
        if self.plain {
            return name;
        }
        if !self.below.is_empty() {
            let below = list(&self.below);
            return format!("{{ capability = {name}, below = [{below}] }}");
        }
        let (methods, paths) = (list(&self.methods), list(&self.paths));
        format!("{{ capability = {name}, methods = [{methods}], paths = [{paths}] }}")
    }
}

/// A string of TOML: `\u` and four digits.
fn quote(text: &str) -> String {
    escaped(text, |c| format!("\\u{:04x}", c as u32))
}

/// A string of Cedar: `\u` and digits in braces.
fn quote_cedar(text: &str) -> String {
    escaped(text, |c| format!("\\u{{{:x}}}", c as u32))
}

fn escaped(text: &str, control: impl Fn(char) -> String) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => control(c),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

/// The condition that permits just this act of a partition.
pub fn permit(partition: &str, act: &Act) -> String {
    let (kind, id) = match act {
        Act::Connect { name, address, .. } => {
            let address = address.map(|address| address.to_string());
            let name = name.as_deref().map(host_id);
            ("Host", name.or(address).unwrap_or_default())
        }
        Act::Resolve(name) => ("Host", host_id(name)),
        Act::Secret(name) => ("Secret", name.clone()),
        Act::Model(name) => ("Model", name.clone()),
        Act::Tool(name, _) => ("Tool", name.clone()),
        Act::Exec(program) => ("Path", program.clone()),
        Act::Spawn(role, _) => ("Role", role.clone()),
        Act::File { path, .. } => ("Path", path.display().to_string()),
    };
    let when = match act {
        Act::Connect {
            http: Some((method, path)),
            ..
        } => format!(
            " when {{ context has method && context.method == {} && context has path && context.path == {} }}",
            quote_cedar(method),
            quote_cedar(path)
        ),
        _ => String::new(),
    };
    format!(
        "permit(principal == Partition::{}, action == Action::\"{}\", resource == {kind}::{}){when};",
        quote_cedar(partition),
        act.request().name(),
        quote_cedar(&id),
    )
}
