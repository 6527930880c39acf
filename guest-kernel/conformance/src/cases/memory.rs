//! Memory: what is mapped is zero and the program's, what is refused changes nothing.

use alloc::string::String;
use alloc::vec::Vec;
use core::hint::black_box;

use bulkhead_runtime::abi::boot::REGION_UNTYPED;
use bulkhead_runtime::abi::layout::{LARGE_PAGE_SIZE, PROGRAM_BASE, PROGRAM_BOOT_INFO, USER_END};
use bulkhead_runtime::abi::syscall::{CONSOLE_WRITE, Status, rights, slot};
use bulkhead_runtime::environment;
use bulkhead_runtime::syscall::call;

use super::{SCRATCH, check, check_eq, map, named, protect, read, unmap, write};

const READ_WRITE: u64 = rights::READ | rights::WRITE;

/// Whether the kernel finds the byte at `address` readable for the program: writes it to the
/// console's error stream where it is.
fn readable(address: u64) -> bool {
    // SAFETY: the kernel reads.
    unsafe { call(CONSOLE_WRITE, [slot::CONSOLE, address, 1, 2]) }.is_ok()
}

pub(super) fn map_errors() -> Result<(), String> {
    for (address, bytes, rights, status) in [
        (SCRATCH + 1, 0x1000, READ_WRITE, Status::InvalidArgument),
        (SCRATCH, 0x1001, READ_WRITE, Status::InvalidArgument),
        (SCRATCH, 0, READ_WRITE, Status::InvalidArgument),
        (SCRATCH, 0x1000, 8, Status::InvalidArgument),
        (SCRATCH, 0x1000, u64::MAX, Status::InvalidArgument),
        (0, 0x1000, READ_WRITE, Status::InvalidAddress),
        (USER_END, 0x1000, READ_WRITE, Status::InvalidAddress),
        (
            USER_END - 0x1000,
            0x1000,
            READ_WRITE,
            Status::InvalidAddress,
        ),
        (
            0xffff_8000_0000_0000,
            0x1000,
            READ_WRITE,
            Status::InvalidAddress,
        ),
        (
            0xffff_ffff_8020_0000,
            0x1000,
            READ_WRITE,
            Status::InvalidAddress,
        ),
        (!0xfff, 0x1000, READ_WRITE, Status::InvalidAddress),
        (0x1000, !0xfff, READ_WRITE, Status::InvalidAddress),
        (SCRATCH, 1 << 40, READ_WRITE, Status::NotEnoughMemory),
        (PROGRAM_BASE, 0x1000, READ_WRITE, Status::DeleteFirst),
        (PROGRAM_BOOT_INFO, 0x1000, READ_WRITE, Status::DeleteFirst),
    ] {
        check_eq!(
            map(address, bytes, rights),
            Err(status),
            alloc::format!("map {address:#x}")
        );
    }
    Ok(())
}

pub(super) fn mapping() -> Result<(), String> {
    let bytes = 5 * 0x1000;
    map(SCRATCH, bytes, READ_WRITE).map_err(named)?;
    for at in (SCRATCH..SCRATCH + bytes).step_by(8) {
        check!(read(at) == 0, "{at:#x} is not zero");
        write(at, at);
    }
    for at in (SCRATCH..SCRATCH + bytes).step_by(8) {
        check!(read(at) == at, "{at:#x} lost its value");
    }
    let twice = map(SCRATCH + 0x4000, 0x2000, READ_WRITE);
    check_eq!(twice, Err(Status::DeleteFirst), "overlap");
    check!(!readable(SCRATCH + 0x5000), "a refused map left a page");
    check!(
        read(SCRATCH + 0x4000) == SCRATCH + 0x4000,
        "a refused map changed memory"
    );
    unmap(SCRATCH, bytes).map_err(named)?;
    Ok(())
}

pub(super) fn large_pages() -> Result<(), String> {
    // Odd ends around two large pages; then a hole and other rights inside one of them.
    let (start, bytes) = (
        SCRATCH + LARGE_PAGE_SIZE - 0x3000,
        2 * LARGE_PAGE_SIZE + 0x5000,
    );
    map(start, bytes, READ_WRITE).map_err(named)?;
    for at in (start..start + bytes).step_by(0x1000) {
        check!(read(at) == 0, "{at:#x} is not zero");
        write(at, at);
    }
    let hole = SCRATCH + LARGE_PAGE_SIZE + 0x10_0000;
    unmap(hole, 0x2000).map_err(named)?;
    check!(
        !readable(hole) && !readable(hole + 0x1fff),
        "the hole is mapped"
    );
    protect(hole + 0x2000, 0x1000, rights::READ).map_err(named)?;
    for at in (start..start + bytes)
        .step_by(0x1000)
        .filter(|at| !(hole..hole + 0x2000).contains(at))
    {
        check!(read(at) == at, "{at:#x} lost its value");
    }
    unmap(start, bytes).map_err(named)?;
    check!(
        !readable(start) && !readable(start + bytes - 1),
        "something is left"
    );
    Ok(())
}

pub(super) fn protecting() -> Result<(), String> {
    map(SCRATCH, 0x3000, READ_WRITE).map_err(named)?;
    write(SCRATCH + 0x1000, 42);
    protect(SCRATCH + 0x1000, 0x1000, rights::READ).map_err(named)?;
    check_eq!(read(SCRATCH + 0x1000), 42, "contents");
    let hole = protect(SCRATCH + 0x2000, 0x2000, rights::READ);
    check_eq!(hole, Err(Status::NotMapped), "over the end");
    write(SCRATCH + 0x2000, 1);
    let bad = protect(SCRATCH, 0x1000, 16);
    check_eq!(bad, Err(Status::InvalidArgument), "rights");
    protect(SCRATCH, 0x3000, READ_WRITE).map_err(named)?;
    write(SCRATCH + 0x1000, 43);
    // Code that returns 7: mov eax, 7; ret.
    write(SCRATCH, 0xc300_0000_07b8);
    protect(SCRATCH, 0x1000, rights::READ | rights::EXECUTE).map_err(named)?;
    // SAFETY: the page holds this function.
    let code: extern "C" fn() -> u32 = unsafe { core::mem::transmute(SCRATCH as *const u8) };
    check_eq!(code(), 7, "code in mapped memory");
    unmap(SCRATCH, 0x3000).map_err(named)?;
    Ok(())
}

pub(super) fn unmapping() -> Result<(), String> {
    map(SCRATCH, 0x1000, READ_WRITE).map_err(named)?;
    check!(readable(SCRATCH), "mapped memory is not readable");
    for (address, bytes, status) in [
        (SCRATCH + 8, 0x1000, Status::InvalidArgument),
        (SCRATCH, 0, Status::InvalidArgument),
        (0, 0x1000, Status::InvalidAddress),
        (0xffff_8000_0000_0000, 0x1000, Status::InvalidAddress),
        (SCRATCH, !0xfff, Status::InvalidAddress),
    ] {
        check_eq!(
            unmap(address, bytes),
            Err(status),
            alloc::format!("{address:#x}")
        );
    }
    // Holes are passed over, in huge ranges too.
    unmap(SCRATCH - (1 << 38), (1 << 38) + 0x1000).map_err(named)?;
    check!(!readable(SCRATCH), "unmapped memory is readable");
    unmap(SCRATCH, 0x1000).map_err(named)?;
    Ok(())
}

/// Maps and unmaps until all memory has been used at least once: what comes back is zero.
pub(super) fn reuse_is_zero() -> Result<(), String> {
    let step = 0x8000;
    let regions = environment::boot_info()
        .into_iter()
        .flat_map(|info| info.regions());
    let untyped = regions
        .filter(|r| r.kind == REGION_UNTYPED)
        .map(|r| r.range.len);
    let rounds = untyped.sum::<u64>() / step + 8;
    for _ in 0..rounds {
        map(SCRATCH, step, READ_WRITE).map_err(named)?;
        for at in (SCRATCH..SCRATCH + step).step_by(8) {
            check!(read(at) == 0, "{at:#x} is not zero");
            write(at, u64::MAX);
        }
        unmap(SCRATCH, step).map_err(named)?;
    }
    Ok(())
}

pub(super) fn exhaustion() -> Result<(), String> {
    for pages in [1 << 21, 1 << 26, 1 << 30] {
        let refused = map(SCRATCH, pages * 0x1000, READ_WRITE);
        check_eq!(refused, Err(Status::NotEnoughMemory), "too much memory");
    }
    // Refusals cost nothing.
    map(SCRATCH, 0x1000, READ_WRITE).map_err(named)?;
    unmap(SCRATCH, 0x1000).map_err(named)?;
    Ok(())
}

pub(super) fn allocator() -> Result<(), String> {
    let mut kept: Vec<Vec<u64>> = Vec::new();
    for round in 1..200_u64 {
        kept.push((0..round * 7).collect());
        if round.is_multiple_of(3) {
            kept.swap_remove(kept.len() / 2);
        }
    }
    for numbers in &kept {
        let sound = numbers
            .iter()
            .enumerate()
            .all(|(at, number)| at as u64 == *number);
        check!(sound, "{} numbers were overwritten", numbers.len());
    }
    for (bytes, fits) in [(1 << 20, true), (1 << 40, false), (1 << 20, true)] {
        // Hidden from the compiler, which may leave out allocations that nobody uses.
        let mut big: Vec<u8> = black_box(Vec::new());
        let reserved = big.try_reserve_exact(black_box(bytes)).is_ok();
        black_box(&mut big);
        check_eq!(
            reserved,
            fits,
            alloc::format!("allocation of {bytes} bytes")
        );
    }
    Ok(())
}
