//! The interrupt descriptor table: a constant. `kernel.ld` puts stub n at a known address, so
//! that boot has nothing to compute.

use core::arch::asm;

use bulkhead_abi::layout::{KERNEL_BASE, KERNEL_LOAD};

use super::gdt::{EMERGENCY_IST, KERNEL_CODE};

/// Address of stub 0; `kernel.ld` asserts it.
const STUBS: u64 = KERNEL_BASE + KERNEL_LOAD;
/// Bytes of a stub; `kernel.ld` asserts it.
const STUB_BYTES: u64 = 16;

const VECTORS: usize = 256;
/// Interrupt gate, present.
const GATE: u64 = 0x8e;
/// User mode may raise it by an instruction: breakpoint and overflow.
const USER: u64 = 3 << 5;

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

#[repr(C, align(16))]
struct Table([[u64; 2]; VECTORS]);

static IDT: Table = {
    let mut table = [[0; 2]; VECTORS];
    let mut vector = 0;
    while vector < VECTORS {
        let stub = STUBS + STUB_BYTES * vector as u64;
        let ist = match vector {
            // NMI, double fault, machine check.
            2 | 8 | 18 => EMERGENCY_IST as u64,
            _ => 0,
        };
        let kind = match vector {
            3 | 4 => GATE | USER,
            _ => GATE,
        };
        table[vector] = [
            stub & 0xffff
                | (KERNEL_CODE as u64) << 16
                | ist << 32
                | kind << 40
                | (stub >> 16 & 0xffff) << 48,
            stub >> 32,
        ];
        vector += 1;
    }
    Table(table)
};

/// Loads the table.
///
/// # Safety
/// The kernel's segments are loaded.
pub(super) unsafe fn load() {
    let pointer = Pointer {
        limit: size_of::<Table>() as u16 - 1,
        base: &raw const IDT as u64,
    };
    // SAFETY: the table is static, and its gates lead to the stubs.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}
