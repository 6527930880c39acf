//! Processes to be measured, and what they are given.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Child;

use bulkhead_machine::Fd;
use rustix::fs::MemfdFlags;

use crate::error::Error;

/// A file without a name.
pub(crate) fn memfd(name: &str) -> Result<File, Error> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC);
    fd.map(File::from).map_err(Error::io("creating a memfd"))
}

/// Descriptors on their way to the VMM: duplicates that survive `exec`. This program has one
/// thread, so no other child can inherit them.
#[derive(Default)]
pub(crate) struct Handover(Vec<OwnedFd>);

impl Handover {
    /// A duplicate of `file`; its number there.
    pub(crate) fn give(&mut self, file: impl AsFd) -> Result<Fd, Error> {
        let fd = rustix::io::dup(file).map_err(Error::io("duplicating a descriptor"))?;
        let number = Fd(fd.as_raw_fd());
        self.0.push(fd);
        Ok(number)
    }
}

/// A child that is killed unless it was seen to end.
pub(crate) struct Watched(pub(crate) Child);

impl Drop for Watched {
    fn drop(&mut self) {
        // Both fail only when the process is gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
