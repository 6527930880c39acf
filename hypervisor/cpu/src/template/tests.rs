use super::*;

/// A host that has all that is promised, `more` in every register beside, and these guards.
fn host(vendor: usize, more: u32, guards: u32) -> Vec<Leaf> {
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
    list.leaves()
}

/// The leaves as text.
fn seen(supported: &[Leaf], template: CpuTemplate) -> String {
    let line = |leaf: &Leaf| {
        let values = leaf.registers.map(|v| format!("{v:08x}")).join(" ");
        let index = leaf
            .index
            .map_or(String::new(), |index| format!(".{index}"));
        format!("{:08x}{index} {values}\n", leaf.function)
    };
    let leaves = apply(supported, template).unwrap();
    leaves.iter().map(line).collect()
}

#[test]
fn a_guest_sees_the_same_on_every_host() {
    for (template, name, golden) in [
        (CpuTemplate::V2, "v2", include_str!("v2.txt")),
        (CpuTemplate::V3, "v3", include_str!("v3.txt")),
    ] {
        for vendor in 0..VENDORS.len() {
            let poor = seen(&host(vendor, 0, 0), template);
            let rich = seen(&host(vendor, u32::MAX, 0), template);
            assert_eq!(poor, rich, "{name}");
            if vendor == 0 {
                assert_eq!(poor, golden, "put this into {name}.txt:\n{poor}");
            }
        }
    }
}

#[test]
fn guards_are_the_host_s_and_nothing_else_is() {
    let with = seen(&host(0, u32::MAX, u32::MAX), CpuTemplate::V2);
    let without = seen(&host(0, u32::MAX, 0), CpuTemplate::V2);
    let differ: Vec<_> = with
        .lines()
        .zip(without.lines())
        .filter(|(a, b)| a != b)
        .map(|(a, _)| a.split(' ').next().unwrap())
        .collect();
    assert_eq!(differ, ["00000007.0", "80000008"]);
}

#[test]
fn a_host_that_lacks_something_is_refused_by_name() {
    for (level, leaf, register, bits, name) in PROMISES {
        let mut poor = host(1, 0, 0);
        let mut leaves = poor.iter_mut();
        let found = leaves.find(|l| l.function == *leaf && l.index.unwrap_or(0) == 0);
        let lowest = bits & bits.wrapping_neg();
        *of(&mut found.unwrap().registers, *register) &= !lowest;
        let error = apply(&poor, CpuTemplate::V3).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(
            apply(&poor, CpuTemplate::V2).is_ok(),
            *level == V3,
            "{name}"
        );
        assert_eq!(apply(&poor, CpuTemplate::Host).unwrap(), poor);
    }
    let mut other = host(0, 0, 0);
    other[0].registers[1] = 0;
    assert!(apply(&other, CpuTemplate::V2).is_err());
    let mut narrow = host(0, 0, 0);
    let widths = narrow.iter_mut().find(|l| l.function == 0x8000_0008);
    widths.unwrap().registers[0] = 36;
    assert!(apply(&narrow, CpuTemplate::V2).is_err());
}
