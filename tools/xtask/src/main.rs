//! The repository's own chores, typed as `cargo xtask CHORE`. The command line lives here; each
//! chore is a room of its own.
#![deny(unsafe_code)]

mod abi;
mod bench;
mod build;
mod count;
mod failure;
mod fuzz;
mod instructions;
mod lab;
mod page;
mod process;
mod repo;
mod say;
mod setup;
mod test;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Result;
use repo::Repo;

/// The chores of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what the other chores need: Debian packages, Rust targets, the stock kernel
    Setup,
    /// Make the Rust modules, the C header and the tables of the ABI from its description
    Abi {
        /// Write nothing; fail when something differs from the description
        #[arg(long)]
        check: bool,
    },
    /// Build everything that ships into target/bulkhead
    Build,
    /// Run every check: format, lints, licences, docs, tests of all tiers, fuzzing
    Test {
        #[command(flatten)]
        options: test::Options,
    },
    /// Count the VMM's lines of code; fails where there are more than it may have
    Count,
    /// Run the fuzz targets, or write down what they reached
    Fuzz {
        #[command(flatten)]
        options: fuzz::Options,
    },
    /// Build, count the kernel's instructions on each of its paths, and hold them against
    /// docs/kernel-instructions.md
    Instructions {
        #[command(flatten)]
        options: instructions::Options,
    },
    /// Build, then run `bulkhead` with these arguments
    Run {
        /// What `bulkhead` gets
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGUMENT"
        )]
        arguments: Vec<String>,
    },
    /// Build, then run `bulkhead-bench` with these arguments, such as `boot --runs 200`
    Bench {
        /// What `bulkhead-bench` gets
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGUMENT"
        )]
        arguments: Vec<String>,
    },
    /// Build, then boot a system; partitions that this host's KVM cannot run go through the lab
    Up {
        /// The system
        #[arg(default_value = up::HELLO)]
        file: PathBuf,
    },
    /// Run a command in an emulated host that has real KVM
    Lab {
        #[command(flatten)]
        options: lab::Options,
        /// The command, with its arguments
        #[arg(required = true, last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.chore, &Repo::find()) {
        // A status is a byte; what does not fit is a failure all the same.
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)),
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::from(125)
        }
    }
}

fn run(chore: Chore, repo: &Repo) -> Result<i32> {
    match chore {
        Chore::Setup => {
            setup::run_all(repo)?;
            eprintln!("setup: everything is there");
            Ok(0)
        }
        Chore::Abi { check: false } => abi::write(repo).map(|()| 0),
        Chore::Abi { check: true } => abi::check(repo).map(|()| 0),
        Chore::Count => count::run(repo).map(|()| 0),
        Chore::Build => build::run_all(repo).map(|()| 0),
        Chore::Test { options } => {
            setup::try_all(repo);
            test::run_all(repo, &options)
        }
        Chore::Fuzz { options } => fuzz::run_chore(repo, &options),
        Chore::Instructions { options } => instructions::run_chore(repo, &options),
        Chore::Run { arguments } => {
            build::run_all(repo)?;
            become_built(repo, "bulkhead", &arguments)
        }
        Chore::Bench { arguments } => {
            build::run_all(repo)?;
            if bench::in_lab(&arguments) {
                return bench::run(repo, &arguments);
            }
            become_built(repo, "bulkhead-bench", &arguments)
        }
        Chore::Up { file } => {
            setup::try_all(repo);
            up::run(repo, &file)
        }
        Chore::Lab { options, command } => {
            if !options.no_build {
                build::run_all(repo)?;
            }
            lab::run_here(repo, &options, &command)
        }
    }
}

/// Becomes a built command: its streams, its signals and its status are ours.
fn become_built(repo: &Repo, name: &str, arguments: &[String]) -> Result<i32> {
    use std::os::unix::process::CommandExt;
    let program = repo.dist().join("bin").join(name);
    let error = std::process::Command::new(&program).args(arguments).exec();
    Err(failure::Failure::new(format!(
        "cannot start {}: {error}",
        program.display()
    )))
}
