//! A kernel that takes the microkernel's place and drives every virtio device of its partition as
//! badly as it can: chains that loop, end nowhere or lie outside memory, rings that jump, queues in
//! impossible places, status bits out of order. What happens to it is of no interest, what happens
//! to its VMM is: after each device's turn it brings the device up properly, and it ends with status
//! 0 when every device could be. Started by the suite `hostile`.
//!
//! One line for each device goes to the console: its name, and how many attacks ended in
//! `DEVICE_NEEDS_RESET`, in a returned buffer, and in silence.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod attacks;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod virtio;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this runs in a partition: build it with --target x86_64-unknown-none");
    std::process::exit(125);
}

/// Called by the entry code; returns the exit status.
#[cfg(target_os = "none")]
fn run(boot_info: u64) -> u8 {
    let Some((view, memory)) = machine::set_up(boot_info) else {
        return 100;
    };
    let mut broken = 0;
    for device in view.devices() {
        let registers = machine::Registers::new(device.registers.start);
        let tally = attacks::all(&registers, &memory);
        let alive = virtio::bring_up(&registers);
        broken += u8::from(!alive);
        let name = device.name.split(|byte| *byte == 0).next();
        let name = name.and_then(|name| core::str::from_utf8(name).ok());
        machine::say(format_args!(
            "{} (type {}): {} resets, {} returns, {} silences; {}\n",
            name.unwrap_or("?"),
            device.virtio_id,
            tally.needs_reset,
            tally.returned,
            tally.silent,
            if alive { "alive" } else { "BROKEN" },
        ));
    }
    broken
}
