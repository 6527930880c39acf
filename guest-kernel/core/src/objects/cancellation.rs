//! Cancel badged sends: the end of all messages that wait on an endpoint and were sent by one badge.
//!
//! An endpoint can have thousands of senders, so this too is done in steps of bounded length. What
//! an interrupt leaves is remembered in the endpoint: a badge, and the first sender that was not
//! looked at. Senders queue at the end, so nobody before that one has the badge, whoever came since;
//! whoever cancels by the badge next goes on from there. A cancellation by another badge is
//! finished first.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::capability::{Capability, Rights};
use super::ipc::{Endpoint, endpoint};
use super::memory::{Memory, Ref, link};
use super::thread::{List, Membership, State, Thread};
use super::{Error, Objects};

/// Senders with another badge that are passed over before an urgent thread is looked for.
const SCAN_STEP: u64 = 32;

/// A cancellation that was interrupted.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Cancellation {
    /// The sender to look at next; zero when none was interrupted.
    next: u64,
    badge: u64,
}

impl Cancellation {
    /// The sender to look at next.
    pub(super) const fn next(self) -> Option<Ref<Thread>> {
        Ref::from_link(self.next)
    }
}

impl<M: Memory> Objects<M> {
    /// Aborts all sends by capabilities with this one's badge.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no endpoint, [`Error::IllegalOperation`] without
    /// all rights; [`Error::Preempted`], with some aborted.
    pub fn cancel_badged_sends(&mut self, capability: Capability) -> Result<(), Error> {
        let at = endpoint(capability, Rights::ALL)?;
        if capability.rights() != Rights::ALL {
            return Err(Error::IllegalOperation);
        }
        let badge = capability.badge();
        if self.memory.get(at).cancellation.badge != badge {
            self.cancel(at)?;
        }
        let changed = self.memory.get_mut(at);
        if changed.cancellation.next == 0 {
            let next = link(changed.waiting.first());
            changed.cancellation = Cancellation { next, badge };
        }
        self.cancel(at)
    }

    /// Finishes the cancellation of an endpoint, if there is one.
    fn cancel(&mut self, at: Ref<Endpoint>) -> Result<(), Error> {
        let mut passed = 0;
        loop {
            let cancellation = self.memory.get(at).cancellation;
            let Some(thread) = cancellation.next() else {
                return Ok(());
            };
            if passed >= SCAN_STEP {
                passed = 0;
                self.preempted()?;
            }
            let waiting = self.memory.get(thread);
            if waiting.state() == State::Sending && waiting.outgoing.badge == cancellation.badge {
                self.leave_queue(thread);
                self.abort(thread);
                passed = SCAN_STEP;
            } else {
                self.pass_over(at, thread);
                passed += 1;
            }
        }
    }

    /// A thread leaves the queue of an endpoint, or does not have the badge that is cancelled there.
    pub(super) fn pass_over(&mut self, at: Ref<Endpoint>, thread: Ref<Thread>) {
        if self.memory.get(at).cancellation.next == thread.address() {
            let next = List::after(&self.memory, Membership::Wait, thread);
            self.memory.get_mut(at).cancellation.next = link(next);
        }
    }
}
