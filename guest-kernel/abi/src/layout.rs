//! Address spaces of a Bulkhead partition.
//!
//! | range | who |
//! | --- | --- |
//! | `0` to [`RESTRICTED_END`] | a Linux program (restricted half); free for native programs |
//! | [`PROGRAM_BASE`] to [`USER_END`] | the initial program: native, or the personality |
//! | [`DIRECT_MAP`] | kernel only: all RAM by guest-physical address |
//! | [`KERNEL_BASE`] | kernel only: its image |

/// End (exclusive) of what a Linux program can map or touch.
pub const RESTRICTED_END: u64 = 0x7000_0000_0000;
/// Where initial programs are linked: PML4 entry 224.
pub const PROGRAM_BASE: u64 = 0x7000_0000_0000;
/// Where the kernel maps the `BootInfo` blob, read-only, in the initial program.
pub const PROGRAM_BOOT_INFO: u64 = 0x7f00_0000_0000;
/// Top of the first thread's stack: the end of the 2 MiB that begin with the `BootInfo`. What lies
/// between blob and stack is not mapped.
pub const PROGRAM_STACK_TOP: u64 = PROGRAM_BOOT_INFO + LARGE_PAGE_SIZE;
/// Bytes of that stack.
pub const PROGRAM_STACK_BYTES: u64 = 128 * 1024;
/// Where the kernel maps module n, read-only: `PROGRAM_MODULES + n * PROGRAM_MODULE_STRIDE`.
pub const PROGRAM_MODULES: u64 = 0x7f10_0000_0000;
/// Distance between two modules' mappings, in bytes.
pub const PROGRAM_MODULE_STRIDE: u64 = 0x10_0000_0000;
/// Most modules of a partition.
pub const MAX_MODULES: usize = 8;
/// End (exclusive) of user addresses.
pub const USER_END: u64 = 0x8000_0000_0000;
/// Guest-physical address 0 in the kernel's half, by 2 MiB pages, writable, never executable.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// The kernel image is linked at `KERNEL_BASE` + its physical address.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Guest-physical address of the kernel image: its first loadable byte.
pub const KERNEL_LOAD: u64 = 0x20_0000;

/// 4 KiB.
pub const PAGE_SIZE: u64 = 4096;
/// 2 MiB.
pub const LARGE_PAGE_SIZE: u64 = 2 * 1024 * 1024;
