//! What each CPU has of its own: the kernel's stack, segments, and what it is set up for. Used by
//! all rooms of the architecture.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use bulkhead_abi::machine::MAX_CPUS;

use super::Exclusive;
use super::gdt::{Descriptors, TaskState};

/// Bytes of a CPU's area: its stack, and behind it what else it has. The stack's deepest use is
/// formatting a report of a fault.
pub(super) const AREA_BYTES: usize = 16 * 1024;

/// A CPU. Its stack ends where this begins: [`Frame::cpu`](bulkhead_kernel_core::frame::Frame::cpu)
/// leads to both.
#[repr(C)]
pub(super) struct Cpu {
    pub(super) task: TaskState,
    /// The stack pointer of a program, while the entry of `syscall` looks for the frame.
    pub(super) user_rsp: u64,
    pub(super) descriptors: Descriptors,
    /// The active page table root. Another CPU reads it while this one does not run the kernel.
    pub(super) root: u64,
    /// The deadline that the timer is armed for; zero when it is not.
    pub(super) armed: u64,
    /// Its number, which is also that of its LAPIC.
    pub(super) number: usize,
    /// What the CPU that runs the kernel has asked of it: see [`super::smp`].
    pub(super) request: AtomicU64,
    /// FS and GS base of the program that it was asked to stop.
    pub(super) bases: [u64; 2],
}

#[repr(C, align(16384))]
struct Area {
    stack: [u8; AREA_BYTES - size_of::<Cpu>()],
    cpu: Cpu,
}

const _: () = assert!(size_of::<Area>() == AREA_BYTES);

/// Zero until a CPU is set up, so that the image need not hold it.
#[unsafe(no_mangle)]
static AREAS: Exclusive<[Area; MAX_CPUS]> = {
    // SAFETY: an area is plain words.
    Exclusive::new(unsafe { core::mem::zeroed() })
};

/// The CPU that runs the kernel, or did last.
static ACTIVE: AtomicPtr<Cpu> = AtomicPtr::new(ptr::null_mut());

/// The CPU with this number.
///
/// # Panics
/// For a number that is not below [`MAX_CPUS`].
pub(super) fn numbered(number: usize) -> *mut Cpu {
    // SAFETY: no reference is made, and the number is in range.
    unsafe { &raw mut (*AREAS.as_ptr())[number].cpu }
}

/// The CPU on whose stack `place` lies.
pub(super) fn around(place: u64) -> *mut Cpu {
    let area = place & !(AREA_BYTES as u64 - 1);
    (area + (AREA_BYTES - size_of::<Cpu>()) as u64) as *mut Cpu
}

/// The CPU that runs the kernel.
///
/// # Safety
/// The caller is the only path of execution (see [`super`]) and holds no other reference.
#[inline]
pub(super) unsafe fn active() -> &'static mut Cpu {
    let cpu = ACTIVE.load(Ordering::Relaxed);
    // SAFETY: one of the areas, since the kernel's first instructions; the caller's promise.
    unsafe { &mut *cpu }
}

/// Says which CPU runs the kernel.
pub(super) fn set_active(cpu: *mut Cpu) {
    ACTIVE.store(cpu, Ordering::Relaxed);
}

/// Whether no other CPU has run the kernel since this one did.
pub(super) fn was_last(cpu: *mut Cpu) -> bool {
    ACTIVE.load(Ordering::Relaxed) == cpu
}
