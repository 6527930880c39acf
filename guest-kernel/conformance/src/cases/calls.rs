//! System calls in general: unknown ones, wrong slots, wrong arguments, registers.

use alloc::string::String;
use core::arch::asm;

use bulkhead_runtime::abi::object::{TYPE_THREAD, ThreadRegisters};
use bulkhead_runtime::abi::syscall::{
    CONSOLE_READ, CONSOLE_WRITE, COUNT, EXIT, FRAME_MAP, FRAME_UNMAP, RESTRICTED_BIND,
    RESTRICTED_ENTER, Status, TABLE_MAP, YIELD, slot,
};
use bulkhead_runtime::memory;
use bulkhead_runtime::object::{EMPTY_REGISTERS, FIRST_THREAD, Thread};
use bulkhead_runtime::syscall::{call, invoke, raw};

use super::{check_eq, named};

pub(super) fn unknown() -> Result<(), String> {
    // Far more than ten: a kernel that gives up on the tenth is a known fault of others.
    let far = [u64::MAX, 1 << 63, 1 << 32, 1 << 31, 0x8000_0000_0000];
    // An operation on a capability has its number in the lowest byte alone.
    let is_one = |number: &u64| {
        let low = number & 0xff;
        low == RESTRICTED_BIND || (RESTRICTED_ENTER + 1..COUNT).contains(&low)
    };
    let near = (COUNT..COUNT + 1300).filter(|number| !is_one(number));
    // Between those that there are.
    let gone = CONSOLE_READ + 1..YIELD;
    for number in near.chain(far).chain(gone) {
        // SAFETY: refused.
        let (status, value) = unsafe { raw(number, [u64::MAX; 4]) };
        check_eq!(
            Status::from_raw(status),
            Some(Status::UnknownCall),
            "status"
        );
        check_eq!(value, 0, "value");
    }
    Ok(())
}

/// A call that the kernel must refuse.
fn refused(number: u64, arguments: [u64; 4]) -> Result<u64, Status> {
    // SAFETY: a refused call has no effect.
    unsafe { call(number, arguments) }
}

pub(super) fn wrong_slots() -> Result<(), String> {
    let text = b"never printed";
    let (address, len) = (text.as_ptr() as u64, text.len() as u64);
    let page = address & !4095;
    let wanted = Err(Status::InvalidCapability);
    for slot in [
        0,
        2,
        slot::THREAD,
        5,
        slot::DEVICES,
        63,
        64,
        1 << 20,
        u64::MAX,
    ] {
        check_eq!(
            refused(CONSOLE_WRITE, [slot, address, len, 1]),
            wanted,
            "write"
        );
        check_eq!(
            refused(CONSOLE_READ, [slot, address, len, 0]),
            wanted,
            "read"
        );
    }
    for slot in [
        0,
        slot::CONSOLE,
        slot::ADDRESS_SPACE,
        slot::MEMORY,
        u64::MAX,
    ] {
        for operation in [FRAME_MAP, FRAME_UNMAP, TABLE_MAP] {
            // SAFETY: refused.
            let answer = unsafe { invoke(operation, slot, [slot::ADDRESS_SPACE, page, 1]) };
            check_eq!(answer, Err(Status::InvalidCapability), "map");
        }
    }
    Ok(())
}

pub(super) fn bad_arguments() -> Result<(), String> {
    for status in [256, 1 << 32, u64::MAX] {
        let answer = refused(EXIT, [slot::PARTITION, status, 0, 0]);
        check_eq!(answer, Err(Status::InvalidArgument), "exit");
    }
    let answer = refused(EXIT, [slot::CONSOLE, 0, 0, 0]);
    check_eq!(
        answer,
        Err(Status::InvalidCapability),
        "exit by the console"
    );
    let thread = Thread(memory::object(TYPE_THREAD, 0, 10).map_err(named)?);
    for (rip, fs_base) in [
        (1 << 47, 0),
        (u64::MAX, 0),
        (0x1000, 1 << 63),
        (1 << 63, u64::MAX),
    ] {
        let registers = ThreadRegisters {
            rip,
            fs_base,
            ..EMPTY_REGISTERS
        };
        // SAFETY: refused.
        let answer = unsafe { thread.set_registers(&registers, true) };
        check_eq!(answer, Err(Status::InvalidAddress), "registers");
    }
    // SAFETY: refused.
    let own = unsafe { FIRST_THREAD.set_registers(&EMPTY_REGISTERS, true) };
    check_eq!(own, Err(Status::IllegalOperation), "own registers");
    thread.delete().map_err(named)
}

pub(super) fn keep_registers() -> Result<(), String> {
    let (mut r8, mut r9, mut r12, mut r13, mut r14, mut r15): (u64, u64, u64, u64, u64, u64) =
        (0x88, 0x99, 0x1212, 0x1313, 0x1414, 0x1515);
    let (mut rdi, mut rsi, mut r10): (u64, u64, u64) = (0xd1, 0x51, 0x1010);
    let status: u64;
    // SAFETY: `YIELD` has no effect on memory.
    unsafe {
        asm!("syscall",
            inlateout("rax") YIELD => status,
            inlateout("rdi") rdi, inlateout("rsi") rsi, inlateout("r8") r8, inlateout("r9") r9,
            inlateout("r10") r10, inlateout("r12") r12, inlateout("r13") r13,
            inlateout("r14") r14, inlateout("r15") r15,
            lateout("rdx") _, lateout("rcx") _, lateout("r11") _,
            options(nostack));
    }
    check_eq!(status, 0, "status");
    let kept = [rdi, rsi, r8, r9, r10, r12, r13, r14, r15];
    let wanted = [
        0xd1, 0x51, 0x88, 0x99, 0x1010, 0x1212, 0x1313, 0x1414, 0x1515,
    ];
    check_eq!(kept, wanted, "registers");
    Ok(())
}
