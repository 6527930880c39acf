//! The descriptors this process was given, each handed out as an owned file: at the start, where
//! their numbers come from the machine description, or with a message on the control socket, where
//! they are counted from 0. This is the only place that turns a number into a file, so that no
//! descriptor has two owners.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bulkhead_machine::Fd;

use crate::error::Error;

/// Descriptors that were given, and those taken so far.
#[derive(Debug)]
pub struct Descriptors {
    /// Numbers that were open at the start. What this process opens itself may get the number of a
    /// closed one, and is not to be had here.
    given: BTreeSet<i32>,
    /// A second file on each taken descriptor: the console may name one for two streams.
    taken: BTreeMap<i32, File>,
    /// Those that came with a message and are not taken yet.
    received: BTreeMap<i32, File>,
}

impl Descriptors {
    /// Those of `named` that are open now: before this process opens anything.
    pub fn among(named: &[RawFd]) -> Self {
        Self {
            given: named.iter().copied().filter(|fd| is_open(*fd)).collect(),
            taken: BTreeMap::new(),
            received: BTreeMap::new(),
        }
    }

    /// Those that came with a message, in its order. Each can be taken once: there is no room for
    /// duplicates in what this process may have open.
    pub fn received(descriptors: Vec<OwnedFd>) -> Self {
        let files = descriptors.into_iter().map(File::from);
        Self {
            given: BTreeSet::new(),
            taken: BTreeMap::new(),
            received: (0..).zip(files).collect(),
        }
    }

    /// The file behind `fd`, which is `what` to the reader of an error.
    ///
    /// A number that was taken before gives another file on the same open file description.
    ///
    /// # Errors
    /// [`Error::Descriptor`] when nothing was given there.
    pub fn take(&mut self, what: &'static str, fd: Fd) -> Result<File, Error> {
        if let Some(file) = self.received.remove(&fd.0) {
            return Ok(file);
        }
        let closed = |_| Error::Descriptor { what, fd };
        if let Some(file) = self.taken.get(&fd.0) {
            return file.try_clone().map_err(closed);
        }
        if !self.given.contains(&fd.0) {
            return Err(Error::Descriptor { what, fd });
        }
        // SAFETY: the descriptor was open before this process opened any, and was opened for it to
        // own: the description says so. It is not owned yet, because every number goes through
        // `taken`, and is still open, because only its owner closes it.
        let file = unsafe { File::from_raw_fd(fd.0) };
        self.taken.insert(fd.0, file.try_clone().map_err(closed)?);
        Ok(file)
    }
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: the borrow ends with this statement, and the number is only asked about; -1, which
    // no borrow may have, is not.
    fd >= 0 && rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn closed_and_negative_numbers_are_refused() {
        let numbers = [-1, i32::MIN, 9999, i32::MAX];
        let mut all = Descriptors::among(&numbers);
        for fd in numbers {
            assert!(all.take("test", Fd(fd)).is_err(), "{fd}");
        }
    }

    #[test]
    fn what_was_opened_later_is_not_handed_out() {
        let later = File::open("/dev/null").unwrap();
        let fd = Fd(std::os::fd::AsRawFd::as_raw_fd(&later));
        let error = Descriptors::among(&[]).take("test", fd).unwrap_err();
        assert_eq!(error.code(), "descriptor-closed");
    }

    #[test]
    fn one_number_serves_two_streams() {
        let fd = Fd(File::open("/dev/null").unwrap().into_raw_fd());
        let mut all = Descriptors::among(&[fd.0]);
        let first = all.take("output", fd).unwrap();
        let second = all.take("error", fd).unwrap();
        drop(first);
        assert!(second.metadata().is_ok());
    }
}
