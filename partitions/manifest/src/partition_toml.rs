//! From the text of a `partition.toml` to a draft: TOML, known keys, right types. The machine part
//! is the same draft as a partition of a `system.toml`, and is checked by the same rules.

use crate::draft::{
    At, BudgetDraft, GrantDraft, LifetimeDraft, MandateDraft, PartitionDraft, SecretDraft,
    SpawnDraft, ToolsDraft,
};
use crate::parse::{read_denial, read_grant, read_limits, read_memory, read_mount, read_network};
use crate::reader::{Reader, Report};
use toml::de::DeTable;

/// Sections and keys of a manifest.
pub(crate) const MANIFEST_KEYS: &[&str] = &[
    "conditions",
    "grants",
    "deny",
    "identity",
    "boot",
    "resources",
    "lifetime",
    "network",
    "secrets",
    "tools",
    "spawn",
    "budget",
];
pub(crate) const IDENTITY_KEYS: &[&str] = &["name", "role", "owner", "parent"];
pub(crate) const BOOT_KEYS: &[&str] = &[
    "kernel",
    "program",
    "args",
    "command",
    "env",
    "root",
    "mounts",
    "image",
    "initrd",
    "cmdline",
    "transport",
    "watchdog",
    "trace_syscalls",
];
pub(crate) const RESOURCES_KEYS: &[&str] = &["memory", "vcpus", "cpu", "limits"];
pub(crate) const LIFETIME_KEYS: &[&str] = &["max", "unlimited", "on_reboot"];
pub(crate) const SECRET_KEYS: &[&str] =
    &["name", "host", "port", "header", "path", "env", "ephemeral"];
pub(crate) const TOOLS_KEYS: &[&str] = &["allow", "limits", "autonomy"];
pub(crate) const SPAWN_KEYS: &[&str] = &["roles", "count", "depth"];
pub(crate) const BUDGET_KEYS: &[&str] = &["bytes", "calls", "tokens", "money"];

/// Reads a manifest. What its sections imply is granted like what it grants in so many words: each
/// secret is one `secret.use`, each tool a `tool.call`, each role a `partition.spawn`.
pub(crate) fn read_manifest(report: &mut Report<'_>, table: &DeTable<'_>) -> PartitionDraft {
    let mut reader = Reader::new(report, table, MANIFEST_KEYS, "in a manifest");
    let mut draft = PartitionDraft {
        conditions: reader.string("conditions"),
        grants: reader.elements("grants", read_grant),
        deny: reader.elements("deny", read_denial),
        network: reader.table("network", read_network),
        ..PartitionDraft::default()
    };
    let mut mandate = MandateDraft::default();
    let (partition, terms) = (&mut draft, &mut mandate);
    let _ = reader.table("identity", |report, table| {
        let mut reader = Reader::new(report, table, IDENTITY_KEYS, "in `identity`");
        partition.name = reader.string("name");
        terms.role = reader.string("role");
        terms.owner = reader.string("owner");
        terms.parent = reader.string("parent");
    });
    let _ = reader.table("boot", |report, table| read_boot(report, table, partition));
    let _ = reader.table("resources", |report, table| {
        let mut reader = Reader::new(report, table, RESOURCES_KEYS, "in `resources`");
        partition.memory = reader.value("memory", read_memory);
        partition.vcpus = reader.integer("vcpus");
        partition.cpu = reader.string("cpu");
        partition.limits = reader.table("limits", read_limits);
    });
    terms.lifetime = reader.table("lifetime", |report, table| {
        let mut reader = Reader::new(report, table, LIFETIME_KEYS, "in `lifetime`");
        partition.on_reboot = reader.string("on_reboot");
        LifetimeDraft {
            max: reader.string("max"),
            unlimited: reader.boolean("unlimited"),
        }
    });
    terms.secrets = reader.tables("secrets", read_secret);
    terms.tools = reader.table("tools", |report, table| {
        let mut reader = Reader::new(report, table, TOOLS_KEYS, "in `tools`");
        partition.autonomy = reader.string("autonomy");
        ToolsDraft {
            allow: reader.spanned_strings("allow"),
            limits: reader.string("limits"),
        }
    });
    terms.spawn = reader.table("spawn", |report, table| {
        let mut reader = Reader::new(report, table, SPAWN_KEYS, "in `spawn`");
        SpawnDraft {
            roles: reader.spanned_strings("roles"),
            count: reader.integer("count"),
            depth: reader.integer("depth"),
        }
    });
    terms.budget = reader.table("budget", read_budget);
    let implied = implied(terms);
    draft.grants.extend(implied);
    draft.mandate = Some(At::from(mandate));
    draft
}

pub(crate) fn read_budget(report: &mut Report<'_>, table: &DeTable<'_>) -> BudgetDraft {
    let mut reader = Reader::new(report, table, BUDGET_KEYS, "in `budget`");
    BudgetDraft {
        bytes: reader.string("bytes"),
        calls: reader.integer("calls"),
        tokens: reader.integer("tokens"),
        money: reader.string("money"),
    }
}

fn read_boot(report: &mut Report<'_>, table: &DeTable<'_>, draft: &mut PartitionDraft) {
    let mut reader = Reader::new(report, table, BOOT_KEYS, "in `boot`");
    draft.kernel = reader.string("kernel");
    draft.program = reader.string("program");
    draft.args = reader.strings("args");
    draft.command = reader.strings("command");
    draft.env = reader.string_map("env");
    draft.root = reader.string("root");
    draft.mounts = reader.tables("mounts", read_mount);
    draft.image = reader.string("image");
    draft.initrd = reader.string("initrd");
    draft.cmdline = reader.string("cmdline");
    draft.transport = reader.string("transport");
    draft.watchdog = reader.boolean("watchdog");
    draft.trace_syscalls = reader.boolean("trace_syscalls");
}

fn read_secret(report: &mut Report<'_>, table: &DeTable<'_>) -> SecretDraft {
    let mut reader = Reader::new(report, table, SECRET_KEYS, "in a secret");
    SecretDraft {
        name: reader.string("name"),
        host: reader.string("host"),
        port: reader.integer("port"),
        header: reader.string("header"),
        path: reader.string("path"),
        env: reader.string("env"),
        ephemeral: reader.boolean("ephemeral"),
    }
}

/// The grants that sections imply, where the sections stand.
fn implied(terms: &MandateDraft) -> Vec<At<GrantDraft>> {
    let names = terms.secrets.iter().filter_map(|s| s.value.name.as_ref());
    let tools = terms.tools.iter().flat_map(|tools| &tools.value.allow);
    let roles = terms.spawn.iter().flat_map(|spawn| &spawn.value.roles);
    let of = |name: &'static str| {
        move |object: &At<String>| At {
            value: GrantDraft::from(format!("{name}:{}", object.value)),
            span: object.span.clone(),
        }
    };
    let secrets = names.map(of("secret.use"));
    let tools = tools.map(of("tool.call"));
    let roles = roles.map(of("partition.spawn"));
    secrets.chain(tools).chain(roles).collect()
}
