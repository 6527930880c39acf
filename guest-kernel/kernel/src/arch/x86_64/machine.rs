//! The machine as the kernel's logic sees it: memory through the direct map, the time stamp
//! counter, the console mailbox.

use core::fmt;

use bulkhead_abi::boot::{BootInfo, FLAG_CONSOLE};
use bulkhead_abi::layout::DIRECT_MAP;
use bulkhead_abi::machine::{CONSOLE_PORT, CONSOLE_REFUSED, ConsoleMailbox, EXIT_PORT};
use bulkhead_abi::restricted::RestrictedState;
use bulkhead_kernel_core::hardware::{Hardware, PhysPage, TABLE_ENTRIES};

use super::{Exclusive, cpu};
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
        // SAFETY: one CPU, interrupts off.
        unsafe { *MAILBOX.as_ptr() = head.console_mailbox };
    }
}

/// Puts an operation into the mailbox; false without the `console` grant.
pub(crate) fn write_mailbox(request: ConsoleMailbox) -> bool {
    // SAFETY: one CPU, interrupts off.
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
    // SAFETY: one CPU, interrupts off.
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

/// The machine. There is one; whoever has it may use it.
pub(super) struct Machine;

impl Hardware for Machine {
    fn words(&mut self, page: PhysPage) -> &mut [u64; TABLE_ENTRIES] {
        // SAFETY: a `PhysPage` is RAM, so the direct map has it; by the rule of `words` user mode
        // does not reach it now; `&mut self` keeps a second reference out.
        unsafe { &mut *direct(page.address()) }
    }

    fn restricted_state(&mut self, page: PhysPage) -> &mut RestrictedState {
        // SAFETY: as above; user mode reaches the page, but does not run while the kernel does.
        unsafe { &mut *direct(page.address()) }
    }

    fn invalidate(&mut self, address: u64) {
        cpu::invalidate(address);
    }

    fn invalidate_all(&mut self) {
        // SAFETY: the root is the active one. The kernel's pages are global or unchanged.
        unsafe { cpu::set_page_table_root(cpu::page_table_root()) };
    }

    fn now(&mut self) -> u64 {
        cpu::time_stamp()
    }

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
