//! The one description of what the VMM, the microkernel, the runtime and the tools agree on.
//!
//! Everybody may depend on this crate; it depends on nobody in the house. Each room is one
//! agreement: [`boot`] (VMM to kernel), [`machine`] (paravirtual ports of a partition),
//! [`layout`] (address spaces), [`syscall`] (program to kernel), [`restricted`] (Linux
//! personality to kernel). All types are plain integers in `repr(C)`, little endian, x86-64.
#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod layout;
pub mod machine;
pub mod restricted;
pub mod syscall;
