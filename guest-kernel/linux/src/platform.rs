//! What the personality asks of the machine below it: the microkernel in a partition, a fake
//! address space in host tests. Everything else in this crate is ordinary safe code.

use core::ops::Range;

use bulkhead_abi::restricted::RestrictedState;

/// A console stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error; the personality's own messages go there too.
    Error,
}

/// Why the machine refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformError {
    /// The partition's memory is used up.
    OutOfMemory,
    /// The partition has no such capability, or the arguments were wrong.
    Refused,
}

/// The machine below.
///
/// Address ranges handed to [`Platform::map`], [`Platform::protect`] and [`Platform::unmap`] lie
/// on 4 KiB below [`bulkhead_abi::layout::RESTRICTED_END`]. Ranges handed to the memory functions
/// are mapped with suitable rights: [`crate::memory::AddressSpace`] keeps the books and is their
/// only caller.
pub trait Platform {
    /// Runs the program until its next system call or exception.
    ///
    /// # Errors
    /// The kernel does not offer restricted mode.
    fn enter(&mut self, state: &mut RestrictedState) -> Result<(), PlatformError>;
    /// Writes a prefix of `bytes` (not empty, at most 64 KiB) to the console; returns its length.
    ///
    /// # Errors
    /// No console.
    fn console_write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, PlatformError>;
    /// Reads console input, waiting for some; 0 is the end of input.
    ///
    /// # Errors
    /// No console.
    fn console_read(&mut self, into: &mut [u8]) -> Result<usize, PlatformError>;
    /// Maps zeroed memory with `bulkhead_abi::syscall::rights`; nothing is mapped there yet.
    ///
    /// # Errors
    /// The memory is used up; nothing was mapped.
    fn map(&mut self, range: Range<u64>, rights: u64) -> Result<(), PlatformError>;
    /// Changes the rights of mapped memory.
    ///
    /// # Errors
    /// The kernel could not split a large page for want of memory.
    fn protect(&mut self, range: Range<u64>, rights: u64) -> Result<(), PlatformError>;
    /// Unmaps.
    ///
    /// # Errors
    /// As [`Platform::protect`].
    fn unmap(&mut self, range: Range<u64>) -> Result<(), PlatformError>;
    /// Copies out of program memory.
    fn read_memory(&self, address: u64, into: &mut [u8]);
    /// Copies into program memory.
    fn write_memory(&mut self, address: u64, from: &[u8]);
    /// Zeroes program memory.
    fn zero_memory(&mut self, range: Range<u64>);
    /// The program's FS base.
    fn fs_base(&self) -> u64;
    /// Sets the program's FS base; `base` is below `RESTRICTED_END`.
    fn set_fs_base(&mut self, base: u64);
    /// The program's GS base.
    fn gs_base(&self) -> u64;
    /// Sets the program's GS base; `base` is below `RESTRICTED_END`.
    fn set_gs_base(&mut self, base: u64);
    /// Gives the program's FPU and SSE the control words that a new program finds.
    fn reset_fpu(&mut self);
    /// Nanoseconds since an arbitrary moment before the program started.
    fn monotonic_ns(&self) -> u64;
    /// Waits that many nanoseconds.
    fn sleep(&mut self, ns: u64);
    /// A random number of the CPU (`rdrand`), where it has one.
    fn hardware_random(&mut self) -> Option<u64>;
    /// Feature bits of the CPU: `cpuid` leaf 1, `edx`.
    fn cpu_features(&self) -> u32;
}

/// What the partition was granted and told, from `BootInfo`.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The `console` grant.
    pub console: bool,
    /// The console is a terminal.
    pub tty: bool,
    /// The `time` grant: nanoseconds since 1970 UTC at monotonic time 0.
    pub wall_clock_base_ns: Option<u64>,
    /// The `entropy` grant: a fresh seed.
    pub entropy_seed: Option<[u8; 32]>,
    /// `--trace-syscalls`.
    pub trace: bool,
    /// Memory of the partition in bytes, for `sysinfo`.
    pub memory_bytes: u64,
}
