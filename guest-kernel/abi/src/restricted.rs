//! Restricted mode: how the Linux personality runs a Linux program in its own thread.
//!
//! The personality binds a page ([`crate::syscall::RESTRICTED_BIND`]), fills the registers of
//! [`RestrictedState`], and calls [`crate::syscall::RESTRICTED_ENTER`]. The program runs at CPL3
//! with an address space in which only the lower half ([`crate::layout::RESTRICTED_END`]) exists.
//! Its next `syscall`, fault or other exception stores the registers in the page, sets `reason`,
//! and `RESTRICTED_ENTER` returns to the personality: no IPC, no scheduler. FS and GS bases, SSE
//! and wider registers belong to the program throughout: the personality is built without them
//! and changes FS base only by `wrfsbase`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The program executed `syscall`: number in `rax`, `rip` behind the instruction.
pub const REASON_SYSCALL: u64 = 0;
/// The program raised a CPU exception: `vector`, `error_code`, `fault_address` say which.
pub const REASON_EXCEPTION: u64 = 1;

/// The page shared by kernel and personality.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(
    missing_docs,
    reason = "registers are named as the architecture names them"
)]
pub struct RestrictedState {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    /// Only the arithmetic flags, DF, TF, AC and ID are taken from here at entry.
    pub rflags: u64,
    /// `REASON_*`, set by the kernel.
    pub reason: u64,
    /// Exception vector, with [`REASON_EXCEPTION`].
    pub vector: u64,
    /// Error code of the exception, or zero.
    pub error_code: u64,
    /// CR2 of a page fault, or zero.
    pub fault_address: u64,
}
