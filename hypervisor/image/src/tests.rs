//! Images that are taken, and what is wrong with those that are not.

use super::*;
use bulkhead_abi::layout::{KERNEL_BASE, KERNEL_LOAD};
use bulkhead_machine::Fd;
use std::io::Write;

const FD: Fd = Fd(-1);

fn native() -> Boot {
    Boot::Bulkhead {
        kernel: FD,
        modules: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        trace_syscalls: false,
    }
}

fn linux() -> Boot {
    Boot::Linux {
        kernel: FD,
        initrd: None,
        cmdline: String::new(),
        acpi: FD,
    }
}

fn pvh() -> Boot {
    Boot::Pvh {
        kernel: FD,
        initrd: None,
        cmdline: String::new(),
    }
}

fn code(bytes: &[u8], boot: &Boot) -> &'static str {
    image(&file(bytes), boot).unwrap_err().code()
}

/// Writes `bytes` to a file without a name.
fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A segment for [`elf`]: type, flags, virtual and physical address, bytes, memory length.
type Part<'a> = (u32, u32, u64, u64, &'a [u8], u64);

/// An ELF64 image for x86-64 with these segments.
fn elf(entry: u64, parts: &[Part<'_>]) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend(2u16.to_le_bytes());
    out.extend(62u16.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend([0; 4]);
    for half in [64u16, 56, parts.len() as u16, 64, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    let mut offset = 64 + 56 * parts.len() as u64;
    for (kind, flags, va, pa, bytes, memory_len) in parts {
        out.extend(kind.to_le_bytes());
        out.extend(flags.to_le_bytes());
        for word in [offset, *va, *pa, bytes.len() as u64, *memory_len, 4] {
            out.extend(word.to_le_bytes());
        }
        offset += bytes.len() as u64;
    }
    for (.., bytes, _) in parts {
        out.extend(*bytes);
    }
    out
}

fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [name.len() as u32, desc.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    out.extend(name);
    out.extend(desc);
    out
}

fn two_segments() -> Vec<u8> {
    elf(
        0x20_1000,
        &[
            (1, 6, 0x20_4000, 0x20_4000, b"data", 0x3000),
            (1, 5, 0x20_1000, 0x20_1000, b"code", 4),
        ],
    )
}

#[test]
fn segments_are_sorted() {
    let found = image(&file(&two_segments()), &linux()).unwrap().unwrap();
    assert_eq!((found.entry, found.pvh_entry), (0x20_1000, None));
    assert_eq!(found.physical_range(), (0x20_1000, 0x20_7000));
    let [code, data] = found.segments[..] else {
        panic!("{found:?}")
    };
    assert_eq!((code.write, code.execute), (false, true));
    assert_eq!((data.write, data.execute), (true, false));
    assert_eq!((data.offset, data.file_len), (64 + 2 * 56, 4));
}

#[test]
fn every_cut_is_reported_as_a_cut() {
    let whole = two_segments();
    for len in 4..whole.len() {
        assert_eq!(
            code(&whole[..len], &linux()),
            "kernel-truncated",
            "{len} bytes"
        );
        assert_eq!(
            code(&whole[..len], &pvh()),
            "kernel-truncated",
            "{len} bytes"
        );
    }
    for boot in [native(), linux(), pvh()] {
        assert_eq!(code(&whole[..3], &boot), "kernel-format");
        assert_eq!(code(b"", &boot), "kernel-empty");
    }
}

#[test]
fn any_changed_byte_is_survived() {
    let whole = two_segments();
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let file = file(&bytes);
            let Ok(Some(found)) = image(&file, &linux()) else {
                continue;
            };
            let mut free_from = 0;
            for segment in found.segments {
                assert!(segment.address >= free_from && segment.file_len <= segment.memory_len);
                assert!(segment.offset + segment.file_len <= whole.len() as u64);
                free_from = segment.address.checked_add(segment.memory_len).unwrap();
            }
        }
    }
}

#[test]
fn other_processors_are_named() {
    for (at, value, want) in [
        (18, 183, "kernel-architecture"),
        (4, 1, "kernel-architecture"),
        (5, 2, "kernel-architecture"),
        (0, 0, "kernel-format"),
        (16, 1, "kernel-invalid"),
        (56, 0, "kernel-invalid"),
        (54, 1, "kernel-invalid"),
    ] {
        let mut bytes = two_segments();
        bytes[at] = value;
        assert_eq!(code(&bytes, &native()), want, "byte {at}");
    }
}

#[test]
fn overlaps_and_addresses_that_wrap_are_refused() {
    let cases: [[Part<'_>; 2]; 3] = [
        [(1, 5, 0, 0x1000, b"x", 0x1000), (1, 6, 0, 0x1fff, b"y", 1)],
        [(1, 5, 0, u64::MAX, b"x", 2), (1, 6, 0, 0, b"y", 1)],
        [(1, 5, 0, 0, b"xyz", 2), (1, 6, 0, 0x9000, b"y", 1)],
    ];
    for parts in cases {
        assert_eq!(code(&elf(0, &parts), &linux()), "kernel-invalid");
    }
}

#[test]
fn the_pvh_note_is_found_among_others() {
    let mut notes = note(b"GNU\0", 3, b"0123");
    notes.extend(note(b"Linux\0\0\0", 18, &[9; 4]));
    notes.extend(note(b"Xen\0", 18, &0x10_0000u32.to_le_bytes()));
    let parts: &[Part<'_>] = &[(1, 5, 0, 0, b"x", 1), (4, 4, 0, 0, &notes, 0)];
    let with = file(&elf(0, parts));
    for boot in [linux(), pvh()] {
        let found = image(&with, &boot).unwrap().unwrap();
        assert_eq!(found.pvh_entry, Some(0x10_0000));
    }
    let without = elf(0, &parts[..1]);
    assert_eq!(code(&without, &pvh()), "kernel-not-pvh");
    let found = image(&file(&without), &linux()).unwrap().unwrap();
    assert_eq!(found.pvh_entry, None);
    // PVH enters 32-bit images too; the native protocol does not.
    let mut narrow = without;
    narrow[4] = 1;
    narrow[18] = 3;
    assert_eq!(code(&narrow, &native()), "kernel-architecture");
    assert_ne!(code(&narrow, &pvh()), "kernel-architecture");
}

fn kernel(parts: &[(u32, u64, u64)]) -> Vec<u8> {
    let parts: Vec<Part<'_>> = parts
        .iter()
        .map(|(flags, at, len)| (1, *flags, KERNEL_BASE + at, *at, b"code".as_slice(), *len))
        .collect();
    elf(KERNEL_BASE + 0x20_0000, &parts)
}

#[test]
fn native_kernels_linked_otherwise_are_refused() {
    let usual = kernel(&[(5, 0x20_0000, 0x1800), (6, 0x20_2000, 0x3456)]);
    assert!(image(&file(&usual), &native()).unwrap().is_some());
    for (bad, sentence) in [
        (
            kernel(&[(7, 0x20_0000, 0x1000)]),
            "is invalid: a segment is writable and executable",
        ),
        (
            kernel(&[(4, 0x20_0000, 0x1000)]),
            "is invalid: its entry point is in no executable segment",
        ),
        (
            kernel(&[(5, 0x10_0000, 0x10_1000)]),
            "is invalid: it is not linked between 2 MiB and 1 GiB",
        ),
        (
            kernel(&[(5, 0x20_0000, 0x4000_0000)]),
            "is invalid: it is not linked between 2 MiB and 1 GiB",
        ),
        (
            kernel(&[(5, 0x20_0000, 0x10), (6, 0x20_0800, 0x10)]),
            "is invalid: two segments share a page",
        ),
        (
            elf(0x20_0000, &[(1, 5, 0x20_0000, 0x20_0000, b"x", 1)]),
            "is invalid: a segment's virtual address is not the kernel base plus its physical address",
        ),
        (
            elf(
                KERNEL_BASE,
                &[(1, 5, KERNEL_BASE + KERNEL_LOAD, KERNEL_LOAD, b"x", 1)],
            ),
            "is invalid: its entry point is in no executable segment",
        ),
    ] {
        let error = image(&file(&bad), &native()).unwrap_err();
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            ("kernel-invalid", sentence)
        );
    }
}

/// A bzImage of three setup sectors and 256 bytes, with these fields: place and bytes.
fn bzimage(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 3 * 512 + 0x100];
    let usual: [(usize, &[u8]); 5] = [
        (0x1f1, &[2]),
        (0x1f4, &[0x10, 0, 0, 0]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x236, &[1, 0]),
    ];
    for (at, field) in usual.iter().chain(changes) {
        bytes[*at..at + field.len()].copy_from_slice(field);
    }
    bytes
}

#[test]
fn of_a_bzimage_the_setup_header_is_checked() {
    let whole = bzimage(&[]);
    assert_eq!(image(&file(&whole), &linux()).unwrap(), None);
    for (bytes, want) in [
        (b"#!/bin/sh\n".to_vec(), "kernel-format"),
        (vec![0; 4096], "kernel-format"),
        (whole[..whole.len() - 1].to_vec(), "kernel-truncated"),
        (bzimage(&[(0x236, &[0, 0])]), "kernel-architecture"),
        (bzimage(&[(0x206, &[0, 2])]), "kernel-architecture"),
        (bzimage(&[(0x1f4, &[0xff; 4])]), "kernel-truncated"),
        (bzimage(&[(0x1f1, &[0])]), "kernel-truncated"),
    ] {
        assert_eq!(code(&bytes, &linux()), want);
    }
    for boot in [native(), pvh()] {
        assert_eq!(code(&whole, &boot), "kernel-format");
    }
}
