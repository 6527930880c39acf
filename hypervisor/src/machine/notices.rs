//! What the guest or its watchdog has the supervisor told, by the event loop: each at most once in a
//! partition's life, however often a guest says it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bulkhead_machine::control::Event;
use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::Error;

/// What can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Notice {
    /// The guest's kernel crashed.
    GuestPanicked = 1 << 0,
    /// The guest did not feed its watchdog.
    WatchdogExpired = 1 << 1,
}

/// A handle to the partition's notices; clones share them.
#[derive(Clone, Debug)]
pub struct Notices(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    given: AtomicU8,
    taken: AtomicU8,
    event: EventFd,
}

impl Notices {
    /// None yet.
    ///
    /// # Errors
    /// The host gives no eventfd.
    pub fn new() -> Result<Self, Error> {
        Ok(Self(Arc::new(Shared {
            given: AtomicU8::new(0),
            taken: AtomicU8::new(0),
            event: EventFd::new(EFD_NONBLOCK).map_err(Error::io("cannot make an eventfd"))?,
        })))
    }

    /// Has `notice` told, unless it was before; from any thread.
    pub fn give(&self, notice: Notice) {
        let before = self.0.given.fetch_or(notice as u8, Ordering::AcqRel);
        if before & notice as u8 == 0 {
            // There are two notices: the counter cannot be full.
            let _ = self.0.event.write(1);
        }
    }

    /// Whether `notice` was given, and not taken before.
    pub fn take(&self, notice: Notice) -> bool {
        let bit = notice as u8;
        self.0.given.load(Ordering::Acquire) & bit != 0
            && self.0.taken.fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// The events that have to be told now.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        let all = [
            (Notice::GuestPanicked, Event::GuestPanicked),
            (Notice::WatchdogExpired, Event::WatchdogExpired),
        ];
        let given = all.into_iter().filter(|(notice, _)| self.take(*notice));
        given.map(|(_, event)| event)
    }
}

/// Wakes the event loop, which then looks at [`Notices::events`].
impl MutEventSubscriber for Notices {
    fn init(&mut self, ops: &mut EventOps) {
        // A host out of memory: what is to be told is then told with the next event.
        let _ = ops.add(Events::new(&self.0.event, EventSet::IN));
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.event.read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once() {
        let notices = Notices::new().unwrap();
        assert_eq!(notices.events().count(), 0);
        for _ in 0..3 {
            notices.clone().give(Notice::WatchdogExpired);
        }
        assert_eq!(notices.0.event.read().unwrap(), 1);
        let told: Vec<_> = notices.events().collect();
        assert_eq!(told, [Event::WatchdogExpired]);
        notices.give(Notice::WatchdogExpired);
        notices.give(Notice::GuestPanicked);
        let told: Vec<_> = notices.events().collect();
        assert_eq!(told, [Event::GuestPanicked]);
    }
}
