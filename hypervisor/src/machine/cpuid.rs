//! What CPUID tells a guest: what KVM supports, made true for this machine.
//!
//! KVM's list describes the host's CPU; topology, the APIC ID and what the machine lacks are set
//! here for each vCPU (Intel SDM volume 2 "CPUID"; AMD APM volume 3 appendix E; KVM cpuid.rst).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::error::Error;

/// Leaf 1 ECX: x2APIC mode.
const X2APIC: u32 = 1 << 21;
/// Leaf 1 ECX: the LAPIC timer has a TSC deadline.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: XSAVE.
const XSAVE: u32 = 1 << 26;
/// Leaf 1 ECX: there is a hypervisor, which leaf 0x4000_0000 names.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: a LAPIC.
const APIC: u32 = 1 << 9;
/// Leaf 1 EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 7 EBX: rdfsbase and its kin.
const FSGSBASE: u32 = 1 << 0;
/// KVM's leaf 0x4000_0001 EAX: kvmclock in both forms, and "stable".
const KVMCLOCK: u32 = 1 << 0 | 1 << 3 | 1 << 24;
/// Leaf 0x8000_0001 ECX: the package's logical processors are cores.
const CMP_LEGACY: u32 = 1 << 1;

/// The machine as far as CPUID can tell it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// There is a LAPIC.
    pub apic: bool,
    /// The guest may read the host's clock.
    pub time: bool,
}

/// The list for vCPU `id`, whose APIC ID is its number.
///
/// # Errors
/// The list is longer than KVM takes.
pub fn for_vcpu(supported: &CpuId, id: u32, shape: Shape) -> Result<CpuId, Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .copied()
        .filter(|e| !matches!(e.function, 0xb | 0x1f))
        .collect();
    let id_bits = shape.vcpus.next_power_of_two().trailing_zeros();
    for e in &mut entries {
        match e.function {
            1 => {
                e.ecx &= !(X2APIC | TSC_DEADLINE);
                e.ecx |= HYPERVISOR;
                e.edx &= !(APIC | HTT);
                if shape.apic {
                    e.ecx |= X2APIC | TSC_DEADLINE;
                    e.edx |= APIC;
                }
                if shape.vcpus > 1 {
                    e.edx |= HTT;
                }
                e.ebx = (e.ebx & 0xffff) | shape.vcpus.min(255) << 16 | id << 24;
            }
            // Each cache belongs to one core; the package has `vcpus` cores.
            4 => e.eax = (e.eax & 0x3fff) | (shape.vcpus - 1).min(63) << 26,
            0x4000_0001 if !shape.time => e.eax &= !KVMCLOCK,
            0x8000_0001 if shape.vcpus > 1 => e.ecx |= CMP_LEGACY,
            0x8000_0001 => e.ecx &= !CMP_LEGACY,
            0x8000_0008 => e.ecx = (e.ecx & !0xf0ff) | (shape.vcpus - 1) | id_bits << 12,
            0x8000_001e => {
                e.eax = id;
                e.ebx = id & 0xff;
                e.ecx = 0;
            }
            _ => {}
        }
    }
    let max_leaf = entries
        .iter()
        .find(|e| e.function == 0)
        .map_or(0, |e| e.eax);
    if max_leaf >= 0xb {
        // Level 0: one thread a core; level 1: `vcpus` cores.
        for (index, shift, count, level) in
            [(0, 0, 1, 1), (1, id_bits, shape.vcpus, 2), (2, 0, 0, 0)]
        {
            entries.push(kvm_cpuid_entry2 {
                function: 0xb,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: count,
                ecx: level << 8 | index,
                edx: id,
                ..kvm_cpuid_entry2::default()
            });
        }
    }
    CpuId::from_entries(&entries).map_err(|_| Error::TooMany {
        what: "cpuid entries",
        count: entries.len(),
        max: kvm_bindings::KVM_MAX_CPUID_ENTRIES,
    })
}

/// What the VMM itself needs to know about the guest's CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// CR4.FSGSBASE may be set.
    pub fsgsbase: bool,
    /// The extended states XCR0 may enable; zero without XSAVE.
    pub xcr0: u64,
}

impl Features {
    /// Reads them from the list a vCPU is given.
    pub fn of(cpuid: &CpuId) -> Self {
        let find = |function, index| {
            let mut entries = cpuid.as_slice().iter();
            entries.find(|e| e.function == function && e.index == index)
        };
        let xsave = find(1, 0).is_some_and(|e| e.ecx & XSAVE != 0);
        let states = find(0xd, 0).map_or(0, |e| u64::from(e.edx) << 32 | u64::from(e.eax));
        Self {
            fsgsbase: find(7, 0).is_some_and(|e| e.ebx & FSGSBASE != 0),
            xcr0: if xsave { states } else { 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let entry = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        };
        CpuId::from_entries(&[
            entry(0, 0xd, 0, 0, 0),
            entry(1, 0, 0xff08_1234, XSAVE, APIC),
            entry(7, 0, FSGSBASE, 0, 0),
            entry(0xb, 9, 9, 9, 9),
            entry(0xd, 0xe7, 0, 0, 2),
            entry(0x4000_0001, KVMCLOCK | 0x20, 0, 0, 0),
            entry(0x8000_0008, 0x3030, 0, 0xffff, 0),
        ])
        .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut entries = cpuid.as_slice().iter();
        *entries
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_place() {
        let shape = Shape {
            vcpus: 3,
            apic: true,
            time: true,
        };
        let cpuid = for_vcpu(&supported(), 2, shape).unwrap();
        let one = leaf(&cpuid, 1, 0);
        assert_eq!(one.ebx, 0x0203_1234);
        assert_eq!(one.ecx, HYPERVISOR | XSAVE | X2APIC | TSC_DEADLINE);
        assert_eq!(one.edx, APIC | HTT);
        let cores = leaf(&cpuid, 0xb, 1);
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (2, 3, 0x201, 2)
        );
        assert_eq!(leaf(&cpuid, 0xb, 0).ebx, 1);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 0x0f00 | 2 | 2 << 12);
        assert_eq!(leaf(&cpuid, 0x4000_0001, 0).eax, KVMCLOCK | 0x20);
        let features = Features::of(&cpuid);
        assert_eq!((features.fsgsbase, features.xcr0), (true, 0x2_0000_00e7));
    }

    #[test]
    fn what_the_machine_lacks_is_not_announced() {
        let shape = Shape {
            vcpus: 1,
            apic: false,
            time: false,
        };
        let cpuid = for_vcpu(&supported(), 0, shape).unwrap();
        let one = leaf(&cpuid, 1, 0);
        assert_eq!(
            (one.ecx, one.edx, one.ebx),
            (HYPERVISOR | XSAVE, 0, 0x0001_1234)
        );
        assert_eq!(leaf(&cpuid, 0x4000_0001, 0).eax, 0x20);
    }

    #[test]
    fn without_xsave_there_is_no_extended_state() {
        let mut cpuid = supported();
        cpuid.as_mut_slice()[1].ecx = 0;
        assert_eq!(Features::of(&cpuid).xcr0, 0);
    }
}
