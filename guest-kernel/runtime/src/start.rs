//! From the kernel to a program's `main` and back: entry, panic, exit.

use crate::syscall;

/// What a program's `main` may return.
pub trait Termination {
    /// The partition's exit status.
    fn status(self) -> u8;
}

impl Termination for () {
    fn status(self) -> u8 {
        0
    }
}

impl Termination for u8 {
    fn status(self) -> u8 {
        self
    }
}

impl<E: core::fmt::Display> Termination for Result<(), E> {
    fn status(self) -> u8 {
        match self {
            Ok(()) => 0,
            Err(error) => {
                crate::eprintln!("error: {error}");
                1
            }
        }
    }
}

/// Ends the partition with `status`.
pub fn exit(status: u8) -> ! {
    syscall::exit(status)
}

/// Makes a function of no arguments the program.
#[macro_export]
macro_rules! program_main {
    ($main:path) => {
        #[cfg(target_os = "none")]
        const _: () = {
            // The name is the runtime's; a second program in one image would not link.
            #[unsafe(no_mangle)]
            extern "C" fn bulkhead_program_main() -> u8 {
                $crate::Termination::status($main())
            }
        };
    };
}

#[cfg(target_os = "none")]
mod entry {
    use core::panic::PanicInfo;

    /// Status of a program that panicked.
    const STATUS_PANIC: u8 = 101;

    // The kernel's promise: the `BootInfo` in RDI, a stack in RSP, everything else zero.
    core::arch::global_asm!(
        ".section .text.program_start, \"ax\"",
        ".globl program_start",
        "program_start:",
        "xor ebp, ebp",
        "and rsp, -16",
        "call {enter}",
        "ud2",
        enter = sym enter,
    );

    unsafe extern "C" {
        safe fn bulkhead_program_main() -> u8;
    }

    extern "C" fn enter(boot_info: *const u8) -> ! {
        crate::environment::set_boot_info(boot_info);
        crate::exit(bulkhead_program_main())
    }

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        crate::eprintln!("{info}");
        crate::exit(STATUS_PANIC)
    }
}
