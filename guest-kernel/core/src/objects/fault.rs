//! Faults: what a thread did that only its fault handler can put right, as a message to it.
//!
//! The message is a call on the endpoint in the thread's fault handler slot. Its label is the
//! [`Fault`], its words are instruction pointer, stack pointer, flags, and what the fault has of
//! its own. An answer with label 0 restarts the thread, at the instruction pointer, stack pointer
//! and flags that its first three words say, if it has so many; any other answer leaves it
//! stopped. Without a handler the thread stops and nothing else happens.

use super::Objects;
use super::capability::{Kind, Rights};
use super::ipc::{Endpoint, MessageInfo};
use super::memory::{Memory, Ref};
use super::thread::{Outgoing, State, Thread, ThreadSlot};
use crate::frame::user_flags;
use crate::user::USER_LIMIT;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An access to memory: its address and the page fault's error code.
    Memory {
        /// Where.
        address: u64,
        /// As the CPU reports it.
        code: u64,
    },
    /// A system call that there is none of: its number, as `rax` had it.
    UnknownCall {
        /// The number.
        number: u64,
    },
    /// Another exception: its vector and error code.
    Exception {
        /// The vector.
        vector: u64,
        /// As the CPU reports it, or zero.
        code: u64,
    },
}

impl Fault {
    /// The label of its message; never zero.
    #[must_use]
    pub const fn label(self) -> u32 {
        match self {
            Self::Memory { .. } => 1,
            Self::UnknownCall { .. } => 2,
            Self::Exception { .. } => 3,
        }
    }

    const fn words(self) -> [u64; 2] {
        match self {
            Self::Memory { address, code } => [address, code],
            Self::UnknownCall { number } => [number, 0],
            Self::Exception { vector, code } => [vector, code],
        }
    }
}

/// Words of a fault's message.
pub(super) const WORDS: u64 = 5;

impl<M: Memory> Objects<M> {
    /// The running thread `thread` did `fault`: tells its handler, or stops it.
    pub fn fault(&mut self, thread: Ref<Thread>, fault: Fault) {
        let handler = self.capability(thread.slot(ThreadSlot::FaultHandler));
        let reachable = handler.kind() == Kind::Endpoint
            && handler.rights().any(Rights::WRITE)
            && handler.rights().any(Rights::GRANT.or(Rights::GRANT_REPLY));
        if !reachable {
            self.unready(thread);
            self.memory.get_mut(thread).set_state(State::Stopped);
            return;
        }
        let faulted = self.memory.get_mut(thread);
        faulted.fault = u64::from(fault.label());
        faulted.fault_words = fault.words();
        let message = Outgoing {
            badge: handler.badge(),
            rights: handler.rights().bits(),
            info: MessageInfo::new(WORDS, fault.label()).bits(),
            call: 1,
        };
        self.send_checked(thread, handler.object_ref::<Endpoint>(), message, false);
    }

    /// The words of a fault that `thread` sends.
    pub(super) fn fault_message(&self, thread: Ref<Thread>) -> Option<[u64; 10]> {
        let faulted = self.memory.get(thread);
        let [a, b] = faulted.fault_words;
        let frame = &faulted.frame;
        (faulted.fault != 0).then_some([frame.rip, frame.rsp, frame.rflags, a, b, 0, 0, 0, 0, 0])
    }

    /// The handler's answer, in `handler`'s registers.
    pub(super) fn end_fault(
        &mut self,
        handler: Ref<Thread>,
        thread: Ref<Thread>,
        info: MessageInfo,
    ) {
        let [rip, rsp, rflags, ..] = self.memory.get(handler).frame.message();
        let faulted = self.memory.get_mut(thread);
        faulted.fault = 0;
        if info.label() != 0 {
            faulted.set_state(State::Stopped);
            return;
        }
        let words = info.words();
        // An instruction pointer that is no user address would fault in the kernel.
        if words >= 1 && rip < USER_LIMIT {
            faulted.frame.rip = rip;
        }
        if words >= 2 {
            faulted.frame.rsp = rsp;
        }
        if words >= 3 {
            faulted.frame.rflags = user_flags(rflags);
        }
        self.make_ready(thread);
    }
}
