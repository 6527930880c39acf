//! The cases, a room for each part of the kernel, and the tools they share.

mod bench;
mod calls;
mod console;
mod cpus;
mod described;
mod devices;
mod endings;
mod faults;
mod mapping;
mod memory;
mod messages;
mod notifications;
mod restricted;
mod retyping;
mod revoking;
mod scheduling;
mod spaces;
mod stress;
mod threads;
mod timeouts;

use alloc::string::String;

use bulkhead_runtime::abi::syscall::{CONSOLE_WRITE, Status, rights, slot};
use bulkhead_runtime::syscall::call;

use crate::run::{Case, Demonstration};

/// Fails the case with a message unless the condition holds.
macro_rules! check {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(alloc::format!($($message)*));
        }
    };
}
/// Fails the case unless two values are equal.
macro_rules! check_eq {
    ($found:expr, $wanted:expr, $what:expr) => {
        let (found, wanted) = ($found, $wanted);
        if found != wanted {
            return Err(alloc::format!("{}: {found:?} and not {wanted:?}", $what));
        }
    };
}
pub(crate) use {check, check_eq};

/// Cases that a partition survives.
pub(crate) const CASES: &[(&str, Case)] = &[
    ("console-write", console::write),
    ("console-write-length", console::write_length),
    ("console-bad-buffers", console::bad_buffers),
    ("console-stream", console::stream),
    ("calls-unknown", calls::unknown),
    ("calls-wrong-slots", calls::wrong_slots),
    ("calls-keep-registers", calls::keep_registers),
    ("calls-bad-arguments", calls::bad_arguments),
    ("calls-answer-as-described", described::answers),
    ("memory-map", memory::mapping),
    ("memory-map-errors", memory::map_errors),
    ("memory-large-pages", memory::large_pages),
    ("memory-protect", memory::protecting),
    ("memory-unmap", memory::unmapping),
    ("memory-reuse-is-zero", memory::reuse_is_zero),
    ("memory-exhaustion", memory::exhaustion),
    ("memory-allocator", memory::allocator),
    ("threads-preemption", threads::preemption),
    ("threads-sleep", threads::sleep),
    ("threads-yield", threads::yield_now),
    ("threads-many", threads::many),
    ("threads-keep-registers", threads::keep_registers),
    ("threads-keep-bases", threads::keep_bases),
    ("C1-C4-copy", spaces::copy),
    ("C1-copy-is-the-same", spaces::copy_is_the_same),
    ("C5-delete", spaces::delete),
    ("C8-mint", spaces::mint),
    ("C9-C11-move", spaces::relocate),
    ("C12-mutate", spaces::mutate),
    ("C13-cancel-badged-sends", spaces::cancel),
    ("C15-revoke", spaces::revoke),
    ("C17-C20-rotate", spaces::rotate),
    ("C24-C25-chain", spaces::chain),
    ("U1-U3-ranges", retyping::ranges),
    ("U5-U7-occupied", retyping::occupied),
    ("U8-too-large", retyping::too_large),
    ("U10-U11-no-header", retyping::no_header),
    ("U13-again", retyping::again),
    ("U14-device", retyping::device),
    ("R1-copies", revoking::copies),
    ("R2-badges", revoking::badges),
    ("R3-untyped", revoking::untyped),
    ("R4-preemption", revoking::preemption),
    ("R9-itself", revoking::itself),
    ("R5-deleted-frame", mapping::deleted),
    ("M1-frames", mapping::frames),
    ("M2-tables", mapping::tables),
    ("M3-other-space", mapping::other_space),
    ("E1-long-messages", mapping::long_messages),
    ("E12-transfer", mapping::transfer),
    ("E1-lengths", messages::lengths),
    ("E3-too-long", messages::too_long),
    ("E4-nonblocking", messages::nonblocking),
    ("E6-E8-badge", messages::badge),
    ("E9-caller-is-stopped", messages::caller_is_stopped),
    ("E10-E14-rights", messages::rights),
    ("E16-one-shot", messages::one_shot),
    ("E17-dead-caller", messages::dead_caller),
    ("E19-cancel-one", messages::cancel_one),
    ("E21-dead-server", messages::dead_server),
    ("E22-passive-server", messages::passive_server),
    ("E23-queued-callers", messages::queued_callers),
    ("N1-N3-poll", notifications::poll),
    ("N4-bound", notifications::bound),
    ("N6-wakes", notifications::wakes),
    ("N7-deleted", notifications::deleted),
    ("F1-accesses", faults::accesses),
    ("F1-restart", faults::restart),
    ("F2-exceptions", faults::exceptions),
    ("F3-unhandled", faults::unhandled),
    ("S1-resume", scheduling::resume),
    ("S3-ceiling", scheduling::ceiling),
    ("S4-budget", scheduling::budget),
    ("T1-timeouts", timeouts::every_wait),
    ("T2-in-time", timeouts::in_time),
    ("T3-late-answer", timeouts::late_answer),
    ("T4-no-timer-left", timeouts::nothing_left),
    ("T5-passive-server", timeouts::passive_server),
    ("I1-granted", devices::granted),
    ("I2-handlers", devices::handlers),
    ("I3-registers", devices::registers),
    ("I4-interrupts", devices::interrupts),
    ("restricted-unbound", restricted::unbound),
    ("restricted-bind-errors", restricted::bind_errors),
    ("restricted-syscall", restricted::syscall),
    ("restricted-registers", restricted::registers),
    ("restricted-exceptions", restricted::exceptions),
    ("restricted-walls", restricted::walls),
    ("restricted-flags", restricted::flags),
    ("restricted-forged-syscalls", restricted::forged_syscalls),
    ("restricted-bad-entry", restricted::bad_entry),
    ("restricted-preemption", restricted::preemption),
    ("restricted-state-goes", restricted::state_goes),
];

/// Those that need two CPUs.
pub(crate) const CASES_OF_CPUS: &[(&str, Case)] = &[
    ("P1-at-once", cpus::at_once),
    ("P2-messages", cpus::messages),
    ("P3-signals", cpus::signals),
    ("P4-suspend", cpus::suspend),
    ("P5-registers", cpus::registers),
    ("P6-unmapping", cpus::unmapping),
    ("P7-deletion", cpus::deletion),
    ("P8-migration", cpus::migration),
    ("P9-timers", cpus::timers),
    ("P10-spawned", cpus::spawned),
    ("S4-budgets", cpus::budgets),
];

/// What ends or hangs the partition, or takes very long: the status is judged from outside.
pub(crate) const DEMONSTRATIONS: &[(&str, Demonstration)] = &[
    ("grants", endings::grants),
    ("echo", endings::echo),
    ("exit-7", endings::exit_7),
    ("exit-threads", endings::exit_threads),
    ("panic", endings::panic),
    ("spin", endings::spin),
    ("flood", endings::flood),
    ("fault-null", endings::fault_null),
    ("fault-kernel-read", endings::fault_kernel_read),
    ("fault-kernel-jump", endings::fault_kernel_jump),
    ("fault-write-text", endings::fault_write_text),
    ("fault-execute-data", endings::fault_execute_data),
    (
        "fault-invalid-instruction",
        endings::fault_invalid_instruction,
    ),
    ("fault-divide", endings::fault_divide),
    ("fault-breakpoint", endings::fault_breakpoint),
    ("fault-privileged", endings::fault_privileged),
    ("fault-port", endings::fault_port),
    ("fault-interrupt", endings::fault_interrupt),
    ("fault-stack", endings::fault_stack),
    ("fault-not-canonical", endings::fault_not_canonical),
    ("null-call-cost", endings::null_call_cost),
    ("revoke-100000", revoking::a_hundred_thousand),
    ("stress", stress::stress),
];

/// Free addresses for a case: each case cleans up behind itself.
const SCRATCH: u64 = 0x7b00_0000_0000;

fn named(status: Status) -> String {
    alloc::format!("{status:?}")
}

const READ_WRITE: u64 = rights::READ | rights::WRITE;

/// Maps zeroed memory for the whole run, at addresses that nothing else uses.
fn map(address: u64, bytes: u64) -> Result<(), Status> {
    let end = address + bytes;
    if bulkhead_runtime::memory::extend(address..end, end, READ_WRITE) == end {
        Ok(())
    } else {
        Err(Status::NotEnoughMemory)
    }
}

/// Whether the kernel finds the byte at `address` readable for the program: writes it to the
/// console's error stream where it is.
fn readable(address: u64) -> bool {
    // SAFETY: the kernel reads.
    unsafe { call(CONSOLE_WRITE, [slot::CONSOLE, address, 1, 2]) }.is_ok()
}

fn read(address: u64) -> u64 {
    // SAFETY: cases pass addresses they have mapped, on 8 bytes.
    unsafe { (address as *const u64).read_volatile() }
}

fn write(address: u64, value: u64) {
    // SAFETY: as `read`, mapped writable.
    unsafe { (address as *mut u64).write_volatile(value) };
}
