//! The one description of what the VMM, the microkernel, the runtime and the tools agree on.
//!
//! Everybody may depend on this crate; it depends on nobody in the house. Each room is one
//! agreement: [`boot`] (VMM to kernel), [`machine`] (paravirtual ports of a partition),
//! [`layout`] (address spaces), [`syscall`] and [`object`] (program to kernel), [`restricted`] (Linux
//! personality to kernel). All types are plain integers in `repr(C)`, little endian, x86-64.
//!
//! Numbers and layouts are written down in `kernel.toml`, from which `cargo xtask abi` makes
//! `src/generated`, the C header in `include` and the tables of `docs/kernel-abi.md`. By hand are
//! only the checks of a `BootInfo` in [`boot`], the way from registers to text in [`decode`], and
//! that from a duration to a [`timeout`].
#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod decode;
pub mod timeout;
mod generated {
    pub(crate) mod boot;
    pub mod layout;
    pub mod machine;
    pub mod object;
    pub(crate) mod operations;
    pub mod restricted;
    pub mod syscall;
}

pub use generated::{layout, machine, object, restricted, syscall};
