//! The end-to-end suites of `tests/`: on this machine's KVM, and in the lab. The same binaries
//! run in both; a test's module (`kvm` or `lab`) says where it can.

use std::fs;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::checks::tests;
use super::libtest::Reader;
use super::summary::Counts;
use crate::failure::{At, Failure, Result};
use crate::instructions;
use crate::lab::{self, Lab};
use crate::process::{cargo, output};
use crate::repo::{MUSL, Repo, in_ci};
use crate::say::Say;

/// Bound on the suites on this machine's KVM.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Bound on one suite in the lab, boot included. The longest takes 5 minutes on an idle machine.
const LAB_LIMIT: Duration = Duration::from_secs(25 * 60);

/// Suites whose `kvm` tests are about processes of the host and not about its KVM: the lab repeats
/// them only where there is no other.
const ONCE: [&str; 11] = [
    "bad_input",
    "cli",
    "conditions",
    "emergency",
    "ledger",
    "manifest",
    "redteam_exhaustion",
    "redteam_manifest",
    "redteam_tools",
    "redteam_vmm",
    "tools",
];

/// Why a suite runs a second time.
const TWICE: &str = "the emulator delivered an interrupt to its guest twice";

/// True where this machine's `/dev/kvm` can be used by us.
pub(crate) fn kvm_usable() -> bool {
    fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

/// The suites' `kvm` tests on this machine.
pub(crate) fn on_host(repo: &Repo, filter: Option<&str>) -> Result<Counts> {
    let mut command = cargo(repo.root());
    command.args(["test", "--no-fail-fast", "--test", "*", "--"]);
    command.args(["--show-output", "--test-threads=1"]);
    // The harness cannot ask for both a module and a text: leave the other module out instead.
    command.args([filter.unwrap_or("kvm::"), "--skip", "lab::"]);
    command.env("BULKHEAD_DIST", repo.dist());
    tests(&mut command, LIMIT)
}

/// The kernel's instructions: on this machine's KVM, in the lab where there is none.
pub(crate) fn instructions(repo: &Repo) -> Result<Counts> {
    let in_lab = !kvm_usable();
    if in_lab && let Some(missing) = lab::missing() {
        return Ok(no_lab(missing));
    }
    let problems = instructions::check(repo, in_lab)?;
    Ok(if problems.is_empty() {
        Counts::passed()
    } else {
        Counts::failed(problems.join("; "))
    })
}

/// What counts instead of what only the lab could do.
fn no_lab(missing: String) -> Counts {
    if in_ci() {
        return Counts::failed(missing);
    }
    eprintln!("test: THE LAB TIER IS SKIPPED: {missing}; run `cargo xtask setup`");
    Counts::skipped(missing)
}

/// The suites' tests of these modules in the lab: one boot a suite, several side by side, for the
/// emulated host has one processor.
pub(crate) fn in_lab(
    repo: &Repo,
    modules: &[&str],
    filter: Option<&str>,
    say: &Say,
) -> Result<Counts> {
    if let Some(missing) = lab::missing() {
        return Ok(no_lab(missing));
    }
    let words = |modules: &[&str]| -> Vec<String> {
        let mut words: Vec<String> = match filter {
            None => modules.iter().map(|module| format!("{module}::")).collect(),
            Some(filter) => vec![filter.to_owned()],
        };
        for module in ["kvm", "lab"] {
            if !modules.contains(&module) {
                words.extend(["--skip".to_owned(), format!("{module}::")]);
            }
        }
        words
    };
    let words_of = |suite: &str| match modules.contains(&"lab") && kvm_usable() {
        true if ONCE.contains(&suite) => words(&["lab"]),
        _ => words(modules),
    };
    let dir = suites(repo)?;
    let suites = with_tests(&dir, &words_of)?;
    let kernel = repo.dist().join("lib/bulkhead/kernel");
    let hash = output(Command::new("sha256sum").arg(&kernel))?;
    let hash = hash.split_whitespace().next().unwrap_or_default();
    let lab = Lab::get(
        repo,
        &lab::Options {
            timeout: LAB_LIMIT.as_secs(),
            memory: 3072,
            with: vec![dir],
            debian: true,
            env: vec![
                "BULKHEAD_DIST=/opt/bulkhead".into(),
                format!("BULKHEAD_KERNEL_SHA256={hash}"),
            ],
            ..lab::Options::default()
        },
    )?;
    let lanes = thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(suites.into_iter());
    let total = Mutex::new(Counts::default());
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some(suite) = next(&queue) {
                    let (mut counts, output) = one_in_lab(&lab, &suite, &words_of(&suite), say);
                    if counts.failed > 0 && delivered_twice(&output) {
                        say.line(&format!("suite {suite} once more: {TWICE}"));
                        counts = one_in_lab(&lab, &suite, &words_of(&suite), say).0;
                        counts.notes.push(format!("{suite}: run twice: {TWICE}"));
                    }
                    (total.lock().unwrap_or_else(PoisonError::into_inner)).add(counts);
                }
            });
        }
    });
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn next(queue: &Mutex<impl Iterator<Item = String>>) -> Option<String> {
    (queue.lock().unwrap_or_else(PoisonError::into_inner)).next()
}

/// Whether a guest's kernel, in `output`, died of an interrupt that QEMU delivered twice (docs/lab.md):
/// the second time upon the first instruction of the interrupt's own entry, where interrupts are
/// off. The kernel's own interrupts have entries of their names, those of devices stand in one table,
/// eight or sixteen bytes each.
fn delivered_twice(output: &str) -> bool {
    let first = |line: &str| -> Option<bool> {
        let (_, place) = line.split_once("RIP: 0010:")?;
        let (name, rest) = place.split_once("+0x")?;
        let (offset, _) = rest.split_once('/')?;
        let offset = u64::from_str_radix(offset, 16).ok()?;
        Some(match name {
            "irq_entries_start" => offset.is_multiple_of(8),
            _ => name.starts_with("asm_sysvec_") && offset == 0,
        })
    };
    output.lines().any(|line| first(line) == Some(true))
}

/// Runs one suite in a boot of its own and prints what it printed when it is over, whole; what it
/// counted, and that output.
fn one_in_lab(lab: &Lab, suite: &str, words: &[String], say: &Say) -> (Counts, String) {
    say.line(&format!("suite {suite} in the lab"));
    let since = Instant::now();
    let mut command = vec![format!("suites/{suite}")];
    command.extend(["--show-output", "--test-threads=1"].map(str::to_owned));
    command.extend_from_slice(words);
    let (mut out, mut chatter) = (Vec::new(), Vec::new());
    let status = lab.run(&command, &mut out, &mut chatter, false);
    {
        let (mut to, mut errors) = (stdout().lock(), stderr().lock());
        // Nobody is left to tell when these streams are gone; the counts do not depend on them.
        let _ = writeln!(to, "     Running {suite} in the lab").and_then(|()| to.write_all(&out));
        let _ = to.flush().and_then(|()| errors.write_all(&chatter));
    }
    let mut reader = Reader::default();
    let out = String::from_utf8_lossy(&out).into_owned();
    out.lines().for_each(|line| reader.line(line));
    let mut counts = reader.finish(matches!(status, Ok(0)));
    for note in &mut counts.notes {
        *note = format!("{suite}: {note}");
    }
    (counts.notes).extend(status.err().map(|failure| format!("{suite}: {failure}")));
    let seconds = since.elapsed().as_secs();
    let word = if counts.failed > 0 {
        "FAILED"
    } else {
        "passed"
    };
    say.line(&format!("suite {suite} {word} after {seconds} s"));
    (counts, out)
}

/// The suites in `dir` that have a test which their words select, in order: the others need no boot.
fn with_tests(dir: &Path, words_of: &impl Fn(&str) -> Vec<String>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).at("read", dir)? {
        let entry = entry.at("read", dir)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut list = Command::new(entry.path());
        let listed = output(list.arg("--list").args(words_of(&name)))?;
        if listed.lines().any(|line| line.ends_with(": test")) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Builds the suites statically and gathers them in one directory.
fn suites(repo: &Repo) -> Result<PathBuf> {
    let mut build = cargo(repo.root());
    // They are copied into the lab: without debug information they are a tenth of the size.
    build.env("CARGO_PROFILE_DEV_DEBUG", "0");
    let messages = output(build.args([
        "test",
        "--quiet",
        "--no-run",
        "--package",
        "bulkhead-tests",
        "--tests",
        "--target",
        MUSL,
        "--message-format",
        "json",
    ]))?;
    let dir = repo.lab().join("suites");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).at("create", &dir)?;
    let mut found = 0;
    for (name, file) in messages.lines().filter_map(executable) {
        let to = dir.join(name);
        fs::copy(&file, &to).at("copy", &file)?;
        found += 1;
    }
    if found == 0 {
        return Err(Failure::new("cargo built no test suite"));
    }
    Ok(dir)
}

/// The name and file of a test binary, from one of cargo's JSON messages.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let file = message.get("executable")?.as_str()?;
    let target = message.get("target")?;
    let is_test = (target.get("kind")?.as_array()?.iter()).any(|kind| kind == "test");
    let name = target.get("name")?.as_str()?;
    is_test.then(|| (name.to_owned(), Path::new(file).to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_interrupt_of_an_interrupts_entry_is_the_emulators_fault() {
        let trace = |line: &str| format!("BUG: stack guard page was hit\n[  390.4] {line}\n");
        let entry = "RIP: 0010:asm_sysvec_apic_timer_interrupt";
        assert!(delivered_twice(&trace(&format!("{entry}+0x0/0x20"))));
        assert!(!delivered_twice(&trace(&format!("{entry}+0x16/0x20"))));
        assert!(!delivered_twice(&trace(
            "RIP: 0010:exc_page_fault+0x0/0x170"
        )));
        assert!(delivered_twice(&trace(
            "RIP: 0010:irq_entries_start+0x248/0x660"
        )));
        assert!(!delivered_twice(&trace(
            "RIP: 0010:irq_entries_start+0x24a/0x660"
        )));
        assert!(!delivered_twice("Kernel panic - not syncing: VFS"));
    }

    #[test]
    fn only_suites_are_taken() {
        let line = |kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"cli"}},"executable":"/t/cli-1"}}"#
            )
        };
        assert_eq!(
            executable(&line("test")),
            Some(("cli".to_owned(), PathBuf::from("/t/cli-1")))
        );
        assert_eq!(executable(&line("lib")), None);
        assert_eq!(executable(r#"{"executable":null}"#), None);
        assert_eq!(executable("warning"), None);
    }
}
