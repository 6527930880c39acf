//! `abi`: everything that is made from `guest-kernel/abi/kernel.toml`. The description is read in
//! [`description`]; [`rust`], [`header`] and [`docs`] write what others read.

mod description;
mod docs;
mod header;
mod place;
mod rust;
mod text;

use std::fs;
use std::path::PathBuf;

use crate::failure::{At, Failure, Result};
use crate::repo::Repo;
use description::Description;

/// The description, from the repository's root.
const DESCRIPTION: &str = "guest-kernel/abi/kernel.toml";
/// Where the Rust modules go.
const MODULES: &str = "guest-kernel/abi/src/generated";
/// The C header.
const HEADER: &str = "guest-kernel/abi/include/bulkhead/abi.h";
/// The page with the tables.
const DOCS: &str = "docs/kernel-abi.md";

/// A file, and what has to be in it.
struct Output {
    path: PathBuf,
    text: String,
}

/// Writes what differs.
pub(crate) fn write(repo: &Repo) -> Result<()> {
    for output in stale(repo)? {
        fs::write(&output.path, output.text).at("write", &output.path)?;
        eprintln!("abi: wrote {}", output.path.display());
    }
    Ok(())
}

/// Fails when something differs.
pub(crate) fn check(repo: &Repo) -> Result<()> {
    let stale = stale(repo)?;
    if stale.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = stale
        .iter()
        .map(|output| output.path.display().to_string())
        .collect();
    let failure = Failure::new(format!(
        "{DESCRIPTION} says something else than {}",
        names.join(", ")
    ));
    Err(failure.remedy("cargo xtask abi"))
}

/// The files that differ from what the description makes of them.
fn stale(repo: &Repo) -> Result<Vec<Output>> {
    let root = repo.root();
    let read = |name: &str| {
        let path = root.join(name);
        fs::read_to_string(&path).at("read", &path)
    };
    let description = Description::parse(&read(DESCRIPTION)?)?;
    let mut outputs = Vec::new();
    for (name, text) in rust::modules(&description)? {
        let path = root.join(MODULES).join(name);
        outputs.push(Output { path, text });
    }
    let (path, text) = (root.join(HEADER), header::header(&description)?);
    outputs.push(Output { path, text });
    let (path, text) = (root.join(DOCS), docs::fill(&read(DOCS)?, &description)?);
    outputs.push(Output { path, text });
    outputs.retain(|output| fs::read_to_string(&output.path).ok().as_ref() != Some(&output.text));
    Ok(outputs)
}

#[cfg(test)]
mod tests;
