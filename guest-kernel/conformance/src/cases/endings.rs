//! Demonstrations: each ends the partition, or keeps it busy, in a way that is judged from outside.
//! Expected statuses: `fault-*` 128 + the signal Linux would send, `panic` 101.

use alloc::string::String;
use core::arch::asm;

use bulkhead_runtime::abi::boot::{FLAG_CONSOLE, FLAG_CONSOLE_TTY, FLAG_ENTROPY, FLAG_TIME};
use bulkhead_runtime::abi::layout::{DIRECT_MAP, KERNEL_BASE, KERNEL_LOAD};
use bulkhead_runtime::abi::syscall::COUNT;
use bulkhead_runtime::{console, environment, print, println, syscall, thread, time};

use bulkhead_runtime::object::FIRST_THREAD;

use super::read;

/// Status when a fault did not end the partition.
const STATUS_SURVIVED: u8 = 99;

/// What the partition was granted, as seen from inside: one line each.
pub(super) fn grants() -> u8 {
    for (flag, name) in [
        (FLAG_CONSOLE, "console"),
        (FLAG_CONSOLE_TTY, "tty"),
        (FLAG_TIME, "time"),
        (FLAG_ENTROPY, "entropy"),
    ] {
        if environment::has(flag) {
            println!("flag {name}");
        }
    }
    for device in environment::devices() {
        let name = device.name.split(|b| *b == 0).next().unwrap_or_default();
        println!(
            "device {} virtio {} registers {:#x}+{:#x} vector {:#x}",
            name.escape_ascii(),
            device.virtio_id,
            device.registers.start,
            device.registers.len,
            device.vector
        );
    }
    for argument in environment::args() {
        println!("argument {}", argument.escape_ascii());
    }
    for variable in environment::vars() {
        println!("variable {}", variable.escape_ascii());
    }
    0
}

/// Writes its input to its output.
pub(super) fn echo() -> u8 {
    let mut buffer = [0; 4096];
    loop {
        let read = console::read(&mut buffer);
        let Some(bytes @ [_, ..]) = buffer.get(..read) else {
            return 0;
        };
        print!("{}", String::from_utf8_lossy(bytes));
    }
}

pub(super) fn exit_7() -> u8 {
    7
}

/// The first thread stops for ever before another one ends the partition.
pub(super) fn exit_threads() -> u8 {
    let spawned = thread::spawn(|| {
        time::sleep_ns(10_000_000);
        println!("the last thread ends the partition");
        syscall::exit(0)
    });
    if spawned.is_err() || FIRST_THREAD.suspend().is_err() {
        return STATUS_SURVIVED;
    }
    STATUS_SURVIVED
}

#[allow(clippy::panic, reason = "what it demonstrates")]
pub(super) fn panic() -> u8 {
    panic!("a demonstration");
}

pub(super) fn spin() -> u8 {
    println!("spinning");
    loop {
        core::hint::spin_loop();
    }
}

pub(super) fn flood() -> u8 {
    loop {
        println!("flood flood flood flood flood flood flood flood flood flood flood flood");
    }
}

pub(super) fn fault_null() -> u8 {
    read(core::hint::black_box(0)) as u8 | STATUS_SURVIVED
}

pub(super) fn fault_kernel_read() -> u8 {
    read(DIRECT_MAP + KERNEL_LOAD) as u8 | STATUS_SURVIVED
}

/// Jumps at the kernel's code, as a program would that tries its luck with `syscall`'s target.
pub(super) fn fault_kernel_jump() -> u8 {
    // SAFETY: the kernel ends the partition.
    unsafe { asm!("jmp {}", in(reg) KERNEL_BASE + KERNEL_LOAD) };
    STATUS_SURVIVED
}

pub(super) fn fault_write_text() -> u8 {
    super::write(fault_write_text as *const () as u64 & !7, 0);
    STATUS_SURVIVED
}

pub(super) fn fault_execute_data() -> u8 {
    let code = [0xc3_u8];
    // SAFETY: the kernel ends the partition.
    unsafe { asm!("call {}", in(reg) code.as_ptr()) };
    STATUS_SURVIVED
}

pub(super) fn fault_invalid_instruction() -> u8 {
    // SAFETY: the kernel ends the partition.
    unsafe { asm!("ud2") };
    STATUS_SURVIVED
}

pub(super) fn fault_divide() -> u8 {
    // SAFETY: the kernel ends the partition.
    unsafe { asm!("xor eax, eax", "xor edx, edx", "div eax", out("eax") _, out("edx") _) };
    STATUS_SURVIVED
}

pub(super) fn fault_breakpoint() -> u8 {
    // SAFETY: the kernel ends the partition.
    unsafe { asm!("int3") };
    STATUS_SURVIVED
}

pub(super) fn fault_privileged() -> u8 {
    // SAFETY: the kernel ends the partition.
    unsafe { asm!("cli") };
    STATUS_SURVIVED
}

pub(super) fn fault_port() -> u8 {
    // The port that ends the partition: not the program's to write.
    // SAFETY: the kernel ends the partition.
    unsafe { asm!("out dx, al", in("dx") 0xf4_u16, in("al") 0_u8) };
    STATUS_SURVIVED
}

/// A gate of the kernel that programs may not use: the timer's.
pub(super) fn fault_interrupt() -> u8 {
    // SAFETY: the kernel ends the partition.
    unsafe { asm!("int 0x20") };
    STATUS_SURVIVED
}

pub(super) fn fault_stack() -> u8 {
    fn deeper(level: u64) -> u64 {
        if level == u64::MAX {
            return 0;
        }
        let here = core::hint::black_box([level; 64]);
        let below = deeper(core::hint::black_box(level + 1));
        core::hint::black_box(here)
            .iter()
            .fold(below, |sum, n| sum.wrapping_add(*n))
    }
    deeper(0) as u8 | STATUS_SURVIVED
}

/// Leaves the kernel by what looks like a `syscall` whose return address is not canonical: jumps to
/// the next address behind user space.
pub(super) fn fault_not_canonical() -> u8 {
    // SAFETY: the kernel ends the partition.
    unsafe { asm!("jmp {}", in(reg) 0x0000_8000_0000_0000_u64) };
    STATUS_SURVIVED
}

/// Prints what a system call costs that does nothing, at best: a figure, not a test.
pub(super) fn null_call_cost() -> u8 {
    let khz = environment::boot_info().map_or(1, |info| info.head().tsc_khz);
    let cost = |_| {
        let before = time::ticks();
        // SAFETY: an unknown call has no effect.
        unsafe { syscall::raw(COUNT, [0; 4]) };
        time::ticks() - before
    };
    let best = (0..2_000).map(cost).min().unwrap_or(0);
    println!("null call: {} ns", time::ticks_to_ns(best, khz));
    0
}
