//! The short way of the two operations that everything else waits for: a call, and an answer with
//! which a server waits for the next call. Called by the architecture's entry, before it enters
//! [`crate::kernel`], for what [`Fast::of`] says.
//!
//! It is taken where the message fits the registers, the receiver waits, runs on the caller's time
//! and is next, and each handle is found in one CNode. What it does then is what
//! [`Objects::send`] and [`Objects::reply_receive`] and the schedule after them would do, as a test
//! shows on random states; where something else is the case it does nothing.
//!
//! Two things let it be short. Nobody ready is more urgent than the running thread: so whoever
//! takes its place at the same priority or a higher one is next. And the time goes with the
//! message: the scheduling context stays the one that is spent, and with it the time at which the
//! timer is to interrupt.

use bulkhead_abi::syscall::{CALL, REPLY_RECV, Status};
use bulkhead_abi::timeout::Timeout;

use super::Objects;
use super::capability::{Capability, Kind, Rights};
use super::ipc::{Endpoint, MessageInfo, Reply};
use super::memory::{Memory, Ref};
use super::schedule::SchedContext;
use super::slot::Slot;
use super::thread::{State, Thread, ThreadSlot};
use crate::frame::REGISTER_WORDS;

/// Bits of `rax` that say which operation it is, how many capabilities come along, and for how long
/// it waits.
const SHORT: u64 = 0x3_00ff | Timeout::MASK;

/// Which short way a system call may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fast {
    /// [`Objects::fast_call`].
    Call,
    /// [`Objects::fast_reply_receive`].
    ReplyReceive,
}

impl Fast {
    /// By its `rax`.
    #[must_use]
    #[inline]
    pub const fn of(rax: u64) -> Option<Self> {
        match rax & SHORT {
            CALL => Some(Self::Call),
            REPLY_RECV => Some(Self::ReplyReceive),
            _ => None,
        }
    }
}

/// The CPU goes from one thread to another, and nothing else changes for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Who ran.
    pub from: Ref<Thread>,
    /// Who runs.
    pub to: Ref<Thread>,
    /// The page table root that it needs.
    pub root: u64,
    /// How many words it is still to be given, by [`Objects::copy_registers`].
    pub words: u64,
}

impl<M: Memory> Objects<M> {
    /// Makes the call in the registers of the thread that runs, in native mode. `None`: it has not
    /// the short way, and nothing has changed.
    #[inline]
    pub fn fast_call(&mut self, from: Ref<Thread>) -> Option<Switch> {
        let caller = self.memory.get(from);
        let info = MessageInfo::from_bits(caller.frame.rax);
        let (priority, context) = (caller.priority, caller.context()?);
        let by = self.fast_lookup(from, caller.frame.rdi)?;
        let answered = Rights::GRANT.or(Rights::GRANT_REPLY);
        if !by.is(Kind::Endpoint)
            || !by.rights().any(Rights::WRITE)
            || !by.rights().any(answered)
            || info.words() > REGISTER_WORDS
        {
            return None;
        }
        let at = by.object_ref::<Endpoint>();
        let to = self.memory.get(at).first_receiver()?;
        let receiver = self.memory.get(to);
        let reply = receiver.reply()?;
        if receiver.priority < priority || !receiver.lacks_time() || receiver.home().is_some() {
            return None;
        }
        let root = self.fast_root(to)?;

        self.take_first(to, at);
        self.memory.get_mut(reply).hold(from, true);
        self.memory.get_mut(to).set_reply(None);
        let caller = self.memory.get_mut(from);
        caller.block(State::Calling, reply.address());
        caller.set_reply(Some(reply));
        self.fast_answer(from, to, context, by.badge(), info);
        Some(Switch {
            from,
            to,
            root,
            words: info.words(),
        })
    }

    /// Answers and receives by the registers of the thread that runs, in native mode. `None` as
    /// for [`Objects::fast_call`].
    #[inline]
    pub fn fast_reply_receive(&mut self, from: Ref<Thread>) -> Option<Switch> {
        let server = self.memory.get(from);
        let info = MessageInfo::from_bits(server.frame.rax);
        let (priority, context, bound) = (server.priority, server.context()?, server.bound());
        let (handle, by) = (server.frame.rdi, server.frame.rsi);
        if server.home().is_some() || info.words() > REGISTER_WORDS {
            return None;
        }
        let endpoint = self.fast_lookup(from, handle)?;
        let by = self.fast_lookup(from, by)?;
        if !endpoint.is(Kind::Endpoint)
            || !endpoint.rights().any(Rights::READ)
            || !by.is(Kind::Reply)
            || bound.is_some_and(|bound| self.is_signalled(bound))
        {
            return None;
        }
        let at = endpoint.object_ref::<Endpoint>();
        if self.memory.get(at).first_sender().is_some() {
            return None;
        }
        let reply = by.object_ref::<Reply>();
        let to = self.memory.get(reply).caller()?;
        let caller = self.memory.get(to);
        // The time is its own, or it had lent it.
        let returns = match caller.home() {
            Some(home) => home == context,
            None => self.memory.get(reply).is_lent(),
        };
        if caller.fault != 0
            || !caller.lacks_time()
            || !returns
            || (caller.priority < priority && !self.is_highest(caller.priority))
        {
            return None;
        }
        let root = self.fast_root(to)?;

        self.memory.get_mut(reply).wait_with(from);
        self.memory.get_mut(to).set_reply(None);
        let receiver = self.memory.get_mut(from);
        receiver.block(State::Receiving, at.address());
        receiver.set_reply(Some(reply));
        self.join(from, at, true);
        self.fast_answer(from, to, context, 0, info);
        Some(Switch {
            from,
            to,
            root,
            words: info.words(),
        })
    }

    /// Gives `to` the time and the CPU, and what it is told of the message.
    #[inline(always)]
    fn fast_answer(
        &mut self,
        from: Ref<Thread>,
        to: Ref<Thread>,
        context: Ref<SchedContext>,
        badge: u64,
        info: MessageInfo,
    ) {
        self.memory.get_mut(from).set_context(None);
        self.memory.get_mut(context).hold(to);
        let next = self.memory.get_mut(to);
        next.set_context(Some(context));
        next.set_state(State::Ready);
        next.frame.rax = Status::Ok as u64;
        next.frame.rdi = badge;
        next.frame.rsi = info.bits();
        self.run_instead(to);
    }

    /// The capability that `thread` names by a handle, if the CNode it begins at is all of its
    /// capability space.
    #[inline]
    fn fast_lookup(&self, thread: Ref<Thread>, handle: u64) -> Option<Capability> {
        let root = self.capability(thread.slot(ThreadSlot::CSpace));
        let radix = root.radix();
        let whole = root.is(Kind::CNode) && root.guard_bits() + radix == u64::BITS;
        // A radix is less than 64 bits.
        let index = handle & ((1 << radix) - 1);
        let found = root.object_ref::<Slot>().at(index);
        (whole && handle >> radix == root.guard()).then(|| self.capability(found))
    }

    /// The page table root of a thread that is in native mode, for it waits.
    #[inline]
    fn fast_root(&self, thread: Ref<Thread>) -> Option<u64> {
        let space = self.capability(thread.slot(ThreadSlot::AddressSpace));
        (!space.is_null()).then(|| space.address())
    }
}
