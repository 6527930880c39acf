//! The descriptors this process was started with, each handed out as an owned file.
//!
//! Numbers come from the machine description. This is the only place that turns a number into a
//! file, so that no descriptor has two owners.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd};

use bulkhead_machine::Fd;

use crate::error::Error;

/// Descriptors taken so far.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// A second file on each taken descriptor: the console may name one for two streams.
    taken: BTreeMap<i32, File>,
}

impl Descriptors {
    /// The file behind `fd`, which is `what` to the reader of an error.
    ///
    /// A number that was taken before gives another file on the same open file description.
    ///
    /// # Errors
    /// [`Error::Descriptor`] when nothing is open there.
    pub fn take(&mut self, what: &'static str, fd: Fd) -> Result<File, Error> {
        let closed = |_| Error::Descriptor { what, fd };
        if let Some(file) = self.taken.get(&fd.0) {
            return file.try_clone().map_err(closed);
        }
        if fd.0 < 0 {
            return Err(Error::Descriptor { what, fd });
        }
        // SAFETY: the borrow ends with this statement, and the number is only asked about.
        let open = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd.0) });
        open.map_err(|_| Error::Descriptor { what, fd })?;
        // SAFETY: the descriptor is open, and was opened for this process to own: the description
        // says so. It is not owned yet, because every number goes through `taken`.
        let file = unsafe { File::from_raw_fd(fd.0) };
        self.taken.insert(fd.0, file.try_clone().map_err(closed)?);
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn closed_and_negative_numbers_are_refused() {
        let mut all = Descriptors::default();
        for fd in [-1, i32::MIN, 9999, i32::MAX] {
            assert!(all.take("test", Fd(fd)).is_err(), "{fd}");
        }
    }

    #[test]
    fn one_number_serves_two_streams() {
        let fd = Fd(File::open("/dev/null").unwrap().into_raw_fd());
        let mut all = Descriptors::default();
        let first = all.take("output", fd).unwrap();
        let second = all.take("error", fd).unwrap();
        drop(first);
        assert!(second.metadata().is_ok());
    }
}
