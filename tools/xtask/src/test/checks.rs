//! The checks that need no guest: format, lints, licences, documentation, tests of the host tier,
//! Miri, fuzzing.

use std::process::Command;
use std::time::Duration;

use super::libtest::Reader;
use super::summary::Counts;
use super::watch;
use crate::failure::Result;
use crate::fuzz::{self, nightly};
use crate::process::{cargo, output, which};
use crate::repo::{BARE, Repo, in_ci};
use crate::say::Say;

/// Bound on one check.
pub(super) const LIMIT: Duration = Duration::from_secs(20 * 60);
/// How long one fuzz target runs, in seconds.
const FUZZ_SECONDS: u32 = 5;
/// Packages without `unsafe` of their own making that Miri can run in reasonable time.
const MIRI_PACKAGES: [&str; 2] = ["bulkhead-abi", "bulkhead-kernel-core"];
/// Packages that build for [`BARE`] only.
pub(crate) const BARE_PACKAGES: [&str; 9] = [
    "bulkhead-kernel",
    "bulkhead-runtime",
    "bulkhead-linux",
    "bulkhead-probe",
    "bulkhead-conformance",
    "bulkhead-hostile",
    "bulkhead-paths",
    "bulkhead-hostile-driver",
    "hello-native",
];

/// One command, one check.
fn check(command: &mut Command) -> Result<Counts> {
    Ok(match watch::run(command, LIMIT, |_| ())? {
        Some(status) if status.success() => Counts::passed(),
        Some(status) => Counts::failed(status.to_string()),
        None => Counts::failed(format!("took more than {} s", LIMIT.as_secs())),
    })
}

/// One command that runs tests.
pub(crate) fn tests(command: &mut Command, limit: Duration) -> Result<Counts> {
    let mut reader = Reader::default();
    let status = watch::run(command, limit, |line| reader.line(line))?;
    let mut counts = reader.finish(status.is_some_and(|status| status.success()));
    if status.is_none() {
        let note = format!("took more than {} s", limit.as_secs());
        counts.notes.push(note);
    }
    Ok(counts)
}

/// rustfmt.
pub(crate) fn format(repo: &Repo) -> Result<Counts> {
    check(cargo(repo.root()).args(["fmt", "--all", "--check"]))
}

/// clippy, for the host and for the guest, warnings denied.
pub(crate) fn lints(repo: &Repo) -> Result<Counts> {
    let deny = ["--", "-D", "warnings"];
    let mut counts = check(
        cargo(repo.root())
            .args(["clippy", "--quiet", "--all-targets"])
            .args(deny),
    )?;
    let mut guest = cargo(repo.root());
    guest.args(["clippy", "--quiet", "--release", "--target", BARE]);
    for package in BARE_PACKAGES {
        guest.args(["--package", package]);
    }
    counts.add(check(guest.args(deny))?);
    Ok(counts)
}

/// rustdoc, warnings denied.
pub(crate) fn docs(repo: &Repo) -> Result<Counts> {
    check(
        cargo(repo.root())
            .args(["doc", "--quiet", "--no-deps"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )
}

/// Licences, bans and sources; advisories where their database can be fetched.
pub(crate) fn dependencies(repo: &Repo, say: &Say) -> Result<Counts> {
    if which("cargo-deny").is_none() && !cargo_has(repo, "deny") {
        if !in_ci() {
            return Ok(Counts::skipped(
                "no cargo-deny: cargo install --locked cargo-deny",
            ));
        }
        say.line("installing cargo-deny");
        let mut install = cargo(repo.root());
        let counts = check(install.args(["install", "--quiet", "--locked", "cargo-deny"]))?;
        if counts.failed > 0 {
            return Ok(Counts::skipped("cargo-deny cannot be installed here"));
        }
    }
    let deny = |what: &[&str]| {
        let mut command = cargo(repo.root());
        command.args(["deny", "--log-level", "error"]).args(what);
        command
    };
    let mut counts = check(&mut deny(&["check", "licenses", "bans", "sources"]))?;
    counts.add(match output(&mut deny(&["fetch", "db"])) {
        Ok(_) => check(&mut deny(&["check", "--disable-fetch", "advisories"]))?,
        Err(_) => Counts::skipped("advisories: their database cannot be reached from here"),
    });
    Ok(counts)
}

fn cargo_has(repo: &Repo, subcommand: &str) -> bool {
    output(cargo(repo.root()).args([subcommand, "--version"])).is_ok()
}

/// Unit and documentation tests that need no KVM, and benchmarks, which have to build.
pub(crate) fn host(repo: &Repo, filter: Option<&str>) -> Result<Counts> {
    let cargo_test = |what: &[&str]| {
        let mut command = cargo(repo.root());
        command.args(["test", "--no-fail-fast"]).args(what);
        command
    };
    // Only integration tests have tiers: a unit test's module may well be called `lab`.
    let mut counts = tests(cargo_test(&["--lib", "--bins"]).args(filter), LIMIT)?;
    let mut suites = cargo_test(&["--test", "*"]);
    suites.args(filter).args(["--", "--show-output"]);
    suites.args(["--skip", "kvm::", "--skip", "lab::"]);
    counts.add(tests(&mut suites, LIMIT)?);
    counts.add(tests(cargo_test(&["--doc"]).args(filter), LIMIT)?);
    if filter.is_none() {
        counts.add(check(cargo(repo.root()).args([
            "build",
            "--quiet",
            "--benches",
        ]))?);
    }
    Ok(counts)
}

/// The kernel's logic under Miri.
pub(crate) fn miri(repo: &Repo) -> Result<Counts> {
    let there = || output(nightly(repo).args(["miri", "--version"])).is_ok();
    if !there() && in_ci() && output(nightly(repo).arg("--version")).is_ok() {
        let mut add = Command::new("rustup");
        add.args(["component", "add", "--toolchain", "nightly"]);
        output(add.args(["miri", "rust-src"]).current_dir(repo.root()))?;
    }
    if !there() {
        return Ok(Counts::skipped(
            "no Miri: rustup toolchain install nightly --component miri,rust-src",
        ));
    }
    let mut command = nightly(repo);
    command.args(["miri", "test", "--no-fail-fast"]);
    command.arg("--target-dir").arg(repo.target().join("miri"));
    // Property tests shrink their case numbers: Miri is a hundred times slower.
    command.env("PROPTEST_CASES", "8");
    command.env("MIRIFLAGS", "-Zmiri-disable-isolation");
    for package in MIRI_PACKAGES {
        command.args(["--package", package]);
    }
    tests(command.args(["--lib"]), LIMIT)
}

/// Every fuzz target for [`FUZZ_SECONDS`].
pub(crate) fn fuzz(repo: &Repo, say: &Say) -> Result<Counts> {
    if output(nightly(repo).arg("--version")).is_ok()
        && output(nightly(repo).args(["fuzz", "--version"])).is_err()
        && in_ci()
    {
        say.line("installing cargo-fuzz");
        let mut install = cargo(repo.root());
        check(install.args(["install", "--quiet", "--locked", "cargo-fuzz"]))?;
    }
    if let Err(failure) = fuzz::require_tools(repo) {
        return Ok(Counts::skipped(failure.to_string()));
    }
    let mut counts = Counts::default();
    for outcome in fuzz::run_all(repo, say, FUZZ_SECONDS)? {
        counts.add(match outcome.failure {
            None => Counts::passed(),
            Some(failure) => Counts::failed(format!("{}: {failure}", outcome.target)),
        });
    }
    Ok(counts)
}
