//! A native program that tries every promise of the kernel from inside a partition.
//!
//! Without arguments it runs all cases that a partition survives and prints `test NAME ... ok` or
//! `test NAME ... FAILED: WHY` for each, then one line `result: N passed, M failed`; its status is
//! 0 or 1. With arguments it runs what they name instead: cases by name, or one of the
//! demonstrations of `cases/endings.rs`, which end or hang the partition and are judged from
//! outside. `list` prints all names.
//!
//! The suites in `tests/` run it on every kind of host.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod cases;
#[cfg(target_os = "none")]
mod run;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "the conformance program runs in a partition: build it with --target x86_64-unknown-none"
    );
    std::process::exit(125);
}
