//! What a hostile native program does: steps, each of which enters the kernel.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`random`] | numbers that a seed tells |
//! | [`script`] | steps read from any bytes: those that libFuzzer invents for the target `system_calls`, which runs them against the kernel's logic on the host, and the same bytes in a partition |
//! | [`sensible`] | system calls whose arguments mostly make sense |
//!
//! The program itself, `main.rs`, runs them in a partition.
#![no_std]

pub mod random;
pub mod script;
pub mod sensible;

pub use script::{CALL_REGISTERS, Script, Step};

/// Free addresses where a hostile program maps what it has.
pub const AT: u64 = 0x4000_0000;
