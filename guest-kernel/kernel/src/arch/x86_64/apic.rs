//! The local APIC in x2APIC mode (Intel SDM volume 3, section 12.12), and its timer.
//!
//! The timer runs in TSC-deadline mode: one register write arms it, absolutely and in the unit of
//! every other time in the kernel; there is nothing to calibrate. It is armed only while somebody
//! sleeps or threads share the CPU.

use bulkhead_abi::machine::TIMER_VECTOR;

use super::cpu::{MSR_APIC_BASE, MSR_TSC_DEADLINE, read_msr, time_stamp, write_msr};
use super::percpu::Cpu;

const X2APIC_EOI: u32 = 0x80b;
const X2APIC_SPURIOUS: u32 = 0x80f;
const X2APIC_ICR: u32 = 0x830;
const X2APIC_TIMER: u32 = 0x832;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const SPURIOUS_ENABLE: u64 = 1 << 8;
const SPURIOUS_VECTOR: u64 = 0xff;
const TIMER_TSC_DEADLINE: u64 = 2 << 17;
/// Interrupt command: INIT, asserted.
const ICR_INIT: u64 = 0x4500;
/// Interrupt command: a CPU that was sent INIT begins at page 0.
const ICR_STARTUP: u64 = 0x4600;
/// Interrupt command: a fixed vector.
const ICR_FIXED: u64 = 0x4000;

/// The vector by which one CPU calls another into the kernel.
const CALL_VECTOR: u64 = 0x21;

/// Writes one of the APIC's registers.
///
/// # Safety
/// The CPU has an x2APIC with TSC-deadline mode; interrupts that the write lets through lead to the
/// kernel's stubs.
unsafe fn write(register: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { write_msr(register, value) };
}

/// Enables the CPU's APIC.
///
/// # Safety
/// Called once on each CPU, at boot; the CPU has an x2APIC with TSC-deadline mode.
pub(super) unsafe fn enable() {
    // SAFETY: every CPU with an APIC has the register.
    let base = unsafe { read_msr(MSR_APIC_BASE) };
    for (register, value) in [
        (MSR_APIC_BASE, base | BASE_ENABLE | BASE_X2APIC),
        (X2APIC_SPURIOUS, SPURIOUS_ENABLE | SPURIOUS_VECTOR),
        (X2APIC_TIMER, TIMER_TSC_DEADLINE | u64::from(TIMER_VECTOR)),
    ] {
        // SAFETY: the caller's promise; the vectors have stubs.
        unsafe { write(register, value) };
    }
}

/// Ends the interrupt being served.
pub(super) fn end_of_interrupt() {
    // SAFETY: the APIC is enabled before interrupts are.
    unsafe { write(X2APIC_EOI, 0) };
}

/// Calls another CPU into the kernel.
pub(super) fn call(cpu: usize) {
    // SAFETY: the vector has a stub, which leads to the kernel.
    unsafe { write(X2APIC_ICR, (cpu as u64) << 32 | ICR_FIXED | CALL_VECTOR) };
}

/// Starts another CPU, in real mode at physical address 0.
///
/// # Safety
/// What lies there makes a CPU of the kernel of it.
pub(super) unsafe fn start(cpu: usize) {
    for command in [ICR_INIT, ICR_STARTUP] {
        // SAFETY: the caller's promise.
        unsafe { write(X2APIC_ICR, (cpu as u64) << 32 | command) };
    }
}

/// Whether the timer's deadline has passed. Other interrupts would have to be asked of the APIC,
/// which on many hosts leaves the guest.
///
/// By its symbol the counter of kernel instructions knows where long work can be interrupted.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn is_timer_due(cpu: &Cpu) -> bool {
    cpu.armed != 0 && time_stamp() >= cpu.armed
}

/// Arms the timer for `deadline`, or disarms it.
pub(super) fn set_deadline(cpu: &mut Cpu, deadline: Option<u64>) {
    let wanted = deadline.map_or(0, |d| d.max(1));
    if cpu.armed != wanted {
        cpu.armed = wanted;
        // SAFETY: the register exists; the timer's interrupt leads to the kernel.
        unsafe { write(MSR_TSC_DEADLINE, wanted) };
    }
}
