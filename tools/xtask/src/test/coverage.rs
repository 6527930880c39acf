//! How much of the kernel's object logic its host tests reach: the figure is printed, and has to
//! be at least [`LEAST`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::summary::Counts;
use super::watch;
use crate::failure::{At, Failure, Result};
use crate::process::{cargo, output};
use crate::repo::Repo;
use crate::say::Say;

/// Package whose lines count.
const PACKAGE: &str = "bulkhead-kernel-core";
/// Its sources, from the root of the repository.
const SOURCES: &str = "guest-kernel/core/src";
/// Percent of lines.
const LEAST: f64 = 90.0;

/// Runs the package's tests instrumented.
pub(crate) fn check(repo: &Repo, say: &Say) -> Result<Counts> {
    let mut rustup = Command::new("rustup");
    // There is nothing to do where it is there; without rustup the tools may be there all the same.
    let _ = output(
        rustup
            .args(["component", "add", "llvm-tools"])
            .current_dir(repo.root()),
    );
    let Some(tools) = tools(repo)? else {
        return Ok(Counts::skipped(
            "no llvm-tools: rustup component add llvm-tools",
        ));
    };
    let target = repo.target().join("coverage");
    let profiles = target.join("profiles");
    if profiles.exists() {
        fs::remove_dir_all(&profiles).at("remove", &profiles)?;
    }
    let mut build = cargo(repo.root());
    build.env("RUSTFLAGS", "-C instrument-coverage");
    build.env("LLVM_PROFILE_FILE", profiles.join("build-%p.profraw"));
    build.args(["test", "--quiet", "--no-run", "--message-format", "json"]);
    build
        .args(["--lib", "--package", PACKAGE, "--target-dir"])
        .arg(&target);
    let tests = executable(&output(&mut build)?)
        .ok_or_else(|| Failure::new(format!("cargo built no tests of {PACKAGE}")))?;
    let mut run = Command::new(&tests);
    run.current_dir(repo.root().join("guest-kernel/core"));
    run.env("LLVM_PROFILE_FILE", profiles.join("tests-%p.profraw"));
    if !watch::run(run.arg("--quiet"), super::checks::LIMIT, |_| ())?
        .is_some_and(|status| status.success())
    {
        return Ok(Counts::failed("the instrumented tests failed"));
    }
    let merged = profiles.join("merged");
    let mut merge = Command::new(tools.join("llvm-profdata"));
    merge.args(["merge", "--sparse", "--output"]).arg(&merged);
    for entry in fs::read_dir(&profiles).at("read", &profiles)? {
        let path = entry.at("read", &profiles)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("tests-") {
            merge.arg(path);
        }
    }
    output(&mut merge)?;
    let mut export = Command::new(tools.join("llvm-cov"));
    export.args(["export", "--format", "lcov"]);
    export.arg(format!("--instr-profile={}", merged.display()));
    let report = output(export.arg(&tests))?;
    let sources = repo.root().join(SOURCES);
    let (reached, lines) = reached(&report, |path| counts(&sources, path));
    if lines == 0 {
        return Ok(Counts::failed("the report names no line"));
    }
    let percent = 100.0 * reached as f64 / lines as f64;
    say.line(&format!(
        "host tests reach {reached} of {lines} lines of {SOURCES}: {percent:.1} %"
    ));
    Ok(if percent < LEAST {
        Counts::failed(format!("{percent:.1} % of the lines, of {LEAST} wanted"))
    } else {
        Counts::passed()
    })
}

/// Where the compiler's LLVM tools are, if they are installed.
fn tools(repo: &Repo) -> Result<Option<PathBuf>> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(repo.root());
    let directory = output(rustc.args(["--print", "target-libdir"]))?;
    let tools = Path::new(directory.trim()).with_file_name("bin");
    Ok(tools.join("llvm-cov").is_file().then_some(tools))
}

/// The test executable that cargo's messages name.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(rest.split_once('"')?.0.into())
    })
}

/// Whether a file is part of what counts: the package's own, but no tests.
fn counts(sources: &Path, path: &str) -> bool {
    let Ok(inside) = Path::new(path).strip_prefix(sources) else {
        return false;
    };
    !inside.components().any(|part| {
        ["tests", "fake.rs", "arena.rs"]
            .iter()
            .any(|test| part.as_os_str() == *test)
    })
}

/// Lines that were reached, and lines in all, of the files that count in an LCOV report.
fn reached(report: &str, counts: impl Fn(&str) -> bool) -> (u64, u64) {
    let (mut reached, mut lines, mut counting) = (0, 0, false);
    for line in report.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            counting = counts(path);
        } else if let Some(data) = line.strip_prefix("DA:").filter(|_| counting) {
            let hits = data.split(',').nth(1).unwrap_or("0");
            lines += 1;
            reached += u64::from(hits != "0");
        }
    }
    (reached, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_count_are_counted() {
        let report = "SF:/r/core/src/a.rs\nDA:1,5\nDA:2,0\nend_of_record\n\
                      SF:/r/core/src/tests/b.rs\nDA:1,1\nend_of_record\n\
                      SF:/r/other/c.rs\nDA:1,1\nend_of_record\n\
                      SF:/r/core/src/d/e.rs\nDA:9,1\nend_of_record\n";
        let sources = Path::new("/r/core/src");
        assert_eq!(reached(report, |path| counts(sources, path)), (2, 3));
    }

    #[test]
    fn the_executable_is_found_among_messages() {
        let messages = "{\"reason\":\"x\",\"executable\":null}\n\
                        {\"reason\":\"y\",\"executable\":\"/t/debug/deps/core-1\",\"fresh\":true}";
        assert_eq!(executable(messages), Some("/t/debug/deps/core-1".into()));
        assert_eq!(executable("{\"executable\":null}"), None);
    }
}
