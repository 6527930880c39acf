//! From the registers of an entry to the kernel's logic, and back to registers.

use core::ptr;

use bulkhead_abi::layout::USER_END;
use bulkhead_abi::machine::{CONSOLE_VECTOR, DEVICE_VECTOR_BASE, MAX_DEVICES, TIMER_VECTOR};
use bulkhead_kernel_core::frame::Frame;
use bulkhead_kernel_core::kernel::{Kernel, Next, Trap};
use bulkhead_kernel_core::objects::fastpath::{Fast, Switch};
use bulkhead_kernel_core::objects::memory::Ref;
use bulkhead_kernel_core::objects::thread::Thread;

use super::entry::{self, syscall_entry};
use super::machine::{Machine, end_partition};
use super::{Exclusive, apic, cpu, gdt};

const PAGE_FAULT: u64 = 14;
/// First vector that is an interrupt and no exception.
const FIRST_INTERRUPT: u64 = 32;
const TIMER: u64 = TIMER_VECTOR as u64;
const CONSOLE: u64 = CONSOLE_VECTOR as u64;
const FIRST_DEVICE: u64 = DEVICE_VECTOR_BASE as u64;
const LAST_DEVICE: u64 = FIRST_DEVICE + MAX_DEVICES as u64 - 1;
const SPURIOUS: u64 = 0xff;

static KERNEL: Exclusive<Kernel<Machine>> = Exclusive::new(Kernel::new(Machine));

/// What the CPU is set up for.
struct Loaded {
    root: u64,
    kernel_root: u64,
}

static LOADED: Exclusive<Loaded> = Exclusive::new(Loaded {
    root: 0,
    kernel_root: 0,
});

/// The kernel's state.
///
/// # Safety
/// The caller is the only path of execution (see [`super`]) and holds no other reference.
pub(super) unsafe fn kernel() -> &'static mut Kernel<Machine> {
    // SAFETY: the caller's promise.
    unsafe { &mut *KERNEL.as_ptr() }
}

/// An entry from user mode; `entry.s` stored the registers in the running thread's frame. Returns
/// the frame to resume, or null to idle, if it returns.
///
/// What is frequent goes its own way from here, each in a function of its own: none of them saves
/// registers that only the others need.
#[unsafe(no_mangle)]
extern "C" fn trap(frame: *mut Frame) -> *mut Frame {
    // SAFETY: entered by `entry.s` only, from user mode, with interrupts off.
    let kernel = unsafe { kernel() };
    // SAFETY: `entry.s` says where it stored the registers: in the running thread's frame. This
    // reference ends before the kernel's logic makes another.
    let entered = unsafe { &mut *frame };
    if entered.vector == PAGE_FAULT && is_syscall(entered) {
        entered.finish_syscall();
    } else if entered.vector != Frame::SYSCALL {
        return interrupted(kernel, entered.vector);
    }
    let number = entered.rax;
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

/// An entry by an exception or interrupt from user mode.
#[inline(never)]
fn interrupted(kernel: &mut Kernel<Machine>, vector: u64) -> *mut Frame {
    let trap = match vector {
        PAGE_FAULT => Trap::Exception {
            address: cpu::fault_address(),
        },
        FIRST_INTERRUPT.. => interrupt(vector),
        _ => Trap::Exception { address: 0 },
    };
    other(kernel, trap)
}

#[inline(never)]
fn other(kernel: &mut Kernel<Machine>, trap: Trap) -> *mut Frame {
    let next = kernel.trap(trap);
    perform(kernel, next)
}

#[inline(never)]
fn call(kernel: &mut Kernel<Machine>, thread: Ref<Thread>) -> *mut Frame {
    match kernel.objects.fast_call(thread) {
        Some(switch) => go(kernel, switch),
        None => other(kernel, Trap::Syscall),
    }
}

#[inline(never)]
fn reply_receive(kernel: &mut Kernel<Machine>, thread: Ref<Thread>) -> *mut Frame {
    match kernel.objects.fast_reply_receive(thread) {
        Some(switch) => go(kernel, switch),
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
    if frame.vector < FIRST_INTERRUPT {
        panic!(
            "exception {} at {:#x} (address {:#x}, error code {:#x})",
            frame.vector,
            frame.rip,
            cpu::fault_address(),
            frame.error_code
        );
    }
    let trap = interrupt(frame.vector);
    // SAFETY: entered by `entry.s` only; the idle loop holds no reference.
    let kernel = unsafe { kernel() };
    let next = kernel.wake(trap);
    perform(kernel, next)
}

/// Whether a page fault is a `syscall` on a host whose CPU stays at CPL 3 when it jumps to LSTAR:
/// the target is a supervisor page, so the fetch faults, with return address and flags in RCX and
/// R11. Nothing else can fault there: user mode never gets beyond this fetch.
///
/// A program that jumps there itself gets what it would get by `syscall`, unless its RCX is
/// no address that `syscall` could leave: `iretq` to one that is not canonical would fault in the
/// kernel.
fn is_syscall(frame: &Frame) -> bool {
    frame.rip == syscall_entry as *const () as u64 && frame.rcx < USER_END
}

fn interrupt(vector: u64) -> Trap {
    if vector == SPURIOUS {
        return Trap::Stray;
    }
    apic::end_of_interrupt();
    match vector {
        TIMER => {
            apic::timer_fired();
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
    // SAFETY: one CPU, interrupts off; no other reference lives.
    let loaded = unsafe { &mut *LOADED.as_ptr() };
    loaded.root = loaded.kernel_root;
    // SAFETY: the root that the kernel was entered with.
    unsafe { cpu::set_page_table_root(loaded.root) };
}

/// Remembers the active root as the kernel's own.
pub(super) fn keep_kernel_root() {
    // SAFETY: as above.
    let loaded = unsafe { &mut *LOADED.as_ptr() };
    loaded.kernel_root = cpu::page_table_root();
    loaded.root = loaded.kernel_root;
}

/// Activates a page table root.
#[inline]
fn load_root(root: u64) {
    // SAFETY: one CPU, interrupts off; no other reference lives.
    let loaded = unsafe { &mut *LOADED.as_ptr() };
    if loaded.root != root {
        loaded.root = root;
        // SAFETY: all roots share the kernel's half.
        unsafe { cpu::set_page_table_root(root) };
    }
}

/// Leaves the kernel for the thread that the CPU was switched to.
#[inline(always)]
fn go(kernel: &mut Kernel<Machine>, switch: Switch) -> ! {
    switch_bases(kernel, Some(switch.from), switch.to);
    gdt::set_entry_frame(kernel.native_frame(switch.to));
    load_root(switch.root);
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
pub(super) fn perform(kernel: &mut Kernel<Machine>, next: Next) -> *mut Frame {
    if let Next::End(status) = next {
        end_partition(status);
    }
    apic::set_deadline(kernel.deadline());
    let (Next::Run, Some(thread)) = (next, kernel.objects.current()) else {
        return ptr::null_mut();
    };
    let before = kernel.objects.loaded();
    if before != Some(thread) {
        switch_bases(kernel, before, thread);
    }
    let frame = kernel.frame().map_or(ptr::null_mut(), ptr::from_mut);
    if gdt::entry_frame() != frame || kernel.objects.take_space_changed() {
        gdt::set_entry_frame(frame);
        load_root(kernel.page_table_root());
    }
    frame
}
