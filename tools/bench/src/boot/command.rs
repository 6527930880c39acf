//! The whole way a user waits: `bulkhead run` to the first output of an unmodified Linux binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io, process};

use super::launch::{drain, first_byte};
use crate::child::Watched;
use crate::clock::now_ns;
use crate::error::Error;

/// An installed `bulkhead` and a program for it.
pub(super) struct RunCommand {
    program: PathBuf,
    library: PathBuf,
    guest: PathBuf,
    /// Where the ledger of what is measured is: not the user's own.
    lasting: PathBuf,
}

impl Drop for RunCommand {
    fn drop(&mut self) {
        // Whoever finds it knows by its name whose it was.
        let _ = fs::remove_dir_all(&self.lasting);
    }
}

impl RunCommand {
    /// The command that belongs to `library`, if it is installed.
    pub(super) fn find(library: &Path) -> Option<Self> {
        let library = library.canonicalize().ok()?;
        let program = library.parent()?.parent()?.join("bin/bulkhead");
        let guest = library.join("examples/hello-linux-abi");
        let there = program.is_file() && guest.is_file();
        there.then_some(Self {
            program,
            library,
            guest,
            lasting: env::temp_dir().join(format!("bulkhead-bench-{}", process::id())),
        })
    }

    /// Nanoseconds from before its creation to the first byte that the guest's program wrote.
    pub(super) fn measure(&self) -> Result<u64, Error> {
        let (mut console, theirs) = io::pipe().map_err(Error::io("creating a pipe"))?;
        let mut command = Command::new(&self.program);
        (command.args(["run", "--kernel", "linux-abi", "--"]))
            .arg(&self.guest)
            .env("BULKHEAD_LIB", &self.library)
            .env("BULKHEAD_DATA_DIR", self.lasting.join("data"))
            .env("BULKHEAD_CONFIG_DIR", self.lasting.join("config"))
            .stdin(Stdio::null())
            .stdout(theirs)
            .stderr(Stdio::null());
        let start = now_ns();
        let child = command
            .spawn()
            .map_err(Error::io(format!("running {}", self.program.display())))?;
        let mut child = Watched(child);
        // The pipe's other end has to be the command's alone, or its death would go unseen.
        drop(command);
        let first = first_byte(&mut console, "bulkhead run")?;
        drain(console);
        // It ends by itself, and takes its partition and its state along.
        child
            .0
            .wait()
            .map_err(Error::io("waiting for bulkhead run"))?;
        Ok(first - start)
    }
}
