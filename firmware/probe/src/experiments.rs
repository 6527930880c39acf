//! One instruction class each: does it work at CPL0?
//!
//! An outcome is `ok`, `wrong` (it ran, with another result than the architecture says) or
//! `fault-N` (exception N). A KVM that cannot run an instruction ends the VM instead: then the
//! report stops behind `begin=`.

use core::arch::naked_asm;

use crate::{cpu, report};

/// An experiment.
struct Experiment {
    name: &'static str,
    /// Returns 0 if the instruction did what it should.
    run: cpu::Function,
    /// The exception, if any, that the instruction is there to raise.
    expected: &'static [u64],
}

/// `name [=> vector]: instructions;` each falls off its end with its verdict in eax.
macro_rules! experiments {
    ($($name:literal $(=> $vector:literal)?: $($line:literal),+;)*) => {
        static ALL: &[Experiment] = &[$(Experiment {
            name: $name,
            run: {
                #[unsafe(naked)]
                unsafe extern "C" fn run(_: u64) -> u64 {
                    naked_asm!("xor eax, eax", $($line,)+ "ret")
                }
                run
            },
            expected: &[$($vector)?],
        }),*];
    };
}

// Memory operands use `scratch`, 4 KiB on a 64-byte boundary. `attempt` saves all registers.
experiments! {
    // Integer.
    "cmpxchg8b": "mov edx, [rip + scratch + 4]", "mov eax, [rip + scratch]", "xor ebx, ebx", "mov ecx, 1",
        "lock cmpxchg8b [rip + scratch]", "setnz al", "movzx eax, al";
    "cmpxchg16b": "mov rdx, [rip + scratch + 8]", "mov rax, [rip + scratch]", "xor ebx, ebx", "mov ecx, 1",
        "lock cmpxchg16b [rip + scratch]", "setnz al", "movzx eax, al";
    "xadd": "mov ecx, 1", "lock xadd [rip + scratch], ecx";
    "popcnt": "mov ecx, 0xff", "popcnt ecx, ecx", "lea eax, [ecx - 8]";
    "lzcnt": "mov ecx, 1", "lzcnt ecx, ecx", "lea eax, [ecx - 31]";
    "tzcnt": "xor ecx, ecx", "tzcnt ecx, ecx", "lea eax, [ecx - 32]";
    "andn": "mov ecx, 1", "mov edx, 3", "andn ecx, ecx, edx", "lea eax, [ecx - 2]";
    "shlx": "mov ecx, 1", "shlx ecx, ecx, ecx", "lea eax, [ecx - 2]";
    "adcx": "mov ecx, 1", "clc", "adcx ecx, ecx", "lea eax, [ecx - 2]";
    "crc32": "xor ecx, ecx", "crc32 ecx, cl", "mov eax, ecx";
    "movbe": "mov dword ptr [rip + scratch], 1", "movbe ecx, [rip + scratch]", "lea eax, [ecx - 0x1000000]";
    "rdrand": "rdrand ecx";
    "rep-movsb": "lea rsi, [rip + scratch]", "lea rdi, [rip + scratch + 64]", "mov ecx, 16", "rep movsb";
    // Vector and floating point.
    "movdqa": "movdqa xmm0, [rip + scratch]", "movdqa [rip + scratch + 16], xmm0";
    "movq": "mov ecx, 5", "movq xmm0, rcx", "movq rdx, xmm0", "lea eax, [edx - 5]";
    "pxor": "pxor xmm0, xmm0";
    "vpxor": "mov eax, 7", "xor edx, edx", "xor ecx, ecx", "xsetbv", "vpxor xmm0, xmm0, xmm0", "xor eax, eax";
    "fld": "fninit", "fld1", "fstp st(0)";
    "fwait": "fninit", "fwait";
    "ldmxcsr": "mov dword ptr [rip + scratch], 0x1f80", "ldmxcsr [rip + scratch]";
    "fxsave": "fxsave64 [rip + scratch]", "fxrstor64 [rip + scratch]";
    "xgetbv": "xor ecx, ecx", "xgetbv", "and eax, 1", "xor eax, 1";
    "xsave": "mov eax, 3", "xor edx, edx", "xsave64 [rip + scratch]", "xor eax, eax";
    "xrstor": "mov eax, 3", "xor edx, edx", "xrstor64 [rip + scratch]", "xor eax, eax";
    // System.
    "rdtscp": "rdtscp", "xor eax, eax";
    "rdpid": "rdpid rcx";
    "fsgsbase": "rdgsbase rcx", "mov edx, 77", "wrgsbase rdx", "rdgsbase rdx", "wrgsbase rcx", "lea eax, [edx - 77]";
    "swapgs": "swapgs", "swapgs";
    "stac": "stac", "clac";
    "invlpg": "invlpg [rip + scratch]";
    "invpcid": "mov ecx, 2", "mov qword ptr [rip + scratch], 0", "mov qword ptr [rip + scratch + 8], 0",
        "invpcid rcx, [rip + scratch]";
    "mov-cr3": "mov rcx, cr3", "mov cr3, rcx";
    "rdmsr": "mov ecx, 0xc0000080", "rdmsr", "wrmsr", "xor eax, eax";
    "clflush": "clflush [rip + scratch]";
    "clwb": "clwb [rip + scratch]";
    "verw": "mov word ptr [rip + scratch], 0x10", "verw [rip + scratch]";
    "lar": "mov ecx, 0x10", "lar edx, ecx";
    "int3" => 3: "int3", "mov eax, 1";
    "int-n" => 5: "int 5", "mov eax, 1";
}

/// Reports all names.
pub(crate) fn list() {
    for experiment in ALL {
        report::line("experiment", experiment.name);
    }
}

/// Runs the experiment called `name`; false if there is none.
pub(crate) fn run(name: &str) -> bool {
    let Some(experiment) = ALL.iter().find(|experiment| experiment.name == name) else {
        return false;
    };
    report::begin(name);
    match cpu::attempt_kernel(experiment.run) {
        Err(vector) if experiment.expected.contains(&vector) => report::line(name, "ok"),
        Err(vector) => report::fault(name, vector),
        Ok(0) => report::line(name, "ok"),
        Ok(_) => report::line(name, "wrong"),
    }
    true
}
