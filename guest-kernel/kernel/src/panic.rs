//! The kernel's end by its own fault. No input can bring it about; if it happens, it is a bug.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::end_partition;
use crate::console;

/// Status of a partition whose kernel panicked: what a panicking Rust program reports.
const STATUS_PANIC: u8 = 101;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    // A panic while reporting a panic ends at once.
    if !PANICKING.load(Ordering::Relaxed) {
        PANICKING.store(true, Ordering::Relaxed);
        console::report(format_args!("bulkhead: kernel panic: {info}"));
    }
    end_partition(STATUS_PANIC)
}
