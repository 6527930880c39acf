//! Memory: what a frame holds is zero and the program's, page by page; what is refused changes
//! nothing.

use alloc::string::String;
use alloc::vec::Vec;
use core::hint::black_box;

use bulkhead_runtime::abi::layout::{
    LARGE_PAGE_SIZE, PAGE_SIZE, PROGRAM_BASE, PROGRAM_BOOT_INFO, USER_END,
};
use bulkhead_runtime::abi::object::{TYPE_FRAME, TYPE_UNTYPED};
use bulkhead_runtime::abi::syscall::{Status, rights};
use bulkhead_runtime::memory;
use bulkhead_runtime::object::{ADDRESS_SPACE, CNODE, Frame, Untyped};

use super::bench::Bench;
use super::{READ_WRITE, SCRATCH, check, check_eq, named, read, readable, write};

/// Pages of the cases' frames, and in bits.
const PAGES: u64 = 1 << BITS;
const BITS: u64 = 4;

fn map(frame: Frame, at: u64, rights: u64, part: (u64, u64)) -> Result<(), Status> {
    // SAFETY: the cases use what they map by volatile accesses alone.
    unsafe { frame.map_part(ADDRESS_SPACE, at, rights, part) }
}

fn unmap(frame: Frame, part: (u64, u64)) -> Result<(), Status> {
    // SAFETY: as above.
    unsafe { frame.unmap_part(part) }
}

/// The address of a page behind [`SCRATCH`].
const fn page(n: u64) -> u64 {
    SCRATCH + n * PAGE_SIZE
}

impl Bench {
    /// A frame of [`PAGES`], and page tables at [`SCRATCH`].
    fn pages(&self) -> Result<Frame, String> {
        self.tables(ADDRESS_SPACE, SCRATCH)?;
        self.make(TYPE_FRAME, BITS).map(Frame)
    }
}

pub(super) fn map_errors() -> Result<(), String> {
    let bench = Bench::new()?;
    let frame = bench.pages()?;
    let all = (0, 0);
    for (address, rights, part, status) in [
        (SCRATCH + 1, READ_WRITE, all, Status::InvalidArgument),
        (SCRATCH, 8, all, Status::InvalidArgument),
        (SCRATCH, u64::MAX, all, Status::InvalidArgument),
        (SCRATCH, READ_WRITE, (PAGES, 0), Status::OutOfRange),
        (SCRATCH, READ_WRITE, (u64::MAX, 1), Status::OutOfRange),
        (SCRATCH, READ_WRITE, (0, PAGES + 1), Status::OutOfRange),
        (SCRATCH, READ_WRITE, (1, u64::MAX), Status::OutOfRange),
        (0, READ_WRITE, all, Status::InvalidAddress),
        (PAGE_SIZE, READ_WRITE, (1, 1), Status::InvalidAddress),
        (PAGE_SIZE, READ_WRITE, (2, 1), Status::InvalidAddress),
        (USER_END, READ_WRITE, all, Status::InvalidAddress),
        (
            USER_END - 2 * PAGE_SIZE,
            READ_WRITE,
            (0, 1),
            Status::InvalidAddress,
        ),
        (
            0xffff_8000_0000_0000,
            READ_WRITE,
            all,
            Status::InvalidAddress,
        ),
        (
            0xffff_ffff_8020_0000,
            READ_WRITE,
            all,
            Status::InvalidAddress,
        ),
        (!0xfff, READ_WRITE, all, Status::InvalidAddress),
        (PROGRAM_BASE, READ_WRITE, all, Status::DeleteFirst),
        (PROGRAM_BOOT_INFO, READ_WRITE, all, Status::DeleteFirst),
        (SCRATCH << 1 >> 2, READ_WRITE, all, Status::NotMapped),
    ] {
        let what = alloc::format!("map {part:?} at {address:#x}");
        check_eq!(map(frame, address, rights, part), Err(status), what);
    }
    for part in [(PAGES, 0), (u64::MAX, 1), (0, PAGES + 1), (1, u64::MAX)] {
        let what = alloc::format!("unmap {part:?}");
        check_eq!(unmap(frame, part), Err(Status::OutOfRange), what);
    }
    check!(!readable(SCRATCH), "a refused map left a page");
    bench.finish()
}

pub(super) fn mapping() -> Result<(), String> {
    let bench = Bench::new()?;
    let frame = bench.pages()?;
    map(frame, page(2), READ_WRITE, (2, 5)).map_err(named)?;
    let mapped = page(2)..page(7);
    for at in mapped.clone().step_by(8) {
        check!(read(at) == 0, "{at:#x} is not zero");
        write(at, at);
    }
    check!(
        !readable(page(1)) && !readable(page(7)),
        "more than asked for"
    );
    let elsewhere = map(frame, page(20), READ_WRITE, (2, 1));
    check_eq!(elsewhere, Err(Status::DeleteFirst), "at another distance");
    // The others, around what is there.
    map(frame, page(0), READ_WRITE, (0, 3)).map_err(named)?;
    map(frame, page(7), READ_WRITE, (7, 0)).map_err(named)?;
    check!(
        readable(page(PAGES - 1)) && !readable(page(PAGES)),
        "all of it"
    );
    for at in mapped.step_by(8) {
        check!(read(at) == at, "{at:#x} lost its value");
    }
    // Another frame over the end of this one: nothing of it is mapped.
    let other = bench.make(TYPE_FRAME, BITS).map(Frame)?;
    let over = map(other, page(PAGES - 1), READ_WRITE, (0, 0));
    check_eq!(over, Err(Status::DeleteFirst), "overlap");
    check!(!readable(page(PAGES)), "a refused map left a page");
    write(page(PAGES - 1), 3);
    unmap(frame, (0, 0)).map_err(named)?;
    check!((0..PAGES).all(|n| !readable(page(n))), "something is left");
    // In another order and place, the pages are what they were.
    map(frame, page(33), rights::READ, (3, 1)).map_err(named)?;
    check_eq!(read(page(33)), page(3), "the contents move along");
    bench.finish()
}

pub(super) fn large_pages() -> Result<(), String> {
    let at = SCRATCH + 4 * LARGE_PAGE_SIZE;
    let frame = memory::frame(memory::LARGE_FRAME_BITS).map_err(named)?;
    let bench = Bench::new()?;
    // A table of level 2 is what a large page needs.
    check_eq!(
        map(frame, at, READ_WRITE, (0, 0)),
        Err(Status::NotMapped),
        "no table"
    );
    bench.tables(ADDRESS_SPACE, at - LARGE_PAGE_SIZE)?;
    let odd = map(frame, at + PAGE_SIZE, READ_WRITE, (0, 0));
    check_eq!(odd, Err(Status::InvalidArgument), "not on 2 MiB");
    map(frame, at, READ_WRITE, (0, 0)).map_err(named)?;
    let all = (at..at + LARGE_PAGE_SIZE).step_by(PAGE_SIZE as usize);
    for at in all.clone() {
        check!(read(at) == 0, "{at:#x} is not zero");
        write(at, at);
    }
    let part = (5, 2);
    check_eq!(
        unmap(frame, part),
        Err(Status::DeleteFirst),
        "a part of a large page"
    );
    let small = map(frame, at + 5 * PAGE_SIZE, rights::READ, part);
    check_eq!(small, Err(Status::DeleteFirst), "other rights for a part");
    unmap(frame, (0, 0)).map_err(named)?;
    check!(
        !readable(at) && !readable(at + LARGE_PAGE_SIZE - 1),
        "unmapped"
    );
    // By pages it has holes and rights of any kind, at any address.
    bench.tables(ADDRESS_SPACE, at)?;
    bench.tables(ADDRESS_SPACE, at + LARGE_PAGE_SIZE)?;
    let start = at + 3 * PAGE_SIZE;
    map(frame, start, READ_WRITE, (0, 512)).map_err(named)?;
    unmap(frame, (200, 2)).map_err(named)?;
    let hole = start + 200 * PAGE_SIZE;
    map(frame, hole + 2 * PAGE_SIZE, rights::READ, (202, 1)).map_err(named)?;
    check!(
        !readable(hole) && !readable(hole + 0x1fff),
        "the hole is mapped"
    );
    for (from, to) in all.zip((start..).step_by(PAGE_SIZE as usize)) {
        let is_hole = (hole..hole + 2 * PAGE_SIZE).contains(&to);
        check!(is_hole || read(to) == from, "{to:#x} lost its value");
    }
    frame.delete().map_err(named)?;
    check!(
        !readable(start) && !readable(start + LARGE_PAGE_SIZE - 1),
        "deleted"
    );
    bench.finish()
}

pub(super) fn protecting() -> Result<(), String> {
    let bench = Bench::new()?;
    let frame = bench.pages()?;
    map(frame, page(0), READ_WRITE, (0, 3)).map_err(named)?;
    write(page(1), 42);
    map(frame, page(1), rights::READ, (1, 1)).map_err(named)?;
    check_eq!(read(page(1)), 42, "contents");
    write(page(0), 1);
    write(page(2), 1);
    let bad = map(frame, page(0), 16, (0, 1));
    check_eq!(bad, Err(Status::InvalidArgument), "rights");
    map(frame, page(0), READ_WRITE, (0, 3)).map_err(named)?;
    write(page(1), 43);
    // Code that returns 7: mov eax, 7; ret.
    write(page(0), 0xc300_0000_07b8);
    map(frame, page(0), rights::READ | rights::EXECUTE, (0, 1)).map_err(named)?;
    // SAFETY: the page holds this function.
    let code: extern "C" fn() -> u32 = unsafe { core::mem::transmute(SCRATCH as *const u8) };
    check_eq!(code(), 7, "code in mapped memory");
    bench.finish()
}

pub(super) fn unmapping() -> Result<(), String> {
    let bench = Bench::new()?;
    let frame = bench.pages()?;
    check_eq!(unmap(frame, (3, 2)), Ok(()), "what is mapped nowhere");
    map(frame, page(0), READ_WRITE, (0, 8)).map_err(named)?;
    unmap(frame, (3, 2)).map_err(named)?;
    let seen = [2, 3, 4, 5].map(|n| readable(page(n)));
    check_eq!(seen, [true, false, false, true], "two of them");
    unmap(frame, (2, 4)).map_err(named)?;
    let seen = [1, 2, 5, 6].map(|n| readable(page(n)));
    check_eq!(seen, [true, false, false, true], "holes are passed over");
    // What took a page's place meanwhile is another's.
    let other = bench.frame()?;
    map(other, page(3), READ_WRITE, (0, 1)).map_err(named)?;
    unmap(frame, (0, 0)).map_err(named)?;
    let seen = [0, 1, 3, 6].map(|n| readable(page(n)));
    check_eq!(seen, [false, false, true, false], "its own alone");
    bench.finish()
}

/// Memory comes out of an untyped as zeros, whatever it was before and however often.
pub(super) fn reuse_is_zero() -> Result<(), String> {
    let bench = Bench::new()?;
    bench.tables(ADDRESS_SPACE, SCRATCH)?;
    let untyped = Untyped(bench.make(TYPE_UNTYPED, 12 + BITS)?);
    let frame = Frame(bench.slot()?);
    for bits in (0..=BITS).rev().chain(0..=BITS) {
        untyped
            .retype(TYPE_FRAME, bits, CNODE, frame.0, 1)
            .map_err(named)?;
        map(frame, SCRATCH, READ_WRITE, (0, 0)).map_err(named)?;
        for at in (SCRATCH..page(1 << bits)).step_by(8) {
            check!(read(at) == 0, "{at:#x} is not zero");
            write(at, u64::MAX);
        }
        frame.place().delete().map_err(named)?;
    }
    bench.finish()
}

pub(super) fn exhaustion() -> Result<(), String> {
    let bench = Bench::new()?;
    let untyped = Untyped(bench.make(TYPE_UNTYPED, 12 + BITS)?);
    let slot = bench.slot()?;
    let retype = |bits, slot| untyped.retype(TYPE_FRAME, bits, CNODE, slot, 1);
    check_eq!(
        retype(BITS + 1, slot),
        Err(Status::NotEnoughMemory),
        "too large"
    );
    check_eq!(
        retype(10, slot),
        Err(Status::OutOfRange),
        "no frame is so large"
    );
    check_eq!(retype(u64::MAX, slot), Err(Status::OutOfRange), "nor so");
    for _ in 0..PAGES {
        check_eq!(retype(0, bench.slot()?), Ok(()), "page by page");
    }
    check_eq!(retype(0, slot), Err(Status::NotEnoughMemory), "all is used");
    bench.finish()
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
    // One that is too large does not take the memory that the others need.
    for (bytes, fits) in [
        (1 << 20, true),
        (1 << 40, false),
        (1 << 36, false),
        (1 << 20, true),
    ] {
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
