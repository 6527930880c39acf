//! A thread's registers as the trap entry of `guest-kernel/kernel` stores them.
//!
//! The layout is known to its assembly (`arch/x86_64/entry.s`): the entry pushes into this struct
//! from its end downwards to `r15`, so the order of the fields is the reverse of that of the pushes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Selector of 64-bit user code, with its requested privilege level 3.
pub const USER_CODE: u64 = 0x23;
/// Selector of user data and stack, with its requested privilege level 3.
pub const USER_DATA: u64 = 0x1b;

/// RFLAGS bits that a user program may choose: CF PF AF ZF SF TF DF OF AC ID.
const USER_FLAGS: u64 = 0x24_0dd5;
/// RFLAGS bits that are always set in user mode: bit 1, and IF.
const FIXED_FLAGS: u64 = 0x202;

/// Length of the `syscall` instruction in bytes.
const SYSCALL_LEN: u64 = 2;

/// Words of a message that travel in registers.
pub const REGISTER_WORDS: u64 = 10;

/// RFLAGS for user mode made of what the user asked for and what it may not choose.
#[must_use]
pub const fn user_flags(wanted: u64) -> u64 {
    wanted & USER_FLAGS | FIXED_FLAGS
}

/// Everything the CPU and the entry code save of an interrupted program.
///
/// Aligned to 16 because the CPU aligns the stack pointer so before it pushes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(16))]
#[allow(
    missing_docs,
    reason = "registers are named as the architecture names them"
)]
pub struct Frame {
    pub(crate) reserved: u64,
    /// Where the kernel's stack begins on the CPU that the frame was resumed on: set by whoever
    /// resumes it, for the entry.
    pub cpu: u64,
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// Interrupt vector of the last entry, or [`Frame::SYSCALL`].
    pub vector: u64,
    /// Error code pushed by the CPU, zero where it pushes none.
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Frame {
    /// An empty frame, good for static tables.
    pub const ZERO: Self = Self {
        reserved: 0,
        cpu: 0,
        r15: 0,
        r14: 0,
        r13: 0,
        r12: 0,
        r11: 0,
        r10: 0,
        r9: 0,
        r8: 0,
        rbp: 0,
        rdi: 0,
        rsi: 0,
        rdx: 0,
        rcx: 0,
        rbx: 0,
        rax: 0,
        vector: 0,
        error_code: 0,
        rip: 0,
        cs: 0,
        rflags: 0,
        rsp: 0,
        ss: 0,
    };

    /// [`Frame::vector`] of an entry through `syscall`, which has no interrupt vector.
    pub const SYSCALL: u64 = 0x100;

    /// The first registers of a thread: everything zero but these.
    #[must_use]
    pub const fn start(entry: u64, stack: u64, argument: u64) -> Self {
        Self {
            rip: entry,
            rsp: stack,
            rdi: argument,
            cs: USER_CODE,
            ss: USER_DATA,
            rflags: user_flags(0),
            ..Self::ZERO
        }
    }

    /// The words of a message, or the arguments of an operation, in their order.
    #[must_use]
    pub const fn message(&self) -> [u64; REGISTER_WORDS as usize] {
        [
            self.rdx, self.r8, self.r9, self.r10, self.r12, self.r13, self.r14, self.r15, self.rbx,
            self.rbp,
        ]
    }

    /// Sets the first `count` words of a message; the other registers keep what they have.
    #[inline]
    pub const fn set_message(&mut self, count: u64, words: &[u64; REGISTER_WORDS as usize]) {
        let [a, b, c, d, e, f, g, h, i, j] = *words;
        if count > 0 {
            self.rdx = a;
        }
        if count > 1 {
            self.r8 = b;
        }
        if count > 2 {
            self.r9 = c;
        }
        if count > 3 {
            self.r10 = d;
        }
        if count > 4 {
            self.r12 = e;
        }
        if count > 5 {
            self.r13 = f;
        }
        if count > 6 {
            self.r14 = g;
        }
        if count > 7 {
            self.r15 = h;
        }
        if count > 8 {
            self.rbx = i;
        }
        if count > 9 {
            self.rbp = j;
        }
    }

    /// Completes a `syscall` that arrived as a fault on its target (see `arch/x86_64/trap.rs`):
    /// the instruction left the return address in `rcx` and the flags in `r11`.
    pub fn finish_syscall(&mut self) {
        self.rip = self.rcx;
        self.rflags = user_flags(self.r11);
    }

    /// Steps back so that the thread executes its `syscall` again.
    pub fn restart_syscall(&mut self) {
        self.rip = self.rip.wrapping_sub(SYSCALL_LEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_never_grant_privilege() {
        for bit in 0..64 {
            let flags = user_flags(1 << bit);
            assert_eq!(flags & 0x202, 0x202, "IF and bit 1 stay set");
            assert_eq!(flags & 0x3000, 0, "IOPL stays 0");
            assert_eq!(flags & (1 << 14), 0, "NT stays clear");
            assert_eq!(flags & (1 << 17), 0, "VM stays clear");
        }
        assert_eq!(user_flags(0x24_0dd5), 0x24_0fd7);
    }

    #[test]
    fn the_layout_is_the_one_the_entry_code_pushes() {
        assert_eq!(size_of::<Frame>(), 24 * 8);
        assert_eq!(core::mem::offset_of!(Frame, r15), 2 * 8);
        assert_eq!(core::mem::offset_of!(Frame, rax), 16 * 8);
        assert_eq!(core::mem::offset_of!(Frame, vector), 17 * 8);
        assert_eq!(core::mem::offset_of!(Frame, cs), 20 * 8);
        assert_eq!(core::mem::offset_of!(Frame, ss), 23 * 8);
    }
}
