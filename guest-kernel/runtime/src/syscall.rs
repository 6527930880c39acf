//! The raw system calls of [`bulkhead_abi::syscall`]. Typed wrappers are in [`crate::capability`],
//! [`crate::object`], [`crate::message`], [`crate::thread`] and [`crate::time`]; this is for those, for the Linux personality and for
//! programs that test the kernel.

use core::arch::asm;

use bulkhead_abi::syscall::{EXIT, RESTRICTED_ENTER, Status, slot};

/// Any system call: status and value as the kernel left them in `rax` and `rdx`.
///
/// # Safety
/// The call may change or unmap memory, start threads, and run code at addresses it is given: the
/// caller upholds Rust's rules for all that.
pub unsafe fn raw(number: u64, arguments: [u64; 4]) -> (u64, u64) {
    let [a, b, c, d] = arguments;
    let (status, value);
    // SAFETY: the caller's promise for the effect; registers as `bulkhead_abi::syscall` says.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => status,
            in("rdi") a,
            in("rsi") b,
            inlateout("rdx") c => value,
            in("r10") d,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    (status, value)
}

/// As [`raw`], with the status as a type.
///
/// # Errors
/// What the kernel answered; [`Status::UnknownCall`] for an answer this library does not know.
///
/// # Safety
/// As [`raw`].
pub unsafe fn call(number: u64, arguments: [u64; 4]) -> Result<u64, Status> {
    // SAFETY: the caller's promise.
    let (status, value) = unsafe { raw(number, arguments) };
    match Status::from_raw(status).unwrap_or(Status::UnknownCall) {
        Status::Ok => Ok(value),
        status => Err(status),
    }
}

/// The registers in which operations find and leave anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(
    missing_docs,
    reason = "registers are named as the architecture names them"
)]
pub struct Registers {
    pub rax: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rbx: u64,
    pub rbp: u64,
}

impl Registers {
    /// The words of a message, in their order.
    #[must_use]
    pub const fn words(&self) -> [u64; 10] {
        [
            self.rdx, self.r8, self.r9, self.r10, self.r12, self.r13, self.r14, self.r15, self.rbx,
            self.rbp,
        ]
    }

    /// Sets the words of a message.
    pub const fn set_words(&mut self, words: &[u64; 10]) {
        [
            self.rdx, self.r8, self.r9, self.r10, self.r12, self.r13, self.r14, self.r15, self.rbx,
            self.rbp,
        ] = *words;
    }

    /// The status that an operation left.
    ///
    /// # Errors
    /// What the kernel answered; [`Status::UnknownCall`] for what this library does not know.
    pub fn status(&self) -> Result<(), Status> {
        match Status::from_raw(self.rax).unwrap_or(Status::UnknownCall) {
            Status::Ok => Ok(()),
            status => Err(status),
        }
    }
}

/// Any system call, with all registers that one can use.
///
/// # Safety
/// As [`raw`].
pub unsafe fn exchange(registers: &mut Registers) {
    // SAFETY: the caller's promise for the effect. `rbx` and `rbp` are the compiler's and are put
    // back; the stack is used below its pointer, for there is no red zone on this target.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push rdi",
            "mov rax, [rdi]",
            "mov rsi, [rdi + 16]",
            "mov rdx, [rdi + 24]",
            "mov r8, [rdi + 32]",
            "mov r9, [rdi + 40]",
            "mov r10, [rdi + 48]",
            "mov r12, [rdi + 56]",
            "mov r13, [rdi + 64]",
            "mov r14, [rdi + 72]",
            "mov r15, [rdi + 80]",
            "mov rbx, [rdi + 88]",
            "mov rbp, [rdi + 96]",
            "mov rdi, [rdi + 8]",
            "syscall",
            "xchg rdi, [rsp]",
            "mov [rdi], rax",
            "mov [rdi + 16], rsi",
            "mov [rdi + 24], rdx",
            "mov [rdi + 32], r8",
            "mov [rdi + 40], r9",
            "mov [rdi + 48], r10",
            "mov [rdi + 56], r12",
            "mov [rdi + 64], r13",
            "mov [rdi + 72], r14",
            "mov [rdi + 80], r15",
            "mov [rdi + 88], rbx",
            "mov [rdi + 96], rbp",
            "pop rax",
            "mov [rdi + 8], rax",
            "pop rbp",
            "pop rbx",
            inlateout("rdi") registers => _,
            lateout("rax") _, lateout("rcx") _, lateout("rdx") _, lateout("rsi") _,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
            lateout("r12") _, lateout("r13") _, lateout("r14") _, lateout("r15") _,
        );
    }
}

/// An operation on a capability, with up to eight arguments behind its handle; two results.
///
/// # Errors
/// What the kernel answered.
///
/// # Safety
/// As [`raw`].
pub unsafe fn invoke<const N: usize>(
    operation: u64,
    handle: u64,
    arguments: [u64; N],
) -> Result<[u64; 2], Status> {
    const { assert!(N <= 8) };
    let mut words = [0; 10];
    for (word, argument) in words.iter_mut().zip(arguments) {
        *word = argument;
    }
    let mut registers = Registers {
        rax: operation,
        rdi: handle,
        ..Registers::default()
    };
    registers.set_words(&words);
    // SAFETY: the caller's promise.
    unsafe { exchange(&mut registers) };
    registers.status()?;
    Ok([registers.rdx, registers.r8])
}

/// `EXIT`.
pub fn exit(status: u8) -> ! {
    loop {
        // SAFETY: nothing of the program runs any more.
        unsafe { raw(EXIT, [slot::PARTITION, u64::from(status), 0, 0]) };
    }
}

/// `RESTRICTED_ENTER`: runs the restricted program until it leaves.
///
/// # Errors
/// The thread has no restricted state, or its `rip` is no user address; or the state was taken away
/// meanwhile.
///
/// # Safety
/// The restricted program may change all memory below `RESTRICTED_END`.
pub unsafe fn restricted_enter() -> Result<(), Status> {
    // SAFETY: the caller's promise.
    unsafe { call(RESTRICTED_ENTER, [0; 4]) }.map(|_| ())
}
