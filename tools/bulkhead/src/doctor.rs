//! `bulkhead doctor`: what this host can run, why not, and what to do about it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::failure::Failure;
use bulkhead_supervisor::host::{self, Finding, Installation, Level, Report, Verdict};

/// How the report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// The shape of docs/hosts.md.
    Json,
}

/// Say what this host can run, and why not.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// How to print the report.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Inspects the host and prints the report. Status 0 if native partitions run here, else 1.
pub(crate) fn run(args: &DoctorArgs, library: PathBuf) -> Result<ExitCode, Failure> {
    let report = host::inspect(&Installation::new(library));
    let text = match args.format {
        Format::Text => text(&report),
        Format::Json => {
            let json = serde_json::to_string_pretty(&report);
            json.map_err(|error| Failure::new("output", error.to_string()))? + "\n"
        }
    };
    crate::print(text.as_bytes())?;
    Ok(ExitCode::from(u8::from(!report.runs_native())))
}

/// The report for people: verdicts first, then the facts.
fn text(report: &Report) -> String {
    let mut out = String::from("Partitions\n");
    for verdict in &report.verdicts {
        out += &verdict_lines(verdict);
    }
    out += "\nHost\n";
    for finding in &report.findings {
        out += &finding_lines(finding);
    }
    out
}

fn verdict_lines(verdict: &Verdict) -> String {
    let name = verdict.partition.name();
    let mut out = match &verdict.because {
        None => format!("  {name:<10} yes\n"),
        Some(because) => format!("  {name:<10} no: {because}\n"),
    };
    remedy(&mut out, verdict.remedy.as_deref(), 13);
    out
}

fn finding_lines(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Warn => "warn",
        Level::Fail => "fail",
    };
    let mut out = format!("  {level:<4}  {:<25}  {}\n", finding.id, finding.what);
    remedy(&mut out, finding.remedy.as_deref(), 35);
    out
}

fn remedy(out: &mut String, remedy: Option<&str>, indent: usize) {
    if let Some(remedy) = remedy {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:indent$}-> {remedy}", "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_supervisor::host::{KvmKind, PartitionKind, REPORT_VERSION};

    fn report(runs: bool) -> Report {
        let because = (!runs).then(|| "no /dev/kvm".to_owned());
        Report {
            version: REPORT_VERSION,
            kvm: KvmKind::Absent,
            verdicts: vec![Verdict {
                partition: PartitionKind::Native,
                runs,
                remedy: because
                    .clone()
                    .map(|_| "cargo xtask lab -- CMD...".to_owned()),
                because,
            }],
            findings: vec![Finding {
                id: "landlock",
                level: Level::Warn,
                what: "not in this kernel".into(),
                remedy: Some("use Linux 5.13 or newer".into()),
            }],
            guest_mode: None,
        }
    }

    #[test]
    fn every_no_comes_with_its_remedy() {
        assert_eq!(
            text(&report(false)),
            "Partitions\n  native     no: no /dev/kvm\n             -> cargo xtask lab -- CMD...\n\n\
             Host\n  warn  landlock                   not in this kernel\n\
             \x20                                  -> use Linux 5.13 or newer\n"
        );
        assert!(text(&report(true)).contains("  native     yes\n"));
    }

    #[test]
    fn the_json_shape_is_the_documented_one() {
        assert_eq!(
            serde_json::to_value(report(false)).unwrap(),
            serde_json::json!({
                "version": 1,
                "kvm": "absent",
                "verdicts": [{
                    "partition": "native",
                    "runs": false,
                    "because": "no /dev/kvm",
                    "remedy": "cargo xtask lab -- CMD...",
                }],
                "findings": [{
                    "id": "landlock",
                    "level": "warn",
                    "what": "not in this kernel",
                    "remedy": "use Linux 5.13 or newer",
                }],
                "guest_mode": null,
            })
        );
    }
}
