//! The Linux personality: runs unmodified Linux ELF binaries in restricted mode.
//!
//! The initial program of a Linux-ABI partition (`src/main.rs`) is a thin shell around this
//! library. The library is ordinary safe code: it sees program memory, console and clock only
//! through [`platform::Platform`], and therefore runs, and is tested, on the host as well.
//!
//! [`process::Process`] is the state and the loop; [`program`] starts programs ([`elf`] reads
//! them); [`calls`] is the table of system calls; [`memory`] keeps the books of the address space
//! and guards every access to it; [`fs`] is the file system, [`cpio`] its archive format.
//! What is honoured and what is not: docs/linux-abi.md.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod calls;
pub mod cpio;
pub mod elf;
pub mod errno;
pub mod fs;
pub mod memory;
pub mod platform;
pub mod process;
pub mod program;
pub mod signal;
pub mod trace;
pub mod uapi;

#[cfg(test)]
mod testing;
