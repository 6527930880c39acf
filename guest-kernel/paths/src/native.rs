//! The paths of a native program's system calls.

use core::sync::atomic::{AtomicBool, Ordering};

use bulkhead_paths::{MARK, ROUNDS, is_marked, steady};
use bulkhead_runtime::abi::syscall::{
    CONSOLE_WRITE, MAP, PROTECT, THREAD_EXIT, THREAD_SPAWN, UNMAP, YIELD, rights, slot,
};
use bulkhead_runtime::program_main;
use bulkhead_runtime::syscall::raw;

program_main!(main);

/// Every path, in the order of the table.
const PATHS: [fn(); 6] = [
    null_call,
    console_write,
    pages,
    yield_alone,
    yield_to_another,
    threads,
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

/// Starts the second thread; the one before it has ended.
fn spawn(entry: extern "C" fn(u64) -> !, argument: u64) {
    // A call would have pushed a return address: the entry function expects 8 off 16.
    let top = &raw const STACK as u64 + size_of::<Stack>() as u64 - 8;
    call(THREAD_SPAWN, [entry as *const () as u64, top, argument, 0]);
}

fn exit() -> ! {
    loop {
        call(THREAD_EXIT, [0; 4]);
    }
}

/// The threads take turns: each yield is a switch to the other.
fn yield_to_another() {
    static STOP: AtomicBool = AtomicBool::new(false);
    extern "C" fn partner(_: u64) -> ! {
        while !STOP.load(Ordering::Relaxed) {
            yield_now();
        }
        exit()
    }
    spawn(partner, 0);
    steady(|| mark("yield, to another thread"), yield_now);
    STOP.store(true, Ordering::Relaxed);
    yield_now();
}

/// A thread that ends as soon as it may run.
fn threads() {
    extern "C" fn ends(is_marked: u64) -> ! {
        if is_marked != 0 {
            mark("thread exit, to another thread");
        }
        exit()
    }
    for round in 0..ROUNDS {
        if is_marked(round) {
            mark("thread spawn");
        }
        spawn(ends, is_marked(round).into());
        yield_now();
    }
}
