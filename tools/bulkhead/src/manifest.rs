//! `bulkhead manifest`: checks, signs and shows the manifests of partitions.

use crate::cli::{ListFormat, ManifestCommand, ManifestPlanArgs, ManifestSignArgs};
use crate::failure::Failure;
use crate::{input, key, table};
use bulkhead_manifest::{
    Change, Difference, PAYLOAD_TYPE, Plan, Submission, parse_submission, schema,
};
use bulkhead_signature::{Envelope, MAX_ENVELOPE_BYTES};
use bulkhead_supervisor::{check_tool_limits, reason};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Exit status of `diff` when the two are not the same, as that of diff(1).
const STATUS_DIFFERENT: u8 = 1;

pub(crate) fn run(command: &ManifestCommand) -> Result<u8, Failure> {
    match command {
        ManifestCommand::Check { file } => check(file).map(|()| 0),
        ManifestCommand::Sign(args) => sign(args).map(|()| 0),
        ManifestCommand::Verify { file } => verify(file).map(|()| 0),
        ManifestCommand::Plan(args) => plan(args).map(|()| 0),
        ManifestCommand::Diff { old, new } => diff(old, new),
        ManifestCommand::Schema => print_json(&schema()).map(|()| 0),
    }
}

/// The manifest, and the file of limits that it names, where that is on this host.
fn check(file: &Path) -> Result<(), Failure> {
    let Submission { manifest, .. } = read(file)?;
    match &manifest.mandate().tool_limits {
        Some(limits) => Ok(check_tool_limits(limits)?),
        None => Ok(()),
    }
}

fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value);
    let json = json.map_err(|error| Failure::new("output", error.to_string()))?;
    crate::print(format!("{json}\n").as_bytes())
}

fn plan(args: &ManifestPlanArgs) -> Result<(), Failure> {
    let Submission { manifest, .. } = read(&args.file)?;
    let plan = Plan::of(&manifest);
    if args.format == ListFormat::Json {
        return print_json(&plan.to_json());
    }
    let mut text = format!("partition {}, role {}", plan.identity, plan.role);
    if let Some(parent) = &plan.parent {
        text += &format!(", child of {parent}");
    }
    let rows = plan
        .rows
        .into_iter()
        .map(|row| [row.what, row.by.to_owned(), row.at]);
    text += "\n\n";
    text += &table::lines(["WHAT", "BY", "WHERE"], rows);
    crate::print(text.as_bytes())
}

fn diff(old: &Path, new: &Path) -> Result<u8, Failure> {
    let (old, new) = (read(old)?.manifest, read(new)?.manifest);
    let difference = Difference::between(&old, &new);
    let lines = |word: &str, changes: &[Change]| -> String {
        let line = |change: &Change| format!("{word} {}: {}\n", change.field, change.what);
        changes.iter().map(line).collect()
    };
    let text = lines("more", &difference.more)
        + &lines("less", &difference.less)
        + &lines("other", &difference.other);
    crate::print(text.as_bytes())?;
    Ok(match difference.is_none() {
        true => 0,
        false => STATUS_DIFFERENT,
    })
}

/// Reads a `partition.toml`, or an envelope.
pub(crate) fn read(file: &Path) -> Result<Submission, Failure> {
    let bytes = input::read(file, MAX_ENVELOPE_BYTES, "manifest", "manifest-unreadable")?;
    // What is signed has absolute paths, wherever we were called.
    let place = std::path::absolute(file).map_err(|error| {
        let message = format!("cannot find `{}`: {}", file.display(), reason(&error));
        Failure::new("manifest-unreadable", message)
    })?;
    parse_submission(&bytes, &place).map_err(|mut rejected| {
        // Under the name that was typed.
        rejected.file = Some(file.display().to_string());
        rejected.into()
    })
}

fn sign(args: &ManifestSignArgs) -> Result<(), Failure> {
    let Submission { manifest, envelope } = read(&args.file)?;
    let (key, _) = key::store()?.private(&args.key)?;
    let id = key.public().id();
    let failed = |error: bulkhead_signature::EnvelopeError| {
        Failure::new("manifest-envelope", format!("cannot sign: {error}"))
    };
    let envelope = match envelope {
        None => {
            let document = manifest.document().to_vec();
            Envelope::sign(PAYLOAD_TYPE, document, &key).map_err(failed)?
        }
        Some(mut envelope) => {
            envelope.add_signature(&key).map_err(failed)?;
            envelope
        }
    };
    let output = match &args.output {
        Some(output) => output.clone(),
        None => args.file.with_extension("json"),
    };
    if output == Path::new("-") {
        return crate::print(envelope.to_json().as_bytes());
    }
    replace(&output, envelope.to_json().as_bytes()).map_err(|error| {
        let message = format!("cannot write `{}`: {}", output.display(), reason(&error));
        Failure::new("output", message)
    })?;
    crate::print(format!("{} signed by {id}\n", output.display()).as_bytes())
}

/// Puts a file in the place of another, at once or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new: PathBuf = path.with_file_name(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(openat(CWD, &new, flags, Mode::from_raw_mode(0o644))?);
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let renamed = written.and_then(|()| fs::rename(&new, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&new);
    }
    renamed
}

fn verify(file: &Path) -> Result<(), Failure> {
    let Submission { manifest, envelope } = read(file)?;
    let Some(envelope) = envelope else {
        let message = format!("`{}` is not signed", file.display());
        return Err(Failure::new("rule-signature", message)
            .help("sign it: bulkhead manifest sign FILE --key NAME"));
    };
    let trusted = key::store()?.trusted()?;
    let signers = envelope.verify(PAYLOAD_TYPE, &trusted).map_err(|error| {
        let message = format!("{}: {error}", file.display());
        Failure::new("rule-signature", message)
            .help("`bulkhead key ls` says whose signatures count")
    })?;
    let mut text = String::new();
    for signer in signers {
        let approves = if signer.approves { ", approver" } else { "" };
        text += &format!(
            "# signed by {} ({}){approves}\n",
            signer.name,
            signer.key.id()
        );
    }
    text += manifest.text();
    crate::print(text.as_bytes())
}
