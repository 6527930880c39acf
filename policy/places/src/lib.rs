//! Where policy lives on the host: what operators configure (keys that are trusted, roles, the deny
//! list), and what has to last (ledger, vault). What lasts only as long as a system runs is in the
//! supervisor's state directory instead.
//!
//! Both are private directories: of this user, open to nobody else. They are checked whenever they
//! are used, since whoever could write there could grant anything.
#![forbid(unsafe_code)]

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A directory of one of the two kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It, or something above it, cannot be reached.
    #[error("cannot use the directory `{}`: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not private.
    #[error("the directory `{}` {problem}", path.display())]
    Unsafe {
        /// Which.
        path: PathBuf,
        /// What is wrong, as a clause.
        problem: &'static str,
    },
    /// Neither the environment nor the user's home says where it is.
    #[error("there is no place for {what}: neither {variable} nor HOME is set")]
    Nowhere {
        /// For what.
        what: &'static str,
        /// Which variable would say it.
        variable: &'static str,
    },
}

impl PlaceError {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "place-unusable",
            Self::Unsafe { .. } => "place-unsafe",
            Self::Nowhere { .. } => "place-unknown",
        }
    }
}

impl Place {
    /// What operators configure: `$BULKHEAD_CONFIG_DIR`; else `/etc/bulkhead` for root; else
    /// `$XDG_CONFIG_HOME/bulkhead`, or `~/.config/bulkhead`. It is not made.
    ///
    /// # Errors
    /// There is no home, or the path is relative.
    pub fn config() -> Result<Self, PlaceError> {
        let variables = ("BULKHEAD_CONFIG_DIR", "XDG_CONFIG_HOME");
        Self::locate("keys and roles", variables, "/etc/bulkhead", ".config")
    }

    /// What has to last: `$BULKHEAD_DATA_DIR`; else `/var/lib/bulkhead` for root; else
    /// `$XDG_STATE_HOME/bulkhead`, or `~/.local/state/bulkhead`. It is not made.
    ///
    /// # Errors
    /// There is no home, or the path is relative.
    pub fn data() -> Result<Self, PlaceError> {
        let variables = ("BULKHEAD_DATA_DIR", "XDG_STATE_HOME");
        Self::locate(
            "ledger and vault",
            variables,
            "/var/lib/bulkhead",
            ".local/state",
        )
    }

    /// The second place of the ledger, which vouches for how long it is: `$BULKHEAD_CHECKPOINT_DIR`; else
    /// `checkpoints` in [`Place::config`], so that it is apart from the ledger. It is not made.
    ///
    /// # Errors
    /// There is no home, or the path is relative.
    pub fn checkpoints() -> Result<Self, PlaceError> {
        match variable("BULKHEAD_CHECKPOINT_DIR") {
            Some(path) => Self::at(&path),
            None => Ok(Self::config()?.below("checkpoints")),
        }
    }

    fn locate(
        what: &'static str,
        (own, shared): (&'static str, &'static str),
        of_root: &str,
        below_home: &str,
    ) -> Result<Self, PlaceError> {
        let path = if let Some(path) = variable(own) {
            path
        } else if rustix::process::getuid().is_root() {
            PathBuf::from(of_root)
        } else if let Some(shared) = variable(shared).filter(|path| path.is_absolute()) {
            shared.join("bulkhead")
        } else if let Some(home) = variable("HOME") {
            home.join(below_home).join("bulkhead")
        } else {
            let variable = own;
            return Err(PlaceError::Nowhere { what, variable });
        };
        Self::at(&path)
    }

    /// The directory at `path`.
    ///
    /// # Errors
    /// The path is relative: it would be another one in every working directory.
    pub fn at(path: &Path) -> Result<Self, PlaceError> {
        let path = path.to_owned();
        if path.is_relative() {
            let problem = "has no absolute path";
            return Err(PlaceError::Unsafe { path, problem });
        }
        Ok(Self { path })
    }

    /// A directory below this one; `name` is one component.
    pub fn below(&self, name: &str) -> Self {
        Self {
            path: self.path.join(name),
        }
    }

    /// Its path. Nothing says that it exists.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, if it exists: checked to be private.
    ///
    /// # Errors
    /// It is not private, or cannot be looked at.
    pub fn existing(&self) -> Result<Option<&Path>, PlaceError> {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => self.check(&metadata).map(|()| Some(self.path())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// The directory: made, with mode 0700, if it does not exist, and what is above it too.
    ///
    /// # Errors
    /// It is not private, or cannot be made.
    pub fn make(&self) -> Result<&Path, PlaceError> {
        let made = DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.path);
        made.map_err(|source| self.failed(source))?;
        let metadata = fs::symlink_metadata(&self.path).map_err(|source| self.failed(source))?;
        self.check(&metadata)?;
        Ok(&self.path)
    }

    fn check(&self, metadata: &fs::Metadata) -> Result<(), PlaceError> {
        let problem = if !metadata.is_dir() {
            "is no directory"
        } else if metadata.uid() != rustix::process::getuid().as_raw() {
            "belongs to another user"
        } else if metadata.mode() & 0o077 != 0 {
            "is open to other users (chmod 700 would close it)"
        } else {
            return Ok(());
        };
        let path = self.path.clone();
        Err(PlaceError::Unsafe { path, problem })
    }

    fn failed(&self, source: io::Error) -> PlaceError {
        let path = self.path.clone();
        PlaceError::Io { path, source }
    }
}

/// A path from the environment.
fn variable(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::tempdir;

    #[test]
    fn a_place_is_private_or_not_used() {
        let dir = tempdir().unwrap();
        let place = Place::at(&dir.path().join("a/b")).unwrap().below("c");
        assert!(place.existing().unwrap().is_none());
        let path = place.make().unwrap().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(place.existing().unwrap(), Some(path.as_path()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(place.existing().unwrap_err().code(), "place-unsafe");
        assert_eq!(place.make().unwrap_err().code(), "place-unsafe");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let link = Place::at(&dir.path().join("link")).unwrap();
        symlink(&path, link.path()).unwrap();
        assert_eq!(link.existing().unwrap_err().code(), "place-unsafe");
        assert!(Place::at(Path::new("relative")).is_err());
    }
}
