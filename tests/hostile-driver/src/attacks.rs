//! What is done to every device, on every queue: chains, rings and registers out of order.

use crate::attacker::{Attacker, DATA, END_OF_BUFFERS, INDIRECT_TABLE, NOWHERE, RINGS};
use crate::queue::{Descriptor, INDIRECT, NEXT, QUEUE_BYTES, Queue, SIZE, WRITE, describe};
use crate::transport::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, Register};

/// Everything.
pub(crate) fn all(attacker: &mut Attacker<'_>) {
    let queues = attacker.device.queues();
    for queue in 0..queues {
        attacker.phase("nothing");
        attacker.try_out(queue);
        chains(attacker, queue);
        indices(attacker, queue);
        places(attacker, queue);
        resets(attacker, queue);
    }
    attacker.be_patient();
    shared_rings(attacker, queues);
    status(attacker, queues);
    features(attacker);
    configuration(attacker);
}

/// Chains no device may act on, and some that only make no sense.
fn chains(attacker: &mut Attacker<'_>, queue: u32) {
    attacker.phase("chains");
    let data = attacker.memory.start + DATA;
    let end = attacker.memory.end_of_ram;
    let table = attacker.memory.start + INDIRECT_TABLE;
    let indirect = |len| [(table, len, INDIRECT, 0), (0, 0, 0, 0), (0, 0, 0, 0)];
    let none = (0, 0, 0, 0);
    // Descriptors from number 0 on, then the indirect table.
    let cases: [([Descriptor; 3], [Descriptor; 2]); 25] = [
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
        ([(NOWHERE, 0x1000, WRITE, 0), none, none], [none; 2]),
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
        // More than any request: all of memory that is nobody else's.
        (
            [
                (data, (end - END_OF_BUFFERS) as u32 / 2, NEXT, 1),
                (
                    END_OF_BUFFERS,
                    (end - END_OF_BUFFERS) as u32 / 2,
                    WRITE | NEXT,
                    2,
                ),
                (data, 64, WRITE, 0),
            ],
            [none; 2],
        ),
    ];
    for (chain, in_table) in &cases {
        describe(attacker.memory, INDIRECT_TABLE, in_table);
        attacker.offer(queue, chain);
    }
}

/// Rings that jump, and heads that are none.
fn indices(attacker: &mut Attacker<'_>, queue: u32) {
    attacker.phase("indices");
    let data = attacker.memory.start + DATA;
    for (head, index) in [
        (0, SIZE + 1),
        (0, 0x8000),
        (0, u16::MAX),
        (SIZE, 1),
        (u16::MAX, 1),
    ] {
        attacker.offer_at(queue, &[(data, 16, WRITE, 0)], head, index);
    }
}

/// Queues where none can be; a device that takes one has to live with it.
fn places(attacker: &mut Attacker<'_>, queue: u32) {
    attacker.phase("places");
    let memory = attacker.memory;
    let [table, avail, used] = Queue::new(memory, queue, RINGS).rings(memory);
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
        (8, [table, u64::MAX - 1, used]),
        (8, [table, avail, u64::MAX - 3]),
        (8, [NOWHERE, NOWHERE, NOWHERE]),
        // Ends in memory, and begins before it.
        (8, [(1 << 32) - 64, avail, used]),
        (8, [table, avail, (1 << 32) - 64]),
        // One on top of the other: what the device returns becomes what it is given.
        (8, [table, table, table]),
        (8, [table, avail, avail]),
        (8, [table, avail, table]),
    ] {
        let data = memory.start + DATA;
        let mut rings_of_ours = Queue::new(memory, queue, RINGS);
        if attacker.device.negotiate() {
            attacker.device.place_queue(queue, size, rings);
            attacker.device.start();
            rings_of_ours.describe(memory, &[(data, 16, WRITE, 0)]);
            rings_of_ours.offer(attacker.device, memory, 0, 1);
            attacker.await_answer(&rings_of_ours);
        }
        attacker.recover();
    }
}

/// The device is reset, or the queue taken away, while it has work.
fn resets(attacker: &mut Attacker<'_>, queue: u32) {
    attacker.phase("resets");
    let (device, memory) = (attacker.device, attacker.memory);
    let data = memory.start + DATA;
    let chains: [[(u64, u32, u16); 2]; 2] = [
        [(data, 512, 0), (data + 0x1000, 0x8000, WRITE)],
        [(data, 64, 0), (data + 0x1000, 4, WRITE)],
    ];
    for chain in &chains {
        for taken_away in [false, true] {
            for _ in 0..4 {
                let Some(mut rings) = attacker.prepare(queue) else {
                    continue;
                };
                for _ in 0..4 {
                    rings.submit(device, memory, chain);
                }
                if taken_away {
                    device.write(Register::QueueSelect, queue);
                    device.write(Register::QueueReady, 0);
                    rings.submit(device, memory, chain);
                }
                device.write(Register::Status, 0);
                device.notify(queue);
            }
            attacker.count_silence();
            attacker.recover();
        }
    }
}

/// All queues in the same place, and each in the next one's rings.
fn shared_rings(attacker: &mut Attacker<'_>, queues: u32) {
    attacker.phase("shared rings");
    let (device, memory) = (attacker.device, attacker.memory);
    let data = memory.start + DATA;
    for distance in [0, 0x100, 0x40] {
        let mut first = Queue::new(memory, 0, RINGS);
        if device.negotiate() {
            for queue in 0..queues.min(SHARING) {
                let shift = u64::from(queue) * distance;
                let rings = first.rings(memory).map(|address| address + shift);
                device.place_queue(queue, SIZE.into(), rings);
            }
            device.start();
            first.describe(memory, &[(data, 64, NEXT, 1), (data, 64, WRITE, 0)]);
            first.offer(device, memory, 0, 1);
            for queue in 0..queues.min(SHARING) {
                device.notify(queue);
            }
            attacker.await_answer(&first);
        }
        attacker.recover();
    }
}

/// Status bits out of order, doorbells of queues that are not, registers of queues that are not.
fn status(attacker: &mut Attacker<'_>, queues: u32) {
    attacker.phase("status");
    let device = attacker.device;
    for value in [
        DRIVER_OK,
        FEATURES_OK,
        ACKNOWLEDGE | DRIVER_OK,
        ACKNOWLEDGE | DRIVER | DRIVER_OK,
        0x80 | DRIVER_OK,
        u32::MAX,
        0x80,
        0x30,
    ] {
        device.write(Register::Status, 0);
        device.write(Register::Status, value);
        for queue in [0, 1, 2, 63, queues, 0xffff, u32::MAX] {
            device.notify(queue);
        }
        device.acknowledge_interrupts();
        // Back, which only a reset may do.
        device.write(Register::Status, ACKNOWLEDGE);
        attacker.count_silence();
        attacker.recover();
    }
    for queue in [queues, queues + 1, 0x7fff, 0xffff, u32::MAX] {
        device.negotiate();
        let there = device.place_queue(queue, SIZE.into(), [0x1000, 0x2000, 0x3000]);
        device.start();
        device.notify(queue);
        attacker.demand(!there);
        attacker.recover();
    }
    // A queue that is changed while the device uses it.
    if attacker.prepare(0).is_some() {
        let end = attacker.memory.end_of_ram;
        device.place_queue(0, 0x8000, [end, u64::MAX - 15, NOWHERE]);
        device.notify(0);
    }
    attacker.count_silence();
    attacker.recover();
}

/// Features that were not offered, not selected, not enough, and too late.
fn features(attacker: &mut Attacker<'_>) {
    attacker.phase("features");
    let device = attacker.device;
    let set = |select, value| {
        device.write(Register::DriverFeaturesSelect, select);
        device.write(Register::DriverFeatures, value);
    };
    // All there are, and none: version 1 is missing.
    for (low, high) in [(u32::MAX, u32::MAX), (0, 0), (u32::MAX, 0), (0, 1 << 31)] {
        device.write(Register::Status, 0);
        device.write(Register::Status, ACKNOWLEDGE | DRIVER);
        set(0, low);
        set(1, high);
        set(2, u32::MAX);
        set(u32::MAX, u32::MAX);
        device.write(Register::Status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let refused = device.read(Register::Status) & FEATURES_OK == 0;
        device.start();
        device.notify(0);
        attacker.demand(refused);
        attacker.recover();
    }
    device.negotiate();
    for select in [0, 1] {
        set(select, u32::MAX);
    }
    device.start();
    for select in [0, 1] {
        set(select, u32::MAX);
    }
    device.notify(0);
    attacker.count_silence();
    attacker.recover();
}

/// Writes of all widths all over the configuration space, while the device runs and while it does not.
fn configuration(attacker: &mut Attacker<'_>) {
    attacker.phase("configuration");
    let device = attacker.device;
    let (window, start) = device.config();
    for (runs, pattern) in [(false, u64::MAX), (true, 0), (true, 0xa5a5_5a5a_8000_0001)] {
        device.write(Register::Status, 0);
        if runs && device.negotiate() {
            device.start();
        }
        for offset in (start..start + 0x48).step_by(4) {
            window.set(offset, pattern as u8);
            window.set(offset + 2, pattern as u16);
            window.set(offset, pattern as u32);
            window.set(offset, pattern);
            let _: u64 = window.get(offset + 3);
        }
        for offset in [0x7c, 0xfc, 0x1f0, 0x7fd, 0xdfe, 0xefc] {
            window.set(start + offset, pattern as u32);
            let _: u64 = window.get(start + offset);
        }
        attacker.count_silence();
        attacker.recover();
    }
}

/// Most queues that share rings.
const SHARING: u32 = 8;
const _: () = assert!(RINGS + SHARING as u64 * 0x100 + QUEUE_BYTES <= INDIRECT_TABLE);
