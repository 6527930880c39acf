//! The paths of a native program's system calls. Those that can take long are in [`stretches`].

mod stretches;

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, Ordering};

use bulkhead_paths::{MARK, ROUNDS, is_marked, steady};
use bulkhead_runtime::abi::object::{RIGHTS_ALL, TYPE_ENDPOINT, TYPE_FRAME, ThreadRegisters};
use bulkhead_runtime::abi::syscall::{CALL, CONSOLE_WRITE, RECV, REPLY_RECV, YIELD, rights, slot};
use bulkhead_runtime::object::{
    ADDRESS_SPACE, AddressSpace, CNODE, Configuration, EMPTY_REGISTERS, FIRST_THREAD, Frame, Place,
    SchedContext, Thread, Untyped,
};
use bulkhead_runtime::program_main;
use bulkhead_runtime::syscall::{Registers, exchange, raw};

program_main!(main);

/// Every path, in the order of the table.
const PATHS: [fn(); 11] = [
    null_call,
    console_write,
    yield_alone,
    yield_to_another,
    threads,
    notifications,
    capabilities,
    frames,
    many_pages,
    messages,
    stretches::all,
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
fn second() -> Option<(Thread, SchedContext)> {
    let memory = Untyped(slot::MEMORY);
    let (thread, context) = (memory.thread().ok()?, memory.sched_context().ok()?);
    thread.configure(Configuration::OWN).ok()?;
    thread.set_priority(FIRST_THREAD, 128, 255).ok()?;
    context.configure(TURN_NS, TURN_NS).ok()?;
    context.bind(thread).ok()?;
    Some((thread, context))
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
    let Some((thread, _)) = second() else { return };
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
    let Some((thread, _)) = second() else { return };
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

/// Where frames and the server's page are mapped: nothing else is near.
const MAPPED: u64 = 0x7d80_0000_0000;
/// Where the server's page is mapped in its own address space.
const SERVER: u64 = 0x40_0000;

/// Page tables for a page at `at`.
fn tables(space: AddressSpace, at: u64) {
    while let Ok(table) = Untyped(slot::MEMORY).page_table()
        && table.map(space, at).is_ok()
    {}
}

fn frames() {
    tables(ADDRESS_SPACE, MAPPED);
    let memory = Untyped(slot::MEMORY);
    let frame = Frame(slot::FREE + 100);
    for round in 0..ROUNDS {
        let step = |name| {
            if is_marked(round) {
                mark(name);
            }
        };
        // The memory is zeroed anew from the second round on, which the first mark is behind.
        step("retype, one frame");
        let _ = memory.retype(TYPE_FRAME, 0, CNODE, frame.0, 1);
        step("frame map");
        // SAFETY: nothing is there.
        let _ = unsafe { frame.map(ADDRESS_SPACE, MAPPED, rights::READ) };
        step("frame unmap");
        // SAFETY: nothing refers to it.
        let _ = unsafe { frame.unmap() };
        step("delete, a frame");
        let _ = frame.place().delete();
    }
}

/// Pages of one frame in one call.
fn many_pages() {
    const PAGES: u64 = 16;
    let address = MAPPED + PAGES * 4096;
    let memory = Untyped(slot::MEMORY);
    let (Ok(frame), Ok(large)) = (memory.frame(4), memory.frame(9)) else {
        return;
    };
    for round in 0..ROUNDS {
        let step = |name, frame: Frame, at, rights| {
            if is_marked(round) {
                mark(name);
            }
            // SAFETY: nothing else is there.
            let _ = unsafe { frame.map(ADDRESS_SPACE, at, rights) };
        };
        step("frame map, 16 pages", frame, address, rights::READ);
        let both = rights::READ | rights::WRITE;
        step("frame map, other rights, 16 pages", frame, address, both);
        if is_marked(round) {
            mark("frame unmap, 16 pages");
        }
        // SAFETY: nothing refers to it.
        let _ = unsafe { frame.unmap() };
        step("frame map, a large page", large, MAPPED + (2 << 20), both);
        // SAFETY: nothing refers to it.
        let _ = unsafe { large.unmap() };
    }
}

// A server in an address space of its own: receives, then answers and receives for ever. All it
// knows stands behind its code, for a message of ten words leaves no register. It marks its answers
// while it is told to.
global_asm!(
    ".section .rodata.server, \"a\"",
    ".balign 16",
    "server:",
    "    mov eax, {recv}",
    "    mov rdi, [rip + server_endpoint]",
    "    mov rsi, [rip + server_reply]",
    "    syscall",
    "2:  cmp qword ptr [rip + server_marked], 0",
    "    je 3f",
    "    mov rax, {mark}",
    "    lea rdi, [rip + server_name]",
    "    mov rsi, [rip + server_name_length]",
    "    xor edx, edx",
    "    mov r10d, 1",
    "    syscall",
    "3:  mov rax, [rip + server_operation]",
    "    mov rdi, [rip + server_endpoint]",
    "    mov rsi, [rip + server_reply]",
    "    syscall",
    "    jmp 2b",
    "    .balign 8",
    "server_endpoint: .quad 0",
    "server_reply: .quad 0",
    "server_operation: .quad 0",
    "server_marked: .quad 0",
    "server_name_length: .quad 0",
    "server_name: .skip 64",
    "server_end:",
    ".text",
    recv = const RECV,
    mark = const MARK,
);

unsafe extern "C" {
    safe static server: u8;
    safe static server_endpoint: u8;
    safe static server_end: u8;
}

/// What the server is told, as it stands behind its code.
#[repr(C)]
struct Told {
    endpoint: u64,
    reply: u64,
    operation: u64,
    marked: u64,
    name_length: u64,
    name: [u8; 64],
}

/// Calls of a server in another address space, which runs on its callers' time.
fn messages() {
    let memory = Untyped(slot::MEMORY);
    let (Ok(endpoint), Ok(reply), Ok(space), Ok(page), Some((thread, context))) = (
        memory.endpoint(),
        memory.reply(),
        memory.address_space(),
        memory.frame(0),
        second(),
    ) else {
        return;
    };
    tables(space, SERVER);
    let theirs = Frame(slot::FREE + 102);
    let _ = theirs.place().copy(page.place(), RIGHTS_ALL);
    // SAFETY: nothing is there.
    let here = unsafe { page.map(ADDRESS_SPACE, MAPPED, rights::READ | rights::WRITE) };
    // SAFETY: nothing of Rust's is in that address space.
    let there = unsafe { theirs.map(space, SERVER, rights::READ | rights::EXECUTE) };
    if here.and(there).is_err() {
        return;
    }
    let length = &raw const server_end as usize - &raw const server as usize;
    // SAFETY: the page was just mapped, and is longer than the server.
    unsafe { core::ptr::copy_nonoverlapping(&raw const server, MAPPED as *mut u8, length) };
    let behind = &raw const server_endpoint as u64 - &raw const server as u64;
    let told = (MAPPED + behind) as *mut Told;
    let tell = |words: u64, marked: bool| {
        let text: &[u8] = if words == 0 {
            b"reply-receive, 0 words"
        } else {
            b"reply-receive, 10 words"
        };
        let mut name = [0; 64];
        for (to, from) in name.iter_mut().zip(text) {
            *to = *from;
        }
        let all = Told {
            endpoint: endpoint.0,
            reply: reply.0,
            operation: REPLY_RECV | words << 8,
            marked: marked.into(),
            name_length: text.len() as u64,
            name,
        };
        // SAFETY: the server's page, which it reads while this thread does not run.
        unsafe { told.write_volatile(all) };
    };
    tell(0, false);
    let configuration = Configuration {
        address_space: space.0,
        ..Configuration::OWN
    };
    let registers = ThreadRegisters {
        rip: SERVER,
        ..EMPTY_REGISTERS
    };
    let _ = thread.configure(configuration);
    // SAFETY: the server touches no memory but its own page.
    let _ = unsafe { thread.set_registers(&registers, true) };
    // It waits now, and has no time of its own from here on.
    yield_now();
    let _ = context.unbind();
    for (words, name) in [(0, "call, 0 words"), (10, "call, 10 words")] {
        for round in 0..ROUNDS {
            tell(words, is_marked(round));
            let mut registers = Registers {
                rax: CALL | words << 8,
                rdi: endpoint.0,
                ..Registers::default()
            };
            if is_marked(round) {
                mark(name);
            }
            // SAFETY: a message of words.
            unsafe { exchange(&mut registers) };
        }
    }
}
