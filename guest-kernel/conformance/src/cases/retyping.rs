//! Untyped memory and what becomes of it.

use alloc::string::String;

use bulkhead_runtime::abi::object::{
    TYPE_CNODE, TYPE_ENDPOINT, TYPE_FRAME, TYPE_NOTIFICATION, TYPE_THREAD, TYPE_UNTYPED,
};
use bulkhead_runtime::abi::syscall::{RETYPE, Status, slot};
use bulkhead_runtime::environment;
use bulkhead_runtime::object::{CNODE, CNode, Untyped};
use bulkhead_runtime::syscall::{Registers, exchange};

use super::bench::{Bench, inside, is_occupied};
use super::{check, check_eq, named};

/// A retype, and what a refusal tells.
fn retype(from: Untyped, kind: u64, size: u64, to: CNode, offset: u64, count: u64) -> [u64; 3] {
    let mut registers = Registers {
        rax: RETYPE,
        rdi: from.0,
        rdx: kind,
        r8: size,
        r9: to.0,
        r13: offset,
        r14: count,
        ..Registers::default()
    };
    // SAFETY: memory of an untyped is nobody's.
    unsafe { exchange(&mut registers) };
    [registers.rax, registers.rdx, registers.r8]
}

pub(super) fn ranges() -> Result<(), String> {
    let bench = Bench::new()?;
    let cnode = bench.cnode(2)?;
    let range = Status::OutOfRange as u64;
    let make = |offset, count| retype(bench.untyped, TYPE_ENDPOINT, 0, cnode, offset, count);
    check_eq!(make(0, 0), [range, 1, 4], "U1");
    check_eq!(make(0, 5), [range, 1, 4], "too many for the CNode");
    check_eq!(make(3, 2), [range, 1, 1], "too many from there on");
    check_eq!(make(4, 1), [range, 0, 3], "U3");
    check_eq!(make(u64::MAX, 1), [range, 0, 3], "far out");
    let unknown = bench.untyped.retype(99, 0, cnode, 0, 1);
    check_eq!(unknown, Err(Status::InvalidArgument), "no type");
    bench.finish()
}

pub(super) fn occupied() -> Result<(), String> {
    let bench = Bench::new()?;
    let cnode = bench.cnode(2)?;
    let make = |offset, count| bench.untyped.retype(TYPE_ENDPOINT, 0, cnode, offset, count);
    check_eq!(make(0, 3), Ok(()), "U7");
    for offset in 0..3 {
        check_eq!(make(offset, 1), Err(Status::DeleteFirst), "U7");
    }
    check_eq!(make(2, 2), Err(Status::DeleteFirst), "one of two");
    check_eq!(make(3, 1), Ok(()), "U7: the last");
    for offset in 0..4 {
        check_eq!(make(offset, 1), Err(Status::DeleteFirst), "U5");
    }
    bench.finish()
}

pub(super) fn too_large() -> Result<(), String> {
    let bench = Bench::new()?;
    let untyped = Untyped(bench.make(TYPE_UNTYPED, 12)?);
    let at = bench.slot()?;
    for more in 1..=40 {
        // A slot has 32 bytes: the smallest of these has twice the memory.
        let refused = untyped.retype(TYPE_CNODE, 12 - 5 + more, CNODE, at, 1);
        check!(
            matches!(refused, Err(Status::NotEnoughMemory | Status::OutOfRange)),
            "U8: {more} bits more: {refused:?}"
        );
    }
    check_eq!(untyped.inspect(), Ok((12, 0)), "U8: nothing is used");
    bench.finish()
}

pub(super) fn no_header() -> Result<(), String> {
    let bench = Bench::new()?;
    let untyped = Untyped(bench.make(TYPE_UNTYPED, 16)?);
    let cnode = bench.cnode(5)?;
    for index in 0..16 {
        check_eq!(
            untyped.retype(TYPE_FRAME, 0, cnode, index, 1),
            Ok(()),
            "U10"
        );
    }
    check_eq!(untyped.inspect(), Ok((16, 1 << 16)), "U10: all is used");
    let make = |at, count| retype(untyped, TYPE_FRAME, 0, cnode, at, count);
    check_eq!(make(16, 1), [Status::NotEnoughMemory as u64, 0, 0], "U11");
    check_eq!(
        make(16, 1_000_000),
        [Status::OutOfRange as u64, 1, 16],
        "U11: a million"
    );
    check_eq!(
        make(3, 1),
        [Status::DeleteFirst as u64, 0, 0],
        "U11: in use"
    );
    bench.finish()
}

/// When all children are gone the memory is handed out again from its start.
pub(super) fn again() -> Result<(), String> {
    let bench = Bench::new()?;
    let untyped = Untyped(bench.make(TYPE_UNTYPED, 13)?);
    let cnode = bench.cnode(2)?;
    let at = inside(cnode, 2);
    for round in 0..3 {
        check_eq!(untyped.retype(TYPE_FRAME, 0, cnode, 0, 2), Ok(()), "U13");
        check_eq!(
            untyped.retype(TYPE_ENDPOINT, 0, cnode, 2, 1),
            Err(Status::NotEnoughMemory),
            "U13: full"
        );
        if round == 1 {
            untyped.place().revoke().map_err(named)?;
        } else {
            at(0).delete().map_err(named)?;
            check_eq!(
                untyped.retype(TYPE_FRAME, 0, cnode, 2, 1),
                Err(Status::NotEnoughMemory),
                "U13: one is left"
            );
            at(1).delete().map_err(named)?;
        }
        check!(!is_occupied(at(0)) && !is_occupied(at(1)), "U13: gone");
    }
    // Objects of memory that was used are as good as new.
    check_eq!(
        untyped.retype(TYPE_NOTIFICATION, 0, cnode, 0, 4),
        Ok(()),
        "U13"
    );
    bench.finish()
}

/// A device's registers are no memory for the kernel's own objects.
pub(super) fn device() -> Result<(), String> {
    if environment::devices().is_empty() {
        return Ok(());
    }
    let bench = Bench::new()?;
    let untyped = Untyped(slot::DEVICES);
    let at = bench.slot()?;
    for (kind, size) in [(TYPE_THREAD, 0), (TYPE_CNODE, 2), (TYPE_ENDPOINT, 0)] {
        let refused = untyped.retype(kind, size, CNODE, at, 1);
        check_eq!(refused, Err(Status::IllegalOperation), "U14");
    }
    check_eq!(
        untyped.retype(TYPE_FRAME, 0, CNODE, at, 1),
        Ok(()),
        "U14: a frame"
    );
    untyped.place().revoke().map_err(named)?;
    check_eq!(
        untyped.retype(TYPE_UNTYPED, 10, CNODE, at, 1),
        Ok(()),
        "U14: an untyped"
    );
    untyped.place().revoke().map_err(named)?;
    bench.finish()
}
