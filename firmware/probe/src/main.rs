//! The probe: a tiny PVH guest that finds out what kind of KVM it runs on.
//!
//! Its first action, a handful of instructions after its entry, is one newline on COM1; that byte
//! is what the boot benchmark waits for. Without a command line it then ends with status 0. The
//! command line `probe=WHAT` asks for one measurement, reported as lines `key=value` and a last
//! line `end` on COM1:
//!
//! | WHAT | report |
//! | --- | --- |
//! | `speed` | ticks of one loop at CPL0 and at CPL3, see [`speed`] |
//! | `syscall` | whether `iretq` and `sysretq` reach CPL3, where `syscall` lands, what it costs |
//! | `list` | the names of all experiments |
//! | the name of an experiment | whether that instruction works at CPL0, see [`experiments`] |
//!
//! One measurement a boot, because an instruction that KVM cannot run ends the whole VM. Who wants
//! to know boots the probe once for each.
#![no_std]
#![no_main]

mod cpu;
mod experiments;
mod report;

use core::arch::global_asm;
use core::sync::atomic::Ordering::Relaxed;

use report::{decimal, line};

global_asm!(include_str!("entry.s"), EXIT_PORT = const bulkhead_abi::machine::EXIT_PORT);

/// Instructions of the loop that [`speed`] times, as `entry.s` has it.
const LOOP_INSTRUCTIONS: u64 = 200;
/// How often each timing is repeated; the least is reported, as it is the least disturbed.
const REPEATS: usize = 8;

/// Called by `entry.s` in 64-bit mode; returns the exit status.
#[unsafe(no_mangle)]
extern "C" fn probe_main() -> u64 {
    cpu::set_up();
    let mut buffer = [0; cpu::COMMAND_LINE_BYTES];
    let Some(what) = cpu::command_line(&mut buffer).and_then(|line| line.strip_prefix("probe="))
    else {
        return finish(2);
    };
    match what.split(' ').next() {
        Some("speed") => speed(),
        Some("syscall") => system_call(),
        Some("list") => experiments::list(),
        Some(name) if experiments::run(name) => {}
        _ => return finish(2),
    }
    finish(0)
}

/// Ends the report. Status 2 stands for a measurement that the probe does not know.
fn finish(status: u64) -> u64 {
    report::text(if status == 0 { "end\n" } else { "unknown\n" });
    status
}

/// Times 200 trivial instructions. A CPU that runs guest kernel mode needs at most a few ticks for
/// each, software emulation of a whole machine some tens, KVM's instruction emulator over a thousand.
fn speed() {
    let least = |measure: fn() -> u64| (0..REPEATS).map(|_| measure()).min().unwrap_or(0);
    line("instructions", decimal(LOOP_INSTRUCTIONS));
    line("cpl0-ticks", decimal(least(cpu::kernel_speed_ticks)));
    line(
        "cpl3-ticks",
        decimal(least(|| {
            cpu::run_user(cpu::Door::Iretq, cpu::Program::Speed);
            cpu::USER_RESULT.load(Relaxed)
        })),
    );
}

/// Finds out how CPL3 is reached and left.
fn system_call() {
    // `user_nothing` ends with #UD, so that vector is success.
    for (door, name) in [(cpu::Door::Iretq, "iretq"), (cpu::Door::Sysretq, "sysretq")] {
        report::begin(name);
        match cpu::run_user(door, cpu::Program::Nothing) {
            cpu::INVALID_OPCODE => line(name, "ok"),
            vector => report::fault(name, vector),
        }
    }
    report::begin("syscall");
    let mut ticks = u64::MAX;
    for _ in 0..REPEATS {
        match cpu::run_user(cpu::Door::Iretq, cpu::Program::SystemCall) {
            cpu::INVALID_OPCODE => ticks = ticks.min(cpu::USER_RESULT.load(Relaxed)),
            vector => return report::fault("syscall", vector),
        }
    }
    match cpu::SYSCALL_LANDED.load(Relaxed) {
        1 => line("syscall", "cpl0"),
        2 => {
            line("syscall", "page-fault");
            line(
                "syscall-error-code",
                decimal(cpu::SYSCALL_ERROR.load(Relaxed)),
            );
        }
        _ => line("syscall", "nowhere"),
    }
    line("syscall-ticks", decimal(ticks));
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    cpu::exit(3)
}
