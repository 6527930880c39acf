//! From text to a draft: TOML, known keys, right types. What the values mean is checked later.

use crate::admission::Admitted;
use crate::diagnostic::{Code, Diagnostic, Place, Rejected};
use crate::draft::{
    At, BackingDraft, BalloonDraft, GrantDraft, LimitsDraft, MemoryDraft, MountDraft, NetworkDraft,
    PartitionDraft, RateDraft, ReferenceDraft, SystemDraft,
};
use crate::reader::{Reader, Report};
use crate::system::{System, Validated};
use crate::validate::validate_in;
use std::convert::Infallible;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest manifest in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

const SYSTEM_KEYS: &[&str] = &["name", "partition"];
const PARTITION_KEYS: &[&str] = &[
    "name",
    "kernel",
    "memory",
    "vcpus",
    "cpu",
    "transport",
    "watchdog",
    "on_reboot",
    "autonomy",
    "conditions",
    "grants",
    "deny",
    "network",
    "limits",
    "program",
    "args",
    "command",
    "env",
    "root",
    "mounts",
    "image",
    "initrd",
    "cmdline",
    "trace_syscalls",
    "manifest",
    "unsigned",
];
pub(crate) const MOUNT_KEYS: &[&str] = &["source", "target"];
pub(crate) const GRANT_KEYS: &[&str] = &[
    "capability",
    "path",
    "name",
    "format",
    "backing",
    "overlay",
    "direct",
    "queues",
    "rate",
    "mac",
    "mtu",
    "receive_rate",
    "transmit_rate",
    "tag",
    "owner",
    "cid",
    "methods",
    "paths",
    "below",
    "expires",
    "lifetime",
    "calls",
    "bytes",
    "approval",
];
pub(crate) const BACKING_KEYS: &[&str] = &["path", "format"];
pub(crate) const RATE_KEYS: &[&str] = &["bytes", "bytes_burst", "operations", "operations_burst"];
pub(crate) const MEMORY_KEYS: &[&str] =
    &["size", "max", "hugepages", "prefault", "shared", "balloon"];
pub(crate) const BALLOON_KEYS: &[&str] = &["size", "deflate_on_oom", "free_page_reporting"];
pub(crate) const NETWORK_KEYS: &[&str] = &[
    "mac",
    "mtu",
    "max_connections",
    "hosts",
    "trust",
    "receive_rate",
    "transmit_rate",
];
pub(crate) const LIMITS_KEYS: &[&str] = &["cpu", "memory_overhead", "pids"];

/// Reads and checks a whole manifest. `file` is its path, for messages and as the start of the
/// relative paths in it; it is not opened. A partition that names a manifest of its own is refused:
/// [`parse_with`] has it read.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn parse(bytes: &[u8], file: &Path) -> Result<Validated<System>, Rejected> {
    let nobody = |_: &Path, _| Ok::<_, Infallible>(None);
    match parse_with(bytes, file, nobody) {
        Ok(checked) => checked,
        Err(never) => match never {},
    }
}

/// The same, with `admit` called for each manifest that a partition names: with its path, and whether
/// whoever wrote the system says that it needs no signature.
///
/// # Errors
/// Outside, what `admit` says; inside, everything that is wrong with the system.
pub fn parse_with<E>(
    bytes: &[u8],
    file: &Path,
    mut admit: impl FnMut(&Path, bool) -> Result<Option<Admitted>, E>,
) -> Result<Result<Validated<System>, Rejected>, E> {
    let name = file.display().to_string();
    let text = match text_of(bytes, &name) {
        Ok(text) => text,
        Err(rejected) => return Ok(Err(rejected)),
    };
    let root = match parse_table(text, &name) {
        Ok(root) => root,
        Err(rejected) => return Ok(Err(rejected)),
    };
    let mut report = Report::new(text);
    let mut draft = read_system(&mut report, root.get_ref());
    let base = file.parent().unwrap_or(Path::new(""));
    if report.diagnostics.is_empty() {
        for partition in &mut draft.partitions {
            let Some(At { value, span }) = &partition.value.manifest else {
                continue;
            };
            if let Some(admitted) = admit(&base.join(&value.path), value.unsigned)? {
                let span = span.clone();
                let value = admitted.into_draft();
                *partition = At { value, span };
            }
        }
    }
    let checked = report.check(|refuse| validate_in(&draft, base, refuse), &name);
    Ok(checked.map(Validated))
}

/// The text of the file named `file`.
pub(crate) fn text_of<'b>(bytes: &'b [u8], file: &str) -> Result<&'b str, Rejected> {
    let unreadable = |message: &str, help: &str| Rejected {
        file: Some(file.to_owned()),
        diagnostics: vec![Diagnostic {
            code: Code::File,
            message: message.to_owned(),
            help: help.to_owned(),
            place: None,
            field: None,
        }],
    };
    if bytes.len() > MAX_BYTES {
        return Err(unreadable(
            "the manifest is longer than 1 MiB",
            "name big files by their path",
        ));
    }
    str::from_utf8(bytes)
        .map_err(|_| unreadable("the manifest is not UTF-8", "is this the file you meant?"))
}

/// The TOML of the file named `file`.
pub(crate) fn parse_table<'t>(text: &'t str, file: &str) -> Result<Spanned<DeTable<'t>>, Rejected> {
    DeTable::parse(text).map_err(|error| Rejected {
        file: Some(file.to_owned()),
        diagnostics: vec![syntax_error(text, &error)],
    })
}

fn syntax_error(text: &str, error: &toml::de::Error) -> Diagnostic {
    Diagnostic {
        code: Code::Syntax,
        // One line: the first says what, the others what would have been right.
        message: error.message().lines().collect::<Vec<_>>().join(", "),
        help: "a manifest is TOML: see https://toml.io".to_owned(),
        place: error.span().map(|span| Place::of(text, span)),
        field: None,
    }
}

fn read_system(report: &mut Report<'_>, table: &DeTable<'_>) -> SystemDraft {
    let mut reader = Reader::new(report, table, SYSTEM_KEYS, "in a system");
    SystemDraft {
        name: reader.string("name"),
        partitions: reader.tables("partition", read_partition),
    }
}

fn read_partition(report: &mut Report<'_>, table: &DeTable<'_>) -> PartitionDraft {
    let mut reader = Reader::new(report, table, PARTITION_KEYS, "in a partition");
    let (path, unsigned) = (reader.string("manifest"), reader.boolean("unsigned"));
    let mut draft = PartitionDraft {
        name: reader.string("name"),
        kernel: reader.string("kernel"),
        memory: reader.value("memory", read_memory),
        vcpus: reader.integer("vcpus"),
        cpu: reader.string("cpu"),
        transport: reader.string("transport"),
        watchdog: reader.boolean("watchdog"),
        on_reboot: reader.string("on_reboot"),
        autonomy: reader.string("autonomy"),
        conditions: reader.string("conditions"),
        grants: reader.elements("grants", read_grant),
        deny: reader.elements("deny", read_denial),
        network: reader.table("network", read_network),
        limits: reader.table("limits", read_limits),
        program: reader.string("program"),
        args: reader.strings("args"),
        command: reader.strings("command"),
        env: reader.string_map("env"),
        root: reader.string("root"),
        mounts: reader.tables("mounts", read_mount),
        image: reader.string("image"),
        initrd: reader.string("initrd"),
        cmdline: reader.string("cmdline"),
        trace_syscalls: reader.boolean("trace_syscalls"),
        mandate: None,
        manifest: None,
    };
    draft.manifest = reference(report, table, path, unsigned);
    draft
}

/// A partition that names a manifest says nothing else.
fn reference(
    report: &mut Report<'_>,
    table: &DeTable<'_>,
    path: Option<At<String>>,
    unsigned: Option<At<bool>>,
) -> Option<At<ReferenceDraft>> {
    let Some(path) = path else {
        if let Some(unsigned) = unsigned {
            let message = "`unsigned` means nothing without `manifest`".to_owned();
            let help = "name the manifest, or leave it out".to_owned();
            report.refuse(
                Code::Reference,
                unsigned.span.unwrap_or(0..0),
                message,
                help,
            );
        }
        return None;
    };
    for (key, _) in table.iter() {
        let name = key.get_ref().as_ref();
        if !matches!(name, "manifest" | "unsigned") && PARTITION_KEYS.contains(&name) {
            let message = format!("`{name}` stands beside `manifest`");
            let help = "the manifest says everything: write it there".to_owned();
            report.refuse(Code::Reference, key.span(), message, help);
        }
    }
    let value = ReferenceDraft {
        path: path.value,
        unsigned: unsigned.is_some_and(|unsigned| unsigned.value),
    };
    let span = path.span;
    Some(At { value, span })
}

pub(crate) fn read_mount(report: &mut Report<'_>, table: &DeTable<'_>) -> MountDraft {
    let mut reader = Reader::new(report, table, MOUNT_KEYS, "in a mount");
    MountDraft {
        source: reader.string("source"),
        target: reader.string("target"),
    }
}

/// A grant is a name, `name:object`, or a table of `capability`, perhaps `path`, and options.
pub(crate) fn read_grant(
    report: &mut Report<'_>,
    value: &Spanned<DeValue<'_>>,
) -> Option<GrantDraft> {
    let Some(table) = value.get_ref().as_table() else {
        return Some(report.string("a grant", value)?.value.into());
    };
    let mut reader = Reader::new(report, table, GRANT_KEYS, "in a grant");
    let capability = reader.string("capability");
    let draft = GrantDraft {
        capability: String::new(),
        path: reader.string("path"),
        name: reader.string("name"),
        format: reader.string("format"),
        backing: reader.tables("backing", read_backing),
        overlay: reader.string("overlay"),
        direct: reader.boolean("direct"),
        queues: reader.integer("queues"),
        rate: reader.table("rate", read_rate),
        mac: reader.string("mac"),
        mtu: reader.integer("mtu"),
        receive_rate: reader.table("receive_rate", read_rate),
        transmit_rate: reader.table("transmit_rate", read_rate),
        tag: reader.string("tag"),
        owner: reader.string("owner"),
        cid: reader.integer("cid"),
        methods: reader.strings("methods"),
        paths: reader.strings("paths"),
        below: reader.strings("below"),
        expires: reader.string("expires"),
        lifetime: reader.string("lifetime"),
        calls: reader.string("calls"),
        bytes: reader.string("bytes"),
        approval: reader.boolean("approval"),
    };
    if capability.is_none() && !table.contains_key("capability") {
        report.refuse(
            Code::MissingKey,
            value.span(),
            "a grant has no `capability`".to_owned(),
            "write { capability = \"block.read\", path = \"disk.img\" }".to_owned(),
        );
    }
    Some(GrantDraft {
        capability: capability?.value,
        ..draft
    })
}

/// A denial is `name:object`.
pub(crate) fn read_denial(report: &mut Report<'_>, value: &Spanned<DeValue<'_>>) -> Option<String> {
    Some(report.string("an element of `deny`", value)?.value)
}

fn read_backing(report: &mut Report<'_>, table: &DeTable<'_>) -> BackingDraft {
    let mut reader = Reader::new(report, table, BACKING_KEYS, "in a backing image");
    BackingDraft {
        path: reader.string("path"),
        format: reader.string("format"),
    }
}

fn read_rate(report: &mut Report<'_>, table: &DeTable<'_>) -> RateDraft {
    let mut reader = Reader::new(report, table, RATE_KEYS, "in a rate");
    RateDraft {
        bytes: reader.string("bytes"),
        bytes_burst: reader.string("bytes_burst"),
        operations: reader.string("operations"),
        operations_burst: reader.string("operations_burst"),
    }
}

/// Memory is a size, or a table.
pub(crate) fn read_memory(
    report: &mut Report<'_>,
    value: &Spanned<DeValue<'_>>,
) -> Option<MemoryDraft> {
    let Some(table) = value.get_ref().as_table() else {
        return Some(report.string("`memory`", value)?.into());
    };
    let mut reader = Reader::new(report, table, MEMORY_KEYS, "in `memory`");
    Some(MemoryDraft {
        size: reader.string("size"),
        max: reader.string("max"),
        hugepages: reader.boolean("hugepages"),
        prefault: reader.boolean("prefault"),
        shared: reader.boolean("shared"),
        balloon: reader.value("balloon", read_balloon),
    })
}

/// A balloon is `true`, `false`, or a table.
fn read_balloon(report: &mut Report<'_>, value: &Spanned<DeValue<'_>>) -> Option<BalloonDraft> {
    match (value.get_ref().as_bool(), value.get_ref().as_table()) {
        (Some(wanted), _) => wanted.then(BalloonDraft::default),
        (None, Some(table)) => {
            let mut reader = Reader::new(report, table, BALLOON_KEYS, "in a balloon");
            Some(BalloonDraft {
                size: reader.string("size"),
                deflate_on_oom: reader.boolean("deflate_on_oom"),
                free_page_reporting: reader.boolean("free_page_reporting"),
            })
        }
        (None, None) => {
            report.wrong_type("`balloon`", "true, false or a table", value);
            None
        }
    }
}

pub(crate) fn read_network(report: &mut Report<'_>, table: &DeTable<'_>) -> NetworkDraft {
    let mut reader = Reader::new(report, table, NETWORK_KEYS, "in `network`");
    NetworkDraft {
        mac: reader.string("mac"),
        mtu: reader.integer("mtu"),
        max_connections: reader.integer("max_connections"),
        hosts: reader.strings("hosts"),
        trust: reader.strings("trust"),
        receive_rate: reader.table("receive_rate", read_rate),
        transmit_rate: reader.table("transmit_rate", read_rate),
    }
}

pub(crate) fn read_limits(report: &mut Report<'_>, table: &DeTable<'_>) -> LimitsDraft {
    let mut reader = Reader::new(report, table, LIMITS_KEYS, "in `limits`");
    LimitsDraft {
        cpu: reader.string("cpu"),
        memory_overhead: reader.string("memory_overhead"),
        pids: reader.integer("pids"),
    }
}
