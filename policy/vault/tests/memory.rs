//! A value that was dropped is not in the process's memory any more. Alone in its file: another
//! test's values and buffers would be in the same process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bulkhead_vault::{Editor, Secret};
use common::{Scratch, key, name};
use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;

const MASK: u8 = 0x5a;

/// A value as nothing else in this process has it, kept masked: whoever looks for a secret must not
/// be where it is found.
fn masked() -> Vec<u8> {
    let mut seed = std::process::id() | 1;
    let mut next = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    };
    (0..48).map(|_| next()).collect()
}

fn unmasked(masked: &[u8]) -> Secret {
    let mut bytes = Vec::with_capacity(masked.len());
    bytes.extend(masked.iter().map(|byte| byte ^ MASK));
    Secret::new(bytes)
}

/// How often 24 bytes of it stand anywhere in what this process can write to.
fn count(masked: &[u8]) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut page = vec![0_u8; 64 * 1024];
    let mut found = 0;
    for line in maps.lines().filter(|line| {
        line.split(' ')
            .nth(1)
            .is_some_and(|rights| rights.starts_with("rw"))
    }) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (start, end) = (
            u64::from_str_radix(start, 16).unwrap(),
            u64::from_str_radix(end, 16).unwrap(),
        );
        let mut at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap().min(page.len());
            // Our own buffer would show us what it showed us before.
            page.fill(0);
            let Ok(read) = memory.read_at(&mut page[..want], at) else {
                break;
            };
            let begins = |window: &[u8]| {
                window
                    .iter()
                    .zip(masked)
                    .all(|(seen, byte)| *seen == *byte ^ MASK)
            };
            found += page[..read]
                .windows(24)
                .filter(|window| begins(window))
                .count();
            // Overlapping, so that nothing hides at the seam.
            if at + read as u64 >= end || read < 64 {
                break;
            }
            at += read as u64 - 63;
        }
    }
    page.fill(0);
    found
}

#[test]
fn a_dropped_value_is_gone() {
    let masked = masked();
    let scratch = Scratch::new();
    assert_eq!(count(&masked), 0, "before");
    scratch
        .editor()
        .unwrap()
        .set(&name("a"), unmasked(&masked))
        .unwrap();
    assert_eq!(count(&masked), 0, "after it was kept");
    let vault = scratch.open().unwrap();
    assert_eq!(count(&masked), 0, "while the vault is open");
    let value = black_box(vault.get(&name("a")).unwrap());
    assert!(
        count(&masked) >= 1,
        "while somebody holds it: the search finds what is there"
    );
    drop(value);
    drop(vault);
    Editor::open(&scratch.place, &key(1), &scratch.ledger)
        .unwrap()
        .rekey(&key(2))
        .unwrap();
    assert_eq!(count(&masked), 0, "after it was used");
}
