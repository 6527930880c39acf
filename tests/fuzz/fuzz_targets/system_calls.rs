//! A hostile native program: system calls with any registers, exceptions and time, against the
//! kernel's logic on the machine of its unit tests. No page table and no thread is ever memory that
//! user mode can write, and nothing is mapped that is not the partition's.
#![no_main]

#[path = "script/mod.rs"]
mod script;

use std::collections::HashSet;

use bulkhead_abi::layout::USER_END;
use bulkhead_kernel_core::fake::{Info, MODULE, PROGRAM, Partition};
use bulkhead_kernel_core::frame::USER_CODE;
use bulkhead_kernel_core::kernel::{Next, Trap};
use libfuzzer_sys::fuzz_target;
use script::Script;

/// Most entries into the kernel of one program.
const ENTRIES: usize = 300;
/// Free addresses where it maps what it has.
const AT: u64 = 0x4000_0000;
/// What the processor looks at in an entry of a page table.
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A register that comes near what matters.
fn register(script: &mut Script) -> u64 {
    let [kind, value] = script.bytes();
    let value = u64::from(value);
    match kind % 16 {
        0..=5 => value,
        6..=7 => value % 80,
        8 => AT + (value << 12),
        9 => AT + (value << 21),
        10 => PROGRAM + (value << 12),
        11 => value << 12,
        12 => 1 << (value % 64),
        13 => (1 << (value % 64)) - 1,
        14 => USER_END - value,
        _ => u64::from_le_bytes(script.bytes()),
    }
}

/// The program does something that enters the kernel.
fn enter(partition: &mut Partition, script: &mut Script) -> Next {
    partition.hardware().now += 1;
    match script.byte() {
        kind @ 0..16 => {
            partition.hardware().now += 1 << (kind * 3);
            partition.trap(Trap::Timer)
        }
        16..24 => {
            let [vector, code] = script.bytes();
            let address = register(script);
            let frame = partition.frame();
            frame.vector = u64::from(vector % 32);
            frame.error_code = u64::from(code % 32);
            partition.trap(Trap::Exception { address })
        }
        kind => {
            // Work that takes long is interrupted now and then.
            partition.hardware().patience = (kind < 64).then(|| u32::from(script.byte() % 8));
            let [number, length, capabilities] = script.bytes();
            let mut info = u64::from(number % 64) | u64::from(length % 16) << 8;
            info |= u64::from(capabilities % 4) << 16;
            if kind > 240 {
                info = register(script);
            }
            let registers: [u64; 12] = std::array::from_fn(|_| register(script));
            let frame = partition.frame();
            frame.rax = info;
            [
                frame.rdi, frame.rsi, frame.rdx, frame.r8, frame.r9, frame.r10, frame.r12,
                frame.r13, frame.r14, frame.r15, frame.rbx, frame.rbp,
            ] = registers;
            partition.trap(Trap::Syscall)
        }
    }
}

/// Looks through the page tables that the running thread has.
fn check(partition: &mut Partition, own: &impl Fn(u64) -> bool) {
    let root = partition.kernel.page_table_root();
    if root == 0 {
        return;
    }
    let thread = partition
        .kernel
        .objects
        .current()
        .map(|t| t.address() & !0xfff);
    let (mut tables, mut writable) = (HashSet::new(), HashSet::new());
    walk(partition, root, 4, own, &mut tables, &mut writable);
    assert!(tables.is_disjoint(&writable), "a page table can be written");
    let thread_safe = thread.is_none_or(|page| !writable.contains(&page));
    assert!(thread_safe, "a thread can be written");
}

fn walk(
    partition: &mut Partition,
    table: u64,
    level: u32,
    own: &impl Fn(u64) -> bool,
    tables: &mut HashSet<u64>,
    writable: &mut HashSet<u64>,
) {
    tables.insert(table);
    // The kernel's half is not the program's to reach.
    let count = if level == 4 { 256 } else { 512 };
    let entries: Vec<u64> = partition.hardware().table(table)[..count].to_vec();
    for entry in entries.into_iter().filter(|entry| entry & PRESENT != 0) {
        let to = entry & ADDRESS;
        if level > 1 && entry & LARGE == 0 {
            assert!(own(to), "a page table at {to:#x}");
            walk(partition, to, level - 1, own, tables, writable);
            continue;
        }
        let pages = 1 << (9 * (level - 1));
        for page in (0..pages).map(|n| to + (n << 12)) {
            assert!(own(page), "{page:#x} is mapped");
            if entry & (WRITE | USER) == WRITE | USER {
                writable.insert(page);
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let info = Info::usual();
    let mut ranges: Vec<_> = info.regions.iter().map(|r| r.0..r.0 + r.1).collect();
    // A module has its huge page to itself.
    ranges.push(MODULE..MODULE + (2 << 20));
    // The `BootInfo` and the console's mailbox lie there.
    ranges.push(0x1000..0x3000);
    let own = |page: u64| ranges.iter().any(|range| range.contains(&page));
    let mut partition = Partition::start(&info).expect("a partition");
    for entry in 1..=ENTRIES {
        if script.0.is_empty() {
            break;
        }
        match enter(&mut partition, &mut script) {
            Next::End(_) => return,
            Next::Run => {}
            Next::Idle => {
                partition.hardware().now += 1 << 40;
                partition.hardware().reads.push_back(1);
                if partition.kernel.wake(Trap::ConsoleInput) == Next::Idle {
                    break;
                }
            }
        }
        let frame = *partition.frame();
        assert!(frame.rip < USER_END, "it goes on at {:#x}", frame.rip);
        assert_eq!(frame.cs, USER_CODE);
        if entry % 16 == 0 {
            check(&mut partition, &own);
        }
    }
    check(&mut partition, &own);
});
