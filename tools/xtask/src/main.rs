//! The repository's own chores, typed as `cargo xtask CHORE`. The command line lives here; each
//! chore is a room of its own.
#![deny(unsafe_code)]

mod failure;
mod lab;
mod process;
mod repo;
mod say;

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
        Chore::Lab { options, command } => lab::run_here(repo, &options, &command),
    }
}
