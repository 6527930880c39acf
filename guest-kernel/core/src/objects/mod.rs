//! Kernel objects and the capabilities to them: what the microkernel's system calls mean, without
//! architecture, without `unsafe` and without a heap.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`memory`] | typed references to objects in RAM |
//! | [`cancellation`] | the end of all sends by one badge |
//! | [`capability`] | the two words of a capability |
//! | [`slot`] | where a capability lies |
//! | [`derivation`] | who came from whom |
//! | [`cspace`] | finding a slot by its address; copy, mint, move, mutate, rotate |
//! | [`untyped`] | retype |
//! | [`deletion`] | delete and revoke |
//! | [`thread`] | threads and the queues they wait in |
//! | [`schedule`] | who runs next, and on whose time |
//! | [`ipc`] | messages and their answers |
//! | [`fastpath`] | the short way of calls and their answers |
//! | [`notification`] | events |
//! | [`interrupt`] | what devices signal |
//! | [`mapping`] | frames and page tables in address spaces |
//! | [`fault`] | what only a thread's handler can put right |
//!
//! Every object lies in memory that user space gave by retype, and memory of zeros is a valid
//! object of every kind: an idle endpoint, a stopped thread, an empty CNode.

pub mod cancellation;
pub mod capability;
pub mod cspace;
pub mod deletion;
pub mod derivation;
pub mod fastpath;
pub mod fault;
pub mod interrupt;
pub mod ipc;
pub mod mapping;
pub mod memory;
pub mod notification;
pub mod schedule;
pub mod slot;
pub mod thread;
pub mod untyped;

#[cfg(test)]
mod arena;
#[cfg(test)]
mod tests;

use thiserror::Error;

use memory::{Memory, Ref};
use slot::Slot;

/// Objects lie on multiples of this many bytes, and have at least as many.
pub const UNIT: u64 = 1 << UNIT_BITS;
/// [`UNIT`] in bits.
pub const UNIT_BITS: u32 = 5;

/// Why an operation was refused. Nothing has changed then, unless the variant says otherwise.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// The caller's handle leads to no capability, or to one of another kind.
    #[error("no capability of that kind is at that address")]
    InvalidCapability,
    /// The slot an operation is to take from is empty.
    #[error("the source slot is empty")]
    FailedLookup,
    /// The slot an operation is to fill is in use.
    #[error("the destination slot is in use")]
    DeleteFirst,
    /// The capability has children.
    #[error("the capability has children")]
    RevokeFirst,
    /// A number is out of its range.
    #[error("a number is not between {min} and {max}")]
    Range {
        /// The smallest that would do.
        min: u64,
        /// The largest that would do.
        max: u64,
    },
    /// An address is not the caller's to use.
    #[error("an address is no user address")]
    InvalidAddress,
    /// A page table is missing on the way to an address.
    #[error("a page table of level {level} is missing")]
    NoTable {
        /// 1 is that of 4 KiB pages.
        level: u32,
    },
    /// An argument makes no sense, whatever the state of things.
    #[error("an argument is invalid")]
    InvalidArgument,
    /// The capability does not allow it, or never.
    #[error("the capability does not allow that operation")]
    IllegalOperation,
    /// The untyped has too little left.
    #[error("the untyped has {available} bytes left")]
    NotEnoughMemory {
        /// Bytes that are left.
        available: u64,
    },
    /// The object is used by somebody, and can only be by one.
    #[error("the object is in use")]
    Busy,
    /// The reply object holds no call: it was answered, or its caller is gone.
    #[error("the reply object holds no call")]
    NoCaller,
    /// Something urgent came. The operation has made progress and goes on when it is called again.
    #[error("interrupted; call again")]
    Preempted,
}

/// All kernel objects of a partition, and what the kernel knows beside them.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Objects<M> {
    pub(crate) memory: M,
    /// What deletions have left to do.
    dying: Option<deletion::Dying>,
    scheduler: schedule::Scheduler,
    /// Threads that wait for console input.
    readers: thread::List,
    /// The last of them that input which came is to wake.
    last_to_wake: Option<Ref<thread::Thread>>,
    /// The thread that has a program in restricted mode, or may have one.
    restricted: Option<Ref<thread::Thread>>,
    spaces: mapping::Spaces,
    interrupts: interrupt::Interrupts,
}

impl<M: Memory> Objects<M> {
    /// No object yet.
    #[must_use]
    pub const fn new(memory: M) -> Self {
        Self {
            memory,
            dying: None,
            scheduler: schedule::Scheduler::new(),
            readers: thread::List::EMPTY,
            last_to_wake: None,
            restricted: None,
            spaces: mapping::Spaces::new(),
            interrupts: interrupt::Interrupts::new(),
        }
    }

    pub(crate) fn capability(&self, slot: Ref<Slot>) -> capability::Capability {
        self.memory.get(slot).capability()
    }

    /// Puts a capability nobody gave into an empty slot: at boot, for what exists from the start.
    pub fn plant(&mut self, slot: Ref<Slot>, capability: capability::Capability) {
        derivation::plant(&mut self.memory, slot, capability);
    }
}
