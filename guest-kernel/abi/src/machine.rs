//! The paravirtual machine of a partition: ports and vectors the VMM serves for a Bulkhead kernel.
//!
//! A port or vector exists only where this file names it. Linux partitions see [`EXIT_PORT`] too
//! (their PID 1 reports its status there); everything else of theirs is standard PC hardware.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// I/O port: writing one byte ends the partition with that exit status (0 to 255).
pub const EXIT_PORT: u16 = 0xf4;
/// I/O port: writing one byte, of any value, makes the VMM serve the [`ConsoleMailbox`] once,
/// before the write returns. Present only with the `console` grant.
pub const CONSOLE_PORT: u16 = 0xb0;
/// Vector the VMM raises, by message to the LAPIC of CPU 0, when console input became readable (or
/// ended) after a [`CONSOLE_READ`] had found none.
pub const CONSOLE_VECTOR: u8 = 0x30;
/// Vector of the LAPIC timer, chosen by the kernel.
pub const TIMER_VECTOR: u8 = 0x20;
/// First vector of granted devices; the n-th device of the blob uses `DEVICE_VECTOR_BASE + n`.
pub const DEVICE_VECTOR_BASE: u8 = 0x40;
/// First guest-physical address of virtio-mmio windows.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Distance between two virtio-mmio windows, and the length of each, in bytes.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// Most virtio devices of one partition.
pub const MAX_DEVICES: usize = 32;

/// [`ConsoleMailbox::op`]: write `len` bytes at `address` to the output stream.
pub const CONSOLE_WRITE: u32 = 1;
/// [`ConsoleMailbox::op`]: write to the error stream.
pub const CONSOLE_WRITE_ERROR: u32 = 2;
/// [`ConsoleMailbox::op`]: read at most `len` bytes to `address`.
pub const CONSOLE_READ: u32 = 3;
/// Most bytes that one operation moves; a longer `len` is served in part.
pub const CONSOLE_MAX: u32 = 64 * 1024;

/// [`ConsoleMailbox::result`]: nothing to read now; [`CONSOLE_VECTOR`] will tell.
pub const CONSOLE_WOULD_BLOCK: i64 = -1;
/// [`ConsoleMailbox::result`]: the operation or the address range was refused.
pub const CONSOLE_REFUSED: i64 = -2;

/// The page through which a kernel moves console bytes without an exit for each: the kernel fills
/// it, writes [`CONSOLE_PORT`], and finds `result`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ConsoleMailbox {
    /// `CONSOLE_*` operation.
    pub op: u32,
    /// Length of the buffer in bytes; physically contiguous.
    pub len: u32,
    /// Guest-physical address of the buffer; all of it in RAM.
    pub address: u64,
    /// Bytes moved (zero from a read: end of input), or a negative `CONSOLE_*` result.
    pub result: i64,
}
