//! Messages: endpoints, on which they are sent and received, and reply objects, through which each
//! call is answered once. Semantics as in the seL4 reference manual, chapter 4, with explicit
//! reply objects.
//!
//! A message is up to [`MAX_WORDS`] words, the first [`REGISTER_WORDS`] in registers and the rest
//! in the message buffers of the two threads, and a label. What is too long for a receiver without
//! a buffer is cut off there, and the receiver is told the shorter length.
//!
//! A thread that waits and whose wait cannot end as it hoped (the object it waits on is deleted,
//! its message is taken by a receiver that cannot answer, it is suspended) goes on with
//! [`Status::Aborted`]. A call is answered at most once, and never by or to anybody else.

#[cfg(test)]
extern crate std;

use bulkhead_abi::syscall::Status;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::cancellation::Cancellation;
use super::capability::{Capability, Kind, Rights};
use super::memory::{Memory, Ref, Stored};
use super::thread::{List, Membership, Outgoing, State, Thread, ThreadSlot};
use super::{Error, Objects, fault};
use crate::frame::REGISTER_WORDS;

/// Most words of a message.
pub const MAX_WORDS: u64 = 120;
/// Most capabilities that come with a message.
pub const MAX_CAPABILITIES: u64 = 3;

/// Words of the message buffer, by their offset in words: first those of the message, at their own
/// number, so that the first ten are unused.
mod buffer {
    use super::MAX_WORDS;

    /// Handles of the capabilities to send.
    pub(super) const SENT: u64 = MAX_WORDS;
    /// Handle of the first slot for received capabilities; the others follow it. Zero for none.
    pub(super) const RECEIVE_AT: u64 = SENT + super::MAX_CAPABILITIES;
}

/// What a message is like: the upper bits of `rax` when it is sent, `rsi` when it is received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageInfo(u64);

impl MessageInfo {
    /// What comes with a signal instead of a message.
    pub const SIGNAL: Self = Self(0);

    /// From bits 8 to 15 the number of words, in bits 16 and 17 that of capabilities, from bit 32
    /// on the label.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & !0xff)
    }

    /// So many words and a label.
    #[must_use]
    pub const fn new(words: u64, label: u32) -> Self {
        Self((words & 0xff) << 8 | (label as u64) << 32)
    }

    /// As a register holds it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Number of words.
    #[must_use]
    pub const fn words(self) -> u64 {
        self.0 >> 8 & 0xff
    }

    /// Number of capabilities.
    #[must_use]
    pub const fn capabilities(self) -> u64 {
        self.0 >> 16 & 3
    }

    /// What sender and receiver make of it.
    #[must_use]
    pub const fn label(self) -> u32 {
        (self.0 >> 32) as u32
    }

    const fn with(self, words: u64, capabilities: u64) -> Self {
        Self(self.0 & !0x3_ff00 | words << 8 | capabilities << 16)
    }
}

/// How a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// The sender waits for a receiver.
    Blocking,
    /// Without a receiver the message is dropped.
    NonBlocking,
    /// The sender waits for a receiver and then for its answer.
    Call,
}

/// Who waits on an endpoint: senders or receivers, never both.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoint {
    pub(super) waiting: List,
    /// Nonzero when those who wait are receivers.
    receiving: u64,
    /// What is left of an interrupted cancellation; see [`super::cancellation`].
    pub(super) cancellation: Cancellation,
    reserved: [u64; 3],
}

impl Stored for Endpoint {}

impl Endpoint {
    /// The receiver that has waited longest.
    pub(super) fn first_receiver(&self) -> Option<Ref<Thread>> {
        self.waiting.first().filter(|_| self.receiving != 0)
    }

    /// The sender that has waited longest.
    pub(super) fn first_sender(&self) -> Option<Ref<Thread>> {
        self.waiting.first().filter(|_| self.receiving == 0)
    }
}

/// Where the answer of one call goes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reply {
    /// Who waits for an answer.
    caller: u64,
    /// Who waits for a call to answer.
    receiver: u64,
    /// Nonzero when the caller lent its time to the receiver.
    lent: u64,
    reserved: [u64; 5],
}

impl Stored for Reply {}

impl Reply {
    /// Whose call it holds.
    pub(super) const fn caller(&self) -> Option<Ref<Thread>> {
        Ref::from_link(self.caller)
    }

    /// It holds the call of `caller`, who lent its time to the receiver or did not; nobody waits
    /// with it any more.
    pub(super) const fn hold(&mut self, caller: Ref<Thread>, lent: bool) {
        self.caller = caller.address();
        self.receiver = 0;
        self.lent = lent as u64;
    }

    /// Whether its caller lent its time to the receiver.
    pub(super) const fn is_lent(&self) -> bool {
        self.lent != 0
    }

    /// It holds no call any more; `receiver` waits with it for the next.
    pub(super) const fn wait_with(&mut self, receiver: Ref<Thread>) {
        self.caller = 0;
        self.receiver = receiver.address();
    }
}

impl<M: Memory> Objects<M> {
    /// Sends the message in `thread`'s registers and buffer.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no endpoint; [`Error::IllegalOperation`] without
    /// the right to write or, for a call, to be answered; [`Error::Range`] for a message that is
    /// too long; [`Error::InvalidArgument`] for one that needs a buffer `thread` does not have.
    pub fn send(
        &mut self,
        thread: Ref<Thread>,
        capability: Capability,
        info: MessageInfo,
        how: Sending,
    ) -> Result<(), Error> {
        let call = how == Sending::Call;
        let rights = capability.rights();
        let at = endpoint(capability, Rights::WRITE)?;
        if call && !rights.any(Rights::GRANT.or(Rights::GRANT_REPLY)) {
            return Err(Error::IllegalOperation);
        }
        self.check_message(thread, info)?;
        let message = Outgoing {
            badge: capability.badge(),
            rights: rights.bits(),
            info: info.bits(),
            call: u64::from(call),
        };
        self.send_checked(thread, at, message, how == Sending::NonBlocking);
        Ok(())
    }

    /// Sends a message that may be sent.
    pub(super) fn send_checked(
        &mut self,
        thread: Ref<Thread>,
        at: Ref<Endpoint>,
        message: Outgoing,
        drop: bool,
    ) {
        if let Some(receiver) = self.memory.get(at).first_receiver() {
            self.leave_queue(receiver);
            let reply = self.take_armed_reply(receiver);
            self.unready_if(thread, message.call != 0);
            self.hand_over(thread, receiver, message, reply);
            self.make_ready(receiver);
            self.switch_to(receiver);
        } else if drop {
            self.answer_sent(thread);
        } else {
            self.unready(thread);
            let sender = self.memory.get_mut(thread);
            sender.block(State::Sending, at.address());
            sender.outgoing = message;
            self.join(thread, at, false);
        }
    }

    /// Receives a message, or has `thread` wait for one; with `poll` it gets nothing, and badge 0,
    /// instead of waiting. A call can only be answered when `reply` names a reply object.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no endpoint or no reply object;
    /// [`Error::IllegalOperation`] without the right to read; [`Error::Busy`] for a reply object
    /// that holds a call or is waited with.
    pub fn receive(
        &mut self,
        thread: Ref<Thread>,
        capability: Capability,
        reply: Option<Capability>,
        poll: bool,
    ) -> Result<(), Error> {
        let at = endpoint(capability, Rights::READ)?;
        let reply = match reply {
            Some(reply) => {
                let found = self.memory.get(reply_object(reply)?);
                if found.caller != 0 || found.receiver != 0 {
                    return Err(Error::Busy);
                }
                Some(reply.object_ref::<Reply>())
            }
            None => None,
        };
        if let Some(bound) = self.memory.get(thread).bound()
            && let Some(word) = self.take_signal(bound)
        {
            self.answer_received(thread, word, MessageInfo::SIGNAL);
            return Ok(());
        }
        if let Some(sender) = self.memory.get(at).first_sender() {
            let message = self.memory.get(sender).outgoing;
            self.leave_queue(sender);
            self.hand_over(sender, thread, message, reply);
            // It may have had no time left until it was lent some.
            self.make_ready(thread);
        } else if poll {
            self.answer_received(thread, 0, MessageInfo::default());
        } else {
            self.unready(thread);
            if let Some(reply) = reply {
                self.memory.get_mut(reply).receiver = thread.address();
            }
            let receiver = self.memory.get_mut(thread);
            receiver.block(State::Receiving, at.address());
            receiver.set_reply(reply);
            self.join(thread, at, true);
        }
        Ok(())
    }

    /// Answers the call that a reply object holds with the message in `thread`'s registers and
    /// buffer. The reply object is free again.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no reply object, [`Error::NoCaller`] when it holds
    /// no call (any more); what [`Objects::send`] says of the message.
    pub fn reply(
        &mut self,
        thread: Ref<Thread>,
        capability: Capability,
        info: MessageInfo,
    ) -> Result<(), Error> {
        let at = reply_object(capability)?;
        let caller = self.memory.get(at).caller().ok_or(Error::NoCaller)?;
        self.check_message(thread, info)?;
        self.leave_queue(caller);
        let lent = self.memory.get(at).is_lent() && self.memory.get(thread).home().is_none();
        let found = self.memory.get(caller);
        if lent && found.context().is_none() && found.home().is_none() {
            self.lend_context(thread, caller);
        }
        if self.memory.get(caller).fault == 0 {
            let rights = capability.rights();
            let info = self.transfer(thread, caller, info, rights);
            self.answer_received(caller, 0, info);
            self.make_ready(caller);
        } else {
            self.end_fault(thread, caller, info);
        }
        Ok(())
    }

    /// [`Objects::reply`], then [`Objects::receive`] with the same reply object, in one step. When
    /// the answer is refused nothing is received.
    ///
    /// # Errors
    /// Those of both.
    pub fn reply_receive(
        &mut self,
        thread: Ref<Thread>,
        capability: Capability,
        reply: Capability,
        info: MessageInfo,
    ) -> Result<(), Error> {
        endpoint(capability, Rights::READ)?;
        let at = reply_object(reply)?;
        let caller = self.memory.get(at).caller();
        self.reply(thread, reply, info)?;
        self.receive(thread, capability, Some(reply), false)?;
        if let Some(caller) = caller {
            self.switch_to(caller);
        }
        Ok(())
    }

    /// Gives `receiver` what `sender` sent; settles what becomes of the sender.
    fn hand_over(
        &mut self,
        sender: Ref<Thread>,
        receiver: Ref<Thread>,
        message: Outgoing,
        reply: Option<Ref<Reply>>,
    ) {
        let rights = Rights::from_bits(message.rights);
        let info = MessageInfo::from_bits(message.info);
        let info = self.transfer(sender, receiver, info, rights);
        self.answer_received(receiver, message.badge, info);
        match (message.call != 0, reply) {
            (true, Some(reply)) => {
                let server = self.memory.get(receiver);
                let lends = server.context().is_none() && server.home().is_none();
                self.memory.get_mut(reply).hold(sender, lends);
                let caller = self.memory.get_mut(sender);
                caller.block(State::Calling, reply.address());
                caller.set_reply(Some(reply));
                if lends {
                    self.lend_context(sender, receiver);
                }
            }
            (true, None) => self.abort(sender),
            (false, _) => {
                self.answer_sent(sender);
                self.make_ready(sender);
            }
        }
    }

    /// Copies words and capabilities; what the receiver is told of them.
    fn transfer(
        &mut self,
        sender: Ref<Thread>,
        receiver: Ref<Thread>,
        info: MessageInfo,
        rights: Rights,
    ) -> MessageInfo {
        if let Some(words) = self.fault_message(sender) {
            let target = &mut self.memory.get_mut(receiver).frame;
            target.set_message(fault::WORDS, &words);
            return info;
        }
        let words = info.words();
        let in_registers = words.min(REGISTER_WORDS);
        self.copy_registers(sender, receiver, in_registers);
        if words <= REGISTER_WORDS && info.capabilities() == 0 {
            return info;
        }
        let (Some(from), Some(to)) = (self.buffer(sender), self.buffer(receiver)) else {
            return info.with(in_registers, 0);
        };
        for n in REGISTER_WORDS..words {
            let word = self.memory.load(from + n * 8);
            self.memory.store(to + n * 8, word);
        }
        let capabilities = if rights.any(Rights::GRANT) {
            self.transfer_capabilities(sender, receiver, info.capabilities(), from, to)
        } else {
            0
        };
        info.with(words, capabilities)
    }

    /// Copies the first `count` words of a message.
    #[inline]
    pub fn copy_registers(&mut self, from: Ref<Thread>, to: Ref<Thread>, count: u64) {
        let words = self.memory.get(from).frame.message();
        self.memory.get_mut(to).frame.set_message(count, &words);
    }

    /// Copies up to `count` capabilities from the handles in one buffer to the slots in another;
    /// stops at the first that cannot be had or put; how many were copied.
    fn transfer_capabilities(
        &mut self,
        sender: Ref<Thread>,
        receiver: Ref<Thread>,
        count: u64,
        from: u64,
        to: u64,
    ) -> u64 {
        let first = self.memory.load(to + buffer::RECEIVE_AT * 8);
        if first == 0 {
            return 0;
        }
        let root_of = |thread: Ref<Thread>| self.capability(thread.slot(ThreadSlot::CSpace));
        let (sender_root, receiver_root) = (root_of(sender), root_of(receiver));
        for n in 0..count {
            let handle = self.memory.load(from + (buffer::SENT + n) * 8);
            let copied = (|| {
                let (source, _) = self.lookup(sender_root, handle)?;
                let place = first.wrapping_add(n);
                let target = self.resolve(receiver_root, place, u64::from(u64::BITS))?;
                self.copy(target, source, Rights::ALL)
            })();
            if copied.is_err() {
                return n;
            }
        }
        count
    }

    /// Guest-physical address of a thread's message buffer.
    fn buffer(&self, thread: Ref<Thread>) -> Option<u64> {
        let frame = self.capability(thread.slot(ThreadSlot::MessageBuffer));
        (frame.kind() == Kind::Frame && !frame.is_device()).then(|| frame.address())
    }

    fn check_message(&self, thread: Ref<Thread>, info: MessageInfo) -> Result<(), Error> {
        let longest = Error::Range {
            min: 0,
            max: MAX_WORDS,
        };
        if info.words() > MAX_WORDS {
            return Err(longest);
        }
        let needs_buffer = info.words() > REGISTER_WORDS || info.capabilities() != 0;
        if needs_buffer && self.buffer(thread).is_none() {
            return Err(Error::InvalidArgument);
        }
        Ok(())
    }

    /// What a thread that sent a message gets.
    fn answer_sent(&mut self, thread: Ref<Thread>) {
        let sender = self.memory.get_mut(thread);
        if sender.fault == 0 {
            sender.frame.rax = Status::Ok as u64;
        }
    }

    /// What a thread that waited for a message gets, beside the words.
    pub(super) fn answer_received(&mut self, thread: Ref<Thread>, badge: u64, info: MessageInfo) {
        let frame = &mut self.memory.get_mut(thread).frame;
        frame.rax = Status::Ok as u64;
        frame.rdi = badge;
        frame.rsi = info.bits();
    }

    /// What a thread gets that waits for what will not come. A thread whose fault nobody handles
    /// stops, with its registers as they were.
    pub(super) fn abort(&mut self, thread: Ref<Thread>) {
        let waiting = self.memory.get_mut(thread);
        if waiting.fault == 0 {
            waiting.frame.rax = Status::Aborted as u64;
            self.make_ready(thread);
        } else {
            waiting.fault = 0;
            waiting.set_state(State::Stopped);
        }
    }

    fn unready_if(&mut self, thread: Ref<Thread>, condition: bool) {
        if condition {
            self.unready(thread);
        }
    }

    /// Takes a thread out of an endpoint's list.
    pub(super) fn leave_endpoint(&mut self, thread: Ref<Thread>, at: Ref<Endpoint>) {
        let waiting = self.memory.get(at).waiting;
        let waiting = waiting.without(&mut self.memory, Membership::Wait, thread);
        self.memory.get_mut(at).waiting = waiting;
    }

    /// Takes the first thread, which is `thread`, out of an endpoint's list.
    #[inline]
    pub(super) fn take_first(&mut self, thread: Ref<Thread>, at: Ref<Endpoint>) {
        let waiting = self.memory.get(at).waiting;
        let waiting = waiting.without_first(&mut self.memory, Membership::Wait, thread);
        self.memory.get_mut(at).waiting = waiting;
    }

    /// Puts a thread at the end of an endpoint's list.
    #[inline]
    pub(super) fn join(&mut self, thread: Ref<Thread>, at: Ref<Endpoint>, receiving: bool) {
        let waiting = self.memory.get(at).waiting;
        let waiting = waiting.pushed(&mut self.memory, Membership::Wait, thread);
        let endpoint = self.memory.get_mut(at);
        endpoint.waiting = waiting;
        endpoint.receiving = u64::from(receiving);
    }

    /// Takes a thread that waits out of what it waits on. Its state is for the caller to set.
    pub(super) fn leave_queue(&mut self, thread: Ref<Thread>) {
        let found = *self.memory.get(thread);
        if let Some(at) = found.endpoint() {
            self.pass_over(at, thread);
            self.leave_endpoint(thread, at);
        } else if let Some(at) = found.awaited() {
            self.leave_notification(thread, at);
        } else if let (State::Calling, Some(reply)) = (found.state(), found.reply()) {
            self.memory.get_mut(reply).caller = 0;
            self.memory.get_mut(thread).set_reply(None);
        } else if found.state() == State::Reading {
            self.leave_readers(thread);
        }
    }

    /// The reply object that a receiver waits with; from now on it does not.
    fn take_armed_reply(&mut self, receiver: Ref<Thread>) -> Option<Ref<Reply>> {
        let reply = self.memory.get(receiver).reply()?;
        self.memory.get_mut(reply).receiver = 0;
        self.memory.get_mut(receiver).set_reply(None);
        Some(reply)
    }

    /// A receiver that stops waiting gives up its reply object.
    pub(super) fn forget_armed_reply(&mut self, thread: Ref<Thread>) {
        let _ = self.take_armed_reply(thread);
    }

    /// Takes a thread out of what it waits on, and takes its reply object from it. Its state is for
    /// the caller to set.
    pub(super) fn end_wait(&mut self, thread: Ref<Thread>) {
        let receives = self.memory.get(thread).state() == State::Receiving;
        self.leave_queue(thread);
        if receives {
            self.forget_armed_reply(thread);
        }
    }

    /// Takes a thread out of whatever it waits for, and stops it.
    pub(super) fn stop_waiting(&mut self, thread: Ref<Thread>) {
        let state = self.memory.get(thread).state();
        self.leave_queue(thread);
        if state == State::Receiving {
            self.forget_armed_reply(thread);
        }
        if self.memory.get(thread).due != 0 {
            self.forget_timer(thread);
        }
        let stopped = self.memory.get_mut(thread);
        if stopped.fault != 0 {
            stopped.fault = 0;
        } else if !matches!(state, State::Stopped | State::Ready | State::Reading) {
            stopped.frame.rax = Status::Aborted as u64;
        }
        stopped.set_state(State::Stopped);
    }

    /// Who waits on an endpoint or notification, first come first.
    #[cfg(test)]
    pub(super) fn waiting(&self, capability: Capability) -> std::vec::Vec<Ref<Thread>> {
        let mut next = match capability.kind() {
            Kind::Endpoint => {
                (self.memory.get(capability.object_ref::<Endpoint>()).waiting).first()
            }
            _ => self.notification_waiting(capability),
        };
        let mut all = std::vec::Vec::new();
        while let Some(thread) = next {
            all.push(thread);
            next = List::after(&self.memory, Membership::Wait, thread);
        }
        all
    }

    /// Whose call a reply object holds.
    #[cfg(test)]
    pub(super) fn caller(&self, reply: Capability) -> Option<Ref<Thread>> {
        (reply.kind() == Kind::Reply)
            .then(|| self.memory.get(reply.object_ref::<Reply>()).caller())
            .flatten()
    }

    /// Makes progress with the end of an endpoint; true when nobody waits on it.
    pub(super) fn dismantle_endpoint(&mut self, at: Ref<Endpoint>) -> bool {
        let Some(thread) = self.memory.get(at).waiting.first() else {
            return true;
        };
        self.end_wait(thread);
        self.abort(thread);
        false
    }

    /// Ends a reply object: whoever waits for its answer, or with it, does not any more.
    pub(super) fn dismantle_reply(&mut self, at: Ref<Reply>) {
        let found = *self.memory.get(at);
        if let Some(caller) = found.caller() {
            self.leave_queue(caller);
            self.abort(caller);
        }
        if let Some(receiver) = Ref::<Thread>::from_link(found.receiver) {
            // It goes on waiting, for messages that need no answer.
            self.forget_armed_reply(receiver);
        }
    }
}

/// The endpoint that `capability` names, if it has one of the rights.
pub(super) fn endpoint(capability: Capability, rights: Rights) -> Result<Ref<Endpoint>, Error> {
    if capability.kind() != Kind::Endpoint {
        return Err(Error::InvalidCapability);
    }
    if !capability.rights().any(rights) {
        return Err(Error::IllegalOperation);
    }
    Ok(capability.object_ref())
}

fn reply_object(capability: Capability) -> Result<Ref<Reply>, Error> {
    if capability.kind() != Kind::Reply {
        return Err(Error::InvalidCapability);
    }
    Ok(capability.object_ref())
}
