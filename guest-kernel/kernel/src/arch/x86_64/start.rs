//! Boot: from the state that the boot protocol promises (`docs/boot-protocol.md`) to the first
//! thread. A few thousand instructions: every one costs half a microsecond on hosts that
//! interpret guest kernel mode.

use bulkhead_abi::boot::{BootInfoView, MAX_SIZE};
use bulkhead_kernel_core::boot::program;
use bulkhead_kernel_core::frame::Frame;
use bulkhead_kernel_core::kernel::Next;

use super::cpu::{self, CR4_SMAP, CR4_SMEP, MSR_LSTAR, MSR_SFMASK, MSR_STAR};
use super::entry::syscall_entry;
use super::gdt::{self, KERNEL_CODE};
use super::machine::{Machine, direct, end_partition, use_console};
use super::trap::{kernel, perform};
use super::{apic, idt};
use crate::console;

/// Status of a partition that could not start.
const STATUS_CANNOT_START: u8 = 125;
/// RFLAGS cleared by `syscall`: TF, IF, DF, IOPL, NT, AC.
const SYSCALL_CLEARS: u64 = 0x4_7700;
/// `cpuid` leaf 7, EBX.
const FEATURE_SMEP: u32 = 1 << 7;
/// `cpuid` leaf 7, EBX.
const FEATURE_SMAP: u32 = 1 << 20;

/// Called by `entry.s` with the address of the blob; returns the first frame to resume.
#[unsafe(no_mangle)]
extern "C" fn start(blob: *const u8) -> *mut Frame {
    // SAFETY: the first thing that runs, once, with interrupts off.
    unsafe { set_up_cpu() };
    // SAFETY: the boot protocol promises `MAX_SIZE` readable bytes there that nobody changes.
    let blob = unsafe { core::slice::from_raw_parts(blob, MAX_SIZE as usize) };
    let Ok(info) = BootInfoView::parse(blob) else {
        // Without a blob there is no console to say so.
        end_partition(STATUS_CANNOT_START)
    };
    use_console(info.head());
    // SAFETY: nothing else runs yet.
    let kernel = unsafe { kernel() };
    let root = cpu::page_table_root();
    let started = program(&info).and_then(|module| {
        let len = usize::try_from(module.range.len).unwrap_or(0);
        // SAFETY: the boot protocol promises that a module lies in RAM and is used for nothing
        // else. Only its headers are read, before a program can run that writes to its data.
        let bytes = unsafe { core::slice::from_raw_parts(direct(module.range.start), len) };
        kernel.start(&mut Machine, &info, module, bytes, root)
    });
    if let Err(error) = started {
        console::report(format_args!("bulkhead: {error}"));
        end_partition(STATUS_CANNOT_START);
    }
    perform(kernel, Next::Run)
}

/// Segments, interrupts, system calls, protection.
///
/// # Safety
/// Called once, at boot, with interrupts off.
unsafe fn set_up_cpu() {
    // SAFETY: the caller's promise.
    unsafe { gdt::load() };
    // SAFETY: the segments are loaded.
    unsafe { idt::load() };
    // SAFETY: the boot protocol promises an x2APIC with TSC-deadline mode.
    unsafe { apic::enable() };

    let (features, _) = cpu::cpuid(7);
    let mut bits = 0;
    if features & FEATURE_SMEP != 0 {
        bits |= CR4_SMEP;
    }
    if features & FEATURE_SMAP != 0 {
        bits |= CR4_SMAP;
    }
    // SAFETY: the CPU has the features; the kernel reaches user memory through the direct map only.
    unsafe { cpu::set_cr4_bits(bits) };

    let target = syscall_entry as *const () as u64;
    for (register, value) in [
        (MSR_STAR, u64::from(KERNEL_CODE) << 32),
        (MSR_LSTAR, target),
        (MSR_SFMASK, SYSCALL_CLEARS),
    ] {
        // SAFETY: kernel code and data follow each other in the GDT; the target is the entry code.
        unsafe { cpu::write_msr(register, value) };
    }
}
