//! The machine as the kernel's logic sees it: memory through the direct map, the time stamp
//! counter, the console mailbox.

use core::fmt;

use bulkhead_abi::boot::{BootInfo, FLAG_CONSOLE};
use bulkhead_abi::layout::DIRECT_MAP;
use bulkhead_abi::machine::{CONSOLE_PORT, CONSOLE_REFUSED, ConsoleMailbox, EXIT_PORT};
use bulkhead_kernel_core::hardware::Hardware;
use bulkhead_kernel_core::objects::mapping::RESTRICTED_ROOT;
use bulkhead_kernel_core::objects::memory::{Memory, Ref, Stored};

use super::{Exclusive, apic, cpu, percpu, smp};
use crate::console;

/// Guest-physical address of the mailbox, zero without the `console` grant.
static MAILBOX: Exclusive<u64> = Exclusive::new(0);

/// Where RAM at a guest-physical address lies in the kernel's half.
pub(super) const fn direct<T>(physical: u64) -> *mut T {
    DIRECT_MAP.wrapping_add(physical) as *mut T
}

/// Finds the console.
pub(super) fn use_console(head: &BootInfo) {
    if head.flags & FLAG_CONSOLE != 0 {
        // SAFETY: one path of execution (see `super`).
        unsafe { *MAILBOX.as_ptr() = head.console_mailbox };
    }
}

/// Puts an operation into the mailbox; false without the `console` grant.
pub(crate) fn write_mailbox(request: ConsoleMailbox) -> bool {
    // SAFETY: one path of execution (see `super`).
    let mailbox = unsafe { *MAILBOX.as_ptr() };
    if mailbox == 0 {
        return false;
    }
    // SAFETY: the boot protocol promises a page of RAM there that is used for nothing else.
    unsafe { direct::<ConsoleMailbox>(mailbox).write_volatile(request) };
    true
}

/// Has the VMM serve the mailbox; the result it left there.
pub(crate) fn ring_console() -> i64 {
    // SAFETY: one path of execution (see `super`).
    let mailbox = unsafe { *MAILBOX.as_ptr() };
    // SAFETY: the VMM moves bytes of the buffer that the mailbox names, which its writer owns or
    // has checked.
    unsafe { cpu::write_port(CONSOLE_PORT, 0) };
    // SAFETY: as in `write_mailbox`, which the caller used before.
    unsafe { (*direct::<ConsoleMailbox>(mailbox)).result }
}

/// Ends the partition.
pub(crate) fn end_partition(status: u8) -> ! {
    // SAFETY: the VMM runs nothing of the partition any more.
    unsafe { cpu::write_port(EXIT_PORT, status) };
    cpu::halt()
}

/// Whether one of the two roots of the address space at `root` is active here.
fn is_active(root: u64) -> bool {
    is_root_of(root, cpu::page_table_root())
}

/// Whether `active` is one of the two roots of the address space at `root`.
pub(super) fn is_root_of(root: u64, active: u64) -> bool {
    active == root || active == root + RESTRICTED_ROOT
}

/// The machine. There is one; the kernel has it.
#[derive(Debug)]
pub(super) struct Machine;

impl Memory for Machine {
    fn get<T: Stored>(&self, at: Ref<T>) -> &T {
        // SAFETY: a `Ref` is made where memory is retyped or a stored one is read back, so it leads
        // to RAM, which the direct map has, and to memory that user mode does not reach; any bit
        // pattern is a `T`, and every object is aligned to at least 32 bytes. `&self` keeps changes
        // out.
        unsafe { &*direct(at.address()) }
    }

    fn get_mut<T: Stored>(&mut self, at: Ref<T>) -> &mut T {
        // SAFETY: as above; `&mut self` keeps a second reference out.
        unsafe { &mut *direct(at.address()) }
    }

    fn load(&self, address: u64) -> u64 {
        // SAFETY: the caller found the address in a page table or a frame's capability: RAM, in the
        // direct map. Nobody has a reference into a page that user mode can reach.
        unsafe { direct::<u64>(address).read_volatile() }
    }

    fn store(&mut self, address: u64, word: u64) {
        // SAFETY: as above.
        unsafe { direct::<u64>(address).write_volatile(word) }
    }

    fn entries(&mut self, address: u64, count: u64) -> &mut [u64] {
        // SAFETY: within a page table, which the direct map has and user mode does not reach; its
        // entries are born accessed and dirty, so the CPU does not write them; `&mut self` keeps a
        // second reference out.
        unsafe { core::slice::from_raw_parts_mut(direct(address), count as usize) }
    }

    fn zero(&mut self, address: u64, bytes: u64) {
        for at in (address..address + bytes).step_by(8) {
            // SAFETY: memory on its way out of an untyped: RAM, where nothing lies.
            unsafe { direct::<u64>(at).write(0) }
        }
    }

    fn forget(&mut self, root: u64, address: u64) {
        if is_active(root) {
            cpu::invalidate(address);
        }
        smp::ask_users(root, smp::FORGET);
    }

    fn forget_all(&mut self, root: u64) {
        if is_active(root) {
            // SAFETY: the root is the active one. The kernel's pages are global or unchanged.
            unsafe { cpu::set_page_table_root(cpu::page_table_root()) };
        }
        smp::ask_users(root, smp::FORGET);
    }

    fn leave(&mut self, root: u64) {
        if is_active(root) {
            super::trap::use_kernel_root();
        }
        smp::ask_users(root, smp::LEAVE);
    }

    fn now(&mut self) -> u64 {
        cpu::time_stamp()
    }

    fn call_cpu(&mut self, cpu: usize) {
        apic::call(cpu);
    }

    fn stop_cpu(&mut self, cpu: usize) -> [u64; 2] {
        smp::stop(cpu)
    }

    fn preemption_pending(&mut self) -> bool {
        // SAFETY: the kernel's logic runs, and has no reference to a CPU.
        apic::is_timer_due(unsafe { percpu::active() }) || smp::is_awaited()
    }
}

impl Hardware for Machine {
    fn console(&mut self, op: u32, address: u64, len: u32) -> i64 {
        if write_mailbox(ConsoleMailbox {
            op,
            len,
            address,
            result: CONSOLE_REFUSED,
        }) {
            ring_console()
        } else {
            CONSOLE_REFUSED
        }
    }

    fn report(&mut self, line: fmt::Arguments<'_>) {
        console::report(line);
    }
}
