//! What is done to a virtio device's PCI function: its configuration space, its BAR, its MSI-X table.
//!
//! No message may reach the driver's own CPU as anything but an ordinary interrupt, which it has
//! turned off: those that are more go to a CPU that does not exist.

use crate::attacker::{Attacker, DATA, NOWHERE};
use crate::honest;
use crate::machine::{Memory, Window, in_word, out, out_word, say};
use crate::pci::{BAR0, COMMAND, DECODE, Function, MASTER, SLOTS, read, write};
use crate::queue::{Queue, WRITE};
use crate::transport::{Device, Place, Register};

/// The ports of configuration mechanism 1.
const ADDRESS: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
/// Bytes of the BAR.
const BAR_BYTES: u64 = 0x8000;
/// Where the bridge's window ends; there is room before it.
const WINDOW_END: u64 = 0xd000_0000;
/// Fields of the common configuration with vectors.
const CONFIG_VECTOR: u64 = 16;
const QUEUE_VECTOR: u64 = 26;

/// The registers of hot plug (docs/devices.md): slots with a new device, slots whose device is to go,
/// slots whose device has gone.
const HOT_PLUG: u16 = 0x620;
const EJECT: u16 = HOT_PLUG + 8;

/// Everything.
pub(crate) fn all(attacker: &mut Attacker<'_>, function: Function, devices: &[Option<Device>]) {
    bar(attacker, &function, devices);
    configuration_space(attacker, &function);
    indirect_access(attacker, &function);
    messages(attacker, &function);
    registers(attacker, &function);
    nobody(attacker);
}

/// Puts everything back where it was found.
fn restore(function: &Function) {
    write(function.slot, COMMAND, 0);
    write(function.slot, BAR0, function.bar as u32);
    write(function.slot, function.msix, 0);
    write(function.slot, COMMAND, DECODE | MASTER);
}

/// Offers a buffer on queue 0 of the device, whose answer is of no interest.
fn busy(attacker: &Attacker<'_>) {
    if let Some(mut queue) = attacker.prepare(0) {
        let memory = attacker.memory;
        queue.submit(attacker.device, memory, &[(memory.start + DATA, 64, WRITE)]);
    }
}

/// The BAR is sized, moved and switched off while a queue is in use: behind the window, onto RAM,
/// onto the interrupt controllers, onto other devices.
fn bar(attacker: &mut Attacker<'_>, function: &Function, devices: &[Option<Device>]) {
    attacker.phase("bar");
    let slot = function.slot;
    let mut others = devices
        .iter()
        .flatten()
        .filter_map(|device| match device.place {
            Place::Pci(other) if other.slot != slot => Some(other.bar),
            _ => None,
        });
    let other = others.next().unwrap_or(0);
    for to in [
        0,
        0x10_0000,
        attacker.memory.start,
        WINDOW_END - BAR_BYTES,
        WINDOW_END - 0x10_0000 + 0x123,
        WINDOW_END,
        NOWHERE,
        0xfec0_0000,
        0xfee0_0000,
        0xffff_8000,
        other,
        function.bar + BAR_BYTES / 2,
    ] {
        busy(attacker);
        // Moved with decoding on, and while it is off.
        write(slot, BAR0, to as u32);
        attacker.device.notify(0);
        write(slot, COMMAND, 0);
        attacker.device.notify(0);
        write(slot, BAR0, u32::MAX);
        let size = read(slot, BAR0);
        write(slot, BAR0, to as u32);
        write(slot, COMMAND, DECODE);
        attacker.device.notify(0);
        restore(function);
        attacker.demand(size & !0xf == (BAR_BYTES as u32).wrapping_neg());
        attacker.recover();
    }
    // A device at its new place is the same device.
    let moved = function.at(WINDOW_END - 2 * BAR_BYTES);
    write(slot, BAR0, moved.bar as u32);
    let device = Device {
        kind: attacker.device.kind,
        place: Place::Pci(moved),
    };
    let there = device.negotiate() && device.queues() > 0;
    device.write(Register::Status, 0);
    restore(function);
    attacker.demand(there);
    attacker.recover();
}

/// Writes of all widths to every register of the configuration space.
fn configuration_space(attacker: &mut Attacker<'_>, function: &Function) {
    attacker.phase("configuration space");
    for pattern in [u32::MAX, 0, 0x5a5a_a5a5] {
        busy(attacker);
        let before = [0, 8, 0x2c].map(|register| read(function.slot, register));
        for register in (0..0x100).step_by(4) {
            write(function.slot, register, pattern);
            for byte in 0..4u8 {
                out(DATA_PORT + u16::from(byte), pattern as u8);
            }
        }
        let after = [0, 8, 0x2c].map(|register| read(function.slot, register));
        restore(function);
        attacker.demand(before == after);
        attacker.recover();
    }
}

/// The capability through which the BAR is reached (virtio 1.2, section 4.1.4.9), pointed anywhere.
fn indirect_access(attacker: &mut Attacker<'_>, function: &Function) {
    attacker.phase("indirect access");
    let at = function.indirect;
    for (bar, offset, len) in [
        (0, 0, 0),
        (0, 0, 3),
        (0, 1, 4),
        (0, 0, 8),
        (0, 0x7ffc, 4),
        (0, 0x8000, 4),
        (0, 0xffff_fffc, 4),
        (0, u32::MAX, 1),
        (1, 0, 4),
        (0xff, 0, 4),
        (0, 20, 1),
        (0, 0x3000, 4),
        (0, 0x4000, 4),
    ] {
        busy(attacker);
        write(function.slot, at + 4, bar);
        write(function.slot, at + 8, offset);
        write(function.slot, at + 12, len);
        write(function.slot, at + 16, u32::MAX);
        out(DATA_PORT, 0xff);
        let _ = read(function.slot, at + 16);
        restore(function);
        attacker.count_silence();
        attacker.recover();
    }
}

/// Vectors that there are not, messages to nobody, masks, and accesses of odd widths to the table.
fn messages(attacker: &mut Attacker<'_>, function: &Function) {
    /// To CPU 127, which does not exist.
    const NOBODY: u32 = 0xfee7_f000;
    attacker.phase("messages");
    let (table, common) = (function.msix_table(), function.common());
    for (address, upper, data) in [
        (NOBODY, 0, 0x40u32),
        // As a non-maskable interrupt, as INIT, as SMI, as what is reserved.
        (NOBODY, 0, 0x400),
        (NOBODY, 0, 0x500),
        (NOBODY, 0, 0x200),
        (NOBODY, 0, 0xffff_ff00),
        (0xfee0_0000, 0, 0x40),
        (0xfee0_000c, 0, 0x0041),
        // No interrupt at all: to RAM, to registers, above 4 GiB, to nowhere.
        (0x10_0000, 0, 0),
        (NOWHERE as u32, 0, 0),
        (NOBODY, 1, 0x40),
        (u32::MAX, u32::MAX, 0x40),
    ] {
        for entry in 0..4 {
            table.set(16 * entry, address);
            table.set(16 * entry + 4, upper);
            table.set(16 * entry + 8, data);
            table.set(16 * entry + 12, 0u32);
        }
        for control in [0x8000_0000, 0xc000_0000, 0x8000_0000, 0x4000_0000] {
            if let Some(mut queue) = attacker.prepare(0) {
                let memory = attacker.memory;
                common.set(CONFIG_VECTOR, 0u16);
                common.set(QUEUE_VECTOR, 1u16);
                write(function.slot, function.msix, control);
                queue.submit(attacker.device, memory, &[(memory.start + DATA, 64, WRITE)]);
                attacker.await_answer(&queue);
            }
        }
        restore(function);
        attacker.recover();
    }
    for vector in [64, 0x7ff, 0x800, 0xfffe, 0xffff] {
        busy(attacker);
        common.set(CONFIG_VECTOR, vector);
        common.set(QUEUE_VECTOR, vector);
        attacker.demand(common.get::<u16>(CONFIG_VECTOR) == 0xffff);
        attacker.recover();
    }
    busy(attacker);
    for offset in (0..0x1000).step_by(0x1fc) {
        scribble(table, offset);
    }
    attacker.count_silence();
    attacker.recover();
}

/// Writes of every width, aligned and not, and reads.
fn scribble(window: Window, offset: u64) {
    window.set(offset, u64::MAX);
    window.set(offset, 0x5au8);
    window.set(offset + 1, 0xa5a5u16);
    window.set(offset + 2, u32::MAX);
    let _: u64 = window.get(offset);
    let _: u16 = window.get(offset + 3);
}

/// The whole BAR, page by page; the table has masked entries again afterwards.
fn registers(attacker: &mut Attacker<'_>, function: &Function) {
    attacker.phase("registers");
    busy(attacker);
    let bar = Window::new(function.bar);
    for page in (0..BAR_BYTES).step_by(0x1000) {
        for offset in (0..0x48).step_by(4).chain([0xff8]) {
            scribble(bar, page + offset);
        }
    }
    for entry in 0..4 {
        function.msix_table().set(16 * entry + 12, 1u32);
    }
    restore(function);
    attacker.count_silence();
    attacker.recover();
}

/// Buses, functions and slots that there are not; the bridge; accesses across registers.
fn nobody(attacker: &mut Attacker<'_>) {
    attacker.phase("nobody");
    busy(attacker);
    for address in [
        0,
        0x7fff_fffc,
        0x8001_0000,
        0x80ff_ff00,
        0x8000_0100,
        u32::MAX,
    ] {
        out_word(ADDRESS, address);
        out_word(DATA_PORT, 0);
        out_word(DATA_PORT + 1, u32::MAX);
        out_word(DATA_PORT + 3, u32::MAX);
        let _ = in_word(DATA_PORT + 2);
    }
    for register in (0..0x100).step_by(4) {
        write(0, register, u32::MAX);
        write(SLOTS - 1, register, u32::MAX);
    }
    let absent = read(SLOTS - 1, 0) == u32::MAX;
    attacker.demand(absent);
    attacker.recover();
}

/// Devices are let go of that nobody has asked for, that are busy, or that there are not. Those that
/// are left serve; the first is gone, and [`None`] afterwards.
pub(crate) fn slots(devices: &mut [Option<Device>], memory: &Memory) {
    let there = |device: &Device| match device.place {
        Place::Pci(function) => Some(1 << function.slot),
        Place::Mmio(_) => None,
    };
    let all = devices.iter().flatten().filter_map(there);
    let all = all.fold(0u32, |all, slot| all | slot);
    // The bridge, and every empty slot; in parts, and at odd places.
    out_word(EJECT, !all);
    for port in HOT_PLUG..HOT_PLUG + 12 {
        out(port, 0xff);
        let _ = in_word(port);
    }
    out_word(EJECT + 1, u32::MAX);
    out_word(HOT_PLUG, u32::MAX);
    out_word(HOT_PLUG + 4, u32::MAX);
    let Some(victim) = devices.first_mut().and_then(Option::take) else {
        return;
    };
    // It works meanwhile.
    if victim.negotiate() {
        let mut queue = Queue::new(memory, 0, DATA);
        queue.place(&victim, memory);
        victim.start();
        queue.submit(
            &victim,
            memory,
            &[(memory.start + DATA + 0x1000, 64, WRITE)],
        );
    }
    for _ in 0..3 {
        out_word(EJECT, there(&victim).unwrap_or(0));
        victim.notify(0);
    }
    if let Place::Pci(function) = victim.place {
        write(function.slot, BAR0, function.bar as u32);
        write(function.slot, COMMAND, DECODE);
        let gone = read(function.slot, 0) == u32::MAX;
        let gone = if gone { "gone" } else { "BROKEN" };
        say(format_args!("{}: {gone}\n", victim.name()));
    }
    for device in devices.iter().flatten() {
        if !honest::serves(device, memory, true) {
            say(format_args!("BROKEN: {} without another\n", device.name()));
        }
    }
}
