//! The paths of a native program's system calls.

use core::sync::atomic::{AtomicBool, Ordering};

use bulkhead_paths::{MARK, ROUNDS, is_marked, steady};
use bulkhead_runtime::abi::object::{RIGHTS_ALL, TYPE_ENDPOINT, ThreadRegisters};
use bulkhead_runtime::abi::syscall::{CONSOLE_WRITE, MAP, PROTECT, UNMAP, YIELD, rights, slot};
use bulkhead_runtime::object::{
    CNODE, Configuration, EMPTY_REGISTERS, FIRST_THREAD, Place, Thread, Untyped,
};
use bulkhead_runtime::program_main;
use bulkhead_runtime::syscall::raw;

program_main!(main);

/// Every path, in the order of the table.
const PATHS: [fn(); 8] = [
    null_call,
    console_write,
    pages,
    yield_alone,
    yield_to_another,
    threads,
    notifications,
    capabilities,
];

fn main() {
    for path in PATHS {
        path();
    }
}

/// The next entry into the kernel is the path `name`.
fn mark(name: &str) {
    call(MARK, [name.as_ptr() as u64, name.len() as u64, 0, 1]);
}

/// A system call as it is, without a look at its answer.
fn call(number: u64, arguments: [u64; 4]) {
    // SAFETY: the paths change memory that nothing else uses, and start threads on stacks of
    // their own.
    unsafe { raw(number, arguments) };
}

fn null_call() {
    steady(|| mark("null call"), || call(u64::MAX, [0; 4]));
}

fn console_write() {
    let byte = b"\n".as_ptr() as u64;
    let arguments = [slot::CONSOLE, byte, 1, 1];
    steady(
        || mark("console write, 1 byte"),
        || call(CONSOLE_WRITE, arguments),
    );
}

/// A page beside one that is there: no table is made or given back.
fn pages() {
    const NEIGHBOUR: u64 = 0x7b00_0000_0000;
    const PAGE: u64 = NEIGHBOUR + 4096;
    let read_write = rights::READ | rights::WRITE;
    call(MAP, [slot::UNTYPED, NEIGHBOUR, 4096, read_write]);
    for round in 0..ROUNDS {
        let step = |name, number, arguments| {
            if is_marked(round) {
                mark(name);
            }
            call(number, arguments);
        };
        let map = [slot::UNTYPED, PAGE, 4096, read_write];
        step("map, one page", MAP, map);
        let protect = [slot::ADDRESS_SPACE, PAGE, 4096, rights::READ];
        step("protect, one page", PROTECT, protect);
        let unmap = [slot::ADDRESS_SPACE, PAGE, 4096, 0];
        step("unmap, one page", UNMAP, unmap);
    }
}

fn yield_alone() {
    steady(|| mark("yield, nobody else"), yield_now);
}

fn yield_now() {
    call(YIELD, [0; 4]);
}

#[repr(C, align(16))]
struct Stack([u8; 4096]);

/// Where the second thread runs, from one end to the next.
static mut STACK: Stack = Stack([0; 4096]);

/// The second thread, stopped, with time of its own; none where an object could not be made.
fn second() -> Option<Thread> {
    let memory = Untyped(slot::MEMORY);
    let (thread, context) = (memory.thread().ok()?, memory.sched_context().ok()?);
    thread.configure(Configuration::OWN).ok()?;
    thread.set_priority(FIRST_THREAD, 128, 255).ok()?;
    context.configure(TURN_NS, TURN_NS).ok()?;
    context.bind(thread).ok()?;
    Some(thread)
}

/// How long a thread runs while others are ready.
const TURN_NS: u64 = 10_000_000;

/// Starts the second thread at `entry`.
fn start(thread: Thread, entry: extern "C" fn(u64, u64) -> !, is_marked: bool) {
    let registers = ThreadRegisters {
        rip: entry as *const () as u64,
        // A call would have pushed a return address: the entry function expects 8 off 16.
        rsp: &raw const STACK as u64 + size_of::<Stack>() as u64 - 8,
        rdi: thread.0,
        rsi: is_marked.into(),
        ..EMPTY_REGISTERS
    };
    if is_marked {
        mark("thread set registers and resume");
    }
    // SAFETY: the entry functions never return, and the stack is the thread's own.
    let _ = unsafe { thread.set_registers(&registers, true) };
}

fn stop(own: u64, is_marked: bool) -> ! {
    loop {
        if is_marked {
            mark("thread suspend itself, to another thread");
        }
        let _ = Thread(own).suspend();
    }
}

/// The threads take turns: each yield is a switch to the other.
fn yield_to_another() {
    static STOP: AtomicBool = AtomicBool::new(false);
    extern "C" fn partner(own: u64, _: u64) -> ! {
        while !STOP.load(Ordering::Relaxed) {
            yield_now();
        }
        stop(own, false)
    }
    let Some(thread) = second() else { return };
    start(thread, partner, false);
    steady(|| mark("yield, to another thread"), yield_now);
    STOP.store(true, Ordering::Relaxed);
    yield_now();
}

/// A thread that stops as soon as it may run.
fn threads() {
    extern "C" fn ends(own: u64, is_marked: u64) -> ! {
        stop(own, is_marked != 0)
    }
    let Some(thread) = second() else { return };
    for round in 0..ROUNDS {
        start(thread, ends, is_marked(round));
        yield_now();
    }
}

/// Notifications that nobody waits for.
fn notifications() {
    let Ok(notification) = Untyped(slot::MEMORY).notification() else {
        return;
    };
    for round in 0..ROUNDS {
        if is_marked(round) {
            mark("signal, nobody waits");
        }
        let _ = notification.signal();
        if is_marked(round) {
            mark("poll, signalled");
        }
        let _ = notification.poll();
    }
}

/// An object made and deleted, its memory used once before.
fn capabilities() {
    let memory = Untyped(slot::MEMORY);
    let (object, copy) = (Place::own(slot::FREE + 100), Place::own(slot::FREE + 101));
    for round in 0..ROUNDS {
        let step = |name| {
            if is_marked(round) {
                mark(name);
            }
        };
        step("retype, one endpoint");
        let _ = memory.retype(TYPE_ENDPOINT, 0, CNODE, object.index, 1);
        step("copy");
        let _ = copy.copy(object, RIGHTS_ALL);
        step("delete, a copy");
        let _ = copy.delete();
        step("delete, the last to an endpoint");
        let _ = object.delete();
    }
}
