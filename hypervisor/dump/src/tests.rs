#![allow(clippy::unwrap_used)]

use super::*;

const REGIONS: [DumpedRegion; 2] = [
    DumpedRegion {
        start: 0,
        len: 0x4000,
        offset: 0x2000,
    },
    DumpedRegion {
        start: 1 << 32,
        len: 0x1000,
        offset: 0x6000,
    },
];

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn memory_and_registers_are_where_the_headers_say() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x7000).unwrap();
    let vcpus = [7, 8].map(|first| {
        let mut registers = Registers::default();
        registers.general[0] = first;
        registers
    });
    finish(&file, &REGIONS, &vcpus).unwrap();
    let mut head = vec![0; 0x2000];
    file.read_exact_at(&mut head, 0).unwrap();
    assert_eq!(head[..6], *b"\x7fELF\x02\x01");
    assert_eq!(
        (head[16], head[18], head[56]),
        (4, 62, 3),
        "core, x86-64, segments"
    );
    let notes = &head[64..120];
    assert_eq!(notes[0], 4, "PT_NOTE");
    assert_eq!(number(notes, 8), 64 + 3 * 56);
    assert_eq!(number(notes, 32) as usize, 2 * (20 + 336));
    for (index, region) in REGIONS.iter().enumerate() {
        let segment = &head[120 + index * 56..];
        assert_eq!(segment[0], 1, "PT_LOAD");
        let numbers = [8, 16, 24, 32, 40].map(|at| number(segment, at));
        let (start, len) = (region.start, region.len);
        assert_eq!(numbers, [region.offset, start, start, len, len]);
    }
    for (index, first) in [7, 8].into_iter().enumerate() {
        let note = &head[64 + 3 * 56 + index * 356..];
        assert_eq!(number(note, 20 + 112), first);
        assert_eq!(note[20 + 32], 1 + index as u8, "pid");
    }
}

#[test]
fn headers_never_overwrite_memory() {
    let file = tempfile::tempfile().unwrap();
    let close = DumpedRegion {
        offset: 100,
        ..REGIONS[0]
    };
    assert!(finish(&file, &[close], &[Registers::default()]).is_err());
    assert!(finish(&file, &[], &[]).is_err());
    assert_eq!(file.metadata().unwrap().len(), 0);
}

#[test]
fn regions_that_overflow_are_survived() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x7000).unwrap();
    let paged = Registers {
        cr0: 1 << 31,
        efer: 1 << 10,
        cr3: 0x1000,
        ..Registers::default()
    };
    let far = DumpedRegion {
        start: u64::MAX - 1,
        len: u64::MAX,
        offset: u64::MAX,
    };
    let all = DumpedRegion {
        start: 0,
        len: u64::MAX,
        offset: u64::MAX - 0x800,
    };
    for regions in [[far, far], [all, far]] {
        let _ = finish(&file, &regions, &[paged]);
    }
}
