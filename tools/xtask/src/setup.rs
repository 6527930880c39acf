//! `setup`: what the other chores need from the system. Debian packages by name, Rust targets
//! through rustup, the stock kernel into the target directory.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin};
use std::process::Command;

use crate::failure::{Failure, Result};
use crate::lab::kernel::Kernel;
use crate::process::{output, require, run, shown, which};
use crate::repo::{BARE, MUSL, Repo, in_ci};
use crate::say::Say;

/// Every package, and what for.
const PACKAGES: [(&str, &str); 11] = [
    (
        "gcc",
        "links programs of the host, compiles native ones in C",
    ),
    ("libc6-dev", "links programs of the host"),
    (
        "musl-tools",
        "compiles the C of the TLS library for programs that ship",
    ),
    ("binutils", "reads the kernel image in tests"),
    ("qemu-system-x86", "the lab's emulated host"),
    ("qemu-utils", "disk images that tests read"),
    ("busybox-static", "the lab's commands, and a guest's"),
    ("e2fsprogs", "the lab's disk"),
    ("mmdebstrap", "the Debian that suites boot"),
    ("fakeroot", "its disk"),
    ("gdb", "debugging a guest"),
];

/// Installs what is missing.
pub(crate) fn run_all(repo: &Repo) -> Result<()> {
    let say = Say::new("setup");
    packages(&say)?;
    targets(repo, &say)?;
    Kernel::get(repo, &say)?;
    say.clear();
    Ok(())
}

/// [`run_all`] for chores that may do without: what is missing is said, and stops what needs it.
pub(crate) fn try_all(repo: &Repo) {
    if let Err(failure) = run_all(repo) {
        Say::new("setup").line(&format!("NOT COMPLETE: {failure}"));
    }
}

/// The Rust targets of rust-toolchain.toml: rustup adds them by itself unless it was told not to.
pub(crate) fn targets(repo: &Repo, say: &Say) -> Result<()> {
    if which("rustup").is_none() {
        say.line("rustup is not installed; the compiler's targets are taken as they are");
        return Ok(());
    }
    let rustup = || {
        let mut command = Command::new("rustup");
        command.current_dir(repo.root());
        command
    };
    let installed = output(rustup().args(["target", "list", "--installed"]))?;
    let missing: Vec<&str> = [BARE, MUSL]
        .into_iter()
        .filter(|target| !installed.lines().any(|line| line == *target))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    say.step(&format!("adding the Rust targets {}", missing.join(", ")));
    run(rustup().args(["target", "add"]).args(&missing))
}

fn packages(say: &Say) -> Result<()> {
    if which("dpkg-query").is_none() || which("apt-get").is_none() {
        let names: Vec<&str> = PACKAGES.iter().map(|(name, _)| *name).collect();
        say.line(&format!(
            "this is not Debian or Ubuntu: install what they call {}",
            names.join(" ")
        ));
        return Ok(());
    }
    let missing: Vec<&str> = PACKAGES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let root = rustix::process::geteuid().is_root();
    let install = installer(&missing);
    let by_hand = || {
        let command = shown(&install).replace(" -n ", " ");
        let failure = Failure::new(format!("missing packages: {}", missing.join(" ")));
        failure.remedy(match which("sudo") {
            None if !root => format!("as root: {}", command.trim_start_matches("sudo ")),
            _ => command,
        })
    };
    if !root && which("sudo").is_none() {
        return Err(by_hand());
    }
    if !in_ci() {
        if !(stdin().is_terminal() && stderr().is_terminal()) {
            return Err(by_hand());
        }
        for (name, purpose) in PACKAGES.iter().filter(|(name, _)| missing.contains(name)) {
            say.line(&format!("missing: {name} ({purpose})"));
        }
        if !confirmed(&format!("run `{}`?", shown(&install))) {
            return Err(by_hand());
        }
    }
    let mut update = privileged();
    update.args(["-q", "update"]);
    // Old lists may do; if they do not, the installation says so.
    if let Err(failure) = run(&mut update) {
        say.line(&format!("package lists stay as they are: {failure}"));
    }
    run(&mut installer(&missing))
}

fn installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]))
        .is_ok_and(|status| status == "install ok installed")
}

/// `apt-get`, as root one way or the other.
fn privileged() -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new("apt-get");
    }
    let mut command = Command::new("sudo");
    if in_ci() {
        // Nobody is there to type a password.
        command.arg("-n");
    }
    command.arg("apt-get");
    command
}

fn installer(packages: &[&str]) -> Command {
    let mut command = privileged();
    command
        .args(["-q", "install", "-y", "--no-install-recommends"])
        .args(packages);
    command
}

fn confirmed(question: &str) -> bool {
    let mut answer = String::new();
    let asked = write!(stderr(), "setup: {question} [y/N] ").and_then(|()| stderr().flush());
    asked.is_ok()
        && stdin().lock().read_line(&mut answer).is_ok()
        && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Fails early where a chore cannot do without `program`.
pub(crate) fn compiler() -> Result<()> {
    require("cc", "gcc").map(|_| ())
}
