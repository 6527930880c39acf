//! The descriptors this process was started with. The only place that turns a number into a file,
//! once for each number, and that closes what nobody named.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bulkhead_network::{Fd, NetworkDescription};

use crate::error::Error;

/// The file of the description.
///
/// # Errors
/// The number is not open, or is a standard stream.
pub(crate) fn description(fd: Fd) -> Result<File, Error> {
    let mut own = Descriptors(open([fd]));
    own.take("the network description", fd).map(File::from)
}

/// Descriptors that are open and not taken yet.
#[derive(Debug)]
pub(crate) struct Descriptors(BTreeSet<RawFd>);

impl Descriptors {
    /// Those that `description` names; every other from 3 on is closed. To be called once, before
    /// anything is opened.
    ///
    /// # Errors
    /// The host refuses.
    pub(crate) fn of(description: &NetworkDescription) -> io::Result<Self> {
        let forwards = description.forwards.iter().map(|forward| forward.listener);
        let web = description.web.iter();
        let web = web.flat_map(|web| web.trust.iter().copied().chain([web.authority]));
        let secrets = description.secrets.iter().map(|secret| secret.value);
        let named = forwards
            .chain(web)
            .chain(secrets)
            .chain(
                description
                    .models
                    .iter()
                    .flat_map(|models| [models.file, models.spent]),
            )
            .chain(description.used)
            .chain(description.ledger)
            .chain(description.control)
            .chain([description.link]);
        let open = open(named);
        let mut first = 3;
        for fd in &open {
            let fd = fd.unsigned_abs();
            close_range(first, fd.saturating_sub(1))?;
            first = fd.saturating_add(1);
        }
        close_range(first, u32::MAX)?;
        Ok(Self(open))
    }

    /// The file behind `fd`, which is `what` to the reader of an error.
    ///
    /// # Errors
    /// [`Error::Descriptor`] when nothing was open there, or it was taken before.
    pub(crate) fn take(&mut self, what: &'static str, fd: Fd) -> Result<OwnedFd, Error> {
        if !self.0.remove(&fd.0) {
            return Err(Error::Descriptor { what, fd });
        }
        // SAFETY: the descriptor was open before this process opened any, was opened for it to own,
        // and is taken once only.
        Ok(unsafe { OwnedFd::from_raw_fd(fd.0) })
    }
}

/// Those that are open and no standard stream.
fn open(named: impl IntoIterator<Item = Fd>) -> BTreeSet<RawFd> {
    let is_open = |fd: &RawFd| {
        // SAFETY: the borrow ends with this statement, and the number, which is not -1, is only
        // asked about.
        *fd > 2 && rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(*fd) }).is_ok()
    };
    named.into_iter().map(|fd| fd.0).filter(is_open).collect()
}

/// Closes `first..=last`; nothing where that is empty.
fn close_range(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: these were inherited and are named by nobody, and nothing has been opened yet.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn a_number_is_handed_out_once_and_only_if_open() {
        let fd = Fd(File::open("/dev/null").unwrap().into_raw_fd());
        let mut all = Descriptors(open([fd, Fd(-1), Fd(1), Fd(9999), Fd(i32::MIN)]));
        for wrong in [-1, 1, 9999, i32::MIN] {
            assert!(all.take("test", Fd(wrong)).is_err(), "{wrong}");
        }
        let taken = all.take("test", fd).unwrap();
        assert!(all.take("test", fd).is_err());
        drop(taken);
    }
}
