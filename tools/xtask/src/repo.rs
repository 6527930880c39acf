//! Where things lie: the repository, its target directory, the tree that `build` lays out.

use std::env;
use std::path::{Path, PathBuf};

/// The host target of everything that ships.
pub(crate) const MUSL: &str = "x86_64-unknown-linux-musl";
/// The target of everything that runs inside a native or Linux-ABI partition.
pub(crate) const BARE: &str = "x86_64-unknown-none";

/// The repository's directories, all absolute.
#[derive(Clone, Debug)]
pub(crate) struct Repo {
    root: PathBuf,
    target: PathBuf,
}

impl Repo {
    /// Finds them: `cargo run` names this package's directory, two below the root.
    pub(crate) fn find() -> Self {
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package.ancestors().nth(2).unwrap_or(&package).to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        Self { root, target }
    }

    /// The repository's root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target directory.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The tree that `cargo xtask build` lays out.
    pub(crate) fn dist(&self) -> PathBuf {
        self.target.join("bulkhead")
    }

    /// Images and downloads of the lab.
    pub(crate) fn lab(&self) -> PathBuf {
        self.target.join("lab")
    }
}

/// True under `CI=true`: nothing asks, and nothing that is missing is passed over.
pub(crate) fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}
