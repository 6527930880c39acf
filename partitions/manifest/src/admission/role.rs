//! What a role may have at most: `roles/ROLE.toml`, which operators write.

use crate::diagnostic::{Code, Rejected};
use crate::draft::{At, BudgetDraft, GrantDraft, LifetimeDraft};
use crate::mandate::{Budget, Lifetime, SpawnBudget};
use crate::parse::{parse_table, read_denial, read_grant, text_of};
use crate::partition_toml::read_budget;
use crate::reader::{Reader, Report};
use crate::validate::{Sink, Terms, adherence, autonomy, denials, granted, memory_size};
use bulkhead_capability::{Adherence, Autonomy, Capability, Grants};
use bulkhead_network::http::PathPattern;
use std::ops::Range;
use std::path::Path;
use toml::de::DeTable;

const ROLE_KEYS: &[&str] = &[
    "conditions",
    "grants",
    "deny",
    "files",
    "resources",
    "lifetime",
    "tools",
    "spawn",
    "budget",
];
const RESOURCES_KEYS: &[&str] = &["memory", "vcpus"];
const LIFETIME_KEYS: &[&str] = &["max", "unlimited"];
const TOOLS_KEYS: &[&str] = &["autonomy"];
const SPAWN_KEYS: &[&str] = &["count", "depth"];

/// A ceiling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// What it may be granted; with denials that hold for it.
    pub grants: Grants,
    /// Files of the host that may be copied into a guest.
    pub files: Vec<PathPattern>,
    /// MiB of memory, with what can be plugged in.
    pub memory_mib: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// How long it may run.
    pub lifetime: Lifetime,
    /// How much of it may be done without asking a person.
    pub autonomy: Autonomy,
    /// Whether it may do what conditions would deny, to learn from it.
    pub conditions: Adherence,
    /// What it may start.
    pub spawn: SpawnBudget,
    /// What it may use while it lives.
    pub budget: Budget,
}

impl Role {
    /// True when `path`, which has neither links nor `..`, is one of the role's files.
    pub fn may_copy(&self, path: &Path) -> bool {
        let path = path.to_str();
        path.is_some_and(|path| self.files.iter().any(|files| files.matches(path)))
    }
}

#[derive(Default)]
struct RoleDraft {
    grants: Vec<At<GrantDraft>>,
    deny: Vec<At<String>>,
    files: Vec<At<String>>,
    memory: Option<At<String>>,
    vcpus: Option<At<i64>>,
    lifetime: Option<At<LifetimeDraft>>,
    autonomy: Option<At<String>>,
    conditions: Option<At<String>>,
    count: Option<At<i64>>,
    depth: Option<At<i64>>,
    budget: Option<At<BudgetDraft>>,
}

/// Reads a role. `file` is its path, for messages and as the start of the relative paths in it.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn parse_role(bytes: &[u8], file: &Path) -> Result<Role, Rejected> {
    let name = file.display().to_string();
    let text = text_of(bytes, &name)?;
    let root = parse_table(text, &name)?;
    let mut report = Report::new(text);
    let draft = read(&mut report, root.get_ref());
    let base = file.parent().unwrap_or(Path::new(""));
    report.check(|refuse| check(&draft, base, refuse), &name)
}

fn read(report: &mut Report<'_>, table: &DeTable<'_>) -> RoleDraft {
    let mut reader = Reader::new(report, table, ROLE_KEYS, "in a role");
    let mut draft = RoleDraft {
        conditions: reader.string("conditions"),
        grants: reader.elements("grants", read_grant),
        deny: reader.elements("deny", read_denial),
        files: reader.spanned_strings("files"),
        ..RoleDraft::default()
    };
    let _ = reader.table("resources", |report, table| {
        let mut reader = Reader::new(report, table, RESOURCES_KEYS, "in `resources`");
        draft.memory = reader.string("memory");
        draft.vcpus = reader.integer("vcpus");
    });
    draft.lifetime = reader.table("lifetime", |report, table| {
        let mut reader = Reader::new(report, table, LIFETIME_KEYS, "in `lifetime`");
        LifetimeDraft {
            max: reader.string("max"),
            unlimited: reader.boolean("unlimited"),
        }
    });
    let _ = reader.table("tools", |report, table| {
        let mut reader = Reader::new(report, table, TOOLS_KEYS, "in `tools`");
        draft.autonomy = reader.string("autonomy");
    });
    let _ = reader.table("spawn", |report, table| {
        let mut reader = Reader::new(report, table, SPAWN_KEYS, "in `spawn`");
        draft.count = reader.integer("count");
        draft.depth = reader.integer("depth");
    });
    draft.budget = reader.table("budget", read_budget);
    draft
}

fn check(draft: &RoleDraft, base: &Path, refuse: &mut Sink<'_>) -> Option<Role> {
    let grants: Vec<_> = (draft.grants.iter())
        .map(|grant| granted(grant, base, refuse))
        .collect();
    let deny: Option<Vec<Capability>> = denials(&draft.deny, base, refuse);
    let files: Vec<Option<PathPattern>> = (draft.files.iter())
        .map(|file| match file.value.parse() {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                let error: bulkhead_network::http::ParseHttpError = error;
                let help = "name files of the host: /usr/bin/git, /srv/agents/**".to_owned();
                refuse(Code::Path, file.span.clone(), error.to_string(), help);
                None
            }
        })
        .collect();
    let autonomy = autonomy(draft.autonomy.as_ref(), refuse);
    let conditions = adherence(draft.conditions.as_ref(), refuse);
    let whole: Option<Range<usize>> = Some(0..0);
    let mut missing = |key: &str, example: &str| {
        refuse(
            Code::MissingKey,
            whole.clone(),
            format!("a role has no `{key}`"),
            format!("say what it may have at most: {example}"),
        );
        None
    };
    let memory = match &draft.memory {
        None => missing("resources.memory", "memory = \"1GiB\""),
        Some(memory) => memory_size(memory, refuse),
    };
    let mut terms = Terms::new(refuse, whole.clone());
    let vcpus = match &draft.vcpus {
        None => {
            terms.missing(
                None,
                "a role has no `resources.vcpus`",
                "say what it may have at most: vcpus = 2",
            );
            None
        }
        vcpus => terms.integer(Code::Vcpus, "vcpus", vcpus.as_ref(), 1..=32)?,
    };
    let lifetime = terms.lifetime(draft.lifetime.as_ref());
    let count = terms.integer(Code::Spawn, "count", draft.count.as_ref(), 0..=256);
    let depth = terms.integer(Code::Spawn, "depth", draft.depth.as_ref(), 0..=8);
    let budget = terms.budget(draft.budget.as_ref());
    let grants: Option<Vec<_>> = grants.into_iter().collect();
    let grants: Grants = grants?.into_iter().map(|grant| grant.value).collect();
    let number =
        |number: Option<Option<i64>>| -> Option<u32> { u32::try_from(number?.unwrap_or(0)).ok() };
    Some(Role {
        grants: grants.denying(deny?),
        files: files.into_iter().collect::<Option<_>>()?,
        memory_mib: memory?,
        vcpus: u32::try_from(vcpus?).ok()?,
        lifetime: lifetime?,
        autonomy: autonomy?,
        conditions: conditions?,
        spawn: SpawnBudget {
            count: number(count)?,
            depth: number(depth)?,
        },
        budget: budget?,
    })
}
