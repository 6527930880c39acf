//! What one manifest may that another may not: by what they mean, not by how they are written.

use crate::device::DeviceKind;
use crate::mandate::Lifetime;
use crate::manifest::Manifest;
use bulkhead_capability::{Capability, Grant, Grants};
use serde_json::Value;

/// One thing in which two manifests differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The section and key.
    pub field: &'static str,
    /// What it is, in words.
    pub what: String,
}

/// In what a second manifest differs from a first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What it may more.
    pub more: Vec<Change>,
    /// What it may less.
    pub less: Vec<Change>,
    /// What is another thing, and neither more nor less.
    pub other: Vec<Change>,
}

impl Difference {
    /// In what `new` differs from `old`.
    pub fn between(old: &Manifest, new: &Manifest) -> Self {
        Self {
            more: wider(new, old),
            less: wider(old, new),
            other: others(old, new),
        }
    }

    /// True when they mean the same.
    pub fn is_none(&self) -> bool {
        self.more.is_empty() && self.less.is_empty() && self.other.is_empty()
    }
}

/// Everything that `manifest` may and `than` may not.
fn wider(manifest: &Manifest, than: &Manifest) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |field, what: String| changes.push(Change { field, what });
    let (own, other) = (manifest.partition(), than.partition());
    let denied: Vec<Capability> = own.grants.denied().cloned().collect();
    for grant in own.grants.iter() {
        let alone: Grants = [grant.clone()].into_iter().collect();
        if !alone
            .denying(denied.clone())
            .is_narrower_or_equal(&other.grants)
        {
            add("grants", grant.to_string());
        }
    }
    for denial in other.grants.denied() {
        if !denied.iter().any(|own| denial.is_narrower_or_equal(own)) {
            add("deny", format!("`{denial}` is not denied"));
        }
    }
    let others: Vec<&Capability> = than.disk_files().iter().map(|file| &file.value).collect();
    for file in manifest.disk_files() {
        let is_held = |held: &Capability| file.value.is_narrower_or_equal(held);
        let granted = Grants::allows(&other.grants, &Grant::from(file.value.clone()));
        if !granted && !others.iter().any(|held| is_held(held)) {
            add("grants", file.value.to_string());
        }
    }
    for file in manifest.boot_files() {
        let below = |held: &std::path::PathBuf| file.value.starts_with(held);
        if !than.boot_files().iter().any(|held| below(&held.value)) {
            add("boot", format!("a copy of {}", file.value.display()));
        }
    }
    let memory =
        |partition: &crate::Partition| partition.memory.mib + partition.memory.pluggable_mib;
    if memory(own) > memory(other) {
        add("resources.memory", format!("{} MiB", memory(own)));
    }
    if own.vcpus > other.vcpus {
        add("resources.vcpus", format!("{} vCPUs", own.vcpus));
    }
    if own.conditions > other.conditions {
        add("conditions", own.conditions.as_str().to_owned());
    }
    if own.autonomy > other.autonomy {
        add("tools.autonomy", own.autonomy.as_str().to_owned());
    }
    let limits = |partition: &crate::Partition| {
        let limits = partition.limits;
        [
            ("cpu", limits.cpu_percent),
            ("memory_overhead", limits.memory_overhead_mib),
            ("pids", limits.pids),
        ]
    };
    for ((key, own), (_, other)) in limits(own).into_iter().zip(limits(other)) {
        if more(own, other) {
            add("resources.limits", amount(key, own));
        }
    }
    let (own, other) = (manifest.mandate(), than.mandate());
    if !own.lifetime.is_within(other.lifetime) {
        add(
            "lifetime",
            match own.lifetime {
                Lifetime::Seconds(seconds) => format!("{seconds} s"),
                Lifetime::Unlimited => "unlimited".to_owned(),
            },
        );
    }
    for secret in &own.secrets {
        if !other.secrets.contains(secret) {
            let to = format!("{} to {}:{}", secret.name, secret.host, secret.port);
            let path = secret.path.as_ref().map(|path| format!("{path}"));
            let path = path.map_or_else(String::new, |path| format!(" for {path}"));
            add("secrets", format!("{to}{path} in {}", secret.header));
        }
    }
    if own.spawn.count > other.spawn.count {
        add("spawn.count", own.spawn.count.to_string());
    }
    if own.spawn.depth > other.spawn.depth {
        add("spawn.depth", own.spawn.depth.to_string());
    }
    for ((key, own), (_, other)) in own.budget.amounts().into_iter().zip(other.budget.amounts()) {
        if more(own, other) {
            add("budget", amount(key, own));
        }
    }
    changes
}

/// Absent is more than any number.
fn more(own: Option<u64>, other: Option<u64>) -> bool {
    match (own, other) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(own), Some(other)) => own > other,
    }
}

fn amount(key: &str, amount: Option<u64>) -> String {
    match amount {
        Some(amount) => format!("{key} {amount}"),
        None => format!("{key} without a limit"),
    }
}

/// Sections whose keys are neither more nor less. What is compared by its meaning is not among them.
const NEUTRAL: [(&str, &[&str]); 5] = [
    ("identity", &[]),
    ("boot", &[]),
    ("resources", &["memory", "vcpus", "limits"]),
    ("lifetime", &["max", "unlimited"]),
    ("network", &[]),
];

/// Keys of which the two say different things.
fn others(old: &Manifest, new: &Manifest) -> Vec<Change> {
    let mut changes = devices(old, new);
    let document = |manifest: &Manifest| -> Value {
        serde_json::from_slice(manifest.document()).unwrap_or_default()
    };
    let (old, new) = (document(old), document(new));
    for (section, compared) in NEUTRAL {
        let keys = |document: &Value| -> Vec<String> {
            let table = document.get(section).and_then(Value::as_object);
            table
                .into_iter()
                .flat_map(|table| table.keys().cloned())
                .collect()
        };
        let mut all = keys(&old);
        all.extend(keys(&new));
        all.sort();
        all.dedup();
        for key in all.iter().filter(|key| !compared.contains(&key.as_str())) {
            let value = |document: &Value| {
                document
                    .get(section)
                    .and_then(|table| table.get(key))
                    .cloned()
            };
            if value(&old) != value(&new) {
                let what = match value(&new) {
                    Some(value) => format!("{key} = {value}"),
                    None => format!("no {key}"),
                };
                changes.push(Change {
                    field: section,
                    what,
                });
            }
        }
    }
    let limits = |document: &Value| {
        document
            .get("tools")
            .and_then(|tools| tools.get("limits"))
            .cloned()
    };
    if limits(&old) != limits(&new) {
        let what =
            limits(&new).map_or_else(|| "no limits".to_owned(), |file| format!("limits = {file}"));
        changes.push(Change {
            field: "tools",
            what,
        });
    }
    changes
}

/// Devices that both have, with other options. Those of the network are a section of their own.
fn devices(old: &Manifest, new: &Manifest) -> Vec<Change> {
    let mut changes = Vec::new();
    for device in &new.partition().devices {
        let mut others = old.partition().devices.iter();
        let same = others.find(|other| other.name == device.name);
        let is_network = matches!(device.kind, DeviceKind::Network(_));
        if same.is_some_and(|same| same.kind != device.kind) && !is_network {
            let what = format!("options of `{}`", device.name);
            changes.push(Change {
                field: "grants",
                what,
            });
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::{EVERYTHING, MINIMAL, manifest};

    fn between(old: &str, new: &str) -> Difference {
        Difference::between(&manifest(old), &manifest(new))
    }

    fn says(changes: &[Change]) -> Vec<String> {
        let line = |change: &Change| format!("{}: {}", change.field, change.what);
        changes.iter().map(line).collect()
    }

    #[test]
    fn the_same_manifest_is_no_difference() {
        for text in [EVERYTHING, MINIMAL] {
            assert!(between(text, text).is_none());
            let spaced = text.replace(" = ", "   =  ");
            assert!(between(text, &spaced).is_none());
        }
    }

    #[test]
    fn what_is_narrower_is_less_and_the_other_way_round() {
        for (from, to, less) in [
            (
                "paths = [\"/v1/**\"]",
                "paths = [\"/v1/models\"]",
                "grants: net.connect:tcp:api",
            ),
            (
                "methods = [\"GET\", \"POST\"]",
                "methods = [\"GET\"]",
                "grants: net.connect:tcp:api",
            ),
            (
                "fs.write:work",
                "fs.read:work",
                "grants: fs.write:/srv/agent/work",
            ),
            (
                "allow = [\"fs.*\",",
                "allow = [\"fs.read\",",
                "grants: tool.call:fs.*",
            ),
            ("worker=4", "worker=3", "grants: partition.spawn:worker=4"),
            ("vcpus = 2", "vcpus = 1", "resources.vcpus: 2 vCPUs"),
            (
                "max = \"512MiB\"",
                "max = \"384MiB\"",
                "resources.memory: 512 MiB",
            ),
            ("pids = 100", "pids = 99", "resources.limits: pids 100"),
            ("max = \"90s\"", "max = \"89s\"", "lifetime: 90 s"),
            ("calls = 1000\n", "calls = 999\n", "budget: calls 1000"),
            ("count = 4", "count = 3", "spawn.count: 4"),
            ("depth = 2", "depth = 1", "spawn.depth: 2"),
            (
                "conditions = \"learn\"\n",
                "conditions = \"enforce\"\n",
                "conditions: learn",
            ),
            (
                "autonomy = \"supervised\"\n",
                "autonomy = \"manual\"\n",
                "tools.autonomy: supervised",
            ),
            (
                "path = \"/repos/**\"\n",
                "path = \"/repos/a\"\n",
                "secrets: github to git.example.org:443 for /repos/** in x-token",
            ),
            (
                "\"fs.read:/etc\"]",
                "\"fs.read:/etc\", \"fs.read:/home\"]",
                "deny: `fs.read:/home` is not denied",
            ),
        ] {
            assert!(EVERYTHING.contains(from), "{from}");
            let narrow = EVERYTHING.replace(from, to);
            let there = between(EVERYTHING, &narrow);
            let back = between(&narrow, EVERYTHING);
            assert_eq!(there.less, back.more, "{to}");
            assert_eq!(there.more, back.less, "{to}");
            assert!(
                says(&there.less).iter().any(|line| line.starts_with(less)),
                "{to}: {there:?}"
            );
            // Another path of a secret is another secret, not a narrower one; reading is less than
            // writing, and nothing else is more.
            let is_other = less.starts_with("secrets");
            assert_eq!(there.more.is_empty(), !is_other, "{to}: {there:?}");
        }
    }

    #[test]
    fn denials_and_files_count() {
        let narrow = EVERYTHING.replace(
            "deny = [\"net.connect:10.0.0.0/8:*\", \"fs.read:/etc\"]",
            "deny = [\"fs.read:/etc\"]",
        );
        let more = says(&between(EVERYTHING, &narrow).more);
        assert!(
            more.contains(&"deny: `net.connect:tcp:10.0.0.0/8:*` is not denied".to_owned()),
            "{more:?}"
        );
        let other = EVERYTHING.replace("source = \"bin\"", "source = \"/usr/bin\"");
        let difference = between(EVERYTHING, &other);
        assert_eq!(says(&difference.more), ["boot: a copy of /usr/bin"]);
        assert_eq!(says(&difference.less), ["boot: a copy of /srv/agent/bin"]);
        let overlay = EVERYTHING.replace("overlay = \"top.img\"", "overlay = \"/etc/cron\"");
        let difference = between(EVERYTHING, &overlay);
        assert_eq!(says(&difference.more), ["grants: block.write:/etc/cron"]);
    }

    #[test]
    fn what_is_neither_is_told_as_well() {
        let other = EVERYTHING
            .replace("\"--fast\"", "\"--slow\"")
            .replace("owner = \"alice\"\n", "")
            .replace("1MiB/s", "2MiB/s")
            .replace("target = \"/opt/bin\"", "target = \"/opt/b\"")
            .replace("tools.toml", "other.toml");
        let difference = between(EVERYTHING, &other);
        assert!(difference.more.is_empty() && difference.less.is_empty());
        assert_eq!(
            says(&difference.other),
            [
                "grants: options of `data`",
                "identity: no owner",
                "boot: command = [\"/bin/agent\",\"--slow\"]",
                "boot: mounts = [{\"source\":\"/srv/agent/bin\",\"target\":\"/opt/b\"},{\"source\":\"@linux/vmlinuz\",\"target\":\"/boot/k\"}]",
                "tools: limits = \"/srv/agent/other.toml\"",
            ]
        );
    }
}
