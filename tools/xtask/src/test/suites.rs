//! The end-to-end suites of `tests/`: on this machine's KVM, and in the lab. The same binaries
//! run in both; a test's module (`kvm` or `lab`) says where it can.

use std::fs;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checks::tests;
use super::libtest::Reader;
use super::summary::Counts;
use crate::failure::{At, Failure, Result};
use crate::lab;
use crate::process::{cargo, output};
use crate::repo::{MUSL, Repo, in_ci};

/// Bound on the suites of one tier.
const LIMIT: Duration = Duration::from_secs(45 * 60);

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

/// The suites' tests of these modules in the lab, in one boot.
pub(crate) fn in_lab(repo: &Repo, modules: &[&str], filter: Option<&str>) -> Result<Counts> {
    if let Some(missing) = lab::missing() {
        return Ok(if in_ci() {
            Counts::failed(missing)
        } else {
            eprintln!("test: THE LAB TIER IS SKIPPED: {missing}; run `cargo xtask setup`");
            Counts::skipped(missing)
        });
    }
    let dir = suites(repo)?;
    let mut words: Vec<String> = match filter {
        None => modules.iter().map(|module| format!("{module}::")).collect(),
        Some(filter) => vec![filter.to_owned()],
    };
    for module in ["kvm", "lab"] {
        if !modules.contains(&module) {
            words.extend(["--skip".to_owned(), format!("{module}::")]);
        }
    }
    // Every binary runs even after one failed.
    let script = "status=0; for suite in suites/*; do echo \"Running $suite\"; \
                  $suite --show-output --test-threads=1 \"$@\" || status=1; done; exit $status";
    let kernel = repo.dist().join("lib/bulkhead/kernel");
    let hash = output(std::process::Command::new("sha256sum").arg(&kernel))?;
    let hash = hash.split_whitespace().next().unwrap_or_default();
    let options = lab::Options {
        timeout: LIMIT.as_secs(),
        memory: 3072,
        with: vec![dir],
        debian: true,
        env: vec![
            "BULKHEAD_DIST=/opt/bulkhead".into(),
            format!("BULKHEAD_KERNEL_SHA256={hash}"),
        ],
        ..lab::Options::default()
    };
    let mut command = ["sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    command.extend(words);
    let mut tee = Tee::default();
    let status = lab::run_into(repo, &options, &command, &mut tee, &mut stderr(), false);
    let (ok, note) = match status {
        Ok(status) => (status == 0, None),
        Err(failure) => (false, Some(failure.to_string())),
    };
    let mut counts = tee.reader.finish(ok);
    counts.notes.extend(note);
    Ok(counts)
}

/// Passes output on and reads it line by line.
#[derive(Default)]
struct Tee {
    reader: Reader,
    line: Vec<u8>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        stdout().write_all(bytes)?;
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' {
                self.reader.line(&String::from_utf8_lossy(&self.line));
                self.line.clear();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        stdout().flush()
    }
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
