//! From text to a draft: TOML, known keys, right types. What the values mean is checked later.

use crate::diagnostic::{Code, Diagnostic, Place, Rejected};
use crate::draft::{At, MountDraft, PartitionDraft, SystemDraft};
use crate::reader::{Reader, Report};
use crate::system::{System, Validated};
use crate::validate::validate_in;
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
    "grants",
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
];
const MOUNT_KEYS: &[&str] = &["source", "target"];
const GRANT_KEYS: &[&str] = &["capability", "path"];

/// Reads and checks a whole manifest. `file` is its path, for messages and as the start of the
/// relative paths in it; it is not opened.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn parse(bytes: &[u8], file: &Path) -> Result<Validated<System>, Rejected> {
    let name = file.display().to_string();
    let reject = |diagnostics| Rejected {
        file: Some(name.clone()),
        diagnostics,
    };
    let unreadable = |message: &str, help: &str| {
        reject(vec![Diagnostic {
            code: Code::File,
            message: message.to_owned(),
            help: help.to_owned(),
            place: None,
        }])
    };
    if bytes.len() > MAX_BYTES {
        return Err(unreadable(
            "the manifest is longer than 1 MiB",
            "name big files by their path",
        ));
    }
    let text = str::from_utf8(bytes)
        .map_err(|_| unreadable("the manifest is not UTF-8", "is this the file you meant?"))?;
    let root = DeTable::parse(text).map_err(|error| reject(vec![syntax_error(text, &error)]))?;

    let mut report = Report {
        text,
        diagnostics: Vec::new(),
    };
    let draft = read_system(&mut report, root.get_ref());
    let base = file.parent().unwrap_or(Path::new(""));
    // A key of the wrong type is not in the draft, and yet not absent.
    let mistyped = (report.diagnostics.iter()).any(|found| found.code == Code::WrongType);
    let checked = validate_in(&draft, base, &mut |code, span, message, help| {
        if mistyped && matches!(code, Code::MissingKey | Code::NoPartition) {
            return;
        }
        let place = span.map(|span| Place::of(text, span));
        report.diagnostics.push(Diagnostic {
            code,
            message,
            help,
            place,
        });
    });
    // What has no place concerns the file as a whole and comes first.
    report
        .diagnostics
        .sort_by_key(|d| d.place.as_ref().map(|place| place.span.start));
    match checked {
        Some(system) if report.diagnostics.is_empty() => Ok(Validated(system)),
        _ => Err(reject(report.diagnostics)),
    }
}

fn syntax_error(text: &str, error: &toml::de::Error) -> Diagnostic {
    Diagnostic {
        code: Code::Syntax,
        // One line: the first says what, the others what would have been right.
        message: error.message().lines().collect::<Vec<_>>().join(", "),
        help: "a manifest is TOML: see https://toml.io".to_owned(),
        place: error.span().map(|span| Place::of(text, span)),
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
    PartitionDraft {
        name: reader.string("name"),
        kernel: reader.string("kernel"),
        memory: reader.string("memory"),
        vcpus: reader.integer("vcpus"),
        grants: reader.elements("grants", read_grant),
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
    }
}

fn read_mount(report: &mut Report<'_>, table: &DeTable<'_>) -> MountDraft {
    let mut reader = Reader::new(report, table, MOUNT_KEYS, "in a mount");
    MountDraft {
        source: reader.string("source"),
        target: reader.string("target"),
    }
}

/// A grant is a name, `name:path`, or a table of `capability` and `path`.
fn read_grant(
    report: &mut Report<'_>,
    value: &Spanned<DeValue<'_>>,
) -> Option<(String, Option<String>)> {
    if let Some(table) = value.get_ref().as_table() {
        let mut reader = Reader::new(report, table, GRANT_KEYS, "in a grant");
        let name = reader.string("capability");
        let path = reader.string("path").map(|path| path.value);
        if name.is_none() && !table.contains_key("capability") {
            report.refuse(
                Code::MissingKey,
                value.span(),
                "a grant has no `capability`".to_owned(),
                "write { capability = \"block.read\", path = \"disk.img\" }".to_owned(),
            );
        }
        return name.map(|name| (name.value, path));
    }
    let At { value, .. } = report.string("a grant", value)?;
    match value.split_once(':') {
        Some((name, path)) => Some((name.to_owned(), Some(path.to_owned()))),
        None => Some((value, None)),
    }
}
