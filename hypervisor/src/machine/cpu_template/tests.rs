use super::*;
use crate::machine::cpuid::{Shape, for_vcpu};

/// A host that has all that is promised, `more` in every register beside, and these guards.
fn host(vendor: usize, more: u32, guards: u32) -> CpuId {
    let mut list = List::default();
    let ([ebx, edx, ecx], _) = VENDORS[vendor];
    list.put(0, 0, [0x20, ebx, ecx, edx]);
    list.put(0x8000_0008, 0, [48 | 57 << 8, 0, 0, 0]);
    for leaf in [
        1,
        4,
        6,
        0x14,
        0x1f,
        0x4000_0000,
        0x8000_0002,
        0x8000_0005,
        0x8000_0007,
        0x8000_001e,
    ] {
        list.put(leaf, 0, [more; 4]);
    }
    for leaf in [7, 0xd, 0x4000_0001, 0x8000_0001] {
        for register in [Eax, Ebx, Ecx, Edx] {
            *list.register(leaf, register) |= more;
        }
    }
    for (_, leaf, register, bits, _) in PROMISES {
        *list.register(*leaf, *register) |= bits;
    }
    for (leaf, register, mask) in GUARDS {
        let value = list.register(leaf, register);
        *value = *value & !mask | guards & mask;
    }
    CpuId::from_entries(&list.entries()).unwrap()
}

fn table(cpuid: &CpuId) -> String {
    let line = |e: &kvm_cpuid_entry2| {
        let values = [e.eax, e.ebx, e.ecx, e.edx]
            .map(|v| format!("{v:08x}"))
            .join(" ");
        format!("{:08x}.{} {values}\n", e.function, e.index)
    };
    cpuid.as_slice().iter().map(line).collect()
}

/// What the second of 32 vCPUs sees.
fn seen(supported: CpuId, template: CpuTemplate) -> String {
    let shape = Shape {
        vcpus: 32,
        apic: true,
        time: true,
    };
    table(&for_vcpu(&apply(supported, template).unwrap(), 1, shape).unwrap())
}

#[test]
fn a_guest_sees_the_same_on_every_host() {
    for (template, name, golden) in [
        (CpuTemplate::V2, "v2", include_str!("v2.txt")),
        (CpuTemplate::V3, "v3", include_str!("v3.txt")),
    ] {
        for vendor in 0..VENDORS.len() {
            let poor = seen(host(vendor, 0, 0), template);
            let rich = seen(host(vendor, u32::MAX, 0), template);
            assert_eq!(poor, rich, "{name}");
            if vendor == 0 {
                assert_eq!(poor, golden, "put this into {name}.txt:\n{poor}");
            }
        }
    }
}

#[test]
fn guards_are_the_host_s_and_nothing_else_is() {
    let with = seen(host(0, u32::MAX, u32::MAX), CpuTemplate::V2);
    let without = seen(host(0, u32::MAX, 0), CpuTemplate::V2);
    let differ: Vec<_> = with
        .lines()
        .zip(without.lines())
        .filter(|(a, b)| a != b)
        .map(|(a, _)| a.split(' ').next().unwrap())
        .collect();
    assert_eq!(differ, ["00000007.0", "80000008.0"]);
}

#[test]
fn a_host_that_lacks_something_is_refused_by_name() {
    for (level, leaf, register, bits, name) in PROMISES {
        let mut poor = host(1, 0, 0);
        let entries = poor.as_mut_slice().iter_mut();
        let entry = entries
            .into_iter()
            .find(|e| e.function == *leaf && e.index == 0);
        let entry = entry.unwrap();
        let lowest = bits & bits.wrapping_neg();
        let value = match register {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        };
        *value &= !lowest;
        let error = apply(poor.clone(), CpuTemplate::V3).unwrap_err();
        assert_eq!(error.code(), "cpu-template");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(
            apply(poor.clone(), CpuTemplate::V2).is_ok(),
            *level == V3,
            "{name}"
        );
        assert!(apply(poor, CpuTemplate::Host).is_ok());
    }
    let mut other = host(0, 0, 0);
    other.as_mut_slice()[0].ebx = 0;
    assert!(apply(other, CpuTemplate::V2).is_err());
    let mut narrow = host(0, 0, 0);
    let mut entries = narrow.as_mut_slice().iter_mut();
    let widths = entries.find(|e| e.function == 0x8000_0008);
    widths.unwrap().eax = 36;
    assert!(apply(narrow, CpuTemplate::V2).is_err());
}
