//! The capability microkernel.
//!
//! This crate is the part that needs the machine: entry, exit, context switch and privileged
//! instructions (`arch`), and what the VMM's devices look like (`console`). All decisions are
//! made in `bulkhead-kernel-core`. On the host it builds to nothing that runs: the kernel exists
//! for the target `x86_64-unknown-none` only.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod arch;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod panic;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("the kernel runs in a partition: build it with --target x86_64-unknown-none");
    std::process::exit(125);
}
