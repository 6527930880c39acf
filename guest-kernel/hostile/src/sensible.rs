//! System calls whose arguments mostly make sense: for each operation of the ABI's own table, handles
//! of what it takes, addresses of what is mapped, numbers in their range. One argument in eight is
//! anything.

use bulkhead_abi::decode::{Kind, OPERATIONS, Place, Register, Value};
use bulkhead_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE, PROGRAM_BASE};
use bulkhead_abi::syscall::slot;

use crate::AT;
use crate::random::Random;
use crate::script::{CALL_REGISTERS, Script, Step};

/// Slots of a hostile program's CNode, beyond those that every program begins with.
pub mod cell {
    use bulkhead_abi::syscall::slot::FREE;

    /// Endpoints, the last ones with a badge.
    pub const ENDPOINTS: [u64; 6] = [FREE, FREE + 1, FREE + 2, FREE + 3, FREE + 4, FREE + 5];
    /// Notifications, the last one with a badge.
    pub const NOTIFICATIONS: [u64; 3] = [FREE + 6, FREE + 7, FREE + 8];
    /// Reply objects.
    pub const REPLIES: [u64; 3] = [FREE + 9, FREE + 10, FREE + 11];
    /// Threads: the program's own.
    pub const THREADS: [u64; 3] = [FREE + 12, FREE + 13, FREE + 14];
    /// Their scheduling contexts.
    pub const CONTEXTS: [u64; 3] = [FREE + 15, FREE + 16, FREE + 17];
    /// Page tables, of the program's own code and others.
    pub const TABLES: [u64; 8] = [
        FREE + 18,
        FREE + 19,
        FREE + 20,
        FREE + 21,
        FREE + 22,
        FREE + 23,
        FREE + 24,
        FREE + 25,
    ];
    /// Frames that are mapped nowhere at first.
    pub const FRAMES: [u64; 6] = [
        FREE + 26,
        FREE + 27,
        FREE + 28,
        FREE + 29,
        FREE + 30,
        FREE + 31,
    ];
    /// A second address space, and a second CNode.
    pub const SPACE: u64 = FREE + 32;
    /// See [`SPACE`].
    pub const NODE: u64 = FREE + 33;
    /// The frame of the program's own code; that of its steps follow.
    pub const CODE: u64 = FREE + 34;
    /// How many frames there are from [`CODE`] on.
    pub const OWN_FRAMES: u64 = 25;
    /// The first slot that is empty.
    pub const EMPTY: u64 = CODE + OWN_FRAMES;
    /// Slots of the CNode, in bits.
    pub const RADIX: u64 = 8;
}

/// A system call.
pub fn step(random: &mut Random) -> Step {
    let mut registers = [0; CALL_REGISTERS];
    let operation = OPERATIONS.get(random.below(OPERATIONS.len() as u64) as usize);
    let Some(operation) = operation else {
        return Step::Time(1);
    };
    set(&mut registers, operation.number_place, operation.number);
    for value in operation.arguments {
        let anything = random.one_in(8);
        let chosen = if anything {
            anything_else(random)
        } else {
            argument(random, value)
        };
        set(&mut registers, value.place, chosen);
    }
    Step::Call {
        registers,
        patience: None,
    }
}

/// As the bytes of a script choose it.
fn anything_else(random: &mut Random) -> u64 {
    let bytes = [
        random.word().to_le_bytes(),
        random.word().to_le_bytes(),
        random.word().to_le_bytes(),
    ];
    match Script(bytes.as_flattened()).last() {
        Some(Step::Call { registers, .. }) => registers.last().copied().unwrap_or_default(),
        Some(Step::Exception { address, .. }) => address,
        _ => random.word(),
    }
}

fn argument(random: &mut Random, value: &Value) -> u64 {
    match value.name {
        "cnode" | "from" | "pivot" | "cspace" => {
            random.one_of(&[slot::CNODE, slot::CNODE, slot::CNODE, cell::NODE])
        }
        "endpoint" | "fault_handler" => random.one_of(&cell::ENDPOINTS),
        "notification" => random.one_of(&cell::NOTIFICATIONS),
        "reply" => random.one_of(&cell::REPLIES),
        "thread" | "authority" => random.one_of(&cell::THREADS),
        "context" => random.one_of(&cell::CONTEXTS),
        // Of the first CPU, or of one that there may be.
        "control" => slot::SCHED_CONTROL + random.one_of(&[0, 0, 1, 2, 3]),
        "address_space" => random.one_of(&[slot::ADDRESS_SPACE, slot::ADDRESS_SPACE, cell::SPACE]),
        "untyped" => random.one_of(&[slot::MEMORY, slot::MEMORY, cell::EMPTY + 1]),
        "table" => random.one_of(&cell::TABLES),
        "frame" | "message_buffer" => {
            let own = cell::CODE + random.below(cell::OWN_FRAMES);
            let free = random.one_of(&cell::FRAMES);
            random.one_of(&[own, free, free])
        }
        "console" => slot::CONSOLE,
        "partition" => slot::PARTITION,
        "depth" | "from_depth" | "pivot_depth" => random.one_of(&[64, 64, 64, 64, 8, 1, 0]),
        "type" => random.below(13),
        "size" => random.below(18),
        "offset" | "index" | "from_index" | "pivot_index" => {
            let empty = cell::EMPTY + random.below((1 << cell::RADIX) - cell::EMPTY);
            let any = random.below(1 << cell::RADIX);
            random.one_of(&[any, empty])
        }
        "count" => random.one_of(&[1, 1, 2, 4, 300]),
        "priority" | "ceiling" => random.below(160),
        "nanoseconds" => random.below(1_000_000),
        "budget" | "period" => random.below(20_000_000),
        "capabilities" | "stream" | "resume" => random.below(4),
        "length" if value.kind == Kind::Number => random.below(130),
        _ => by_kind(random, value.kind),
    }
}

fn by_kind(random: &mut Random, kind: Kind) -> u64 {
    let page = AT + random.below(16) * PAGE_SIZE;
    let own = PROGRAM_BASE + random.below(64) * PAGE_SIZE;
    let large = AT + random.below(4) * LARGE_PAGE_SIZE;
    match kind {
        Kind::Handle => random.below(1 << cell::RADIX),
        Kind::Address => random.one_of(&[page, page, own, large]),
        Kind::Source | Kind::Destination => {
            random.one_of(&[own, own, page]) + random.one_of(&[0, 8, 0xf80, 0xff8])
        }
        Kind::Bytes => random.one_of(&[0, 8, 64, 256, PAGE_SIZE, 2 * PAGE_SIZE]),
        Kind::Rights => random.below(8),
        Kind::Number => random.one_of(&[0, 1, 2, 3, 255, 1 << 32, u64::MAX]),
    }
}

fn set(registers: &mut [u64; CALL_REGISTERS], place: Place, value: u64) {
    let index = match place.register {
        Register::Rax => 0,
        Register::Rdi => 1,
        Register::Rsi => 2,
        Register::Rdx => 3,
        Register::R8 => 4,
        Register::R9 => 5,
        Register::R10 => 6,
        Register::R12 => 7,
        Register::R13 => 8,
        Register::R14 => 9,
        Register::R15 => 10,
        Register::Rbx => 11,
        Register::Rbp => 12,
        // `syscall` itself sets them.
        Register::Rcx | Register::R11 => return,
    };
    let mask = u64::MAX.checked_shr(u64::BITS - place.bits).unwrap_or(0);
    if let Some(register) = registers.get_mut(index) {
        *register |= (value & mask).wrapping_shl(place.shift);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;

    use bulkhead_abi::decode::Operation;

    use super::*;

    #[test]
    fn every_operation_comes_up() {
        let mut random = Random::new(1, 1);
        let mut seen = HashSet::new();
        for _ in 0..5_000 {
            let Step::Call { registers, .. } = step(&mut random) else {
                panic!("no call");
            };
            let found = Operation::find(|register| match register {
                Register::Rax => registers[0],
                _ => 0,
            });
            seen.extend(found.map(|operation| operation.name));
        }
        assert_eq!(seen.len(), OPERATIONS.len());
    }

    #[test]
    fn the_slots_fit() {
        const { assert!(cell::EMPTY + 16 < 1 << cell::RADIX) };
    }
}
