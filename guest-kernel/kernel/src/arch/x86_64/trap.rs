//! From the registers of an entry to the kernel's logic, and back to registers.

use core::ptr;

use bulkhead_abi::layout::USER_END;
use bulkhead_abi::machine::{CONSOLE_VECTOR, TIMER_VECTOR};
use bulkhead_kernel_core::frame::Frame;
use bulkhead_kernel_core::kernel::{Kernel, Next, Trap};
use bulkhead_kernel_core::objects::memory::Ref;
use bulkhead_kernel_core::objects::thread::Thread;

use super::entry::syscall_entry;
use super::machine::{Machine, end_partition};
use super::{Exclusive, apic, cpu, gdt};

const PAGE_FAULT: u64 = 14;
/// First vector that is an interrupt and no exception.
const FIRST_INTERRUPT: u64 = 32;
/// Error code of a user-mode fetch from a page that is present and not the user's.
const USER_FETCH_REFUSED: u64 = 0x15;
const TIMER: u64 = TIMER_VECTOR as u64;
const CONSOLE: u64 = CONSOLE_VECTOR as u64;
const SPURIOUS: u64 = 0xff;

static KERNEL: Exclusive<Kernel<Machine>> = Exclusive::new(Kernel::new(Machine));

/// What the CPU is set up for.
struct Loaded {
    frame: *mut Frame,
    root: u64,
    kernel_root: u64,
}

static LOADED: Exclusive<Loaded> = Exclusive::new(Loaded {
    frame: ptr::null_mut(),
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
/// the frame to resume, or null to idle.
#[unsafe(no_mangle)]
extern "C" fn trap() -> *mut Frame {
    // SAFETY: entered by `entry.s` only, from user mode, with interrupts off.
    let kernel = unsafe { kernel() };
    let Some(frame) = kernel.frame() else {
        // Only the running thread's frame leads here.
        return perform(kernel, Next::Idle);
    };
    let trap = match frame.vector {
        Frame::SYSCALL => Trap::Syscall,
        PAGE_FAULT => {
            let address = cpu::fault_address();
            if is_syscall(frame, address) {
                frame.finish_syscall();
                Trap::Syscall
            } else {
                Trap::Exception { address }
            }
        }
        vector @ FIRST_INTERRUPT.. => interrupt(vector),
        _ => Trap::Exception { address: 0 },
    };
    let next = kernel.trap(trap);
    perform(kernel, next)
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
/// R11. A program that jumps there itself gets what it would get by `syscall`, unless its RCX is
/// no address that `syscall` could leave: `iretq` to one that is not canonical would fault in the
/// kernel.
fn is_syscall(frame: &Frame, address: u64) -> bool {
    let target = syscall_entry as *const () as u64;
    frame.rip == target
        && address == target
        && frame.error_code == USER_FETCH_REFUSED
        && frame.rcx < USER_END
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
        _ => Trap::Stray,
    }
}

/// Gives FS and GS base to the thread that runs next.
#[cold]
fn switch_bases(kernel: &mut Kernel<Machine>, now: Ref<Thread>) {
    if let Some(before) = kernel.objects.loaded() {
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
    if kernel.objects.loaded() != Some(thread) {
        switch_bases(kernel, thread);
    }
    let frame = kernel.frame().map_or(ptr::null_mut(), ptr::from_mut);
    // SAFETY: one CPU, interrupts off; no other reference lives.
    let loaded = unsafe { &mut *LOADED.as_ptr() };
    if loaded.frame != frame || kernel.objects.take_space_changed() {
        loaded.frame = frame;
        gdt::set_entry_stack(frame.wrapping_add(1) as u64);
        let root = kernel.page_table_root();
        if loaded.root != root {
            loaded.root = root;
            // SAFETY: all roots share the kernel's half.
            unsafe { cpu::set_page_table_root(root) };
        }
    }
    frame
}
