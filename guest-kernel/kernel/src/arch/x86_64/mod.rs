//! x86-64: everything of the kernel that is `unsafe` or assembly.
//!
//! The kernel runs with interrupts off and is never entered while it runs, except from its idle
//! loop, which holds nothing. Of several CPUs one at a time runs it: the others wait for the lock of
//! [`smp`]. Therefore state behind [`Exclusive`] is reached by one path of execution at a time.

mod apic;
mod cpu;
mod entry;
mod gdt;
mod idt;
mod machine;
mod percpu;
mod smp;
mod start;
mod trap;

pub(crate) use machine::{end_partition, ring_console, write_mailbox};

use core::cell::UnsafeCell;

/// State of the CPU that runs the kernel.
#[repr(transparent)]
struct Exclusive<T>(UnsafeCell<T>);

// SAFETY: one CPU at a time runs the kernel, and it is not reentered (see the head of this file), so
// no two threads of execution ever reach the content at a time. What those that wait for the lock read
// (`DOORS`, the kernel's root) does not change after boot, and of `AREAS` each uses its own part.
unsafe impl<T> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}
