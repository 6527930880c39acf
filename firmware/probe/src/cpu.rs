//! The CPU and the machine: descriptor tables, doors to CPL3, ports. All `unsafe` of the probe but
//! the experiments themselves is here.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Size of the copy that `entry.s` makes, its final zero included.
pub(crate) const COMMAND_LINE_BYTES: usize = 64;
/// Vector of #UD.
pub(crate) const INVALID_OPCODE: u64 = 6;

const COM1: u16 = 0x3f8;
/// Distance between a supervisor address and its alias for CPL3.
const USER_ALIAS: u64 = 0x20_0000;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
const TSS_SELECTOR: u16 = 0x30;
/// Set in the result of `attempt` when an exception ended it.
const FAULTED: u64 = 1 << 63;

/// A function that `attempt` can call.
pub(crate) type Function = unsafe extern "C" fn(u64) -> u64;

unsafe extern "C" {
    fn attempt(function: Function, argument: u64) -> u64;
    fn probe_exit(status: u64) -> !;
    fn kernel_speed(unused: u64) -> u64;
    fn enter_by_iretq(rip: u64) -> u64;
    fn enter_by_sysretq(rip: u64) -> u64;
    fn user_nothing();
    fn user_speed();
    fn user_syscall();
    fn syscall_entry();
    fn exception_entries();
    static trap_stack_top: u8;
    safe static GDT: [AtomicU64; 8];
    safe static IDT: [AtomicU64; 64];
    safe static TSS: [AtomicU32; 26];
    safe static COMMAND_LINE: [AtomicU8; COMMAND_LINE_BYTES];
    /// What the last program left in r8.
    pub(crate) safe static USER_RESULT: AtomicU64;
    /// Where the last `syscall` arrived: 0 nowhere, 1 at CPL0, 2 as a page fault on its target.
    pub(crate) safe static SYSCALL_LANDED: AtomicU64;
    /// Error code of that page fault.
    pub(crate) safe static SYSCALL_ERROR: AtomicU64;
}

/// How to enter CPL3.
#[derive(Clone, Copy)]
pub(crate) enum Door {
    /// Interrupt return.
    Iretq,
    /// System call return.
    Sysretq,
}

/// What to run there; each ends with an exception, [`INVALID_OPCODE`] if all went well.
#[derive(Clone, Copy)]
pub(crate) enum Program {
    /// Nothing.
    Nothing,
    /// The timed loop.
    Speed,
    /// One timed system call.
    SystemCall,
}

/// Loads IDT and TSS, sets up `syscall`, and switches on what CPUID offers.
pub(crate) fn set_up() {
    let entries = exception_entries as *const () as u64;
    for (gate, vector) in IDT.chunks_exact(2).zip(0..) {
        let entry = entries + 16 * vector;
        let low = entry & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (entry & 0xffff_0000) << 32;
        if let [first, second] = gate {
            first.store(low, Relaxed);
            second.store(entry >> 32, Relaxed);
        }
    }
    let trap_stack = &raw const trap_stack_top as u64;
    let base = TSS.as_ptr() as u64;
    let [_, stack_low, stack_high, ..] = &TSS;
    stack_low.store(trap_stack as u32, Relaxed);
    stack_high.store((trap_stack >> 32) as u32, Relaxed);
    let [.., tss_low, tss_high] = &GDT;
    let limit = size_of_val(&TSS) as u64 - 1;
    let low_base = (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56;
    tss_low.store(limit | low_base | 0x89 << 40, Relaxed);
    tss_high.store(base >> 32, Relaxed);
    let limit = size_of_val(&IDT) as u16 - 1;
    let pointer = (u128::from(IDT.as_ptr() as u64) << 16 | u128::from(limit)).to_le_bytes();
    // SAFETY: both tables were filled just now and live for ever; the stack the TSS names is
    // reserved for it.
    unsafe {
        asm!("lidt [{0}]", "ltr {1:x}", in(reg) &pointer, in(reg) TSS_SELECTOR, options(nostack));
    }
    wrmsr(MSR_STAR, 0x18 << 48 | 0x08 << 32);
    wrmsr(MSR_LSTAR, syscall_entry as *const () as u64);
    wrmsr(MSR_SFMASK, 0x4_7700);
    let mut cr4 = 0_u64;
    if __cpuid(1).ecx & 1 << 26 != 0 {
        cr4 |= 1 << 18; // OSXSAVE
    }
    if __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & 1 != 0 {
        cr4 |= 1 << 16; // FSGSBASE
    }
    if cr4 != 0 {
        // SAFETY: the bits only allow more instructions, and CPUID says that they exist.
        unsafe {
            asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, in(reg) cr4);
        }
    }
}

fn wrmsr(msr: u32, value: u64) {
    // SAFETY: called with the three system call registers only, and valid targets.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32);
    }
}

/// The command line, as far as it is UTF-8.
pub(crate) fn command_line(buffer: &mut [u8; COMMAND_LINE_BYTES]) -> Option<&str> {
    for (to, from) in buffer.iter_mut().zip(&COMMAND_LINE) {
        *to = from.load(Relaxed);
    }
    let end = buffer.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(buffer.get(..end)?).ok()
}

/// Calls `function` at CPL0: what it returned, or the vector of the exception that ended it.
pub(crate) fn attempt_kernel(function: Function) -> Result<u64, u64> {
    // SAFETY: `attempt` keeps what the calling convention keeps, whatever the function does to
    // registers; the functions of this crate touch no memory but `scratch` and their stack.
    match unsafe { attempt(function, 0) } {
        result if result & FAULTED != 0 => Err(result & !FAULTED),
        result => Ok(result),
    }
}

/// Ticks of the timed loop at CPL0.
pub(crate) fn kernel_speed_ticks() -> u64 {
    attempt_kernel(kernel_speed).unwrap_or(u64::MAX)
}

/// Runs `program` at CPL3 and returns the vector of the exception that ended it.
pub(crate) fn run_user(door: Door, program: Program) -> u64 {
    let door = match door {
        Door::Iretq => enter_by_iretq,
        Door::Sysretq => enter_by_sysretq,
    };
    let program = match program {
        Program::Nothing => user_nothing,
        Program::Speed => user_speed,
        Program::SystemCall => user_syscall,
    } as *const () as u64;
    // SAFETY: the programs use registers only and end with an exception, which brings control
    // back here through `attempt`.
    unsafe { attempt(door, program + USER_ALIAS) & !FAULTED }
}

/// Sends one byte on COM1. The other side is a virtual UART that is always ready.
pub(crate) fn send(byte: u8) {
    // SAFETY: writes the UART's transmit register.
    unsafe { asm!("out dx, al", in("dx") COM1, in("al") byte, options(nomem, nostack)) }
}

/// Ends the partition.
pub(crate) fn exit(status: u64) -> ! {
    // SAFETY: ends the VM, needs nothing.
    unsafe { probe_exit(status) }
}
