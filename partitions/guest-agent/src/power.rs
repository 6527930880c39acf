//! The end of the partition: the exit status goes to the VMM's exit port, by an `out` instruction.
//!
//! Debian's cloud kernel has no /dev/port, so the agent asks the kernel for the port (ioperm) and
//! writes it itself.

use bulkhead_abi::machine::EXIT_PORT;
use rustix::system::{RebootCommand, reboot};
use std::arch::asm;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

/// Ends the partition with `status`.
pub(crate) fn end(status: u8) -> ! {
    let _ = io::stdout().flush();
    rustix::fs::sync();
    drain();
    write_exit_port(status);
    // A VMM without the exit port has let us pass: power off, and never return, since the end of
    // PID 1 is a kernel panic.
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

/// Waits until the console has sent what was written: the VMM ends at the first byte on its port.
fn drain() {
    let _ = rustix::termios::tcdrain(io::stdout());
}

fn write_exit_port(status: u8) {
    // SAFETY: ioperm takes three integers and touches no memory; it gives this thread the one port
    // that it names.
    let granted = unsafe { libc::syscall(libc::SYS_ioperm, u64::from(EXIT_PORT), 1_u64, 1_u64) };
    if granted != 0 {
        return;
    }
    // SAFETY: the port was granted just now, so the instruction does not fault; the device behind
    // it ends the machine and writes no memory.
    unsafe {
        asm!("out dx, al", in("dx") EXIT_PORT, in("al") status, options(nomem, nostack));
    }
}
