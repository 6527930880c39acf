//! What the cases of the microkernel's semantics have in common: objects of an untyped that goes
//! with the case, assistants that may be stopped, faulted and killed, and words they leave behind.
//!
//! An assistant is a thread without Rust's heap: its body is a plain function with a few numbers,
//! and it never returns. It runs on a stack and time of its own, at any priority.

use alloc::string::String;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bulkhead_runtime::abi::object::{
    RIGHTS_ALL, TYPE_CNODE, TYPE_ENDPOINT, TYPE_NOTIFICATION, TYPE_REPLY, TYPE_SCHED_CONTEXT,
    TYPE_THREAD, TYPE_UNTYPED, ThreadRegisters,
};
use bulkhead_runtime::abi::syscall::Status;
use bulkhead_runtime::object::{
    CNODE, CNode, Configuration, EMPTY_REGISTERS, Endpoint, FIRST_THREAD, Notification, Place,
    Reply, SchedContext, Thread, Untyped,
};
use bulkhead_runtime::{memory, slots, thread, time};

use super::{map, named};

/// Bytes of the cases' untyped, in bits.
const UNTYPED_BITS: u64 = 20;
/// The untyped that all cases use in turn, once there is one.
static ROOT: AtomicU64 = AtomicU64::new(0);
/// Bytes of an assistant's stack.
const STACK_BYTES: u64 = 16 * 1024;
/// Assistants that a case has at most.
const ASSISTANTS: usize = 24;
/// Where their stacks are, for the whole run, and how many there are.
const STACKS: u64 = 0x7b10_0000_0000;
static STACKS_MADE: AtomicUsize = AtomicUsize::new(0);
/// The highest priority that anybody gives.
pub(super) const CEILING: u64 = 255;
/// The priority that cases run with.
pub(super) const OWN: u64 = 128;

/// What assistants leave behind.
static WORDS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

/// The word number `index` that assistants and cases share.
pub(super) fn shared(index: usize) -> &'static AtomicU64 {
    &WORDS[index % WORDS.len()]
}

/// What an assistant does, with four numbers.
pub(super) type Body = extern "C" fn(u64, u64, u64, u64) -> !;

/// The end of every assistant: it stops itself, for ever.
pub(super) fn stop(own: u64) -> ! {
    loop {
        // Nothing else is left to do when it is refused.
        let _ = Thread(own).suspend();
        thread::yield_now();
    }
}

/// An assistant.
#[derive(Clone, Copy)]
pub(super) struct Assistant {
    pub(super) thread: Thread,
    pub(super) context: SchedContext,
    stack: u64,
}

/// Slots that a case has.
const SLOTS: u64 = 256;

/// Objects for one case.
pub(super) struct Bench {
    pub(super) untyped: Untyped,
    /// The case's slots, and how many are taken.
    row: u64,
    taken: Cell<u64>,
    assistants: usize,
}

impl Bench {
    /// Memory without objects, and shared words of zero.
    pub(super) fn new() -> Result<Self, String> {
        for word in &WORDS {
            word.store(0, Ordering::Relaxed);
        }
        let mut root = ROOT.load(Ordering::Relaxed);
        if root == 0 {
            let made = memory::object(TYPE_UNTYPED, UNTYPED_BITS, UNTYPED_BITS);
            root = made.map_err(named)?;
            ROOT.store(root, Ordering::Relaxed);
        }
        Ok(Self {
            untyped: Untyped(root),
            row: slots::take_row(SLOTS).ok_or("no free slots")?,
            taken: Cell::new(0),
            assistants: 0,
        })
    }

    /// Ends the case: all that was made of its memory goes.
    pub(super) fn finish(mut self) -> Result<(), String> {
        self.clear().map_err(named)
    }

    fn clear(&mut self) -> Result<(), Status> {
        let row = core::mem::take(&mut self.row);
        if row == 0 {
            return Ok(());
        }
        self.untyped.place().revoke()?;
        for slot in row..row + SLOTS {
            if slot < row + self.taken.get() {
                Place::own(slot).delete()?;
            }
            slots::give_back(slot);
        }
        Ok(())
    }

    /// A free slot.
    pub(super) fn slot(&self) -> Result<u64, String> {
        let slot = self.row + self.taken.get();
        self.taken.set(self.taken.get() + 1);
        if slot < self.row + SLOTS {
            Ok(slot)
        } else {
            Err(String::from("the case has no slot left"))
        }
    }

    /// An object of the case's untyped.
    pub(super) fn make(&self, kind: u64, size: u64) -> Result<u64, String> {
        let slot = self.slot()?;
        self.untyped
            .retype(kind, size, CNODE, slot, 1)
            .map_err(named)?;
        Ok(slot)
    }

    pub(super) fn endpoint(&self) -> Result<Endpoint, String> {
        self.make(TYPE_ENDPOINT, 0).map(Endpoint)
    }

    pub(super) fn notification(&self) -> Result<Notification, String> {
        self.make(TYPE_NOTIFICATION, 0).map(Notification)
    }

    pub(super) fn reply(&self) -> Result<Reply, String> {
        self.make(TYPE_REPLY, 0).map(Reply)
    }

    pub(super) fn cnode(&self, radix: u64) -> Result<CNode, String> {
        self.make(TYPE_CNODE, radix).map(CNode)
    }

    /// A copy of what a handle names, with these rights and, unless it is 0, this badge.
    pub(super) fn minted(&self, from: u64, rights: u64, badge: u64) -> Result<u64, String> {
        let to = self.slot()?;
        let (place, from) = (Place::own(to), Place::own(from));
        match badge {
            0 => place.copy(from, rights),
            badge => place.mint(from, rights, badge),
        }
        .map_err(named)?;
        Ok(to)
    }

    /// The same with all rights.
    pub(super) fn badged(&self, from: u64, badge: u64) -> Result<u64, String> {
        self.minted(from, RIGHTS_ALL, badge)
    }

    /// A thread that is stopped, with a stack and time of its own.
    pub(super) fn assistant(&mut self, priority: u64) -> Result<Assistant, String> {
        let assistant = self.passive(priority)?;
        assistant
            .context
            .configure(10_000_000, 10_000_000)
            .map_err(named)?;
        assistant.context.bind(assistant.thread).map_err(named)?;
        Ok(assistant)
    }

    /// A thread that is stopped and has no time.
    pub(super) fn passive(&mut self, priority: u64) -> Result<Assistant, String> {
        let number = self.assistants;
        if number == ASSISTANTS {
            return Err(String::from("too many assistants"));
        }
        self.assistants += 1;
        let thread = Thread(self.make(TYPE_THREAD, 0)?);
        let context = SchedContext(self.make(TYPE_SCHED_CONTEXT, 0)?);
        thread.configure(Configuration::OWN).map_err(named)?;
        thread
            .set_priority(FIRST_THREAD, priority, CEILING)
            .map_err(named)?;
        let stack = STACKS + number as u64 * 2 * STACK_BYTES;
        // It stays mapped from case to case.
        if number >= STACKS_MADE.load(Ordering::Relaxed) {
            map(stack, STACK_BYTES).map_err(named)?;
            STACKS_MADE.store(number + 1, Ordering::Relaxed);
        }
        Ok(Assistant {
            thread,
            context,
            stack,
        })
    }

    /// An assistant that runs `body`.
    pub(super) fn start(
        &mut self,
        priority: u64,
        body: Body,
        numbers: [u64; 3],
    ) -> Result<Assistant, String> {
        let assistant = self.assistant(priority)?;
        assistant.begin(body, numbers)?;
        Ok(assistant)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // After a case that failed, so that the next one has what it needs.
        let _ = self.clear();
    }
}

impl Assistant {
    /// Has it run `body` from its beginning, with its own handle as the first number.
    pub(super) fn begin(self, body: Body, [b, c, d]: [u64; 3]) -> Result<(), String> {
        let registers = self.registers(body, [b, c, d]);
        // SAFETY: the body is a function that never returns, on a stack of its own.
        unsafe { self.thread.set_registers(&registers, true) }.map_err(named)
    }

    /// What it begins with.
    pub(super) fn registers(self, body: Body, [b, c, d]: [u64; 3]) -> ThreadRegisters {
        ThreadRegisters {
            rip: body as *const () as u64,
            // A call would have pushed a return address.
            rsp: self.stack + STACK_BYTES - 8,
            rdi: self.thread.0,
            rsi: b,
            rdx: c,
            rcx: d,
            ..EMPTY_REGISTERS
        }
    }
}

/// Lets others of the same priority run until a condition holds; false when it never does.
pub(super) fn until(condition: impl Fn() -> bool) -> bool {
    for _ in 0..2_000 {
        if condition() {
            return true;
        }
        thread::yield_now();
    }
    condition()
}

/// As [`until`], for what less urgent threads do.
pub(super) fn asleep_until(condition: impl Fn() -> bool) -> bool {
    for _ in 0..500 {
        if condition() {
            return true;
        }
        time::sleep_ns(1_000_000);
    }
    condition()
}

/// Runs `work` with another priority.
pub(super) fn at_priority<T>(priority: u64, work: impl FnOnce() -> T) -> Result<T, String> {
    let set = |priority| {
        FIRST_THREAD
            .set_priority(FIRST_THREAD, priority, CEILING)
            .map_err(named)
    };
    set(priority)?;
    let done = work();
    set(OWN)?;
    Ok(done)
}

/// The slots of a CNode of `1 << radix` slots.
pub(super) fn inside(cnode: CNode, radix: u64) -> impl Fn(u64) -> Place {
    move |index| Place::of(cnode, radix, index)
}

/// Whether a slot holds something: nothing can be copied over it.
pub(super) fn is_occupied(place: Place) -> bool {
    place.copy(CNODE.place(), RIGHTS_ALL) == Err(Status::DeleteFirst) || {
        let _ = place.delete();
        false
    }
}
