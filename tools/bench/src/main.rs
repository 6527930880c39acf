//! Benchmarks, each beside a peer or the raw floor, measured in the same run.
//!
//! They print and never judge: no benchmark fails because of a time. docs/benchmarks.md says how to
//! read them.

mod boot;
mod child;
mod clock;
mod decision;
mod error;
mod gateway;
mod host;
mod instructions;
mod linux;
mod memory;
mod policy;
mod report;
mod stats;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Benchmarks of Bulkhead, each beside a peer or the raw floor.
#[derive(Parser)]
#[command(name = "bulkhead-bench", version)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// From exec of the VMM to the first byte of the smallest guest, and of a native partition.
    Boot {
        /// The installed library directory; by default that of BULKHEAD_LIB or of this build.
        #[arg(long)]
        lib: Option<PathBuf>,
        /// How often each subject is measured.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// How to print the result.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// How many instructions the microkernel takes for each of its paths; the same in each run.
    Instructions {
        /// The installed library directory; by default that of BULKHEAD_LIB or of this build.
        #[arg(long)]
        lib: Option<PathBuf>,
        /// How to print the result.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// A stock Linux kernel beside QEMU's microvm: boot, the VMM's memory, disks.
    Linux {
        /// The installed library directory; by default that of BULKHEAD_LIB or of this build.
        #[arg(long)]
        lib: Option<PathBuf>,
        #[command(flatten)]
        files: linux::Files,
        /// How often each subject is measured.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        runs: u32,
        /// How to print the result.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// What mediation costs: decisions, the way through the gateway, and the ledger's durable and verified
    /// records.
    Policy {
        /// The installed library directory; by default that of BULKHEAD_LIB or of this build.
        #[arg(long)]
        lib: Option<PathBuf>,
        /// Directory in which files are written; by default that of temporary files.
        #[arg(long)]
        scratch: Option<PathBuf>,
        /// How often each subject is measured.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        runs: u32,
        /// How to print the result.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

/// What mediation costs.
#[derive(serde::Serialize)]
struct PolicyFigures {
    decisions: Vec<decision::Latency>,
    gateway: gateway::Figures,
    records: Vec<policy::Rate>,
}

impl Benchmark {
    fn run(self) -> Result<String, String> {
        let said = |error: error::Error| error.to_string();
        match self {
            Self::Boot { lib, runs, format } => {
                let report = boot::run(&lib.unwrap_or_else(default_library), runs).map_err(said)?;
                format.print(&report, report::Report::text)
            }
            Self::Instructions { lib, format } => {
                let lib = lib.unwrap_or_else(default_library);
                let counted = instructions::run(&lib).map_err(said)?;
                format.print(&counted, report::instructions)
            }
            Self::Linux {
                lib,
                files,
                runs,
                format,
            } => {
                let lib = lib.unwrap_or_else(default_library);
                let figures = linux::run(&lib, &files, runs).map_err(said)?;
                format.print(&figures, |figures| report::figures(figures))
            }
            Self::Policy {
                lib,
                scratch,
                runs,
                format,
            } => {
                let scratch = scratch.unwrap_or_else(std::env::temp_dir);
                let figures = PolicyFigures {
                    decisions: decision::run().map_err(said)?,
                    records: policy::run(&scratch, runs).map_err(said)?,
                    gateway: gateway::run(&lib.unwrap_or_else(default_library), runs)
                        .map_err(said)?,
                };
                format.print(&figures, |figures| {
                    let decisions = report::latencies(&figures.decisions);
                    let trips = report::trips(&figures.gateway.trips);
                    let moved = report::rates(&figures.gateway.megabytes);
                    let records = report::rates(&figures.records);
                    format!("{decisions}\n{trips}\n{moved}\n{records}")
                })
            }
        }
    }
}

impl Format {
    fn print<T: serde::Serialize>(
        self,
        report: &T,
        text: impl Fn(&T) -> String,
    ) -> Result<String, String> {
        match self {
            Self::Table => Ok(text(report)),
            Self::Json => serde_json::to_string_pretty(report)
                .map(|json| json + "\n")
                .map_err(|error| format!("cannot print the result: {error}")),
        }
    }
}

/// How a result is printed.
#[derive(Clone, Copy, Default, ValueEnum)]
enum Format {
    /// Tables for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

fn main() -> ExitCode {
    let text = match Arguments::parse().benchmark.run() {
        Ok(text) => text,
        Err(error) => {
            eprintln!("bulkhead-bench: {error}");
            return ExitCode::from(125);
        }
    };
    // A reader that went away has what it wanted.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// `BULKHEAD_LIB`, or `../lib/bulkhead` from this program when it is installed, else the tree's own.
fn default_library() -> PathBuf {
    if let Some(named) = std::env::var_os("BULKHEAD_LIB") {
        return named.into();
    }
    let installed = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.parent()?.join("lib/bulkhead")))
        .filter(|library| library.is_dir());
    installed.unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bulkhead/lib/bulkhead")
    })
}
