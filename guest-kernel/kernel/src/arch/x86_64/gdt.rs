//! Segments and the task state segment (AMD64 Architecture Programmer's Manual volume 2, sections
//! 4.8 and 12.2.5).
//!
//! The order is what `syscall` asks of STAR: kernel code, then kernel data.

use core::arch::asm;
use core::ptr;

use bulkhead_kernel_core::frame::{Frame, USER_CODE, USER_DATA};

use super::Exclusive;
use super::percpu::Cpu;

/// Selector of kernel code; kernel data follows.
pub(super) const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const TSS: u16 = 0x28;

/// Code, long mode, present, accessed.
pub(super) const CODE: u64 = 0x0020_9b00_0000_0000;
/// Data, writable, present, accessed.
const DATA: u64 = 0x0000_9300_0000_0000;
/// Privilege level 3.
const USER: u64 = 3 << 45;
const _: () = assert!(USER_DATA == 0x18 | 3 && USER_CODE == 0x20 | 3);

/// The stack of exceptions that cannot trust the one they interrupt: double fault, NMI, machine
/// check. All three end the kernel, on whichever CPU: there is one.
const EMERGENCY_STACK_BYTES: usize = 4096;
/// Interrupt stack table index of that stack.
pub(super) const EMERGENCY_IST: u8 = 1;

#[repr(C, packed(4))]
pub(super) struct TaskState {
    reserved0: u32,
    /// Stack pointer on entry from user mode: the end of the running thread's frame.
    pub(super) rsp0: u64,
    rsp1: u64,
    rsp2: u64,
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

#[repr(C, align(16))]
struct EmergencyStack([u8; EMERGENCY_STACK_BYTES]);

/// A CPU's descriptor table.
pub(super) type Descriptors = [u64; 7];

static EMERGENCY_STACK: Exclusive<EmergencyStack> =
    Exclusive::new(EmergencyStack([0; EMERGENCY_STACK_BYTES]));

/// Fills a CPU's tables, and loads them.
///
/// # Safety
/// Called once for each CPU, on it, with interrupts off.
pub(super) unsafe fn load(cpu: *mut Cpu) {
    // SAFETY: nobody else uses the tables yet.
    let Cpu {
        task, descriptors, ..
    } = unsafe { &mut *cpu };
    task.ist[usize::from(EMERGENCY_IST) - 1] =
        EMERGENCY_STACK.as_ptr() as u64 + EMERGENCY_STACK_BYTES as u64;
    // Beyond the segment's limit: no I/O port from user mode.
    task.io_map_base = size_of::<TaskState>() as u16;
    let base = ptr::from_mut(task) as u64;
    let limit = size_of::<TaskState>() as u64 - 1;
    // Available 64-bit TSS, present.
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    *descriptors = [0, CODE, DATA, DATA | USER, CODE | USER, low, base >> 32];
    let pointer = Pointer {
        limit: size_of::<Descriptors>() as u16 - 1,
        base: ptr::from_mut(descriptors) as u64,
    };
    // SAFETY: the tables are static and complete; the selectors name kernel code and data in them.
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {data:e}",
            "mov ds, {zero:e}",
            "mov es, {zero:e}",
            "ltr {tss:x}",
            pointer = in(reg) &raw const pointer,
            code = in(reg) u64::from(KERNEL_CODE),
            data = in(reg) u32::from(KERNEL_DATA),
            zero = in(reg) 0u32,
            tss = in(reg) TSS,
            scratch = out(reg) _,
        );
    }
}

/// Where entries from user mode store registers on this CPU from now on.
#[inline]
pub(super) fn set_entry_frame(cpu: &mut Cpu, frame: &mut Frame) {
    frame.cpu = ptr::from_mut(cpu) as u64;
    cpu.task.rsp0 = ptr::from_mut(frame).wrapping_add(1) as u64;
}

/// Where entries from user mode store registers on this CPU.
#[inline]
pub(super) fn entry_frame(cpu: &Cpu) -> *mut Frame {
    (cpu.task.rsp0 as *mut Frame).wrapping_sub(1)
}

/// Entries from user mode have nowhere to store registers: there are none until
/// [`set_entry_frame`].
pub(super) fn forget_entry_frame(cpu: &mut Cpu) {
    cpu.task.rsp0 = 0;
}
