//! What each CPU has of its own: the kernel's stack, segments, and what it is set up for. Used by
//! all rooms of the architecture.

use core::ptr;

use super::Exclusive;
use super::gdt::{Descriptors, TaskState};

/// How many CPUs there are room for.
const CPUS: usize = 1;
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
    /// The active page table root.
    pub(super) root: u64,
    /// The deadline that the timer is armed for; zero when it is not.
    pub(super) armed: u64,
}

#[repr(C, align(16384))]
struct Area {
    stack: [u8; AREA_BYTES - size_of::<Cpu>()],
    cpu: Cpu,
}

const _: () = assert!(size_of::<Area>() == AREA_BYTES);

/// Zero until a CPU is set up, so that the image need not hold it.
#[unsafe(no_mangle)]
static AREAS: Exclusive<[Area; CPUS]> = {
    // SAFETY: an area is plain words.
    Exclusive::new(unsafe { core::mem::zeroed() })
};

/// The CPU that runs the kernel.
static ACTIVE: Exclusive<*mut Cpu> = Exclusive::new(ptr::null_mut());

/// The CPU with this number, which is below [`CPUS`].
pub(super) fn numbered(number: usize) -> *mut Cpu {
    // SAFETY: no reference is made, and the number is in range.
    unsafe { &raw mut (*AREAS.as_ptr())[number].cpu }
}

/// The CPU that runs the kernel.
///
/// # Safety
/// The caller is the only path of execution (see [`super`]) and holds no other reference.
#[inline]
pub(super) unsafe fn active() -> &'static mut Cpu {
    // SAFETY: one path of execution.
    let cpu = unsafe { *ACTIVE.as_ptr() };
    // SAFETY: one of the areas, since the kernel's first instructions; the caller's promise.
    unsafe { &mut *cpu }
}

/// Says which CPU runs the kernel.
pub(super) fn set_active(cpu: *mut Cpu) {
    // SAFETY: one path of execution (see [`super`]).
    unsafe { *ACTIVE.as_ptr() = cpu };
}
