//! `fuzz`: the targets of `tests/fuzz`, run for a time, and the page that says what they reached. The
//! check of the same name in [`crate::test`] is this with a short time.
//!
//! [`targets`] knows them, [`log`] reads what libFuzzer said, [`coverage`] measures, [`docs`] writes.

mod coverage;
mod docs;
mod log;
mod targets;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::failure::{At, Failure, Result};
use crate::process::{output, run};
use crate::repo::Repo;
use crate::say::Say;
use crate::test::watch;
use log::Log;
use targets::{FOLDER, Target};

/// The target that cargo-fuzz builds for.
const HOST: &str = "x86_64-unknown-linux-gnu";
/// How long a target may take beyond its time.
const MARGIN: Duration = Duration::from_secs(180);
/// One input that takes longer is a hang, in seconds.
const HANG_SECONDS: u32 = 60;
/// Lines of a failed target's log that are shown.
const SHOWN: usize = 40;

/// Options of `cargo xtask fuzz`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The targets; all of them when none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// How many run at once; as many as there are CPUs when it is not given
    #[arg(long)]
    jobs: Option<usize>,
    /// Run nothing: measure what the inputs found so far reach, and write that and the figures of
    /// the last run into docs/fuzzing.md
    #[arg(long)]
    record: bool,
}

/// How a target's run ended.
pub(crate) struct Outcome {
    /// Its name.
    pub(crate) target: String,
    /// Why it failed.
    pub(crate) failure: Option<String>,
}

/// Runs the chore; 0 when no target failed.
pub(crate) fn run_chore(repo: &Repo, options: &Options) -> Result<i32> {
    let say = Say::new("fuzz");
    require_tools(repo)?;
    let targets = targets::select(repo, &options.targets)?;
    if options.record {
        let mut reached = Vec::new();
        for target in &targets {
            say.step(&format!("measuring {}", target.name));
            reached.push(coverage::measure(repo, target)?);
        }
        docs::record(repo, &targets, &reached)?;
        return Ok(0);
    }
    let jobs = options.jobs.unwrap_or_else(cpus);
    let outcomes = run_targets(repo, &say, &targets, options.seconds, jobs)?;
    let failed = outcomes.iter().any(|outcome| outcome.failure.is_some());
    Ok(i32::from(failed))
}

/// Every target for `seconds`, for `cargo xtask test`.
pub(crate) fn run_all(repo: &Repo, say: &Say, seconds: u32) -> Result<Vec<Outcome>> {
    let targets = targets::select(repo, &[])?;
    run_targets(repo, say, &targets, seconds, cpus())
}

fn cpus() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// `rustup run nightly cargo`, free of what the outer cargo set for its own toolchain.
pub(crate) fn nightly(repo: &Repo) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]);
    command.current_dir(repo.root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let keep = ["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&text.as_ref());
        if (text.starts_with("CARGO") || text.starts_with("RUST")) && !keep {
            command.env_remove(name);
        }
    }
    command
}

/// Fails, with the command that helps, where the targets cannot be built.
pub(crate) fn require_tools(repo: &Repo) -> Result<()> {
    for (args, what, remedy) in [
        (
            &["--version"][..],
            "nightly compiler",
            "rustup toolchain install nightly",
        ),
        (
            &["fuzz", "--version"],
            "cargo-fuzz",
            "cargo install --locked cargo-fuzz",
        ),
    ] {
        if output(nightly(repo).args(args)).is_err() {
            return Err(Failure::new(format!("there is no {what}")).remedy(remedy));
        }
    }
    Ok(())
}

fn run_targets(
    repo: &Repo,
    say: &Say,
    targets: &[Target],
    seconds: u32,
    jobs: usize,
) -> Result<Vec<Outcome>> {
    let built = repo.target().join("fuzz");
    say.step("building the targets");
    let mut build = nightly(repo);
    build.args(["fuzz", "build", "--fuzz-dir", FOLDER, "--target-dir"]);
    build.arg(&built);
    // One, or all: cargo-fuzz builds no selection.
    if let [target] = targets {
        build.arg(&target.name);
    }
    run(&mut build)?;
    say.step(&format!("{} targets, {seconds} s each", targets.len()));
    let waiting = Mutex::new(targets.iter());
    let outcomes = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        while let Some(target) = lock(&waiting).next() {
            let outcome = run_target(repo, target, seconds)?;
            let log = log_of(repo, target);
            match &outcome.failure {
                None => say.line(&Log::read(&log)?.line(&target.name)),
                Some(failure) => {
                    let text = fs::read_to_string(&log).at("read", &log)?;
                    let lines: Vec<_> = text.lines().collect();
                    let end = lines.get(lines.len().saturating_sub(SHOWN)..);
                    let end = end.unwrap_or_default().join("\n");
                    say.line(&format!("{} failed: {failure}\n{end}", target.name));
                }
            }
            lock(&outcomes).push(outcome);
        }
        Ok(())
    };
    let ends = thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let ends = threads.into_iter().map(|thread| thread.join());
        ends.collect::<Vec<_>>()
    });
    for end in ends {
        end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    }
    Ok(outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the last run of `target` said.
fn log_of(repo: &Repo, target: &Target) -> PathBuf {
    let logs = repo.target().join("fuzz/logs");
    logs.join(format!("{}.log", target.name))
}

fn run_target(repo: &Repo, target: &Target, seconds: u32) -> Result<Outcome> {
    let folder = repo.root().join(FOLDER);
    let artifacts = folder.join("artifacts").join(&target.name);
    let log = log_of(repo, target);
    let directories = [target.found(repo), artifacts.clone()];
    let parents = log.parent().into_iter();
    for directory in parents.chain(directories.iter().map(PathBuf::as_path)) {
        fs::create_dir_all(directory).at("create", directory)?;
    }
    let built = repo.target().join("fuzz").join(HOST).join("release");
    let mut command = Command::new(built.join(&target.name));
    command.args(target.inputs(repo));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-timeout={HANG_SECONDS}"));
    command.arg("-print_final_stats=1");
    // As `cargo fuzz run` sets it: two crates may well have a symbol in common.
    command.env("ASAN_OPTIONS", "detect_odr_violation=0");
    command.stderr(File::create(&log).at("create", &log)?);
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    let failure = match watch::run(&mut command, limit, |_| ())? {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("{status}; the input is in {}", artifacts.display())),
        None => Some(format!("did not end within {} s", limit.as_secs())),
    };
    Ok(Outcome {
        target: target.name.clone(),
        failure,
    })
}
