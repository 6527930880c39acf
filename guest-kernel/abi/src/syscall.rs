//! System calls of native programs (and of the Linux personality itself).
//!
//! `syscall` with the number in `rax`, arguments in `rdi, rsi, rdx, r10, r8, r9`; returns a
//! [`Status`] in `rax` and a value in `rdx`; `rcx` and `r11` are lost, everything else is kept.
//! The first argument of a call on an object is a slot of the program's root CNode.

/// Slots of the initial program's root CNode. A slot that was not granted is empty.
pub mod slot {
    /// The console, with the `console` grant.
    pub const CONSOLE: u64 = 1;
    /// All free memory as one untyped.
    pub const UNTYPED: u64 = 2;
    /// The program's own address space.
    pub const ADDRESS_SPACE: u64 = 3;
    /// The program's first thread.
    pub const THREAD: u64 = 4;
    /// First slot of granted devices, in the order of the blob's device table.
    pub const DEVICES: u64 = 32;
}

/// End the partition: `(status)`, 0 to 255. Does not return.
pub const EXIT: u64 = 0;
/// Write to the console: `(console, address, length, stream)` with stream 1 output or 2 error;
/// value: bytes written.
pub const CONSOLE_WRITE: u64 = 1;
/// Read from the console: `(console, address, length)`; waits; value: bytes read, 0 at the end.
pub const CONSOLE_READ: u64 = 2;
/// Map zeroed memory: `(untyped, address, bytes, rights)`; address and bytes on 4 KiB; parts on
/// 2 MiB use large pages. Already mapped pages are an error and nothing changes.
pub const MAP: u64 = 3;
/// Change rights: `(address_space, address, bytes, rights)`; every page must be mapped.
pub const PROTECT: u64 = 4;
/// Unmap: `(address_space, address, bytes)`; unmapped pages in the range are passed over.
pub const UNMAP: u64 = 5;
/// Let other threads run: `()`.
pub const YIELD: u64 = 6;
/// Sleep: `(nanoseconds)`.
pub const SLEEP: u64 = 7;
/// Start a thread in this address space: `(entry, stack, argument)`; value: thread number.
pub const THREAD_SPAWN: u64 = 8;
/// End the calling thread: `()`. The last thread's end is `EXIT(0)`.
pub const THREAD_EXIT: u64 = 9;
/// Make the page at `(address)`, already mapped writable, the thread's restricted state page.
pub const RESTRICTED_BIND: u64 = 10;
/// Run the restricted program: `()`; returns when it leaves restricted mode, see
/// [`crate::restricted`].
pub const RESTRICTED_ENTER: u64 = 11;
/// First number that is no system call.
pub const COUNT: u64 = 12;

/// Rights of a mapping, a bit set.
pub mod rights {
    /// Readable; every mapping is.
    pub const READ: u64 = 1;
    /// Writable.
    pub const WRITE: u64 = 2;
    /// Executable.
    pub const EXECUTE: u64 = 4;
}

/// What a system call answers in `rax`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// No such system call.
    UnknownCall = 1,
    /// The slot is empty or holds another kind of object.
    InvalidCapability = 2,
    /// An argument is out of its range or misaligned.
    InvalidArgument = 3,
    /// An address is not the caller's to use.
    InvalidAddress = 4,
    /// The untyped has too little left.
    NotEnoughMemory = 5,
    /// Something is there already.
    DeleteFirst = 6,
    /// Nothing is there.
    NotMapped = 7,
}

impl Status {
    /// The status that `raw` stands for.
    pub fn from_raw(raw: u64) -> Option<Self> {
        [
            Self::Ok,
            Self::UnknownCall,
            Self::InvalidCapability,
            Self::InvalidArgument,
            Self::InvalidAddress,
            Self::NotEnoughMemory,
            Self::DeleteFirst,
            Self::NotMapped,
        ]
        .get(usize::try_from(raw).ok()?)
        .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn statuses_survive_the_way_through_a_register() {
        for raw in 0..8 {
            assert_eq!(Status::from_raw(raw).map(|s| s as u64), Some(raw));
        }
        for raw in [8, 9, 1 << 32, u64::MAX] {
            assert_eq!(Status::from_raw(raw), None);
        }
    }
}
