//! What a kernel finds, and which images are refused.

use super::*;
use crate::boot::page_tables::tests::walk;
use crate::boot::testing::{Part, file, image};
use crate::machine::memory::{HIGH_START, create};
use bulkhead_abi::boot::BootInfoView;

const MIB: u64 = 1 << 20;

fn usual_kernel() -> (File, Image) {
    let parts: [Part<'_>; 2] = [
        ("x", 0x20_0000, b"code", 0x1800),
        ("w", 0x20_2000, b"code", 0x3456),
    ];
    image(KERNEL_BASE + 0x20_0000, &parts)
}

#[test]
fn a_kernel_finds_what_the_protocol_promises() {
    let memory = create(16).unwrap();
    let program = file(&[0xee; 0x1234]);
    let archive = file(&vec![0xdd; 3 << 20]);
    let modules = [
        (ModuleKind::Program, program),
        (ModuleKind::Initramfs, archive),
    ];
    let (kernel, image) = usual_kernel();
    let loaded = load(&memory, &kernel, &image, &modules).unwrap();
    let args = ["one".to_owned(), String::new()];
    let device = abi::Device::default();
    let entry = loaded
        .describe(
            &memory,
            &Facts {
                flags: abi::FLAG_CONSOLE,
                tsc_khz: 2_000_000,
                vcpus: 3,
                args: &args,
                devices: &[device],
                ..Facts::default()
            },
        )
        .unwrap();

    let mut blob = vec![0; abi::MAX_SIZE as usize];
    memory
        .read_slice(&mut blob, GuestAddress(BOOT_INFO))
        .unwrap();
    let view = BootInfoView::parse(&blob).unwrap();
    assert_eq!(view.args().collect::<Vec<_>>(), [b"one".as_slice(), b""]);
    assert_eq!(view.env().count(), 0);
    let head = view.head();
    assert_eq!((head.console_mailbox, head.vcpus), (MAILBOX, 3));
    assert_eq!(entry.rdi, DIRECT_MAP + head.boot_info.start);
    assert_eq!(
        entry.rsp,
        DIRECT_MAP + head.boot_stack.start + head.boot_stack.len
    );
    assert_eq!(entry.cr3, head.page_tables.start);
    let modules: Vec<_> = view.modules().iter().map(|m| m.range).collect();
    assert_eq!(
        modules,
        [
            PhysRange {
                start: 4 * MIB,
                len: 0x1234
            },
            PhysRange {
                start: 6 * MIB,
                len: 3 * MIB
            }
        ]
    );

    // Nothing overlaps, everything is ascending, and untyped memory is zero and mapped.
    let mut ranges: Vec<_> = view.regions().iter().map(|r| r.range).collect();
    assert!(ranges.is_sorted_by_key(|r| r.start));
    ranges.extend(modules);
    ranges.extend([
        head.boot_info,
        head.kernel,
        head.page_tables,
        head.boot_stack,
    ]);
    ranges.sort_by_key(|r| r.start);
    assert!(
        ranges.windows(2).all(|w| end_of(w[0]) <= w[1].start),
        "{ranges:x?}"
    );
    for region in view
        .regions()
        .iter()
        .filter(|r| r.kind == abi::REGION_UNTYPED)
    {
        let mut bytes = vec![1; region.range.len as usize];
        memory
            .read_slice(&mut bytes, GuestAddress(region.range.start))
            .unwrap();
        assert!(bytes.iter().all(|b| *b == 0));
        let last = end_of(region.range) - 1;
        assert_eq!(
            walk(&memory, entry.cr3, DIRECT_MAP + last),
            Some((last, true, false))
        );
    }
    assert_eq!(view.regions().last().unwrap().kind, abi::REGION_DEVICE);

    // The image is mapped with its own rights, and nowhere below the kernel's half.
    assert_eq!(
        walk(&memory, entry.cr3, entry.rip),
        Some((0x20_0000, false, true))
    );
    let bss = KERNEL_BASE + 0x20_5455;
    assert_eq!(
        walk(&memory, entry.cr3, bss),
        Some((0x20_5455, true, false))
    );
    assert_eq!(walk(&memory, entry.cr3, KERNEL_BASE + 0x20_6000), None);
    assert_eq!(walk(&memory, entry.cr3, 0x20_0000), None);
}

#[test]
fn what_does_not_fit_is_named() {
    let memory = create(4).unwrap();
    let (kernel, image) = usual_kernel();
    let module = || (ModuleKind::Program, file(b"x"));
    let error = load(&memory, &kernel, &image, &[module()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "4 MiB of memory does not hold the modules; at least 6 MiB is needed"
    );
    let many: Vec<_> = (0..=MAX_MODULES).map(|_| module()).collect();
    let error = load(&memory, &kernel, &image, &many).unwrap_err();
    assert_eq!(error.code(), "too-many");
    let loaded = load(&memory, &kernel, &image, &[]).unwrap();
    let args = ["x".repeat(70_000)];
    let facts = Facts {
        tsc_khz: 1,
        args: &args,
        ..Facts::default()
    };
    assert_eq!(
        loaded.describe(&memory, &facts).unwrap_err().code(),
        "too-many"
    );
    let small = create(2).unwrap();
    let error = load(&small, &kernel, &image, &[]).unwrap_err();
    assert_eq!(error.code(), "kernel-outside-memory");
}

#[test]
fn free_memory_is_what_nothing_lies_in() {
    let ram = [(0, 0x1000), (HIGH_START, HIGH_START + 0x1000)];
    for (used, want) in [
        (vec![], vec![(0, 0x1000), (HIGH_START, HIGH_START + 0x1000)]),
        (
            vec![(0, 0x100)],
            vec![(0x100, 0x1000), (HIGH_START, HIGH_START + 0x1000)],
        ),
        (
            vec![(0x100, 0x200), (0x300, 0x1000)],
            vec![
                (0, 0x100),
                (0x200, 0x300),
                (HIGH_START, HIGH_START + 0x1000),
            ],
        ),
        (vec![(0, HIGH_START + 0x1000)], vec![]),
    ] {
        assert_eq!(free(&ram, &used), want, "{used:x?}");
    }
}
