//! From the registers of an entry to the kernel's logic, and back to registers.

use core::ptr;

use bulkhead_abi::layout::USER_END;
use bulkhead_abi::machine::{CONSOLE_VECTOR, DEVICE_VECTOR_BASE, MAX_DEVICES, TIMER_VECTOR};
use bulkhead_kernel_core::frame::Frame;
use bulkhead_kernel_core::kernel::{Kernel, Next, Trap};
use bulkhead_kernel_core::objects::fastpath::{Fast, Switch};
use bulkhead_kernel_core::objects::memory::Ref;
use bulkhead_kernel_core::objects::thread::Thread;

use super::entry;
use super::machine::{Machine, end_partition};
use super::percpu::Cpu;
use super::{Exclusive, apic, cpu, gdt, percpu, smp};

/// First vector that is an interrupt and no exception.
const FIRST_INTERRUPT: u64 = 32;
const TIMER: u64 = TIMER_VECTOR as u64;
const CONSOLE: u64 = CONSOLE_VECTOR as u64;
const FIRST_DEVICE: u64 = DEVICE_VECTOR_BASE as u64;
const LAST_DEVICE: u64 = FIRST_DEVICE + MAX_DEVICES as u64 - 1;
const SPURIOUS: u64 = 0xff;

static KERNEL: Exclusive<Kernel<Machine>> = Exclusive::new(Kernel::new(Machine));

/// The root that the kernel was entered with.
static KERNEL_ROOT: Exclusive<u64> = Exclusive::new(0);

/// The kernel's state.
///
/// # Safety
/// The caller is the only path of execution (see [`super`]) and holds no other reference.
pub(super) unsafe fn kernel() -> &'static mut Kernel<Machine> {
    // SAFETY: the caller's promise.
    unsafe { &mut *KERNEL.as_ptr() }
}

/// A system call by `syscall`; `entry.s` stored the registers in the running thread's frame. Returns
/// the frame to resume, or null to idle, if it returns.
///
/// What is frequent goes its own way from here, each in a function of its own: none of them saves
/// registers that only the others need.
pub(super) extern "C" fn system_call(frame: *mut Frame) -> *mut Frame {
    // SAFETY: entered by `entry.s` only, from user mode, with interrupts off.
    let kernel = unsafe { kernel() };
    // SAFETY: `entry.s` stored the registers there; nobody has a reference.
    let number = unsafe { (*frame).rax };
    let Some(thread) = kernel.objects.current() else {
        // Only the running thread's frame leads here.
        return other(kernel, Trap::Stray);
    };
    if kernel.is_restricted(thread) {
        return other(kernel, Trap::Syscall);
    }
    match Fast::of(number) {
        Some(Fast::Call) => call(kernel, thread),
        Some(Fast::ReplyReceive) => reply_receive(kernel, thread),
        None => other(kernel, Trap::Syscall),
    }
}

/// A page fault in user mode, which is a system call on some hosts. As [`system_call`].
pub(super) extern "C" fn page_fault(frame: *mut Frame) -> *mut Frame {
    // SAFETY: as in `system_call`; the reference ends before the kernel's logic makes another.
    let entered = unsafe { &mut *frame };
    if is_syscall(entered) {
        entered.finish_syscall();
        return system_call(frame);
    }
    // SAFETY: as in `system_call`.
    let kernel = unsafe { kernel() };
    let address = cpu::fault_address();
    other(kernel, Trap::Exception { address })
}

/// Another exception in user mode, or an interrupt. As [`system_call`].
pub(super) extern "C" fn interrupted(frame: *mut Frame) -> *mut Frame {
    // SAFETY: as in `system_call`.
    entered_by(unsafe { (*frame).vector })
}

/// [`interrupted`] by a vector.
pub(super) fn entered_by(vector: u64) -> *mut Frame {
    let trap = if is_interrupt(vector) {
        interrupt(vector)
    } else {
        Trap::Exception { address: 0 }
    };
    // SAFETY: as in `system_call`.
    other(unsafe { kernel() }, trap)
}

/// Whether a vector is an interrupt and no exception.
pub(super) const fn is_interrupt(vector: u64) -> bool {
    vector >= FIRST_INTERRUPT
}

/// An entry for nothing: whoever is to run now runs.
pub(super) fn stray() -> *mut Frame {
    // SAFETY: as in `system_call`.
    other(unsafe { kernel() }, Trap::Stray)
}

#[inline(never)]
fn other(kernel: &mut Kernel<Machine>, trap: Trap) -> *mut Frame {
    let next = kernel.trap(trap);
    // SAFETY: one path of execution; no other reference lives.
    perform(kernel, unsafe { percpu::active() }, next)
}

#[inline(never)]
fn call(kernel: &mut Kernel<Machine>, thread: Ref<Thread>) -> *mut Frame {
    match kernel.objects.fast_call(thread) {
        // SAFETY: as in `other`.
        Some(switch) => go(kernel, unsafe { percpu::active() }, switch),
        None => other(kernel, Trap::Syscall),
    }
}

#[inline(never)]
fn reply_receive(kernel: &mut Kernel<Machine>, thread: Ref<Thread>) -> *mut Frame {
    match kernel.objects.fast_reply_receive(thread) {
        // SAFETY: as in `other`.
        Some(switch) => go(kernel, unsafe { percpu::active() }, switch),
        None => other(kernel, Trap::Syscall),
    }
}

/// An entry from kernel mode: an interrupt of the idle loop, or a fault of the kernel.
#[allow(
    clippy::panic,
    reason = "the kernel's own fault; no input can bring it about"
)]
#[unsafe(no_mangle)]
extern "C" fn kernel_trap(frame: &Frame) -> *mut Frame {
    if !is_interrupt(frame.vector) {
        panic!(
            "exception {} at {:#x} (address {:#x}, error code {:#x})",
            frame.vector,
            frame.rip,
            cpu::fault_address(),
            frame.error_code
        );
    }
    let vector = frame.vector;
    smp::from_idle(ptr::from_ref(frame) as u64, || {
        let trap = interrupt(vector);
        // SAFETY: entered by `entry.s` only; the idle loop holds no reference.
        let kernel = unsafe { kernel() };
        let next = kernel.wake(trap);
        // SAFETY: as in `other`.
        perform(kernel, unsafe { percpu::active() }, next)
    })
}

/// Whether a page fault is a `syscall` on a host whose CPU stays at CPL 3 when it jumps to LSTAR:
/// the target is a supervisor page, so the fetch faults, with return address and flags in RCX and
/// R11. Nothing else can fault there: user mode never gets beyond this fetch.
///
/// A program that jumps there itself gets what it would get by `syscall`, unless its RCX is
/// no address that `syscall` could leave: `iretq` to one that is not canonical would fault in the
/// kernel.
pub(super) fn is_syscall(frame: &Frame) -> bool {
    frame.rip == smp::syscall_target() && frame.rcx < USER_END
}

fn interrupt(vector: u64) -> Trap {
    if vector == SPURIOUS {
        return Trap::Stray;
    }
    apic::end_of_interrupt();
    match vector {
        TIMER => {
            // SAFETY: one path of execution; no other reference lives. The timer is not armed any more.
            unsafe { percpu::active() }.armed = 0;
            Trap::Timer
        }
        CONSOLE => Trap::ConsoleInput,
        FIRST_DEVICE..=LAST_DEVICE => Trap::Device(vector - FIRST_DEVICE),
        _ => Trap::Stray,
    }
}

/// Gives FS and GS base to the thread that runs next.
#[inline]
fn switch_bases(kernel: &mut Kernel<Machine>, before: Option<Ref<Thread>>, now: Ref<Thread>) {
    if let Some(before) = before {
        let (fs, gs) = kernel.bases(before);
        (*fs, *gs) = (cpu::fs_base(), cpu::gs_base());
    }
    let (fs, gs) = kernel.bases(now);
    cpu::set_bases(*fs, *gs);
    kernel.objects.set_loaded(now);
}

/// Activates the kernel's own root, for the active address space goes.
pub(super) fn use_kernel_root() {
    // SAFETY: the kernel's logic runs, and has no reference to a CPU.
    let cpu = unsafe { percpu::active() };
    load_root(cpu, kernel_root());
}

/// Nobody runs on this CPU. Where there are others, one of them may have the thread that ran here
/// next, and use or end its address space.
fn idle(kernel: &mut Kernel<Machine>, cpu: &mut Cpu) -> *mut Frame {
    if smp::are_several() {
        if let Some(before) = kernel.objects.loaded() {
            let (fs, gs) = kernel.bases(before);
            (*fs, *gs) = (cpu::fs_base(), cpu::gs_base());
            kernel.objects.forget_loaded(before);
        }
        load_root(cpu, kernel_root());
        gdt::forget_entry_frame(cpu);
    }
    ptr::null_mut()
}

/// The kernel's own root.
pub(super) fn kernel_root() -> u64 {
    // SAFETY: set once, at boot.
    unsafe { *KERNEL_ROOT.as_ptr() }
}

/// Remembers the active root as the kernel's own.
pub(super) fn keep_kernel_root(cpu: &mut Cpu) {
    cpu.root = cpu::page_table_root();
    // SAFETY: as above.
    unsafe { *KERNEL_ROOT.as_ptr() = cpu.root };
}

/// Activates a page table root.
#[inline]
fn load_root(cpu: &mut Cpu, root: u64) {
    if cpu.root != root {
        cpu.root = root;
        // SAFETY: all roots share the kernel's half.
        unsafe { cpu::set_page_table_root(root) };
    }
}

/// Leaves the kernel for the thread that the CPU was switched to.
#[inline(always)]
fn go(kernel: &mut Kernel<Machine>, cpu: &mut Cpu, switch: Switch) -> ! {
    switch_bases(kernel, Some(switch.from), switch.to);
    gdt::set_entry_frame(cpu, kernel.native_frame(switch.to));
    load_root(cpu, switch.root);
    if switch.words != 0 {
        go_with_words(kernel, switch.from, switch.to, switch.words);
    }
    // SAFETY: all is set up for this frame.
    unsafe { entry::resume(kernel.native_frame(switch.to)) }
}

/// The rest of [`go`], apart for the registers that it needs.
#[inline(never)]
fn go_with_words(
    kernel: &mut Kernel<Machine>,
    from: Ref<Thread>,
    to: Ref<Thread>,
    words: u64,
) -> ! {
    kernel.objects.copy_registers(from, to, words);
    // SAFETY: as in `go`.
    unsafe { entry::resume(kernel.native_frame(to)) }
}

/// Sets the CPU up for what comes next.
#[inline]
pub(super) fn perform(kernel: &mut Kernel<Machine>, cpu: &mut Cpu, next: Next) -> *mut Frame {
    if let Next::End(status) = next {
        end_partition(status);
    }
    apic::set_deadline(cpu, kernel.objects.deadline());
    let (Next::Run, Some(thread)) = (next, kernel.objects.current()) else {
        return idle(kernel, cpu);
    };
    let before = kernel.objects.loaded();
    if before != Some(thread) {
        switch_bases(kernel, before, thread);
    }
    let Some(frame) = kernel.frame() else {
        return idle(kernel, cpu);
    };
    let resumed = ptr::from_mut(frame);
    if gdt::entry_frame(cpu) != resumed || frame.cpu != ptr::from_mut(cpu) as u64 {
        gdt::set_entry_frame(cpu, frame);
    } else if !kernel.objects.take_space_changed() {
        return resumed;
    }
    load_root(cpu, kernel.page_table_root());
    resumed
}
