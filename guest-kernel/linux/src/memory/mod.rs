//! The program's memory: which ranges it has asked for ([`AddressSpace`]), what puts memory behind
//! them ([`Backing`]), and the only way the personality touches them ([`UserPtr`], [`Memory`]).

mod backing;
mod interval;
mod space;
mod user;

pub use backing::{Backing, Frames, Part};
pub use interval::IntervalMap;
pub use space::{AddressSpace, Fault, Placement, Protection};
pub use user::{Memory, UserPtr};

/// Top (exclusive) of the stack, and of everything a program can map: the last 2 MiB of the
/// restricted half stay free, so that no mapping ends where the personality begins.
pub const STACK_TOP: u64 = bulkhead_abi::layout::RESTRICTED_END - 0x20_0000;
/// Size of the stack in bytes; touched parts only cost memory.
pub const STACK_BYTES: u64 = 8 * 1024 * 1024;
/// Lowest address a program can map (Linux `vm.mmap_min_addr`).
pub const LOWEST: u64 = 0x1_0000;
/// Top (exclusive) of what `mmap` chooses by itself.
pub const MMAP_TOP: u64 = STACK_TOP - 2 * STACK_BYTES;
/// Most ranges of one program (Linux `vm.max_map_count`).
pub const MAX_RANGES: usize = 65_530;
