//! How a partition's end is made known: the first to say it wins.
//!
//! Devices, vCPUs and the control socket hold an [`Ending`]; the main thread waits for its event.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bulkhead_machine::control::Ended;
use rustix::event::{EventfdFlags, eventfd};

use crate::error::Error;

/// A handle to the one end of the partition; clones share it.
#[derive(Clone, Debug)]
pub struct Ending {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    outcome: OnceLock<Result<Ended, Error>>,
    over: AtomicBool,
    event: OwnedFd,
}

impl Ending {
    /// An end that has not come yet.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            shared: Arc::new(Shared {
                outcome: OnceLock::new(),
                over: AtomicBool::new(false),
                event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                    .map_err(Error::io("cannot make an eventfd"))?,
            }),
        })
    }

    /// The partition ended. Later calls change nothing.
    pub fn end(&self, how: Ended) {
        self.set(Ok(how));
    }

    /// The VMM cannot go on. Later calls change nothing.
    pub fn fail(&self, error: Error) {
        self.set(Err(error));
    }

    fn set(&self, outcome: Result<Ended, Error>) {
        if self.shared.outcome.set(outcome).is_ok() {
            self.shared.over.store(true, Ordering::Release);
            // An eventfd's counter is full after 2^64 - 2 writes; this is the only one.
            let _ = rustix::io::write(&self.shared.event, &1u64.to_ne_bytes());
        }
    }

    /// True from the first end on; vCPUs and waits look at it.
    pub fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Acquire)
    }

    /// What the end was, once it has come.
    pub fn outcome(&self) -> Option<&Result<Ended, Error>> {
        self.shared.outcome.get()
    }

    /// Readable from the first end on.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_wins() {
        let ending = Ending::new().unwrap();
        assert!(!ending.is_over() && ending.outcome().is_none());
        ending.clone().end(Ended::Exit { status: 7 });
        ending.end(Ended::Stopped);
        ending.fail(Error::KvmVersion(1));
        assert!(ending.is_over());
        assert!(matches!(
            ending.outcome(),
            Some(Ok(Ended::Exit { status: 7 }))
        ));
        let mut count = [0; 8];
        rustix::io::read(ending.event(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}
