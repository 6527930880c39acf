//! The assembly of entry and exit, and the constants it shares with Rust.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use bulkhead_kernel_core::frame::{Frame, USER_CODE, USER_DATA};

use super::gdt::TaskState;
use super::percpu::{AREA_BYTES, Cpu};

global_asm!(
    include_str!("entry.s"),
    frame_r15 = const offset_of!(Frame, r15),
    frame_cs = const offset_of!(Frame, cs),
    frame_cpu = const offset_of!(Frame, cpu),
    syscall = const Frame::SYSCALL,
    user_code = const USER_CODE,
    user_data = const USER_DATA,
    task_rsp0 = const offset_of!(Cpu, task) + offset_of!(TaskState, rsp0),
    user_rsp = const offset_of!(Cpu, user_rsp),
    area_bytes = const AREA_BYTES,
    cpu = const AREA_BYTES - size_of::<Cpu>(),
);

unsafe extern "C" {
    /// Target of `syscall`. Its address is all that Rust uses.
    pub(super) fn syscall_entry();
    fn resume_frame();
}

/// Leaves the kernel: resumes a frame.
///
/// # Safety
/// The CPU is set up for the frame, whose registers are those of user mode; nothing on the kernel's
/// stack is needed any more.
#[inline(always)]
pub(super) unsafe fn resume(frame: *mut Frame) -> ! {
    // SAFETY: the caller's promise.
    unsafe { asm!("jmp {}", sym resume_frame, in("rax") frame, options(noreturn)) }
}
