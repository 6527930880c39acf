//! What CPUID tells a guest: the list of the description, made true for each vCPU of this machine.
//!
//! Topology, the APIC ID and what the machine lacks are set here (Intel SDM volume 2 "CPUID"; AMD APM
//! volume 3 appendix E; KVM cpuid.rst).

use bulkhead_machine::cpu::Leaf;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};

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

/// Leaves of topology, which each vCPU has of its own.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
/// Subleaves of 0xb that are made here.
const TOPOLOGY_LEVELS: usize = 3;
/// Physical address bits of a CPU that does not tell (leaf 0x8000_0008).
const LEAST_ADDRESS_BITS: u32 = 36;

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

/// The rules of a description's list.
///
/// # Errors
/// [`Error::Description`], or the list is longer than KVM takes.
pub fn check(leaves: &[Leaf]) -> Result<(), Error> {
    let invalid = |text: &str| Err(Error::Description(text.into()));
    let max = KVM_MAX_CPUID_ENTRIES - TOPOLOGY_LEVELS;
    if leaves.len() > max {
        return Err(Error::TooMany {
            what: "cpuid leaves",
            count: leaves.len(),
            max,
        });
    }
    if !leaves.is_sorted_by(|a, b| a.place() < b.place()) {
        return invalid("the cpuid leaves are not in order, or one is there twice");
    }
    let has = |function| leaves.iter().any(|leaf| leaf.function == function);
    if !has(0) || !has(1) {
        return invalid("the cpuid leaves 0 and 1 are not both there");
    }
    Ok(())
}

/// How many bits of a physical address a CPU of these leaves has.
pub fn address_bits(leaves: &[Leaf]) -> u32 {
    let mut leaves = leaves.iter();
    let found = leaves.find(|leaf| leaf.function == 0x8000_0008);
    found.map_or(LEAST_ADDRESS_BITS, |leaf| {
        let [eax, ..] = leaf.registers;
        eax & 0xff
    })
}

/// The list for vCPU `id`, whose APIC ID is its number.
///
/// # Errors
/// The list is longer than KVM takes.
pub fn for_vcpu(leaves: &[Leaf], id: u32, shape: Shape) -> Result<CpuId, Error> {
    let mut entries = Vec::with_capacity(leaves.len() + TOPOLOGY_LEVELS);
    let common = |leaf: &&Leaf| !TOPOLOGY.contains(&leaf.function);
    entries.extend(leaves.iter().filter(common).map(entry));
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
        max: KVM_MAX_CPUID_ENTRIES,
    })
}

fn entry(leaf: &Leaf) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = leaf.registers;
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index.unwrap_or(0),
        flags: match leaf.index {
            Some(_) => KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            None => 0,
        },
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    }
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
    /// Reads them from the description's list.
    pub fn of(leaves: &[Leaf]) -> Self {
        let registers = |function| {
            let mut leaves = leaves.iter();
            let found = leaves.find(|l| l.function == function && l.index.unwrap_or(0) == 0);
            found.map_or([0; 4], |leaf| leaf.registers)
        };
        let [_, _, ecx, _] = registers(1);
        let [_, ebx, _, _] = registers(7);
        let [low, _, _, high] = registers(0xd);
        let states = u64::from(high) << 32 | u64::from(low);
        Self {
            fsgsbase: ebx & FSGSBASE != 0,
            xcr0: if ecx & XSAVE != 0 { states } else { 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Vec<Leaf> {
        let leaf = |function, index, registers| Leaf {
            function,
            index,
            registers,
        };
        vec![
            leaf(0, None, [0xd, 0, 0, 0]),
            leaf(1, None, [0, 0xff08_1234, XSAVE, APIC]),
            leaf(7, Some(0), [0, FSGSBASE, 0, 0]),
            leaf(0xb, Some(0), [9; 4]),
            leaf(0xd, Some(0), [0xe7, 0, 0, 2]),
            leaf(0xd, Some(1), [9; 4]),
            leaf(0x4000_0001, None, [KVMCLOCK | 0x20, 0, 0, 0]),
            leaf(0x8000_0008, None, [0x3030, 0, 0xffff, 0]),
        ]
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
        let cpuid = for_vcpu(&given(), 2, shape).unwrap();
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
        let features = Features::of(&given());
        assert_eq!((features.fsgsbase, features.xcr0), (true, 0x2_0000_00e7));
    }

    #[test]
    fn what_the_machine_lacks_is_not_announced() {
        let shape = Shape {
            vcpus: 1,
            apic: false,
            time: false,
        };
        let cpuid = for_vcpu(&given(), 0, shape).unwrap();
        let one = leaf(&cpuid, 1, 0);
        assert_eq!(
            (one.ecx, one.edx, one.ebx),
            (HYPERVISOR | XSAVE, 0, 0x0001_1234)
        );
        assert_eq!(leaf(&cpuid, 0x4000_0001, 0).eax, 0x20);
    }

    #[test]
    fn without_xsave_there_is_no_extended_state() {
        let mut leaves = given();
        leaves[1].registers[2] = 0;
        assert_eq!(Features::of(&leaves).xcr0, 0);
    }

    #[test]
    fn subleaves_are_told_apart() {
        let shape = Shape {
            vcpus: 1,
            apic: true,
            time: true,
        };
        let cpuid = for_vcpu(&given(), 0, shape).unwrap();
        let flags = |function, index| leaf(&cpuid, function, index).flags;
        assert_eq!(flags(0xd, 1), KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
        assert_eq!(flags(1, 0), 0);
        assert_eq!(leaf(&cpuid, 0xd, 1).eax, 9);
    }

    #[test]
    fn rules_of_the_list() {
        let leaf = |function, index| Leaf {
            function,
            index,
            registers: [0; 4],
        };
        let (first, second) = (leaf(0, None), leaf(1, None));
        let many = |count: u32| (0..count).map(|function| leaf(function, None)).collect();
        let cases: [(Vec<Leaf>, Option<&str>); 8] = [
            (given(), None),
            (vec![first, second], None),
            (many(253), None),
            (many(254), Some("too-many")),
            (vec![], Some("description-invalid")),
            (vec![first], Some("description-invalid")),
            (vec![second, first], Some("description-invalid")),
            (vec![first, second, second], Some("description-invalid")),
        ];
        for (index, (leaves, want)) in cases.into_iter().enumerate() {
            let got = check(&leaves).err().map(|error| error.code());
            assert_eq!(got, want, "case {index}");
        }
    }

    #[test]
    fn address_bits_are_those_of_the_list() {
        assert_eq!(address_bits(&given()), 0x30);
        assert_eq!(address_bits(&[]), 36);
    }
}
