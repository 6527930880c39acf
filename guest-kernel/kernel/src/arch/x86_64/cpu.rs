//! Privileged instructions, one function each. All of them are on the list of what KVM hosts
//! that interpret guest kernel mode can execute; `cargo xtask test` checks the whole image by
//! disassembly.

use core::arch::asm;

/// CR4: a supervisor fetch from a user page faults.
pub(super) const CR4_SMEP: u64 = 1 << 20;
/// CR4: a supervisor access to a user page faults.
pub(super) const CR4_SMAP: u64 = 1 << 21;

/// APIC base address and mode.
pub(super) const MSR_APIC_BASE: u32 = 0x1b;
/// LAPIC timer deadline, in ticks of the time stamp counter.
pub(super) const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// Segment selectors of `syscall` and `sysret`.
pub(super) const MSR_STAR: u32 = 0xc000_0081;
/// Target of `syscall`.
pub(super) const MSR_LSTAR: u32 = 0xc000_0082;
/// RFLAGS bits that `syscall` clears.
pub(super) const MSR_SFMASK: u32 = 0xc000_0084;
/// What `swapgs` exchanges GS base with.
pub(super) const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// The time stamp counter.
pub(super) fn time_stamp() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// EBX and ECX of a `cpuid` leaf, subleaf 0.
pub(super) fn cpuid(leaf: u32) -> (u32, u32) {
    let found = core::arch::x86_64::__cpuid_count(leaf, 0);
    (found.ebx, found.ecx)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists, and the value keeps what the kernel relies on.
pub(super) unsafe fn write_msr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high,
            options(nostack, preserves_flags));
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// The register exists.
pub(super) unsafe fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise; reading the registers used here has no side effect.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
            options(nostack, nomem, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// The faulting address of the last page fault.
pub(super) fn fault_address() -> u64 {
    let address: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nostack, nomem, preserves_flags)) };
    address
}

/// The active page table root.
pub(super) fn page_table_root() -> u64 {
    let root: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nostack, preserves_flags)) };
    root
}

/// Activates a page table root and forgets all user translations.
///
/// # Safety
/// The tables keep the kernel's half as it is.
pub(super) unsafe fn set_page_table_root(root: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Forgets the translation of one page.
pub(super) fn invalidate(address: u64) {
    // SAFETY: translations are looked up again where needed; no memory is changed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Sets bits of CR4.
///
/// # Safety
/// The CPU knows the bits, and the kernel keeps the rules they stand for.
pub(super) unsafe fn set_cr4_bits(bits: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mov {old}, cr4", "or {old}, {bits}", "mov cr4, {old}",
            old = out(reg) _, bits = in(reg) bits, options(nostack));
    }
}

/// FS base.
pub(super) fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: reads a register; the boot protocol enters kernels with CR4.FSGSBASE set.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nostack, nomem, preserves_flags)) };
    base
}

/// GS base.
pub(super) fn gs_base() -> u64 {
    let base: u64;
    // SAFETY: as for `fs_base`.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nostack, nomem, preserves_flags)) };
    base
}

/// Sets FS and GS base, as programs see them: what the entry of `syscall` uses is the other one.
pub(super) fn set_bases(fs: u64, gs: u64) {
    // SAFETY: the kernel addresses nothing through them; the values were read from these registers
    // before, or are user addresses, so they are canonical.
    unsafe {
        asm!("wrfsbase {}", "wrgsbase {}", in(reg) fs, in(reg) gs,
            options(nostack, nomem, preserves_flags));
    }
}

/// Writes a byte to an I/O port.
///
/// # Safety
/// What the device does upon it keeps what the kernel relies on.
pub(super) unsafe fn write_port(port: u16, value: u8) {
    // SAFETY: the caller's promise. Memory counts as changed: devices read and write it.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Waits with interrupts off, for ever.
pub(super) fn halt() -> ! {
    loop {
        // SAFETY: stops the CPU; nothing else happens.
        unsafe { asm!("cli", "hlt", options(nostack, nomem)) };
    }
}
