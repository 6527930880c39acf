//! Threads: what is stored of one, and the lists it can stand in.

use bulkhead_abi::syscall::Status;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ipc::{Endpoint, Reply};
use super::memory::{Memory, Ref, Stored, link};
use super::notification::Notification;
use super::schedule::SchedContext;
use super::slot::Slot;
use super::{Error, Objects};
use crate::frame::Frame;

/// Slots of a thread, in bits.
pub const SLOTS_RADIX: u32 = 3;
/// Size of a thread in bits.
pub const SIZE_BITS: u32 = 10;
/// Threads that wait for console input and are woken in one entry into the kernel.
const WAKE_STEP: usize = 16;

/// What the slots of a thread are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ThreadSlot {
    /// The CNode that its handles begin at.
    CSpace = 0,
    /// Its address space.
    AddressSpace = 1,
    /// The endpoint that its faults are sent to.
    FaultHandler = 2,
    /// The frame of what a message has beyond its registers.
    MessageBuffer = 3,
    /// The frame through which it passes the registers of a program in restricted mode.
    RestrictedState = 4,
}

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum State {
    /// Nothing, until it is resumed.
    Stopped = 0,
    /// It runs, or would if it were its turn and it had time.
    Ready = 1,
    /// It waits for somebody to receive its message.
    Sending = 2,
    /// It waits for a message.
    Receiving = 3,
    /// Its message was received; it waits for the answer.
    Calling = 4,
    /// It waits for a notification.
    Waiting = 5,
    /// It waits for a point in time.
    Sleeping = 6,
    /// It waits for console input, and then executes its system call again.
    Reading = 7,
}

impl State {
    const fn of(word: u64) -> Self {
        match word {
            1 => Self::Ready,
            2 => Self::Sending,
            3 => Self::Receiving,
            4 => Self::Calling,
            5 => Self::Waiting,
            6 => Self::Sleeping,
            7 => Self::Reading,
            _ => Self::Stopped,
        }
    }
}

/// Which of its two register sets a thread runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Mode {
    /// The native program, or the personality.
    Native = 0,
    /// The program under the personality.
    Restricted = 1,
}

/// A thread's neighbours in one list.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Neighbours {
    next: u64,
    previous: u64,
}

/// The lists that a thread can stand in at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// That of an endpoint or notification.
    Wait = 0,
    /// That of its priority.
    Ready = 1,
    /// That of those who wait for a point in time.
    Timer = 2,
}

/// A message that a thread sends, as far as it is not in its registers.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Outgoing {
    /// Badge of the capability it is sent by.
    pub(super) badge: u64,
    /// Rights of that capability.
    pub(super) rights: u64,
    /// [`super::ipc::MessageInfo`].
    pub(super) info: u64,
    /// Whether an answer is waited for.
    pub(super) call: u64,
}

/// A thread.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Thread {
    pub(super) slots: [Slot; 1 << SLOTS_RADIX],
    /// Its registers.
    pub frame: Frame,
    /// FS base while the thread does not run; kept by the architecture's switch.
    pub fs_base: u64,
    /// GS base while the thread does not run; kept by the architecture's switch.
    pub gs_base: u64,
    /// Its other registers: those of the program that it runs in restricted mode.
    pub(crate) restricted: Frame,
    mode: u64,
    state: u64,
    /// 0 to 255; the higher the more urgent.
    pub(super) priority: u64,
    /// The highest priority this thread may give to any.
    pub(super) ceiling: u64,
    memberships: [Neighbours; 3],
    blocked_on: u64,
    pub(super) outgoing: Outgoing,
    reply: u64,
    bound: u64,
    context: u64,
    home: u64,
    /// Its place in the timer list, nonzero while it is in it: when it wakes, when its context is
    /// filled again, or until when it waits.
    pub(super) due: u64,
    /// Nonzero while a fault of its own is what it sent; see [`super::fault`].
    pub(super) fault: u64,
    pub(super) fault_words: [u64; 2],
    /// Nonzero while it is in the list of its priority.
    pub(super) queued: u64,
    /// The CPU in whose timer list it is.
    pub(super) timer_cpu: u64,
    reserved: [u64; 21],
}

const _: () = assert!(size_of::<Thread>() == 1 << SIZE_BITS);

impl Stored for Thread {}

impl Thread {
    /// What it does.
    #[must_use]
    pub const fn state(&self) -> State {
        State::of(self.state)
    }

    /// Which registers it runs with.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        if self.mode == Mode::Native as u64 {
            Mode::Native
        } else {
            Mode::Restricted
        }
    }

    pub(crate) const fn set_mode(&mut self, mode: Mode) {
        self.mode = mode as u64;
    }

    /// Ends restricted mode without a word about the program's registers.
    pub(crate) const fn abort_restricted(&mut self) {
        self.set_mode(Mode::Native);
        self.frame.rax = Status::Aborted as u64;
    }

    /// Where its traps store its registers now, and resuming takes them from.
    pub const fn active_frame(&mut self) -> &mut Frame {
        match self.mode() {
            Mode::Native => &mut self.frame,
            Mode::Restricted => &mut self.restricted,
        }
    }

    pub(super) const fn set_state(&mut self, state: State) {
        self.state = state as u64;
    }

    /// The highest priority that it may give to any.
    #[must_use]
    pub const fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// The endpoint it sends to or receives from.
    pub(super) const fn endpoint(&self) -> Option<Ref<Endpoint>> {
        match self.state() {
            State::Sending | State::Receiving => Ref::from_link(self.blocked_on),
            _ => None,
        }
    }

    /// The notification it waits for.
    pub(super) const fn awaited(&self) -> Option<Ref<Notification>> {
        match self.state() {
            State::Waiting => Ref::from_link(self.blocked_on),
            _ => None,
        }
    }

    /// Blocks it on the object at `address`.
    pub(super) const fn block(&mut self, state: State, address: u64) {
        self.state = state as u64;
        self.blocked_on = address;
    }

    /// The reply object it receives with, or that will have its answer.
    pub(super) const fn reply(&self) -> Option<Ref<Reply>> {
        Ref::from_link(self.reply)
    }

    pub(super) fn set_reply(&mut self, reply: Option<Ref<Reply>>) {
        self.reply = link(reply);
    }

    /// The notification that also ends its receiving.
    pub(super) const fn bound(&self) -> Option<Ref<Notification>> {
        Ref::from_link(self.bound)
    }

    pub(super) fn set_bound(&mut self, bound: Option<Ref<Notification>>) {
        self.bound = link(bound);
    }

    /// The scheduling context it runs on: its own, or a caller's.
    pub(super) const fn context(&self) -> Option<Ref<SchedContext>> {
        Ref::from_link(self.context)
    }

    pub(super) fn set_context(&mut self, context: Option<Ref<SchedContext>>) {
        self.context = link(context);
    }

    /// Whether it has no time now and waits for no point in time.
    pub(super) const fn lacks_time(&self) -> bool {
        self.context | self.due == 0
    }

    /// The scheduling context that is its own.
    pub(super) const fn home(&self) -> Option<Ref<SchedContext>> {
        Ref::from_link(self.home)
    }

    pub(super) fn set_home(&mut self, home: Option<Ref<SchedContext>>) {
        self.home = link(home);
    }
}

impl<M: Memory> Objects<M> {
    /// Stops a thread, whatever it does. What it waited for is over: it goes on with
    /// [`bulkhead_abi::syscall::Status::Aborted`] when it is resumed.
    pub fn suspend(&mut self, thread: Ref<Thread>) {
        self.unready(thread);
        self.stop_waiting(thread);
    }

    /// Lets a stopped thread go on. One whose fault waits to be handled goes on as its registers
    /// are now; to any other it makes no difference.
    pub fn resume(&mut self, thread: Ref<Thread>) {
        let found = self.memory.get(thread);
        if found.fault != 0 {
            self.stop_waiting(thread);
        }
        if self.memory.get(thread).state() == State::Stopped {
            self.make_ready(thread);
        }
    }

    /// Lets a thread be the one that has a program in restricted mode. There is one in a partition:
    /// the FPU and its descendants are not switched between threads.
    ///
    /// # Errors
    /// [`Error::Busy`] while it is another one.
    pub(crate) fn begin_restricted(&mut self, thread: Ref<Thread>) -> Result<(), Error> {
        if self.restricted.is_some_and(|other| other != thread) {
            return Err(Error::Busy);
        }
        self.restricted = Some(thread);
        Ok(())
    }

    /// Undoes [`Objects::begin_restricted`]. A thread that is in restricted mode comes back from it
    /// as if its state were gone.
    pub(crate) fn end_restricted(&mut self, thread: Ref<Thread>) {
        if self.restricted == Some(thread) {
            self.restricted = None;
            self.hold_still(thread);
            let thread = self.memory.get_mut(thread);
            if thread.mode() == Mode::Restricted {
                thread.abort_restricted();
            }
        }
    }

    /// Has the running thread wait for console input. It is to execute its system call again then.
    pub fn wait_for_input(&mut self, thread: Ref<Thread>) {
        self.unready(thread);
        self.memory.get_mut(thread).set_state(State::Reading);
        self.readers = (self.readers).pushed(&mut self.memory, Membership::Wait, thread);
    }

    /// Console input came: whoever waits for it now tries again, see
    /// [`Objects::wake_some_readers`].
    pub fn wake_readers(&mut self) {
        self.last_to_wake = self.readers.last();
    }

    /// Wakes some of those who waited for console input when it came; whether there are more.
    pub fn wake_some_readers(&mut self) -> bool {
        for _ in 0..WAKE_STEP {
            if self.last_to_wake.is_none() {
                return false;
            }
            let Some(thread) = self.readers.first() else {
                return false;
            };
            self.leave_queue(thread);
            self.make_ready(thread);
        }
        self.last_to_wake.is_some()
    }

    /// Takes a thread that waits for console input out of the list of those.
    pub(super) fn leave_readers(&mut self, thread: Ref<Thread>) {
        if self.last_to_wake == Some(thread) {
            self.last_to_wake = List::before(&self.memory, Membership::Wait, thread);
        }
        self.readers = (self.readers).without(&mut self.memory, Membership::Wait, thread);
    }
}

impl Ref<Thread> {
    /// One of the thread's slots: they come first in it.
    pub(crate) const fn slot(self, slot: ThreadSlot) -> Ref<Slot> {
        Ref::<Slot>::new(self.address()).at(slot as u64)
    }
}

/// A list of threads, first come first served.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct List {
    head: u64,
    tail: u64,
}

impl List {
    /// Nobody.
    pub(super) const EMPTY: Self = Self { head: 0, tail: 0 };

    pub(super) const fn first(self) -> Option<Ref<Thread>> {
        Ref::from_link(self.head)
    }

    pub(super) const fn last(self) -> Option<Ref<Thread>> {
        Ref::from_link(self.tail)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.head == 0
    }

    /// Who stands behind `thread`.
    pub(super) fn after(
        memory: &impl Memory,
        membership: Membership,
        thread: Ref<Thread>,
    ) -> Option<Ref<Thread>> {
        Ref::from_link(memory.get(thread).memberships[membership as usize].next)
    }

    /// Who stands before `thread`.
    pub(super) fn before(
        memory: &impl Memory,
        membership: Membership,
        thread: Ref<Thread>,
    ) -> Option<Ref<Thread>> {
        Ref::from_link(memory.get(thread).memberships[membership as usize].previous)
    }

    /// The list with `thread` before `next`, or at its end.
    pub(super) fn inserted(
        mut self,
        memory: &mut impl Memory,
        membership: Membership,
        thread: Ref<Thread>,
        next: Option<Ref<Thread>>,
    ) -> Self {
        let place = membership as usize;
        let previous = match next {
            Some(next) => {
                let neighbours = &mut memory.get_mut(next).memberships[place];
                core::mem::replace(&mut neighbours.previous, thread.address())
            }
            None => core::mem::replace(&mut self.tail, thread.address()),
        };
        memory.get_mut(thread).memberships[place] = Neighbours {
            next: link(next),
            previous,
        };
        match Ref::<Thread>::from_link(previous) {
            Some(previous) => memory.get_mut(previous).memberships[place].next = thread.address(),
            None => self.head = thread.address(),
        }
        self
    }

    /// The list with `thread` at its end.
    pub(super) fn pushed(
        self,
        memory: &mut impl Memory,
        membership: Membership,
        thread: Ref<Thread>,
    ) -> Self {
        self.inserted(memory, membership, thread, None)
    }

    /// The list without `thread`, which is its first.
    #[inline]
    pub(super) fn without_first(
        mut self,
        memory: &mut impl Memory,
        membership: Membership,
        thread: Ref<Thread>,
    ) -> Self {
        let place = membership as usize;
        let left = core::mem::take(&mut memory.get_mut(thread).memberships[place]);
        self.head = left.next;
        match Ref::<Thread>::from_link(left.next) {
            Some(next) => memory.get_mut(next).memberships[place].previous = 0,
            None => self.tail = 0,
        }
        self
    }

    /// The list without `thread`, which is in it.
    pub(super) fn without(
        mut self,
        memory: &mut impl Memory,
        membership: Membership,
        thread: Ref<Thread>,
    ) -> Self {
        let place = membership as usize;
        let left = core::mem::take(&mut memory.get_mut(thread).memberships[place]);
        match Ref::<Thread>::from_link(left.previous) {
            Some(previous) => memory.get_mut(previous).memberships[place].next = left.next,
            None => self.head = left.next,
        }
        match Ref::<Thread>::from_link(left.next) {
            Some(next) => memory.get_mut(next).memberships[place].previous = left.previous,
            None => self.tail = left.previous,
        }
        self
    }
}
