//! x86-64: everything of the kernel that is `unsafe` or assembly.
//!
//! There is one CPU. The kernel runs with interrupts off and is never entered while it runs,
//! except from its idle loop, which holds nothing. Therefore state behind [`Exclusive`] is
//! reached by one path of execution at a time.

mod apic;
mod cpu;
mod entry;
mod gdt;
mod idt;
mod machine;
mod percpu;
mod start;
mod trap;

pub(crate) use machine::{end_partition, ring_console, write_mailbox};

use core::cell::UnsafeCell;

/// State of the one CPU.
struct Exclusive<T>(UnsafeCell<T>);

// SAFETY: there is one CPU and no reentrancy (see the head of this file), so no two threads of
// execution ever reach the content.
unsafe impl<T> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}
