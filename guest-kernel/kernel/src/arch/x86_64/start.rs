//! Boot: from the state that the boot protocol promises (`docs/boot-protocol.md`) to the first
//! thread. A few thousand instructions: every one costs half a microsecond on hosts that
//! interpret guest kernel mode.

use core::fmt;

use bulkhead_abi::boot::{BootInfoView, MAX_SIZE};
use bulkhead_kernel_core::boot::program;
use bulkhead_kernel_core::frame::Frame;
use bulkhead_kernel_core::kernel::Next;

use super::cpu::{self, CR4_SMAP, CR4_SMEP, MSR_KERNEL_GS_BASE, MSR_LSTAR, MSR_SFMASK, MSR_STAR};
use super::gdt::{self, KERNEL_CODE};
use super::machine::{direct, end_partition, use_console};
use super::percpu::Cpu;
use super::trap::{keep_kernel_root, kernel, perform};
use super::{apic, idt, percpu, smp};
use crate::console;

/// Status of a partition that could not start.
const STATUS_CANNOT_START: u8 = 125;
/// RFLAGS cleared by `syscall`: TF, IF, DF, IOPL, NT, AC.
const SYSCALL_CLEARS: u64 = 0x4_7700;
/// `cpuid` leaf 1, ECX: x2APIC mode, and the LAPIC timer's TSC-deadline mode.
const FEATURES_APIC: u32 = 1 << 21 | 1 << 24;
/// `cpuid` leaf 7, EBX: instructions for FS and GS base.
const FEATURE_FSGSBASE: u32 = 1 << 0;
/// `cpuid` leaf 7, EBX.
const FEATURE_SMEP: u32 = 1 << 7;
/// `cpuid` leaf 7, EBX.
const FEATURE_SMAP: u32 = 1 << 20;

/// Called by `entry.s` with the address of the blob; returns the first frame to resume.
#[unsafe(no_mangle)]
extern "C" fn start(blob: *const u8) -> *mut Frame {
    percpu::set_active(percpu::numbered(0));
    // SAFETY: the first thing that runs, once, with interrupts off.
    unsafe { gdt::load(percpu::numbered(0)) };
    // SAFETY: the segments are loaded.
    unsafe { idt::load() };
    // SAFETY: the boot protocol promises `MAX_SIZE` readable bytes there that nobody changes.
    let blob = unsafe { core::slice::from_raw_parts(blob, MAX_SIZE as usize) };
    let Ok(info) = BootInfoView::parse(blob) else {
        // Without a blob there is no console to say so.
        end_partition(STATUS_CANNOT_START)
    };
    use_console(info.head());
    let (features, _) = cpu::cpuid(7);
    let (_, apic) = cpu::cpuid(1);
    if features & FEATURE_FSGSBASE == 0 || apic & FEATURES_APIC != FEATURES_APIC {
        refuse(format_args!(
            "this CPU lacks FSGSBASE, x2APIC mode or TSC-deadline mode, which native and \
             Linux-ABI partitions need"
        ));
    }
    let cpus = info.cpus() as usize;
    if cpus > 1 {
        // SAFETY: once, at boot.
        unsafe { smp::prepare() };
    }
    // SAFETY: once, at boot, with interrupts off; the CPU has what is needed.
    unsafe { set_up_cpu(features, percpu::numbered(0)) };
    // SAFETY: nothing else runs yet.
    let kernel = unsafe { kernel() };
    let root = cpu::page_table_root();
    // SAFETY: nothing else runs yet.
    keep_kernel_root(unsafe { percpu::active() });
    let started = program(&info).and_then(|module| {
        let len = usize::try_from(module.range.len).unwrap_or(0);
        // SAFETY: the boot protocol promises that a module lies in RAM and is used for nothing
        // else. Only its headers are read, before a program can run that writes to its data.
        let bytes = unsafe { core::slice::from_raw_parts(direct(module.range.start), len) };
        kernel.start(&info, module, bytes, root)
    });
    if let Err(error) = started {
        refuse(format_args!("{error}"));
    }
    if cpus > 1 {
        // SAFETY: once, at boot, prepared, with the root that the VMM made.
        let started = unsafe { smp::start(cpus, info.head().tsc_khz) };
        if let Err(number) = started {
            refuse(format_args!("CPU {number} does not start"));
        }
    }
    // SAFETY: no other reference lives.
    let first = perform(kernel, unsafe { percpu::active() }, Next::Run);
    if cpus > 1 {
        smp::leave_boot();
    }
    first
}

/// Called by `entry.s` on each other CPU, which is `cpu`; returns the first frame to resume.
#[unsafe(no_mangle)]
extern "C" fn start_secondary(cpu: *mut Cpu) -> *mut Frame {
    // SAFETY: the first thing that runs on this CPU, once, with interrupts off.
    unsafe { gdt::load(cpu) };
    // SAFETY: the segments are loaded.
    unsafe { idt::load() };
    let (features, _) = cpu::cpuid(7);
    // SAFETY: once on this CPU, with interrupts off; it has what the first one has.
    unsafe { set_up_cpu(features, cpu) };
    // SAFETY: this CPU is set up.
    unsafe { smp::join(cpu) }
}

/// Ends a partition that cannot start.
fn refuse(why: fmt::Arguments<'_>) -> ! {
    console::report(format_args!("bulkhead: {why}"));
    end_partition(STATUS_CANNOT_START)
}

/// Interrupts, protection, system calls.
///
/// # Safety
/// Called once on each CPU, which is `cpu`, at boot, with interrupts off and segments and interrupt
/// gates loaded; the CPU has an x2APIC with TSC-deadline mode.
unsafe fn set_up_cpu(features: u32, cpu: *mut Cpu) {
    // SAFETY: the caller's promise.
    unsafe { apic::enable() };
    let mut bits = 0;
    if features & FEATURE_SMEP != 0 {
        bits |= CR4_SMEP;
    }
    if features & FEATURE_SMAP != 0 {
        bits |= CR4_SMAP;
    }
    // SAFETY: the CPU has the features; the kernel reaches user memory through the direct map only.
    unsafe { cpu::set_cr4_bits(bits) };

    for (register, value) in [
        (MSR_STAR, u64::from(KERNEL_CODE) << 32),
        (MSR_LSTAR, smp::syscall_target()),
        (MSR_SFMASK, SYSCALL_CLEARS),
        (MSR_KERNEL_GS_BASE, cpu as u64),
    ] {
        // SAFETY: kernel code and data follow each other in the GDT; the target is the entry code, which
        // finds the CPU by the last of them.
        unsafe { cpu::write_msr(register, value) };
    }
}
