//! The assembly of entry and exit, and the constants it shares with Rust.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use bulkhead_kernel_core::frame::{Frame, USER_CODE, USER_DATA};

use super::gdt::{CODE, TaskState};
use super::percpu::{AREA_BYTES, Cpu};
use super::smp::{DOORS, Doors};

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
    system_call = const offset_of!(Doors, system_call),
    page_fault = const offset_of!(Doors, page_fault),
    interrupted = const offset_of!(Doors, interrupted),
    msr_efer = const MSR_EFER,
    efer = const EFER,
    cr0 = const CR0,
    code = const CODE,
);

const MSR_EFER: u32 = 0xc000_0080;
/// EFER as the boot CPU has it: SCE, LME, NXE. LMA follows from paging.
const EFER: u32 = 1 << 0 | 1 << 8 | 1 << 11;
/// CR0 as the boot CPU has it: PE, MP, ET, NE, WP, AM, PG.
const CR0: u32 = 0x8005_0033;

unsafe extern "C" {
    /// Target of `syscall` where there is one CPU. Its address is all that Rust uses.
    pub(super) fn syscall_entry();
    /// Target of `syscall` where there are several. As above.
    pub(super) fn syscall_entry_of_several();
    /// Resumes the frame in `rax`.
    pub(super) fn resume_frame();
    /// Gives the lock of [`super::smp`] back, and resumes the frame in `rax`.
    pub(super) fn unlock_and_resume();
}

/// Leaves the kernel: resumes a frame.
///
/// # Safety
/// The CPU is set up for the frame, whose registers are those of user mode; nothing on the kernel's
/// stack is needed any more.
#[inline(always)]
pub(super) unsafe fn resume(frame: *mut Frame) -> ! {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("jmp qword ptr [rip + {} + {}]", sym DOORS, const offset_of!(Doors, resume),
            in("rax") frame, options(noreturn))
    }
}
