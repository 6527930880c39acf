//! A native program that tries to break the kernel from inside a partition, and survives it: a
//! supervisor, and cells of hostile threads below it, each with an address space and a capability space
//! of its own.
//!
//! Arguments: `seconds=N` (10), `seed=N` (1), `first=N` (0): the number of the first program; `corpus`:
//! programs come on the console's input, each behind its length in four bytes. Once a second it says how
//! far it is; its last line begins with `result: ok`, or with `FAILED:` and what is not as it was.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod partition;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "the hostile program runs in a partition: build it with --target x86_64-unknown-none"
    );
    std::process::exit(125);
}
