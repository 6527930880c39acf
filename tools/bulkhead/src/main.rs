//! `bulkhead`: the command line. One file a command; everything they do is done by
//! `partitions/supervisor`. Standard output is data, standard error is for people, and whatever
//! Bulkhead itself gets wrong ends with one sentence there and status 125.
#![forbid(unsafe_code)]

mod act;
mod approvals;
mod cli;
mod command;
mod doctor;
mod down;
mod failure;
mod gdb;
mod inheritance;
mod input;
mod key;
mod ledger;
mod logs;
mod manifest;
mod model;
mod policy;
mod prompt;
mod ps;
mod recorder;
mod run;
mod secret;
mod signals;
mod stats;
mod stop;
mod table;
mod terminal;
mod up;
mod why;

use bulkhead_supervisor::{Act, reason};
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use failure::{Failure, STATUS_FAILED};
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are answers. Without a word, help is what was missing.
        Err(error) if !error.use_stderr() || shows_help(&error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { STATUS_FAILED } else { 0 });
        }
        Err(error) => {
            let failure = Failure::usage(&error);
            failure.print();
            return ExitCode::from(failure.status);
        }
    };
    match dispatch(cli.command) {
        Ok(status) => status,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.status)
        }
    }
}

fn shows_help(error: &clap::Error) -> bool {
    error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => run::run(*args).map(ExitCode::from),
        Command::Up(args) => up::run(&args).map(ExitCode::from),
        Command::Down(args) => down::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Ps(args) => ps::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Logs(args) => logs::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Pause(args) => done(act::quietly(&args.partition, Act::Pause)),
        Command::Resume(args) => done(match &args.partition {
            Some(partition) => act::quietly(partition, Act::Resume),
            None => stop::resume(),
        }),
        Command::Stop(args) => done(stop::run(&args)),
        Command::Attach(args) => done(act::attach(&args)),
        Command::Detach(args) => done(act::detach(&args)),
        Command::Resize(args) => done(act::resize(&args)),
        Command::Stats(args) => done(stats::run(&args)),
        Command::Dump(args) => done(act::dump(&args)),
        Command::Manifest(command) => manifest::run(&command).map(ExitCode::from),
        Command::Key(command) => done(key::run(&command)),
        Command::Ledger(command) => done(ledger::run(&command)),
        Command::Approvals(command) => done(approvals::run(&command)),
        Command::Secret(args) => done(secret::run(&args)),
        Command::Model(command) => done(model::run(&command)),
        Command::Policy(command) => done(policy::run(&command)),
        Command::Why(args) => done(why::run(&args)),
        Command::Doctor(args) => doctor::run(&args, bulkhead_supervisor::Library::location()?),
        Command::Version => {
            print(concat!("bulkhead ", env!("CARGO_PKG_VERSION"), "\n").as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bulkhead", &mut script);
            print(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn done(result: Result<(), Failure>) -> Result<ExitCode, Failure> {
    result.map(|()| ExitCode::SUCCESS)
}

/// Writes data to standard output. A reader that went away has what it wanted.
fn print(data: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            "output",
            format!("cannot write to standard output: {}", reason(&error)),
        )),
        _ => Ok(()),
    }
}
