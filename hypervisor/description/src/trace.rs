//! The boot trace: when each phase of a VMM's life was over, for benchmarks.
//!
//! The VMM keeps the marks in memory and writes them in one go when the partition has ended, so
//! that tracing costs one clock read a phase. One line a mark, in the order of time:
//! `<phase> <nanoseconds of CLOCK_MONOTONIC>`, for example `vm 8123456789012`. A phase that did not
//! happen has no line.

/// First instruction of `main`.
pub const START: &str = "start";
/// The description is read, parsed and checked.
pub const DESCRIPTION: &str = "description";
/// The KVM VM exists.
pub const VM: &str = "vm";
/// Guest memory exists and KVM knows it.
pub const MEMORY: &str = "memory";
/// Kernel, modules, page tables and tables for the guest are in guest memory.
pub const LOAD: &str = "load";
/// vCPUs exist and have their CPUID and registers.
pub const VCPU: &str = "vcpu";
/// The devices exist.
pub const DEVICES: &str = "devices";
/// The process has locked itself in.
pub const JAIL: &str = "jail";
/// `running` is sent; vCPUs enter the guest next.
pub const RUN: &str = "run";
/// The guest's first console byte reached the VMM.
pub const FIRST_CONSOLE_BYTE: &str = "first-console-byte";
/// How the partition ended is known.
pub const END: &str = "end";
