//! Notifications: a word of bits that are set by signalling and taken by waiting. Semantics as in
//! the seL4 reference manual, chapter 5.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::capability::{Capability, Kind, Rights};
use super::memory::{Memory, Ref, Stored, link};
use super::thread::{List, Membership, State, Thread};
use super::{Error, Objects};

/// A notification.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Notification {
    waiting: List,
    /// The badges of all signals since the last wait.
    word: u64,
    /// Nonzero when there was a signal, even by a capability without a badge.
    signalled: u64,
    bound: u64,
    reserved: [u64; 3],
}

impl Stored for Notification {}

impl<M: Memory> Objects<M> {
    /// Signals by `capability`: wakes the thread that has waited longest, or the bound thread if
    /// it is receiving, or leaves the badge for the next who comes.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no notification, [`Error::IllegalOperation`]
    /// without the right to write.
    #[inline(always)]
    pub fn signal(&mut self, capability: Capability) -> Result<(), Error> {
        let at = notification(capability, Rights::WRITE)?;
        let badge = capability.badge();
        let found = *self.memory.get(at);
        if let Some(thread) = found.waiting.first() {
            self.leave_queue(thread);
            self.deliver_signal(thread, badge);
            return Ok(());
        }
        if found.signalled == 0
            && let Some(thread) = Ref::<Thread>::from_link(found.bound)
            && self.memory.get(thread).state() == State::Receiving
        {
            self.leave_queue(thread);
            self.forget_armed_reply(thread);
            self.deliver_signal(thread, badge);
            return Ok(());
        }
        let changed = self.memory.get_mut(at);
        changed.word |= badge;
        changed.signalled = 1;
        Ok(())
    }

    /// Gives `thread` what was signalled, or has it wait for the next signal; with `poll` it gets
    /// zero instead of waiting.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no notification, [`Error::IllegalOperation`]
    /// without the right to read.
    pub fn wait(
        &mut self,
        thread: Ref<Thread>,
        capability: Capability,
        poll: bool,
    ) -> Result<(), Error> {
        let at = notification(capability, Rights::READ)?;
        if let Some(word) = self.take_signal(at) {
            self.deliver_signal(thread, word);
        } else if poll {
            self.deliver_signal(thread, 0);
        } else {
            self.unready(thread);
            self.memory
                .get_mut(thread)
                .block(State::Waiting, at.address());
            let waiting = self.memory.get(at).waiting;
            let waiting = waiting.pushed(&mut self.memory, Membership::Wait, thread);
            self.memory.get_mut(at).waiting = waiting;
        }
        Ok(())
    }

    /// Ends `thread`'s receiving also when this notification is signalled.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`], [`Error::IllegalOperation`] as for [`Objects::wait`];
    /// [`Error::DeleteFirst`] when one of the two is bound already, or others wait for the
    /// notification.
    pub fn bind(&mut self, thread: Ref<Thread>, capability: Capability) -> Result<(), Error> {
        let at = notification(capability, Rights::READ)?;
        let found = self.memory.get(at);
        if found.bound != 0
            || !found.waiting.is_empty()
            || self.memory.get(thread).bound().is_some()
        {
            return Err(Error::DeleteFirst);
        }
        self.memory.get_mut(at).bound = thread.address();
        self.memory.get_mut(thread).set_bound(Some(at));
        Ok(())
    }

    /// Undoes [`Objects::bind`], if it was done.
    pub fn unbind(&mut self, thread: Ref<Thread>) {
        if let Some(at) = self.memory.get(thread).bound() {
            self.memory.get_mut(at).bound = link::<Thread>(None);
            self.memory.get_mut(thread).set_bound(None);
        }
    }

    /// Whether there was a signal that nobody has taken.
    pub(super) fn is_signalled(&self, at: Ref<Notification>) -> bool {
        self.memory.get(at).signalled != 0
    }

    /// Takes what was signalled.
    pub(super) fn take_signal(&mut self, at: Ref<Notification>) -> Option<u64> {
        let found = self.memory.get_mut(at);
        if found.signalled == 0 {
            return None;
        }
        found.signalled = 0;
        Some(core::mem::take(&mut found.word))
    }

    /// Answers a wait, poll or receive with a signal.
    pub(super) fn deliver_signal(&mut self, thread: Ref<Thread>, word: u64) {
        self.answer_received(thread, word, super::ipc::MessageInfo::SIGNAL);
        self.make_ready(thread);
    }

    /// Takes a thread that waits out of a notification's list.
    pub(super) fn leave_notification(&mut self, thread: Ref<Thread>, at: Ref<Notification>) {
        let waiting = self.memory.get(at).waiting;
        let waiting = waiting.without(&mut self.memory, Membership::Wait, thread);
        self.memory.get_mut(at).waiting = waiting;
    }

    /// Who has waited longest for a notification.
    #[cfg(test)]
    pub(super) fn notification_waiting(&self, capability: Capability) -> Option<Ref<Thread>> {
        (self
            .memory
            .get(capability.object_ref::<Notification>())
            .waiting)
            .first()
    }

    /// Makes progress with the end of a notification; true when nothing holds on to it.
    pub(super) fn dismantle_notification(&mut self, at: Ref<Notification>) -> bool {
        let found = *self.memory.get(at);
        if let Some(thread) = Ref::<Thread>::from_link(found.bound) {
            self.unbind(thread);
        }
        let Some(thread) = found.waiting.first() else {
            return true;
        };
        self.leave_queue(thread);
        self.abort(thread);
        false
    }
}

/// The notification that `capability` names, if it has one of the rights.
fn notification(capability: Capability, rights: Rights) -> Result<Ref<Notification>, Error> {
    if capability.kind() != Kind::Notification {
        return Err(Error::InvalidCapability);
    }
    if !capability.rights().any(rights) {
        return Err(Error::IllegalOperation);
    }
    Ok(capability.object_ref())
}
