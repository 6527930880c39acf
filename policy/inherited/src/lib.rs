//! The descriptors that a process was started with: the only place that turns a number in a description
//! into a file, once for each number, and that closes what nobody named. Called by the processes of `policy` before
//! they do anything else; the VMM has its own in `hypervisor`, which stands alone.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bulkhead_machine::Fd;
use rustix::io::FdFlags;

/// A description names a descriptor that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("descriptor {} of {what} is not open; open it before the process is started", fd.0)]
pub struct NotOpen {
    /// What it is for.
    pub what: &'static str,
    /// Its number.
    pub fd: Fd,
}

impl NotOpen {
    /// Its stable code.
    pub const CODE: &str = "descriptor-closed";
}

/// Descriptors that are open and not taken yet.
#[derive(Debug)]
pub struct Inherited(BTreeSet<RawFd>);

impl Inherited {
    /// That one, if it is open and no standard stream. The others are left as they are.
    pub fn only(fd: Fd) -> Self {
        Self(open([fd]))
    }

    /// Those that are named; every other from 3 on is closed. No program that this process runs inherits
    /// one. To be called once, before anything is opened.
    ///
    /// # Errors
    /// The host refuses.
    pub fn named(named: impl IntoIterator<Item = Fd>) -> io::Result<Self> {
        let open = open(named);
        let mut first = 3;
        for fd in &open {
            let fd = fd.unsigned_abs();
            close_range(first, fd.saturating_sub(1))?;
            first = fd.saturating_add(1);
        }
        close_range(first, u32::MAX)?;
        let own = Self(open);
        own.keep_from_children()?;
        Ok(own)
    }

    fn keep_from_children(&self) -> io::Result<()> {
        for fd in &self.0 {
            // SAFETY: it is open, as `open` has seen, and stays so during this statement.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
        Ok(())
    }

    /// The file behind `fd`, which is `what` to the reader of an error.
    ///
    /// # Errors
    /// Nothing was open there, or it was taken before.
    pub fn take(&mut self, what: &'static str, fd: Fd) -> Result<OwnedFd, NotOpen> {
        if !self.0.remove(&fd.0) {
            return Err(NotOpen { what, fd });
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
    use std::fs::File;
    use std::os::fd::IntoRawFd;

    #[test]
    fn a_number_is_handed_out_once_and_only_if_open() {
        let fd = Fd(File::open("/dev/null").unwrap().into_raw_fd());
        let mut all = Inherited(open([fd, Fd(-1), Fd(1), Fd(9999), Fd(i32::MIN)]));
        for wrong in [-1, 1, 9999, i32::MIN] {
            assert!(all.take("test", Fd(wrong)).is_err(), "{wrong}");
        }
        let taken = all.take("test", fd).unwrap();
        assert!(all.take("test", fd).is_err());
        drop(taken);
    }
}
