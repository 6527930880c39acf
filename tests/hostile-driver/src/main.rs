//! A kernel that drives virtio devices as badly as it can: chains that loop, end nowhere or lie
//! outside memory, rings that jump, queues in impossible places, status bits out of order, requests
//! that are nonsense. What happens to it is of no interest, what happens to its VMM is: after each
//! attack it brings the device up properly and has it serve an honest request, and another device as
//! well, each in its turn. Started by the suites `hostile` and `hostile_devices`.
//!
//! It takes the microkernel's place, or runs on a PC, where the command line names the device to
//! attack, or `slots` for the PCI bus; behind it, `silent` says that nobody sends back what goes to the
//! network, and `hurried` that it is enough to look after every eighth attack. One line for each
//! attacked device goes to the console: its name, and how the attacks ended. In the microkernel's
//! place it then ends with the number of broken devices; on a PC it rests.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod attacker;
#[cfg(target_os = "none")]
mod attacks;
#[cfg(target_os = "none")]
mod honest;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod nonsense;
#[cfg(target_os = "none")]
mod pc;
#[cfg(target_os = "none")]
mod pci;
#[cfg(target_os = "none")]
mod pci_attacks;
#[cfg(target_os = "none")]
mod queue;
#[cfg(target_os = "none")]
mod transport;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this runs in a partition: build it with --target x86_64-unknown-none");
    std::process::exit(125);
}

/// Most devices.
#[cfg(target_os = "none")]
const MAX_DEVICES: usize = 16;

/// Called by the entry code in the microkernel's place; returns the exit status.
#[cfg(target_os = "none")]
fn run(boot_info: u64) -> u8 {
    let Some((view, memory)) = machine::set_up(boot_info) else {
        return 100;
    };
    let windows = view.devices().iter().map(|device| device.registers.start);
    let devices = collect(windows.filter_map(transport::Device::in_window));
    let mut broken = 0;
    for device in devices.iter().flatten() {
        let way = attacker::Way {
            echo: false,
            every: 1,
        };
        broken += u8::from(!attack(device, &devices, &memory, way));
    }
    broken
}

/// Called by the entry code on a PC.
#[cfg(target_os = "none")]
fn run_on_pc(start_info: u64) -> u8 {
    machine::speak_by_serial_port();
    let Some(memory) = pc::set_up(start_info) else {
        return 100;
    };
    let mut buffer = [0; pc::MAX_CMDLINE];
    let mut words = pc::command_line(start_info, &mut buffer).split(' ');
    let wanted = words.next();
    let mut way = attacker::Way {
        echo: true,
        every: 1,
    };
    for word in words {
        match word {
            "silent" => way.echo = false,
            "hurried" => way.every = 8,
            _ => {}
        }
    }
    let slots = (1..pci::SLOTS).filter_map(pci::Function::find);
    let mut devices = collect(slots);
    if devices.iter().all(Option::is_none) {
        use bulkhead_abi::machine::{VIRTIO_MMIO_BASE, VIRTIO_MMIO_STRIDE};
        let windows = (0..).map(|index| VIRTIO_MMIO_BASE + index * VIRTIO_MMIO_STRIDE);
        let windows = windows.take(MAX_DEVICES);
        devices = collect(windows.filter_map(transport::Device::in_window));
    }
    look_after(&devices, "first", &memory, way.echo);
    machine::say(format_args!("begin\n"));
    for device in devices.iter().flatten() {
        if Some(device.name()) == wanted {
            attack(device, &devices, &memory, way);
        }
    }
    if wanted == Some("slots") {
        pci_attacks::slots(&mut devices, &memory);
    }
    look_after(&devices, "last", &memory, way.echo);
    machine::say(format_args!("end\n"));
    machine::rest();
}

/// Says of each device whether it serves.
#[cfg(target_os = "none")]
fn look_after(
    devices: &[Option<transport::Device>],
    when: &str,
    memory: &machine::Memory,
    echo: bool,
) {
    for device in devices.iter().flatten() {
        let well = honest::serves(device, memory, echo);
        let well = if well { "well" } else { "BROKEN" };
        machine::say(format_args!("{}: {well} at {when}\n", device.name()));
    }
}

#[cfg(target_os = "none")]
fn collect(
    found: impl Iterator<Item = transport::Device>,
) -> [Option<transport::Device>; MAX_DEVICES] {
    let mut devices = [None; MAX_DEVICES];
    for (slot, device) in devices.iter_mut().zip(found) {
        *slot = Some(device);
    }
    devices
}

/// Does its worst to `device`; true when all was well after each attack.
#[cfg(target_os = "none")]
fn attack(
    device: &transport::Device,
    devices: &[Option<transport::Device>],
    memory: &machine::Memory,
    way: attacker::Way,
) -> bool {
    let count = devices.iter().flatten().count();
    let devices = devices.get(..count).unwrap_or_default();
    let mut attacker = attacker::Attacker::new(device, devices, memory, way);
    attacks::all(&mut attacker);
    nonsense::all(&mut attacker);
    if let transport::Place::Pci(function) = device.place {
        pci_attacks::all(&mut attacker, function, devices);
    }
    let tally = attacker.tally;
    machine::say(format_args!(
        "{}: {} resets, {} returns, {} kept, {} silences; {} times well, others {}; {}\n",
        device.name(),
        tally.needs_reset,
        tally.returned,
        tally.kept,
        tally.silent,
        tally.recovered,
        tally.others,
        if tally.broken == 0 { "alive" } else { "BROKEN" },
    ));
    tally.broken == 0
}
