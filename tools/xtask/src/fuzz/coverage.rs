//! How much of the code that a target protects its inputs reach: the target is built once more with
//! the compiler's own instrumentation, and all inputs run through it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::targets::{FOLDER, Target};
use super::{HOST, nightly};
use crate::failure::{Failure, Result};
use crate::process::output;
use crate::repo::Repo;

/// Lines of code, and how many of them were executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Lines {
    pub(super) count: u64,
    pub(super) covered: u64,
}

#[derive(Deserialize)]
struct Export {
    data: Vec<Data>,
}

#[derive(Deserialize)]
struct Data {
    files: Vec<Source>,
}

#[derive(Deserialize)]
struct Source {
    filename: PathBuf,
    summary: Summary,
}

#[derive(Deserialize)]
struct Summary {
    lines: Lines,
}

/// The lines of the code that `target` protects; nothing where the compiler's tools are missing.
pub(super) fn measure(repo: &Repo, target: &Target) -> Result<Option<Lines>> {
    let Some(llvm_cov) = llvm_cov(repo)? else {
        return Ok(None);
    };
    let built = repo.target().join("fuzz-coverage");
    let mut command = nightly(repo);
    command.args(["fuzz", "coverage", "--fuzz-dir", FOLDER, "--target-dir"]);
    command.arg(&built).arg(&target.name);
    command.args(target.inputs(repo));
    output(&mut command)?;
    let profile = repo.root().join(FOLDER).join("coverage");
    let profile = profile.join(&target.name).join("coverage.profdata");
    let binary = built.join(HOST).join("release").join(&target.name);
    let mut export = Command::new(llvm_cov);
    export.args(["export", "--summary-only", "--format=text"]);
    export.arg(format!("--instr-profile={}", profile.display()));
    export.arg(binary);
    lines_of(&output(&mut export)?, repo.root(), target).map(Some)
}

/// The tool that belongs to the compiler.
fn llvm_cov(repo: &Repo) -> Result<Option<PathBuf>> {
    let mut rustc = Command::new("rustup");
    rustc.args(["run", "nightly", "rustc", "--print", "target-libdir"]);
    rustc.current_dir(repo.root());
    let libraries = output(&mut rustc)?;
    let tool = Path::new(libraries.trim()).with_file_name("bin");
    let tool = tool.join("llvm-cov");
    Ok(tool.is_file().then_some(tool))
}

/// Adds up what `llvm-cov export` says of the files that `target` protects.
///
/// # Errors
/// A file or directory that it protects is not in the export.
pub(super) fn lines_of(export: &str, root: &Path, target: &Target) -> Result<Lines> {
    let export: Export = serde_json::from_str(export)
        .map_err(|error| Failure::new(format!("cannot read what llvm-cov exports: {error}")))?;
    let mut all = Lines::default();
    for protected in &target.protects {
        let within = root.join(protected);
        let files = export.data.iter().flat_map(|data| &data.files);
        let mut lines = Lines::default();
        for file in files.filter(|file| file.filename.starts_with(&within)) {
            lines.count += file.summary.lines.count;
            lines.covered += file.summary.lines.covered;
        }
        if lines.count == 0 {
            return Err(Failure::new(format!(
                "{} executes no code of {protected}",
                target.name
            )));
        }
        all.count += lines.count;
        all.covered += lines.covered;
    }
    Ok(all)
}
