//! Threads of the program, which take turns on the CPUs that they are started on.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use bulkhead_abi::layout::PAGE_SIZE;
use bulkhead_abi::object::ThreadRegisters;
use bulkhead_abi::object::{TYPE_SCHED_CONTEXT, TYPE_THREAD};
use bulkhead_abi::syscall::{Status, YIELD, rights};
use lock_api::Mutex;

use crate::heap::YieldLock;
use crate::memory;
use crate::object::{Configuration, EMPTY_REGISTERS, FIRST_THREAD, SchedContext, Thread};
use crate::syscall::raw;
use crate::time;

/// Bytes of a thread's stack.
pub const STACK_BYTES: u64 = 64 * 1024;
/// Where stacks are mapped, each below an unmapped page.
const STACKS_START: u64 = 0x7060_0000_0000;
/// Distance between two stacks.
const STACK_STRIDE: u64 = STACK_BYTES + PAGE_SIZE;
/// How long [`JoinHandle::join`] sleeps between two looks.
const JOIN_POLL_NS: u64 = 200_000;

/// Bytes of a thread and of a scheduling context, in bits.
const THREAD_BITS: u64 = 10;
const SCHED_CONTEXT_BITS: u64 = 7;

/// How long a thread runs while others of its priority are ready.
const TURN_NS: u64 = 10_000_000;
/// Priority of the program's threads, which its first one has.
const PRIORITY: u64 = 128;
/// The highest priority that they may give.
const CEILING: u64 = 255;

/// What a thread runs with. It is used again once the thread has ended.
#[derive(Clone, Copy)]
struct Vessel {
    thread: Thread,
    context: SchedContext,
    /// Whose time that is.
    cpu: u64,
    /// Lowest address of its stack.
    stack: u64,
}

/// Vessels that nobody uses, and how many there are.
struct Vessels {
    free: Vec<Vessel>,
    made: u64,
    /// End of what is mapped for stacks.
    stacks_end: u64,
}

static VESSELS: Mutex<YieldLock, Vessels> = Mutex::new(Vessels {
    free: Vec::new(),
    made: 0,
    stacks_end: STACKS_START,
});

impl Vessel {
    fn new(number: u64, stacks_end: &mut u64) -> Result<Self, Status> {
        let stack = STACKS_START + number * STACK_STRIDE + PAGE_SIZE;
        let top = stack + STACK_BYTES;
        // What a failure left of this stack stays for the next try.
        let read_write = rights::READ | rights::WRITE;
        *stacks_end = memory::extend(stack.max(*stacks_end)..top, top, read_write);
        if *stacks_end < top {
            return Err(Status::NotEnoughMemory);
        }
        let thread = Thread(memory::object(TYPE_THREAD, 0, THREAD_BITS)?);
        let context = SchedContext(memory::object(TYPE_SCHED_CONTEXT, 0, SCHED_CONTEXT_BITS)?);
        thread.configure(Configuration::OWN)?;
        thread.set_priority(FIRST_THREAD, PRIORITY, CEILING)?;
        context.configure(TURN_NS, TURN_NS)?;
        context.bind(thread)?;
        Ok(Self {
            thread,
            context,
            cpu: 0,
            stack,
        })
    }

    /// One that nobody uses, for a CPU.
    fn take(cpu: u64) -> Result<Self, Status> {
        let mut vessel = Self::take_any()?;
        if vessel.cpu != cpu {
            if let Err(status) = vessel.context.configure_on(cpu, TURN_NS, TURN_NS) {
                vessel.give_back();
                return Err(status);
            }
            vessel.cpu = cpu;
        }
        Ok(vessel)
    }

    fn give_back(self) {
        VESSELS.lock().free.push(self);
    }

    fn take_any() -> Result<Self, Status> {
        let mut vessels = VESSELS.lock();
        if let Some(vessel) = vessels.free.pop() {
            return Ok(vessel);
        }
        let made = vessels.made;
        let vessel = Self::new(made, &mut vessels.stacks_end)?;
        vessels.made += 1;
        // So that giving one back needs no memory.
        let made = vessels.made as usize;
        vessels.free.reserve(made);
        Ok(vessel)
    }
}

/// What a thread leaves behind.
struct Packet<T> {
    done: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: the value is written by the thread before `done`, and read by its joiner after it.
unsafe impl<T: Send> Sync for Packet<T> {}

/// A running thread.
pub struct JoinHandle<T> {
    packet: Arc<Packet<T>>,
}

/// Starts a thread on the first CPU.
///
/// # Errors
/// [`Status::NotEnoughMemory`] when there is no memory for it.
pub fn spawn<T, F>(f: F) -> Result<JoinHandle<T>, Status>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    spawn_on(0, f)
}

/// Starts a thread on a CPU, of which there are [`crate::environment::cpus`].
///
/// # Errors
/// As [`spawn`]; [`Status::InvalidCapability`] for a CPU that there is not.
pub fn spawn_on<T, F>(cpu: u64, f: F) -> Result<JoinHandle<T>, Status>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let vessel = Vessel::take(cpu)?;
    let packet = Arc::new(Packet {
        done: AtomicBool::new(false),
        value: UnsafeCell::new(None),
    });
    let theirs = Arc::clone(&packet);
    let body: Body = Box::new(move || {
        let value = f();
        // SAFETY: nobody reads the value before `done`.
        unsafe { *theirs.value.get() = Some(value) };
        theirs.done.store(true, Ordering::Release);
    });
    let argument = Box::into_raw(Box::new((vessel, body)));
    let registers = ThreadRegisters {
        rip: thread_entry as *const () as u64,
        // A call would have pushed a return address: the entry function expects 8 off 16.
        rsp: vessel.stack + STACK_BYTES - 8,
        rdi: argument as u64,
        ..EMPTY_REGISTERS
    };
    // SAFETY: the entry function takes the box back; the stack is the thread's own.
    let started = unsafe { vessel.thread.set_registers(&registers, true) };
    if let Err(status) = started {
        // SAFETY: no thread took the box.
        drop(unsafe { Box::from_raw(argument) });
        vessel.give_back();
        return Err(status);
    }
    Ok(JoinHandle { packet })
}

type Body = Box<dyn FnOnce() + Send>;

extern "C" fn thread_entry(start: *mut (Vessel, Body)) -> ! {
    // SAFETY: `spawn` made the box for this thread alone.
    let (vessel, body) = *unsafe { Box::from_raw(start) };
    body();
    // From here on the next thread may begin in this one's place, which would change nothing: all
    // that is left to do is to stop.
    vessel.give_back();
    loop {
        // It cannot be refused: the thread's own capability is never deleted.
        let _ = vessel.thread.suspend();
    }
}

impl<T> JoinHandle<T> {
    /// True when the thread has returned.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.packet.done.load(Ordering::Acquire)
    }

    /// Waits until the thread has returned; what it returned.
    #[must_use]
    pub fn join(self) -> Option<T> {
        while !self.is_finished() {
            time::sleep_ns(JOIN_POLL_NS);
        }
        // SAFETY: the thread wrote the value before `done` and does not touch it again; `self` is
        // its only reader.
        unsafe { (*self.packet.value.get()).take() }
    }
}

/// Lets other threads run.
pub fn yield_now() {
    // SAFETY: no effect on memory.
    unsafe { raw(YIELD, [0; 4]) };
}
