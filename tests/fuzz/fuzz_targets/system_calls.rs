//! A hostile native program: system calls with any registers, exceptions and time, against the
//! kernel's logic on the machine of its unit tests. No page table and no thread is ever memory that
//! user mode can write, and nothing is mapped that is not the partition's.
#![no_main]

use std::collections::HashSet;

use bulkhead_abi::layout::USER_END;
use bulkhead_hostile::{Script, Step};
use bulkhead_kernel_core::fake::{Info, MODULE, Partition};
use bulkhead_kernel_core::frame::USER_CODE;
use bulkhead_kernel_core::kernel::{Next, Trap};
use libfuzzer_sys::fuzz_target;

/// Most entries into the kernel of one program.
const ENTRIES: usize = 300;
/// What the processor looks at in an entry of a page table.
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The program does something that enters the kernel.
fn enter(partition: &mut Partition, step: Step) -> Next {
    partition.hardware().now += 1;
    match step {
        Step::Time(ticks) => {
            partition.hardware().now += ticks;
            partition.trap(Trap::Timer)
        }
        Step::Exception {
            vector,
            code,
            address,
        } => {
            let frame = partition.frame();
            frame.vector = u64::from(vector);
            frame.error_code = u64::from(code);
            partition.trap(Trap::Exception { address })
        }
        Step::Call {
            registers,
            patience,
        } => {
            // Work that takes long is interrupted now and then.
            partition.hardware().patience = patience;
            let frame = partition.frame();
            [
                frame.rax, frame.rdi, frame.rsi, frame.rdx, frame.r8, frame.r9, frame.r10,
                frame.r12, frame.r13, frame.r14, frame.r15, frame.rbx, frame.rbp,
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
    let info = Info::usual();
    let mut ranges: Vec<_> = info.regions.iter().map(|r| r.0..r.0 + r.1).collect();
    // A module has its huge page to itself.
    ranges.push(MODULE..MODULE + (2 << 20));
    // The `BootInfo` and the console's mailbox lie there.
    ranges.push(0x1000..0x3000);
    let own = |page: u64| ranges.iter().any(|range| range.contains(&page));
    let mut partition = Partition::start(&info).expect("a partition");
    for (entry, step) in (1..=ENTRIES).zip(Script(bytes)) {
        match enter(&mut partition, step) {
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
