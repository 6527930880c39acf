//! CPU templates: a CPU that looks the same on every host that can be it (x86-64 psABI levels 2 and
//! 3; Intel SDM volume 2 "CPUID"; AMD APM volume 3 appendix E).
//!
//! A guest sees what the table below promises and nothing more; a host that lacks any of it is refused.
//! Family, model and stepping, caches, address widths and the name are fixed as well. Two things follow
//! the host:
//!
//! * the vendor, because kernels choose instructions and MSRs by it that only that vendor's CPUs have;
//!   family and model are those of a CPU of that vendor known to need every guard there is;
//! * the speculation controls (IBPB, IBRS, STIBP, SSBD, VERW): to hide one leaves the guest's programs
//!   unprotected from each other, to invent one faults.
//!
//! What says that a CPU needs no guard is hidden: IA32_ARCH_CAPABILITIES, and with its bit the MSR, which
//! KVM then refuses to read; the same holds for performance counters. The TSC is not announced as
//! invariant: it is not, between hosts.

use std::collections::BTreeMap;

use bulkhead_machine::cpu::Leaf;

use crate::CpuTemplate;

/// Physical and linear address bits: what the smallest CPU with KVM has. The VMM refuses memory
/// beyond.
const ADDRESS_BITS: u32 = 39 | 48 << 8;

/// A register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// Levels.
const V2: u8 = 2;
const V3: u8 = 3;

/// What a level promises: level, leaf, register, bits, and what they are called.
#[rustfmt::skip]
const PROMISES: &[(u8, u32, Register, u32, &str)] = &[
    (V2, 1, Edx, 0x0000_0001, "fpu"),
    (V2, 1, Edx, 0x0000_01fe, "vme de pse tsc msr pae mce cx8"),
    (V2, 1, Edx, 0x0003_f800, "sep mtrr pge mca cmov pat pse36"),
    (V2, 1, Edx, 0x0788_0000, "clflush mmx fxsr sse sse2"),
    (V2, 1, Ecx, 1 << 0,  "sse3"),
    (V2, 1, Ecx, 1 << 9,  "ssse3"),
    (V2, 1, Ecx, 1 << 13, "cmpxchg16b"),
    (V2, 1, Ecx, 3 << 19, "sse4.1 sse4.2"),
    (V2, 1, Ecx, 1 << 23, "popcnt"),
    (V3, 1, Ecx, 1 << 1,  "pclmulqdq"),
    (V3, 1, Ecx, 1 << 12, "fma"),
    (V3, 1, Ecx, 1 << 22, "movbe"),
    (V3, 1, Ecx, 1 << 25, "aes"),
    (V3, 1, Ecx, 1 << 26, "xsave"),
    (V3, 1, Ecx, 1 << 28, "avx"),
    (V3, 1, Ecx, 1 << 29, "f16c"),
    (V3, 1, Ecx, 1 << 30, "rdrand"),
    (V2, 7, Ebx, 1 << 0,  "fsgsbase"),
    (V2, 7, Ebx, 1 << 7,  "smep"),
    (V3, 7, Ebx, 1 << 3,  "bmi1"),
    (V3, 7, Ebx, 1 << 5,  "avx2"),
    (V3, 7, Ebx, 1 << 8,  "bmi2"),
    (V3, 0xd, Eax, 7,     "the states x87 sse avx"),
    (V2, 0x4000_0001, Eax, 1 << 0 | 1 << 3, "kvmclock"),
    (V2, 0x4000_0001, Eax, 1 << 24, "a stable kvmclock"),
    (V2, 0x8000_0001, Ecx, 1 << 0,  "lahf"),
    (V3, 0x8000_0001, Ecx, 1 << 5,  "lzcnt"),
    (V2, 0x8000_0001, Edx, 1 << 11, "syscall"),
    (V2, 0x8000_0001, Edx, 1 << 20, "nx"),
    (V2, 0x8000_0001, Edx, 1 << 29, "long mode"),
];

/// Guards against speculation, as the host has them.
const GUARDS: [(u32, Register, u32); 2] = [
    // MD_CLEAR, IBRS and IBPB, STIBP, SSBD.
    (7, Edx, 1 << 10 | 1 << 26 | 1 << 27 | 1 << 31),
    // IBPB, IBRS, STIBP, its preferred mode, SSBD in two forms.
    (
        0x8000_0008,
        Ebx,
        1 << 12 | 1 << 14 | 1 << 15 | 1 << 17 | 1 << 24 | 1 << 25,
    ),
];

/// Leaf, subleaf, EAX to EDX of what is the same for every level: caches of 32, 32 and 512 KiB in the
/// ways of both vendors, the LAPIC timer that never stops, KVM's signature.
#[rustfmt::skip]
const FIXED: &[(u32, u32, [u32; 4])] = &[
    (4, 0, [0x121, 0x01c0_003f, 0x3f, 0]),
    (4, 1, [0x122, 0x01c0_003f, 0x3f, 0]),
    (4, 2, [0x143, 0x01c0_003f, 0x3ff, 0]),
    (4, 3, [0, 0, 0, 0]),
    (6, 0, [1 << 2, 0, 0, 0]),
    (0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
    (0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
    (0x8000_0005, 0, [0x01ff_01ff, 0x01ff_01ff, 0x2008_0140, 0x2008_0140]),
    (0x8000_0006, 0, [0, 0x4200_4200, 0x0200_6140, 0]),
    (0x8000_0007, 0, [0, 0, 0, 0]),
];
/// XSAVE's layout of level 3: x87 and SSE in the first 576 bytes, AVX behind them.
const XSAVE_LAYOUT: [(u32, u32, [u32; 4]); 3] = [
    (0xd, 0, [0, 576, 832, 0]),
    (0xd, 1, [0, 0, 0, 0]),
    (0xd, 2, [256, 576, 0, 0]),
];

/// EBX, EDX, ECX of leaf 0, and EAX of leaf 1 in its place: Skylake-SP, and Zen 2.
const VENDORS: [([u32; 3], u32); 2] = [
    ([0x756e_6547, 0x4965_6e69, 0x6c65_746e], 0x0005_0654),
    ([0x6874_7541, 0x6974_6e65, 0x444d_4163], 0x0083_0f10),
];

/// The host's CPU, or its KVM, cannot be what a template promises.
#[derive(Debug, thiserror::Error)]
#[error("this host cannot be a cpu `{template}`: it lacks {missing}")]
pub struct Lacks {
    /// The template.
    template: &'static str,
    /// What is missing.
    missing: String,
}

/// The list that a guest with `template` builds on, on a host that supports `supported`.
///
/// # Errors
/// What the host lacks.
pub(crate) fn apply(supported: &[Leaf], template: CpuTemplate) -> Result<Vec<Leaf>, Lacks> {
    let (level, name) = match template {
        CpuTemplate::Host => return Ok(supported.to_vec()),
        CpuTemplate::V2 => (V2, "v2"),
        CpuTemplate::V3 => (V3, "v3"),
    };
    let host = |function, register| {
        let mut leaves = supported.iter();
        let found = leaves.find(|leaf| leaf.function == function && leaf.index.unwrap_or(0) == 0);
        found.map_or(0, |leaf| *of(&mut leaf.registers.clone(), register))
    };
    let promised = || PROMISES.iter().filter(|promise| promise.0 <= level);
    let lacks =
        promised().filter(|(_, leaf, register, bits, _)| host(*leaf, *register) & bits != *bits);
    let mut missing: Vec<&str> = lacks.map(|promise| promise.4).collect();
    let vendor = [Ebx, Edx, Ecx].map(|register| host(0, register));
    let signature = VENDORS.iter().find(|(known, _)| *known == vendor);
    if signature.is_none() {
        missing.push("a vendor that there is a template for");
    }
    if host(0x8000_0008, Eax) & 0xff < ADDRESS_BITS & 0xff {
        missing.push("39 bits of physical addresses");
    }
    let (Some((_, signature)), true) = (signature, missing.is_empty()) else {
        return Err(Lacks {
            template: name,
            missing: missing.join(", "),
        });
    };

    let mut list = List::default();
    let max_leaf = if level == V3 { 0xd } else { 0xb };
    let [ebx, edx, ecx] = vendor;
    list.put(0, 0, [max_leaf, ebx, ecx, edx]);
    list.put(1, 0, [*signature, 8 << 8, 0, 0]); // lines of 64 bytes for clflush
    for (leaf, index, values) in FIXED {
        list.put(*leaf, *index, *values);
    }
    if level == V3 {
        for (leaf, index, values) in XSAVE_LAYOUT {
            list.put(leaf, index, values);
        }
    }
    let brand = format!("Bulkhead x86-64-{name}");
    let mut text = [0; 48];
    for (to, from) in text.iter_mut().zip(brand.bytes()) {
        *to = from;
    }
    for (leaf, part) in (0x8000_0002..).zip(text.as_chunks::<16>().0) {
        let mut values = [0; 4];
        for (value, word) in values.iter_mut().zip(part.as_chunks().0) {
            *value = u32::from_le_bytes(*word);
        }
        list.put(leaf, 0, values);
    }
    list.put(0x8000_0008, 0, [ADDRESS_BITS, 0, 0, 0]);
    for (_, leaf, register, bits, _) in promised() {
        *list.register(*leaf, *register) |= bits;
    }
    for (leaf, register, mask) in GUARDS {
        *list.register(leaf, register) |= host(leaf, register) & mask;
    }
    Ok(list.leaves())
}

fn of([eax, ebx, ecx, edx]: &mut [u32; 4], register: Register) -> &mut u32 {
    match register {
        Eax => eax,
        Ebx => ebx,
        Ecx => ecx,
        Edx => edx,
    }
}

/// A list in the making: EAX to EDX by leaf and subleaf.
#[derive(Default)]
struct List(BTreeMap<(u32, u32), [u32; 4]>);

impl List {
    fn put(&mut self, leaf: u32, index: u32, values: [u32; 4]) {
        self.0.insert((leaf, index), values);
    }

    /// A register of a leaf's first subleaf.
    fn register(&mut self, leaf: u32, register: Register) -> &mut u32 {
        of(self.0.entry((leaf, 0)).or_default(), register)
    }

    fn leaves(&self) -> Vec<Leaf> {
        let leaf = |(&(function, index), &registers): (&(u32, u32), &[u32; 4])| {
            // The leaves in use here that have subleaves (KVM cpuid.rst).
            let indexed = matches!(function, 4 | 7 | 0xd);
            Leaf {
                function,
                index: indexed.then_some(index),
                registers,
            }
        };
        self.0.iter().map(leaf).collect()
    }
}

#[cfg(test)]
mod tests;
