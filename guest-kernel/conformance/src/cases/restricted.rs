//! Restricted mode: a small program in the lower half, and this one as its personality.
//!
//! The program is assembled here, copied to [`CODE`] and entered at its labels.

use alloc::string::String;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use bulkhead_runtime::abi::layout::{
    DIRECT_MAP, KERNEL_BASE, KERNEL_LOAD, PROGRAM_BOOT_INFO, RESTRICTED_END,
};
use bulkhead_runtime::abi::restricted::{REASON_EXCEPTION, REASON_SYSCALL, RestrictedState};
use bulkhead_runtime::abi::syscall::{CONSOLE_WRITE, EXIT, RESTRICTED_ENTER, Status, rights, slot};
use bulkhead_runtime::syscall::{call, restricted_bind, restricted_enter};
use bulkhead_runtime::{thread, time};

use super::{check, check_eq, map, named, protect, unmap};

/// Where the program's code goes.
const CODE: u64 = 0x40_0000;
/// Where its data goes.
const DATA: u64 = 0x50_0000;
/// The state page.
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

/// Puts program, data and state page in place, once; they stay.
fn prepare() -> Result<(), String> {
    let read_write = rights::READ | rights::WRITE;
    match map(STATE, 0x1000, read_write) {
        Err(Status::DeleteFirst) => return Ok(()),
        other => other.map_err(named)?,
    };
    // SAFETY: the page is used through `state` alone.
    unsafe { restricted_bind(STATE) }.map_err(named)?;
    map(CODE, 0x1000, read_write).map_err(named)?;
    map(DATA, 0x2000, read_write).map_err(named)?;
    let len = &raw const restricted_program_end as usize - &raw const restricted_program as usize;
    let source = &raw const restricted_program;
    // SAFETY: the labels enclose the program; the page was just mapped and is longer.
    unsafe { core::ptr::copy_nonoverlapping(source, CODE as *mut u8, len) };
    protect(CODE, 0x1000, rights::READ | rights::EXECUTE).map_err(named)?;
    Ok(())
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
        "enter without a state page"
    );
    Ok(())
}

pub(super) fn bind_errors() -> Result<(), String> {
    for (address, status) in [
        (0, Status::InvalidAddress),
        (STATE + 8, Status::InvalidArgument),
        (0x7d00_0000_0000, Status::InvalidAddress),
        (PROGRAM_BOOT_INFO, Status::InvalidAddress),
        (DIRECT_MAP, Status::InvalidAddress),
        (!0xfff, Status::InvalidAddress),
    ] {
        // SAFETY: refused.
        let answer = unsafe { restricted_bind(address) };
        check_eq!(answer, Err(status), alloc::format!("bind {address:#x}"));
    }
    prepare()?;
    // SAFETY: refused.
    let twice = unsafe { restricted_bind(STATE) };
    check_eq!(twice, Err(Status::DeleteFirst), "bind twice");
    Ok(())
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

/// The kernel writes to the state page: it cannot be pulled away under it.
pub(super) fn state_page_stays() -> Result<(), String> {
    prepare()?;
    for (address, bytes) in [(STATE, 0x1000), (STATE - 0x4000, 0x8000)] {
        check_eq!(unmap(address, bytes), Err(Status::InvalidAddress), "unmap");
    }
    let left = run(at(&restricted_syscall), 0)?;
    check_eq!(left.reason, REASON_SYSCALL, "afterwards");
    // Another thread has no state page, and cannot have this one.
    let theirs = thread::spawn(|| {
        // SAFETY: refused.
        let entered = unsafe { restricted_enter() };
        // SAFETY: refused.
        let bound = unsafe { restricted_bind(STATE) };
        (entered, bound)
    });
    let theirs = theirs.map_err(named)?.join();
    let wanted = (Err(Status::InvalidArgument), Err(Status::DeleteFirst));
    check_eq!(theirs, Some(wanted), "another thread");
    Ok(())
}
