//! The targets: their names and the code that each protects from `tests/fuzz/Cargo.toml`, what each
//! plays from the first lines of its file.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use crate::failure::{At, Failure, Result};
use crate::repo::Repo;

/// Where they are, from the repository's root.
pub(super) const FOLDER: &str = "tests/fuzz";

/// One target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) name: String,
    /// The first sentence of its documentation.
    pub(super) plays: String,
    /// Files and directories, from the repository's root.
    pub(super) protects: Vec<String>,
}

#[derive(Deserialize)]
struct Manifest {
    package: Package,
    bin: Vec<Bin>,
}

#[derive(Deserialize)]
struct Package {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    protects: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Bin {
    name: String,
    path: String,
}

/// All of them, by name.
pub(super) fn all(repo: &Repo) -> Result<Vec<Target>> {
    let folder = repo.root().join(FOLDER);
    let path = folder.join("Cargo.toml");
    let text = fs::read_to_string(&path).at("read", &path)?;
    let manifest: Manifest = toml::from_str(&text)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let mut protects = manifest.package.metadata.protects;
    let mut targets = Vec::new();
    for bin in manifest.bin {
        let source = folder.join(&bin.path);
        let text = fs::read_to_string(&source).at("read", &source)?;
        let plays = first_sentence(&text).ok_or_else(|| {
            Failure::new(format!("{} does not say what it plays", source.display()))
        })?;
        let protects = protects.remove(&bin.name).ok_or_else(|| {
            Failure::new(format!("nothing says what code {} protects", bin.name)).remedy(format!(
                "name it in [package.metadata.protects] of {FOLDER}/Cargo.toml"
            ))
        })?;
        targets.push(Target {
            name: bin.name,
            plays,
            protects,
        });
    }
    if let Some(name) = protects.keys().next() {
        return Err(Failure::new(format!("{FOLDER} has no target {name}")));
    }
    targets.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(targets)
}

/// Those that `names` names; all when it is empty.
pub(super) fn select(repo: &Repo, names: &[String]) -> Result<Vec<Target>> {
    let all = all(repo)?;
    if let Some(unknown) = names
        .iter()
        .find(|name| all.iter().all(|target| target.name != **name))
    {
        let known: Vec<_> = all.iter().map(|target| target.name.as_str()).collect();
        return Err(Failure::new(format!("there is no target {unknown}"))
            .remedy(format!("one of {}", known.join(", "))));
    }
    let wanted = |target: &Target| names.is_empty() || names.contains(&target.name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Of the documentation that a file begins with.
pub(super) fn first_sentence(text: &str) -> Option<String> {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    let lines: Vec<_> = lines.map(str::trim).collect();
    let text = lines.join(" ");
    let end = text.find(". ").unwrap_or(text.trim_end_matches('.').len());
    text.get(..end)
        .filter(|sentence| !sentence.is_empty())
        .map(str::to_owned)
}

impl Target {
    /// Where the inputs go that it finds.
    pub(super) fn found(&self, repo: &Repo) -> PathBuf {
        repo.root().join(FOLDER).join("corpus").join(&self.name)
    }

    /// The directories of its inputs: the first takes what is found; the second is in the tree, and
    /// may be absent.
    pub(super) fn inputs(&self, repo: &Repo) -> Vec<PathBuf> {
        let seeds = repo.root().join(FOLDER).join("seeds").join(&self.name);
        let mut inputs = vec![self.found(repo)];
        if seeds.is_dir() {
            inputs.push(seeds);
        }
        inputs
    }
}
