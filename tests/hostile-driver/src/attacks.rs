//! What is done to each device.

use crate::machine::{BYTES, Memory, Registers};
use crate::virtio::{
    ACKNOWLEDGE, AVAIL, Answer, CONFIG, DRIVER, DRIVER_FEATURES, DRIVER_OK, FEATURES_OK,
    INTERRUPT_ACK, QUEUE_NOTIFY, QUEUE_NUM_MAX, QUEUE_SEL, STATUS, TABLE, USED, answer, negotiate,
    place, rings, start,
};

/// Entries of the queues.
const SIZE: u16 = 8;
/// Offset of the indirect table and of the buffers.
const INDIRECT_TABLE: u64 = 0x4000;
const DATA: u64 = 0x5000;
/// Most queues that are tried.
const MAX_QUEUES: u32 = 72;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// How the attacks on one device ended.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) needs_reset: u32,
    pub(crate) returned: u32,
    pub(crate) silent: u32,
}

impl Tally {
    fn count(&mut self, answer: Answer) {
        *match answer {
            Answer::NeedsReset => &mut self.needs_reset,
            Answer::Returned => &mut self.returned,
            Answer::Silence => &mut self.silent,
        } += 1;
    }
}

/// Address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

/// Everything, on every queue.
pub(crate) fn all(registers: &Registers, memory: &Memory) -> Tally {
    let mut tally = Tally::default();
    for queue in 0..MAX_QUEUES {
        registers.write(QUEUE_SEL, queue);
        if registers.read(QUEUE_NUM_MAX) == 0 {
            break;
        }
        chains(registers, memory, queue, &mut tally);
        indices(registers, memory, queue, &mut tally);
        places(registers, memory, queue, &mut tally);
    }
    status(registers);
    configuration(registers);
    tally
}

/// Chains no device may act on, and some that only make no sense.
fn chains(registers: &Registers, memory: &Memory, queue: u32, tally: &mut Tally) {
    let data = memory.start + DATA;
    let end = memory.end_of_ram;
    let table = memory.start + INDIRECT_TABLE;
    let indirect = |len| [(table, len, INDIRECT, 0), (0, 0, 0, 0), (0, 0, 0, 0)];
    let none = (0, 0, 0, 0);
    // Descriptors from number 0 on, then the indirect table.
    let cases: [([Descriptor; 3], [Descriptor; 2]); 24] = [
        // Loops of one, of two, and one that is entered late.
        ([(data, 8, NEXT, 0), none, none], [none; 2]),
        ([(data, 8, NEXT, 1), (data, 8, NEXT, 0), none], [none; 2]),
        (
            [
                (data, 8, NEXT, 1),
                (data, 8, WRITE | NEXT, 2),
                (data, 8, WRITE | NEXT, 1),
            ],
            [none; 2],
        ),
        // Next behind the table.
        ([(data, 8, NEXT, SIZE), none, none], [none; 2]),
        ([(data, 8, NEXT, u16::MAX), none, none], [none; 2]),
        // Nothing in a buffer.
        ([(data, 0, 0, 0), none, none], [none; 2]),
        ([(data, 0, WRITE, 0), none, none], [none; 2]),
        ([(data, 16, NEXT, 1), (data, 0, WRITE, 0), none], [none; 2]),
        // Readable after writable.
        (
            [(data, 16, WRITE | NEXT, 1), (data, 16, 0, 0), none],
            [none; 2],
        ),
        // Outside memory: behind it, across its end, at the top, round the top, in the device's own registers.
        ([(end, 16, 0, 0), none, none], [none; 2]),
        ([(end - 8, 16, WRITE, 0), none, none], [none; 2]),
        ([(u64::MAX, 1, 0, 0), none, none], [none; 2]),
        ([(u64::MAX - 7, 16, WRITE, 0), none, none], [none; 2]),
        ([(0xd000_0000, 0x1000, WRITE, 0), none, none], [none; 2]),
        // Longer than any memory, and as long as an integer can say, twice.
        ([(data, u32::MAX, WRITE, 0), none, none], [none; 2]),
        (
            [(data, u32::MAX, NEXT, 1), (data, u32::MAX, WRITE, 0), none],
            [none; 2],
        ),
        // Indirect tables: empty, ragged, outside, within each other, looping, with `NEXT` beside.
        (indirect(0), [none; 2]),
        (indirect(24), [(data, 8, NEXT, 1), (data, 8, 0, 0)]),
        ([(end, 16, INDIRECT, 0), none, none], [none; 2]),
        (indirect(16), [(table, 16, INDIRECT, 0), none]),
        (indirect(32), [(data, 8, NEXT, 1), (data, 8, NEXT, 0)]),
        (
            [(table, 32, INDIRECT | NEXT, 1), (data, 8, 0, 0), none],
            [(data, 8, 0, 0), none],
        ),
        // In order, and nonsense: a byte to read, a byte to write.
        ([(data, 1, 0, 0), none, none], [none; 2]),
        ([(data, 1, WRITE, 0), none, none], [none; 2]),
    ];
    for (chain, in_table) in &cases {
        if !prepare(registers, memory, queue) {
            continue;
        }
        describe(memory, TABLE, chain);
        describe(memory, INDIRECT_TABLE, in_table);
        tally.count(offer(registers, memory, queue, 0, 1));
    }
}

/// Rings that jump, and heads that are none.
fn indices(registers: &Registers, memory: &Memory, queue: u32, tally: &mut Tally) {
    for (head, index) in [
        (0, SIZE + 1),
        (0, 0x8000),
        (0, u16::MAX),
        (SIZE, 1),
        (u16::MAX, 1),
    ] {
        if prepare(registers, memory, queue) {
            describe(memory, TABLE, &[(memory.start + DATA, 16, WRITE, 0)]);
            tally.count(offer(registers, memory, queue, head, index));
        }
    }
}

/// Queues where none can be; a device that takes one has to live with it.
fn places(registers: &Registers, memory: &Memory, queue: u32, tally: &mut Tally) {
    let [table, avail, used] = rings(memory);
    let end = memory.end_of_ram;
    for (size, rings) in [
        (0, [table, avail, used]),
        (3, [table, avail, used]),
        (0x8000, [table, avail, used]),
        (u32::MAX, [table, avail, used]),
        (8, [table + 1, avail, used]),
        (8, [table, avail + 1, used]),
        (8, [table, avail, used + 2]),
        (8, [end, avail, used]),
        (8, [table, end - 8, used]),
        (8, [table, avail, end - 16]),
        (8, [u64::MAX - 15, avail, used]),
        (8, [0xd000_0000, 0xd000_0000, 0xd000_0000]),
        // One on top of the other: what the device returns becomes what it is given.
        (8, [table, table, table]),
        (8, [table, avail, avail]),
    ] {
        clear(memory);
        if negotiate(registers) {
            place(registers, queue, size, rings);
            start(registers);
            describe(memory, TABLE, &[(memory.start + DATA, 16, WRITE, 0)]);
            tally.count(offer(registers, memory, queue, 0, 1));
        }
    }
}

/// Status bits out of order, features that were never offered, doorbells of queues that are not.
fn status(registers: &Registers) {
    for value in [
        DRIVER_OK,
        FEATURES_OK,
        ACKNOWLEDGE | DRIVER_OK,
        u32::MAX,
        0x80,
    ] {
        registers.write(STATUS, 0);
        registers.write(STATUS, value);
        for queue in [0, 1, 2, 63, 0xffff, u32::MAX] {
            registers.write(QUEUE_NOTIFY, queue);
        }
        registers.write(INTERRUPT_ACK, u32::MAX);
    }
    registers.write(STATUS, 0);
    registers.write(STATUS, ACKNOWLEDGE | DRIVER);
    registers.write(DRIVER_FEATURES, u32::MAX);
    registers.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

/// Writes all over the configuration space, while the device runs.
fn configuration(registers: &Registers) {
    if negotiate(registers) {
        start(registers);
        for offset in (CONFIG..0x1000).step_by(4) {
            registers.write(offset, 0xa5a5_5a5a);
        }
    }
}

fn clear(memory: &Memory) {
    for offset in (TABLE..DATA + 0x100).step_by(8) {
        memory.put(offset, 0u64);
    }
}

/// A device with one queue, ready for descriptors.
fn prepare(registers: &Registers, memory: &Memory, queue: u32) -> bool {
    clear(memory);
    let ready = negotiate(registers) && place(registers, queue, u32::from(SIZE), rings(memory));
    start(registers);
    ready
}

fn describe(memory: &Memory, at: u64, descriptors: &[Descriptor]) {
    for (number, (address, len, flags, next)) in (0u64..).zip(descriptors) {
        let at = at + 16 * number;
        debug_assert!(at < BYTES);
        memory.put(at, *address);
        memory.put(at + 8, *len);
        memory.put(at + 12, *flags);
        memory.put(at + 14, *next);
    }
}

/// Makes `head` available as the first of `index`, and rings.
fn offer(registers: &Registers, memory: &Memory, queue: u32, head: u16, index: u16) -> Answer {
    memory.put(AVAIL + 4, head);
    memory.put(USED, 0u32);
    memory.put(AVAIL + 2, index);
    registers.write(QUEUE_NOTIFY, queue);
    answer(registers, memory)
}
