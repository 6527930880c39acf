//! The library directory: the VMM, the kernels and the programs that come with Bulkhead.
//!
//! docs/process-model.md says what lies where.

use crate::error::Error;
use std::env;
use std::path::{Path, PathBuf};

/// An existing library directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    path: PathBuf,
}

/// A file of the library that the supervisor itself needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LibraryFile {
    Vmm,
    Kernel,
    LinuxPersonality,
    GuestAgent,
    Gateway,
    Fs,
    Tools,
    Ledger,
    Decision,
}

impl LibraryFile {
    fn name_and_what(self) -> (&'static str, &'static str) {
        match self {
            Self::Vmm => ("bulkhead-vmm", "VMM"),
            Self::Kernel => ("kernel", "microkernel"),
            Self::LinuxPersonality => ("linux-personality", "Linux personality"),
            Self::GuestAgent => ("guest-agent", "guest agent"),
            Self::Gateway => ("bulkhead-gateway", "gateway"),
            Self::Fs => ("bulkhead-fs", "server of shared directories"),
            Self::Tools => ("bulkhead-tools", "tools"),
            Self::Ledger => ("bulkhead-ledger", "writer of the ledger"),
            Self::Decision => ("bulkhead-decision", "process that answers for conditions"),
        }
    }
}

impl Library {
    /// Where the library should be: `$BULKHEAD_LIB`, else `../lib/bulkhead` from the running
    /// program.
    ///
    /// # Errors
    /// The running program cannot be found.
    pub fn location() -> Result<PathBuf, Error> {
        if let Some(path) = env::var_os("BULKHEAD_LIB").filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        let program = env::current_exe().map_err(Error::system("find this program"))?;
        let prefix = program
            .parent()
            .and_then(Path::parent)
            .unwrap_or(Path::new("/"));
        Ok(prefix.join("lib/bulkhead"))
    }

    /// Finds the library at its [`Library::location`].
    ///
    /// # Errors
    /// It does not exist.
    pub fn find() -> Result<Self, Error> {
        Self::at(&Self::location()?)
    }

    /// The library at `path`.
    ///
    /// # Errors
    /// It does not exist.
    pub fn at(path: &Path) -> Result<Self, Error> {
        match path.canonicalize() {
            Ok(path) if path.is_dir() => Ok(Self { path }),
            _ => Err(Error::NoLibrary(path.to_owned())),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a file that must be there.
    pub(crate) fn file(&self, file: LibraryFile) -> Result<PathBuf, Error> {
        let (name, what) = file.name_and_what();
        let path = self.path.join(name);
        if path.is_file() {
            Ok(path)
        } else {
            Err(Error::NotInstalled { what, path })
        }
    }
}
