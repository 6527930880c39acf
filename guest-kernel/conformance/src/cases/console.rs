//! Console: bytes go out, and only from buffers that are the program's to read.

use alloc::string::String;
use alloc::vec;

use bulkhead_runtime::abi::layout::{DIRECT_MAP, KERNEL_BASE, KERNEL_LOAD, USER_END};
use bulkhead_runtime::abi::syscall::{CONSOLE_READ, CONSOLE_WRITE, Status, slot};
use bulkhead_runtime::capability::{CONSOLE, Stream};
use bulkhead_runtime::memory;
use bulkhead_runtime::syscall::call;

use super::{READ_WRITE, SCRATCH, check, check_eq, named};

fn raw_write(address: u64, len: u64, stream: u64) -> Result<u64, Status> {
    // SAFETY: the kernel reads.
    unsafe { call(CONSOLE_WRITE, [slot::CONSOLE, address, len, stream]) }
}

pub(super) fn write() -> Result<(), String> {
    let text = b"console-write: output\n";
    check_eq!(
        CONSOLE.write(Stream::Output, text),
        Ok(text.len()),
        "output"
    );
    let text = b"console-write: error\n";
    check_eq!(CONSOLE.write(Stream::Error, text), Ok(text.len()), "error");
    check_eq!(CONSOLE.write(Stream::Output, b""), Ok(0), "nothing");
    Ok(())
}

pub(super) fn write_length() -> Result<(), String> {
    // Longer than an operation moves, over many pages and off their bounds.
    let mut text = vec![b'.'; 100_001];
    let mut written = 0;
    for (at, byte) in text.iter_mut().enumerate() {
        if at % 100 == 99 {
            *byte = b'\n';
        }
    }
    while written < text.len() {
        let rest = text.get(written..).unwrap_or_default();
        let moved = CONSOLE
            .write(Stream::Output, rest)
            .map_err(|s| alloc::format!("{s:?}"))?;
        check!(
            moved > 0 && moved <= rest.len(),
            "{moved} bytes of {}",
            rest.len()
        );
        written += moved;
    }
    bulkhead_runtime::println!();
    Ok(())
}

pub(super) fn bad_buffers() -> Result<(), String> {
    for (address, len) in [
        (0, 8),
        (SCRATCH, 1),
        (USER_END, 8),
        (USER_END - 8, 16),
        (u64::MAX, 2),
        (u64::MAX - 7, u64::MAX),
        (DIRECT_MAP, 8),
        (DIRECT_MAP + KERNEL_LOAD, 4096),
        (KERNEL_BASE + KERNEL_LOAD, 8),
        (1 << 47, 8),
        (1 << 63, 8),
    ] {
        check_eq!(
            raw_write(address, len, 1),
            Err(Status::InvalidAddress),
            "write"
        );
        // SAFETY: refused.
        let read = unsafe { call(CONSOLE_READ, [slot::CONSOLE, address, len, 0]) };
        check_eq!(read, Err(Status::InvalidAddress), "read");
    }
    // Input must not land in what the program itself could not write.
    let text = b"read-only";
    // SAFETY: refused.
    let read = unsafe { call(CONSOLE_READ, [slot::CONSOLE, text.as_ptr() as u64, 4, 0]) };
    check_eq!(
        read,
        Err(Status::InvalidAddress),
        "read into read-only memory"
    );
    // A buffer that runs into a hole is written up to it.
    let (frame, at) = (memory::frame(0).map_err(named)?, SCRATCH + (1 << 37));
    // SAFETY: nothing else is there.
    unsafe { memory::map_frame(frame, at, READ_WRITE, (0, 0)) }.map_err(named)?;
    check_eq!(raw_write(at + 0xfff, 2, 2), Ok(1), "into a hole");
    frame.delete().map_err(named)
}

pub(super) fn stream() -> Result<(), String> {
    let text = b"never printed";
    for stream in [0, 3, u64::MAX] {
        let refused = raw_write(text.as_ptr() as u64, text.len() as u64, stream);
        check_eq!(refused, Err(Status::InvalidArgument), "stream");
    }
    Ok(())
}
