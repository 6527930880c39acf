//! Restricted mode: a small program in the lower half, and this one as its personality.
//!
//! The program is assembled here, copied to [`CODE`] and entered at its labels.

use alloc::string::String;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use bulkhead_runtime::abi::layout::{
    DIRECT_MAP, KERNEL_BASE, KERNEL_LOAD, PROGRAM_BOOT_INFO, RESTRICTED_END,
};
use bulkhead_runtime::abi::object::{RIGHTS_READ, TYPE_THREAD};
use bulkhead_runtime::abi::restricted::{REASON_EXCEPTION, REASON_SYSCALL, RestrictedState};
use bulkhead_runtime::abi::syscall::{CONSOLE_WRITE, EXIT, RESTRICTED_ENTER, Status, rights, slot};
use bulkhead_runtime::object::{FIRST_THREAD, Frame, Thread};
use bulkhead_runtime::syscall::{call, restricted_enter};
use bulkhead_runtime::{memory, thread, time};

use super::bench::Bench;
use super::{READ_WRITE, check, check_eq, map, named};

/// Where the program's code goes.
const CODE: u64 = 0x40_0000;
/// Where its data goes.
const DATA: u64 = 0x50_0000;
/// Where the state is mapped.
const STATE: u64 = 0x7c00_0000_0000;
/// RFLAGS: interrupts on and the bit that is always set.
const FLAGS: u64 = 0x202;

global_asm!(
    ".section .rodata.restricted_program, \"a\"",
    ".balign 16",
    "restricted_program:",
    "restricted_syscall: syscall",
    "    mov r15, rax",
    "    syscall",
    "restricted_ud: ud2",
    "restricted_divide: xor edx, edx",
    "    xor eax, eax",
    "    div eax",
    "restricted_breakpoint: int3",
    "restricted_halt: hlt",
    "restricted_port: out 0xf4, al",
    "restricted_read: mov rax, [rdi]",
    "    syscall",
    "restricted_write: mov [rdi], rax",
    "    syscall",
    "restricted_jump: jmp rdi",
    "restricted_flags: pushfq",
    "    pop rax",
    "    syscall",
    "restricted_step: nop",
    "    nop",
    "restricted_wait: mov rax, [rdi]",
    "    test rax, rax",
    "    jz restricted_wait",
    "    syscall",
    "restricted_fs: mov rax, fs:[8]",
    "    syscall",
    "restricted_program_end:",
    ".text",
);

unsafe extern "C" {
    safe static restricted_program: u8;
    safe static restricted_program_end: u8;
    safe static restricted_syscall: u8;
    safe static restricted_ud: u8;
    safe static restricted_divide: u8;
    safe static restricted_breakpoint: u8;
    safe static restricted_halt: u8;
    safe static restricted_port: u8;
    safe static restricted_read: u8;
    safe static restricted_write: u8;
    safe static restricted_jump: u8;
    safe static restricted_flags: u8;
    safe static restricted_step: u8;
    safe static restricted_wait: u8;
    safe static restricted_fs: u8;
}

/// Where a label of the program lies once it is copied.
fn at(label: &u8) -> u64 {
    label as *const u8 as u64 - &raw const restricted_program as u64 + CODE
}

/// Puts program, data and state in place, once; they stay.
fn prepare() -> Result<(), String> {
    let frame = match STATE_FRAME.load(Ordering::Relaxed) {
        0 => {
            let state = memory::frame(0).map_err(named)?;
            put(state, STATE, READ_WRITE)?;
            map(DATA, 0x2000).map_err(named)?;
            let code = memory::frame(0).map_err(named)?;
            put(code, CODE, READ_WRITE)?;
            let start = &raw const restricted_program;
            let len = &raw const restricted_program_end as usize - start as usize;
            // SAFETY: the labels enclose the program; the page was just mapped and is longer.
            unsafe { core::ptr::copy_nonoverlapping(start, CODE as *mut u8, len) };
            put(code, CODE, rights::READ | rights::EXECUTE)?;
            STATE_FRAME.store(state.0, Ordering::Relaxed);
            state
        }
        frame => Frame(frame),
    };
    bind(FIRST_THREAD, frame).map_err(named)
}

/// The frame of the state, once there is one.
static STATE_FRAME: AtomicU64 = AtomicU64::new(0);

fn put(frame: Frame, at: u64, rights: u64) -> Result<(), String> {
    // SAFETY: these addresses are used by the cases in here alone, without references.
    unsafe { memory::map_frame(frame, at, rights, (0, 0)) }.map_err(named)
}

fn bind(thread: Thread, frame: Frame) -> Result<(), Status> {
    // SAFETY: the state is used by volatile copies alone.
    unsafe { thread.bind_restricted(frame) }
}

/// Runs the program from `state` until it leaves; its state then.
fn enter(state: RestrictedState) -> Result<RestrictedState, Status> {
    let page = STATE as *mut RestrictedState;
    // SAFETY: the page is mapped, bound and used here only.
    unsafe { page.write_volatile(state) };
    // SAFETY: the program's code is the one above: it writes to `DATA` at most.
    unsafe { restricted_enter() }?;
    // SAFETY: as above.
    Ok(unsafe { page.read_volatile() })
}

fn run(rip: u64, rdi: u64) -> Result<RestrictedState, String> {
    let state = RestrictedState {
        rip,
        rdi,
        rsp: DATA + 0x2000,
        rflags: FLAGS,
        rax: 77,
        ..RestrictedState::default()
    };
    enter(state).map_err(named)
}

/// Before anything is bound: must be the first case in here.
pub(super) fn unbound() -> Result<(), String> {
    // SAFETY: refused.
    let answer = unsafe { call(RESTRICTED_ENTER, [0; 4]) };
    check_eq!(
        answer,
        Err(Status::InvalidArgument),
        "enter without a state"
    );
    Ok(())
}

pub(super) fn bind_errors() -> Result<(), String> {
    let bench = Bench::new()?;
    let frame = bench.frame()?;
    let weak = Frame(bench.minted(frame.0, RIGHTS_READ, 0)?);
    for (thread, frame, status) in [
        (Thread(slot::CONSOLE), frame, Status::InvalidCapability),
        (
            FIRST_THREAD,
            Frame(slot::CONSOLE),
            Status::InvalidCapability,
        ),
        (FIRST_THREAD, Frame(slot::MEMORY), Status::InvalidCapability),
        (FIRST_THREAD, Frame(u64::MAX), Status::InvalidCapability),
        (FIRST_THREAD, weak, Status::IllegalOperation),
    ] {
        check_eq!(bind(thread, frame), Err(status), "bind");
    }
    prepare()?;
    check_eq!(bind(FIRST_THREAD, frame), Ok(()), "another state");
    prepare()?;
    // One thread has a program at a time.
    let other = Thread(bench.make(TYPE_THREAD, 0)?);
    check_eq!(bind(other, frame), Err(Status::Busy), "a second thread");
    FIRST_THREAD.unbind_restricted().map_err(named)?;
    check_eq!(bind(other, frame), Ok(()), "in its place");
    let refused = prepare();
    check_eq!(refused, Err(named(Status::Busy)), "the first one again");
    other.place().delete().map_err(named)?;
    prepare()?;
    bench.finish()
}

pub(super) fn syscall() -> Result<(), String> {
    prepare()?;
    // Numbers that would be calls of the kernel are the personality's affair here.
    for number in [EXIT, CONSOLE_WRITE, RESTRICTED_ENTER, 39, u64::MAX] {
        let left = run(at(&restricted_syscall), slot::CONSOLE)?;
        check_eq!((left.reason, left.rax), (REASON_SYSCALL, 77), "first call");
        check_eq!(
            left.rip,
            at(&restricted_syscall) + 2,
            "rip behind the instruction"
        );
        let left = enter(RestrictedState {
            rax: number,
            ..left
        })
        .map_err(named)?;
        check_eq!(
            (left.reason, left.r15),
            (REASON_SYSCALL, number),
            "result of the first call"
        );
    }
    Ok(())
}

pub(super) fn registers() -> Result<(), String> {
    prepare()?;
    let state = RestrictedState {
        rax: 1,
        rbx: 2,
        rdx: 4,
        rsi: 5,
        rdi: 6,
        rbp: 7,
        rsp: DATA + 0x800,
        r8: 8,
        r9: 9,
        r10: 10,
        r12: 12,
        r13: 13,
        r14: 14,
        r15: 15,
        rip: at(&restricted_syscall),
        rflags: FLAGS | 0x8d5,
        ..RestrictedState::default()
    };
    let left = enter(state).map_err(named)?;
    let wanted = RestrictedState {
        rip: left.rip,
        rcx: left.rip,
        r11: state.rflags,
        reason: REASON_SYSCALL,
        ..state
    };
    check_eq!(left, wanted, "state");
    Ok(())
}

pub(super) fn exceptions() -> Result<(), String> {
    prepare()?;
    for (label, vector, what) in [
        (&restricted_ud, 6, "ud2"),
        (&restricted_halt, 13, "hlt"),
        (&restricted_port, 13, "out"),
        (&restricted_breakpoint, 3, "int3"),
    ] {
        let left = run(at(label), 0)?;
        check_eq!((left.reason, left.vector), (REASON_EXCEPTION, vector), what);
        let behind = u64::from(vector == 3);
        check_eq!(
            left.rip,
            at(label) + behind,
            alloc::format!("rip of {what}")
        );
        check_eq!(left.rax, 77, alloc::format!("rax of {what}"));
    }
    let left = run(at(&restricted_divide), 0)?;
    check_eq!((left.reason, left.vector), (REASON_EXCEPTION, 0), "div");
    // Single step: one instruction at a time.
    let mut state = run(at(&restricted_syscall), 0)?;
    state.rip = at(&restricted_step);
    state.rflags |= 0x100;
    let left = enter(state).map_err(named)?;
    check_eq!(
        (left.reason, left.vector),
        (REASON_EXCEPTION, 1),
        "single step"
    );
    check_eq!(left.rip, at(&restricted_step) + 1, "rip of a single step");
    Ok(())
}

/// What is above [`RESTRICTED_END`] does not exist for the program; nor does the kernel.
pub(super) fn walls() -> Result<(), String> {
    prepare()?;
    for address in [
        0,
        RESTRICTED_END,
        STATE,
        PROGRAM_BOOT_INFO,
        DIRECT_MAP,
        walls as *const () as u64,
    ] {
        for (label, bits, what) in [
            (&restricted_read, 0, "read"),
            (&restricted_write, 2, "write"),
            (&restricted_jump, 16, "jump"),
        ] {
            let left = run(at(label), address)?;
            let seen = (left.reason, left.vector, left.fault_address);
            check_eq!(
                seen,
                (REASON_EXCEPTION, 14, address),
                alloc::format!("{what} {address:#x}")
            );
            check_eq!(
                left.error_code & 0x16,
                4 | bits,
                alloc::format!("code of {what} {address:#x}")
            );
        }
    }
    let left = run(at(&restricted_write), CODE)?;
    check_eq!(
        (left.vector, left.error_code),
        (14, 7),
        "a write to read-only memory"
    );
    let left = run(at(&restricted_write), DATA)?;
    check_eq!(
        (left.reason, super::read(DATA)),
        (REASON_SYSCALL, 77),
        "a write to its own memory"
    );
    Ok(())
}

pub(super) fn flags() -> Result<(), String> {
    prepare()?;
    let mut state = run(at(&restricted_syscall), 0)?;
    state.rip = at(&restricted_flags);
    // Everything but TF: IOPL, NT, VM and the rest must not arrive.
    state.rflags = !0x100;
    state.rsp = DATA + 0x2000;
    let left = enter(state).map_err(named)?;
    check_eq!(left.rax & !0x24_0cd5, FLAGS, "flags in the program");
    Ok(())
}

/// The program tries the target of `syscall` itself, by trying all addresses where it may be, with
/// a return address that would break the kernel. Finding it must gain it nothing.
pub(super) fn forged_syscalls() -> Result<(), String> {
    prepare()?;
    let mut found = 0;
    for target in (KERNEL_BASE + KERNEL_LOAD..).step_by(16).take(4096) {
        let state = RestrictedState {
            rip: at(&restricted_jump),
            rdi: target,
            rcx: 1 << 47,
            r11: u64::MAX,
            rflags: FLAGS,
            ..RestrictedState::default()
        };
        let left = enter(state).map_err(named)?;
        let seen = (
            left.reason,
            left.vector,
            left.fault_address,
            left.error_code,
        );
        check_eq!(
            seen,
            (REASON_EXCEPTION, 14, target, 0x15),
            "a return address of nobody"
        );
        let honest = RestrictedState { rcx: DATA, ..state };
        let left = enter(honest).map_err(named)?;
        if left.reason == REASON_SYSCALL {
            found += 1;
            check_eq!((left.rip, left.rflags), (DATA, 0x24_0fd7), "rip and flags");
        }
    }
    check_eq!(found, 1, "targets found");
    Ok(())
}

pub(super) fn bad_entry() -> Result<(), String> {
    prepare()?;
    for rip in [1 << 47, 1 << 63, u64::MAX, DIRECT_MAP] {
        let state = RestrictedState {
            rip,
            rflags: FLAGS,
            ..RestrictedState::default()
        };
        check_eq!(
            enter(state).err(),
            Some(Status::InvalidArgument),
            alloc::format!("{rip:#x}")
        );
    }
    // Stacks are the program's affair until it uses them.
    for rsp in [0, 1 << 47, u64::MAX] {
        let state = RestrictedState {
            rip: at(&restricted_syscall),
            rsp,
            rflags: FLAGS,
            ..RestrictedState::default()
        };
        let left = enter(state).map_err(named)?;
        check_eq!(
            (left.reason, left.rsp),
            (REASON_SYSCALL, rsp),
            alloc::format!("rsp {rsp:#x}")
        );
    }
    Ok(())
}

/// The program spins until a native thread lets it go: that thread runs by preemption.
pub(super) fn preemption() -> Result<(), String> {
    static TURNS: AtomicU64 = AtomicU64::new(0);
    prepare()?;
    super::write(DATA + 64, 0);
    let other = thread::spawn(|| {
        for _ in 0..3 {
            time::sleep_ns(5_000_000);
            TURNS.fetch_add(1, Ordering::Relaxed);
        }
        super::write(DATA + 64, 5);
    })
    .map_err(named)?;
    let left = run(at(&restricted_wait), DATA + 64)?;
    check_eq!(
        (left.reason, left.rax),
        (REASON_SYSCALL, 5),
        "after the wait"
    );
    check_eq!(
        TURNS.load(Ordering::Relaxed),
        3,
        "turns of the other thread"
    );
    check!(other.join().is_some(), "the thread left nothing");
    // FS base is the program's, set by its personality.
    super::write(DATA + 0x108, 88);
    // SAFETY: nothing native uses FS.
    unsafe { asm!("wrfsbase {}", in(reg) DATA + 0x100, options(nostack, nomem)) };
    let left = run(at(&restricted_fs), 0)?;
    check_eq!((left.reason, left.rax), (REASON_SYSCALL, 88), "fs:[8]");
    Ok(())
}

/// The kernel writes to the state: it is there as long as its frame, mapped or not, and without it
/// nobody enters.
pub(super) fn state_goes() -> Result<(), String> {
    prepare()?;
    let frame = Frame(STATE_FRAME.load(Ordering::Relaxed));
    let left = run(at(&restricted_syscall), 0)?;
    check_eq!(left.reason, REASON_SYSCALL, "before");
    // SAFETY: no reference leads there.
    unsafe { frame.unmap() }.map_err(named)?;
    // SAFETY: the program is the one of before.
    let entered = unsafe { restricted_enter() };
    check_eq!(entered, Ok(()), "it need not be mapped");
    put(frame, STATE, READ_WRITE)?;
    // Another thread has no state, and cannot have one meanwhile.
    let theirs = thread::spawn(move || {
        // SAFETY: refused.
        unsafe { restricted_enter() }
    });
    let theirs = theirs.map_err(named)?.join();
    check_eq!(theirs, Some(Err(Status::InvalidArgument)), "another thread");
    // Its capability in the thread is a child of the frame's own.
    frame.place().revoke().map_err(named)?;
    // SAFETY: refused.
    let gone = unsafe { restricted_enter() };
    check_eq!(gone, Err(Status::InvalidArgument), "without a state");
    prepare()?;
    // While the program runs, another thread takes the state away.
    super::write(DATA + 64, 0);
    let other = thread::spawn(move || {
        time::sleep_ns(5_000_000);
        let done = frame.place().revoke();
        super::write(DATA + 64, 5);
        done
    });
    let other = other.map_err(named)?;
    let state = RestrictedState {
        rip: at(&restricted_wait),
        rdi: DATA + 64,
        rsp: DATA + 0x2000,
        rflags: FLAGS,
        ..RestrictedState::default()
    };
    check_eq!(enter(state).err(), Some(Status::Aborted), "meanwhile");
    check_eq!(other.join(), Some(Ok(())), "the revocation");
    prepare()?;
    let left = run(at(&restricted_syscall), 0)?;
    check_eq!(left.reason, REASON_SYSCALL, "afterwards");
    Ok(())
}
