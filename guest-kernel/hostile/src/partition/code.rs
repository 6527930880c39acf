//! What the hostile threads execute: a page of code that takes one step after another from memory, with
//! all registers as the step says, and how steps are written there.
//!
//! A thread's GS base leads to its own memory, so the code needs no register and no stack, and goes on
//! from its first instruction whatever a step did to the registers.

use core::arch::global_asm;

use bulkhead_hostile::Step;
use bulkhead_hostile::random::Random;
use bulkhead_runtime::abi::layout::PAGE_SIZE;
use bulkhead_runtime::abi::syscall::SLEEP;

/// Pages of a thread's memory: its head, its steps, and a message buffer in the last.
pub(super) const PAGES: u64 = 8;
/// Words of a step: where its code is, 16 registers as `REGISTERS` has them, flags.
const STEP_WORDS: usize = 20;
const FLAGS: usize = 17;
/// Words of the head: the next step's number, how many there are, where they lie, and the code of the
/// one that is under way.
const HEAD_WORDS: u64 = 20;
/// How long a thread whose steps are done sleeps before it looks for more.
const PAUSE_NS: u64 = 1_000_000;
/// Steps of one program, at most.
pub(super) const MOST: usize = ((PAGES * PAGE_SIZE) / 8 - HEAD_WORDS) as usize / STEP_WORDS;

/// Words of a step by the registers of a call, in the order of [`Step::Call`].
const CALL_ORDER: [usize; 13] = [1, 6, 5, 4, 9, 10, 11, 13, 14, 15, 16, 2, 7];

global_asm!(
    ".section .rodata.hostile, \"a\"",
    ".balign 16",
    "hostile_code:",
    "    mov rax, gs:[0]",
    "    cmp rax, gs:[8]",
    "    jae 9f",
    "    inc qword ptr gs:[0]",
    "    imul rax, rax, {step_bytes}",
    "    add rax, gs:[16]",
    "    mov rcx, [rax]",
    "    mov gs:[24], rcx",
    "    lea rsp, [rax + {flags}]",
    "    mov rbx, [rax + 16]",
    "    mov rcx, [rax + 24]",
    "    mov rdx, [rax + 32]",
    "    mov rsi, [rax + 40]",
    "    mov rdi, [rax + 48]",
    "    mov rbp, [rax + 56]",
    "    mov r8, [rax + 72]",
    "    mov r9, [rax + 80]",
    "    mov r10, [rax + 88]",
    "    mov r11, [rax + 96]",
    "    mov r12, [rax + 104]",
    "    mov r13, [rax + 112]",
    "    mov r14, [rax + 120]",
    "    mov r15, [rax + 128]",
    "    mov rax, [rax + 8]",
    "    jmp qword ptr gs:[24]",
    "9:  mov eax, {sleep}",
    "    mov edi, {pause}",
    "    syscall",
    "    jmp hostile_code",
    // Calls: with any flags, and with any stack pointer.
    "hostile_call_flags: popfq; syscall; jmp hostile_code",
    "hostile_call_stack: mov rsp, [rsp - {flags} + 64]; syscall; jmp hostile_code",
    // Page faults.
    "hostile_load: mov rax, [rax]; jmp hostile_code",
    "hostile_store: mov [rax], rbx; jmp hostile_code",
    "hostile_jump: jmp rax",
    "hostile_stack: mov rsp, rax; push rbx; jmp hostile_code",
    // Other exceptions, and what only a kernel may do; 16 bytes each.
    ".balign 16",
    "hostile_instructions:",
    "    xor ecx, ecx; div ecx; jmp hostile_code; .balign 16",
    "    popfq; nop; jmp hostile_code; .balign 16",
    "    int 2; jmp hostile_code; .balign 16",
    "    int3; jmp hostile_code; .balign 16",
    "    int 4; jmp hostile_code; .balign 16",
    "    int 8; jmp hostile_code; .balign 16",
    "    ud2; jmp hostile_code; .balign 16",
    "    int 14; jmp hostile_code; .balign 16",
    "    int 32; jmp hostile_code; .balign 16",
    "    int 0x80; jmp hostile_code; .balign 16",
    "    int 255; jmp hostile_code; .balign 16",
    "    hlt; jmp hostile_code; .balign 16",
    "    cli; jmp hostile_code; .balign 16",
    "    sti; jmp hostile_code; .balign 16",
    "    in al, dx; jmp hostile_code; .balign 16",
    "    out dx, al; jmp hostile_code; .balign 16",
    "    rdmsr; jmp hostile_code; .balign 16",
    "    wrmsr; jmp hostile_code; .balign 16",
    "    mov cr0, rax; jmp hostile_code; .balign 16",
    "    mov rax, cr3; jmp hostile_code; .balign 16",
    "    mov cr3, rax; jmp hostile_code; .balign 16",
    "    mov cr4, rax; jmp hostile_code; .balign 16",
    "    mov dr7, rax; jmp hostile_code; .balign 16",
    "    invlpg [rax]; jmp hostile_code; .balign 16",
    "    lgdt [rsp]; jmp hostile_code; .balign 16",
    "    lidt [rsp]; jmp hostile_code; .balign 16",
    "    ltr ax; jmp hostile_code; .balign 16",
    "    wbinvd; jmp hostile_code; .balign 16",
    "    sysenter; jmp hostile_code; .balign 16",
    "    sysretq; jmp hostile_code; .balign 16",
    "    iretq; .balign 16",
    "    swapgs; jmp hostile_code; .balign 16",
    "    mov ss, eax; jmp hostile_code; .balign 16",
    "    mov ds, eax; jmp hostile_code; .balign 16",
    "    mov es, ecx; jmp hostile_code; .balign 16",
    "    wrfsbase rax; jmp hostile_code; .balign 16",
    "    wrgsbase rax; jmp hostile_code; .balign 16",
    "    rep movsb; jmp hostile_code; .balign 16",
    "    retfq; .balign 16",
    "    fninit; fldpi; jmp hostile_code; .balign 16",
    "hostile_instructions_end:",
    "hostile_code_end:",
    ".text",
    step_bytes = const STEP_WORDS * 8,
    flags = const FLAGS * 8,
    sleep = const SLEEP,
    pause = const PAUSE_NS,
);

unsafe extern "C" {
    safe static hostile_code: u8;
    safe static hostile_call_flags: u8;
    safe static hostile_call_stack: u8;
    safe static hostile_load: u8;
    safe static hostile_store: u8;
    safe static hostile_jump: u8;
    safe static hostile_stack: u8;
    safe static hostile_instructions: u8;
    safe static hostile_instructions_end: u8;
    safe static hostile_code_end: u8;
}

/// Where a piece of the code lies, from its beginning.
fn offset(of: *const u8) -> u64 {
    of as u64 - &raw const hostile_code as u64
}

/// Writes the code to the page at `window`.
///
/// # Safety
/// The page is mapped writable and Rust has no reference into it.
pub(super) unsafe fn install(window: u64) {
    let length = offset(&raw const hostile_code_end) as usize;
    // SAFETY: the caller's promise, and a page is longer than the code.
    unsafe { core::ptr::copy_nonoverlapping(&raw const hostile_code, window as *mut u8, length) };
}

/// A thread's memory as the supervisor sees it, and where the thread has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// The supervisor's mapping.
    pub(super) window: u64,
    /// The thread's.
    pub(super) address: u64,
    /// Where the thread has the code.
    pub(super) code: u64,
}

impl Memory {
    fn put(self, word: u64, value: u64) {
        // SAFETY: the pages belong to a hostile thread; Rust has no reference into them, and callers
        // stay within.
        unsafe { ((self.window + word * 8) as *mut u64).write_volatile(value) };
    }

    fn get(self, word: u64) -> u64 {
        // SAFETY: as above.
        unsafe { ((self.window + word * 8) as *const u64).read_volatile() }
    }

    /// The number of the next step, and how many there are; both as the thread left them.
    pub(super) fn progress(self) -> (u64, u64) {
        (self.get(0), self.get(1))
    }

    /// A program begins; how many steps it has.
    pub(super) fn load(self, steps: impl Iterator<Item = Step>, random: &mut Random) -> u64 {
        self.put(1, 0);
        let mut count = 0;
        for step in steps.take(MOST) {
            let first = HEAD_WORDS + count * STEP_WORDS as u64;
            for (word, value) in (first..).zip(self.words(step, random)) {
                self.put(word, value);
            }
            count += 1;
        }
        self.put(0, 0);
        self.put(2, self.address + HEAD_WORDS * 8);
        self.put(1, count);
        count
    }

    fn words(self, step: Step, random: &mut Random) -> [u64; STEP_WORDS] {
        let at = |piece: *const u8| self.code + offset(piece);
        let mut words: [u64; STEP_WORDS] = core::array::from_fn(|_| random.word());
        words[FLAGS] = if random.one_in(16) {
            random.word()
        } else {
            ORDINARY_FLAGS
        };
        match step {
            Step::Call { registers, .. } => {
                words[0] = at(match random.below(8) {
                    0 => &raw const hostile_call_stack,
                    _ => &raw const hostile_call_flags,
                });
                for (place, register) in CALL_ORDER.into_iter().zip(registers) {
                    words[place] = register;
                }
            }
            Step::Time(ticks) => {
                words[0] = at(&raw const hostile_call_flags);
                (words[1], words[6]) = (SLEEP, ticks.min(PAUSE_NS));
            }
            Step::Exception {
                vector: 14,
                code,
                address,
            } => {
                words[0] = at(match code % 4 {
                    0 => &raw const hostile_load,
                    1 => &raw const hostile_store,
                    2 => &raw const hostile_jump,
                    _ => &raw const hostile_stack,
                });
                words[1] = address;
            }
            Step::Exception {
                vector,
                code,
                address,
            } => {
                let (first, end) = (
                    at(&raw const hostile_instructions),
                    at(&raw const hostile_instructions_end),
                );
                let number = u64::from(vector) + u64::from(code) * 32;
                words[0] = first + number % ((end - first) / 16) * 16;
                words[1] = address;
            }
        }
        words
    }
}

/// Interrupts on, and the bit that is always one.
pub(super) const ORDINARY_FLAGS: u64 = 0x202;
