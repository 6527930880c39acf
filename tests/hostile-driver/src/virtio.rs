//! The virtio-mmio transport (virtio 1.2, section 4.2) from the driver's side.

use crate::machine::{Memory, Registers};

pub(crate) const FEATURES: u64 = 0x10;
pub(crate) const FEATURES_SEL: u64 = 0x14;
pub(crate) const DRIVER_FEATURES: u64 = 0x20;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(crate) const QUEUE_SEL: u64 = 0x30;
pub(crate) const QUEUE_NUM_MAX: u64 = 0x34;
pub(crate) const QUEUE_NUM: u64 = 0x38;
pub(crate) const QUEUE_READY: u64 = 0x44;
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
pub(crate) const INTERRUPT_ACK: u64 = 0x64;
pub(crate) const STATUS: u64 = 0x70;
/// Descriptor table, available ring, used ring: low words, the high ones behind them.
pub(crate) const RINGS: [u64; 3] = [0x80, 0x90, 0xa0];
pub(crate) const CONFIG: u64 = 0x100;

pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;

/// Offsets in [`Memory`] of the three rings.
pub(crate) const TABLE: u64 = 0x1000;
pub(crate) const AVAIL: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;

/// How often the driver looks for an answer: milliseconds, and far more than a device needs.
const PATIENCE: u32 = 1000;

/// Resets the device and goes as far as `FEATURES_OK`, with all that is offered.
pub(crate) fn negotiate(registers: &Registers) -> bool {
    registers.write(STATUS, 0);
    registers.write(STATUS, ACKNOWLEDGE);
    registers.write(STATUS, ACKNOWLEDGE | DRIVER);
    for half in [0, 1] {
        registers.write(FEATURES_SEL, half);
        registers.write(DRIVER_FEATURES_SEL, half);
        registers.write(DRIVER_FEATURES, registers.read(FEATURES));
    }
    registers.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    registers.read(STATUS) & FEATURES_OK != 0
}

/// Places queue `index` at `rings` with `size` entries; true when the device takes it.
pub(crate) fn place(registers: &Registers, index: u32, size: u32, rings: [u64; 3]) -> bool {
    registers.write(QUEUE_SEL, index);
    registers.write(QUEUE_NUM, size);
    for (register, address) in RINGS.iter().zip(rings) {
        registers.write(*register, address as u32);
        registers.write(*register + 4, (address >> 32) as u32);
    }
    registers.write(QUEUE_READY, 1);
    registers.read(QUEUE_READY) == 1
}

/// Where queues ordinarily lie.
pub(crate) fn rings(memory: &Memory) -> [u64; 3] {
    [TABLE, AVAIL, USED].map(|offset| memory.start + offset)
}

pub(crate) fn start(registers: &Registers) {
    registers.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

/// What a device did with an attack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    NeedsReset,
    Returned,
    Silence,
}

/// Waits for the device to return something or to give up.
pub(crate) fn answer(registers: &Registers, memory: &Memory) -> Answer {
    for _ in 0..PATIENCE {
        if registers.read(STATUS) & NEEDS_RESET != 0 {
            return Answer::NeedsReset;
        }
        if memory.get::<u16>(USED + 2) != 0 {
            return Answer::Returned;
        }
    }
    Answer::Silence
}

/// Whether the device can be brought up as a driver should.
pub(crate) fn bring_up(registers: &Registers) -> bool {
    let negotiated = negotiate(registers);
    start(registers);
    let status = registers.read(STATUS);
    registers.write(STATUS, 0);
    negotiated && status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK && registers.read(STATUS) == 0
}
