//! Requests that are in order as chains and nonsense to their device.

mod sockets;

use crate::attacker::{Attacker, DATA, NOWHERE, RINGS, ROOM};
use crate::honest::{FUSE_INIT, INIT_BYTES, fuse};
use crate::queue::{QUEUE_BYTES, WRITE};
use crate::transport::Register;

/// Where a device keeps the pages that a driver gives away on purpose.
const PAGES: u64 = 0x18_0000;

/// All that there is for the device's type.
pub(crate) fn all(attacker: &mut Attacker<'_>) {
    match attacker.device.kind {
        1 => net(attacker),
        2 => disk(attacker),
        3 => console(attacker),
        4 => entropy(attacker),
        5 => balloon(attacker),
        19 => sockets::all(attacker),
        24 => memory(attacker),
        26 => share(attacker),
        27 => persistent_memory(attacker),
        _ => {}
    }
}

/// One behind the other, in a buffer.
struct Bytes {
    buffer: [u8; 128],
    len: usize,
}

impl Bytes {
    fn of(fields: &[&[u8]]) -> Self {
        let mut bytes = Self {
            buffer: [0; 128],
            len: 0,
        };
        for (to, from) in bytes
            .buffer
            .iter_mut()
            .zip(fields.iter().copied().flatten())
        {
            *to = *from;
            bytes.len += 1;
        }
        bytes
    }

    fn get(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

/// Kinds and sectors there are none of, data of odd lengths, ranges that are none.
fn disk(attacker: &mut Attacker<'_>) {
    const READ: u32 = 0;
    const OUT: u32 = 1;
    const FLUSH: u32 = 4;
    const GET_ID: u32 = 8;
    const DISCARD: u32 = 11;
    const WRITE_ZEROES: u32 = 13;
    attacker.phase("disk requests");
    let header = |kind: u32, sector: u64| {
        let mut bytes = [0; 16];
        let fields = [kind.to_le_bytes(), [0; 4]];
        let fields = fields.as_flattened().iter().copied();
        for (to, from) in bytes.iter_mut().zip(fields.chain(sector.to_le_bytes())) {
            *to = from;
        }
        bytes
    };
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 0x8000_0000, u32::MAX] {
        attacker.request(0, &header(kind, 0), 513);
    }
    for sector in [2047, 2048, 1 << 23, 1 << 54, 1 << 55, u64::MAX] {
        attacker.request(0, &header(READ, sector), 1025);
        attacker.request(0, &Bytes::of(&[&header(OUT, sector), &[7; 64]]).buffer, 1);
    }
    for room in [0, 1, 2, 512, 514, 0x10_0001, 0x3_0000] {
        for kind in [READ, OUT, FLUSH, GET_ID] {
            attacker.request(0, &header(kind, 0), room);
        }
    }
    // The header cut off, and the data with it.
    for len in [1, 8, 15] {
        let whole = header(READ, 0);
        attacker.request(0, whole.get(..len).unwrap_or_default(), 513);
    }
    for kind in [READ, OUT, FLUSH, GET_ID, DISCARD] {
        attacker.memory.put_bytes(DATA, &header(kind, 0));
        attacker.long_request(0, 0x2_fe01, 513);
    }
    // Ranges: sector, number of sectors, flags.
    for kind in [DISCARD, WRITE_ZEROES] {
        for (sector, count, flags) in [
            (0, 0, 0u32),
            (0, u32::MAX, 0),
            (u64::MAX, 1, 0),
            (1 << 55, 1, 0),
            (2047, 2, 0),
            (0, 8, u32::MAX),
            (0, 1 << 21, 1),
        ] {
            let (sector, count, flags) = (
                u64::to_le_bytes(sector),
                u32::to_le_bytes(count),
                flags.to_le_bytes(),
            );
            let head = header(kind, 0);
            attacker.request(0, Bytes::of(&[&head, &sector, &count, &flags]).get(), 1);
        }
        attacker.memory.put_bytes(DATA, &header(kind, 0));
        for len in [16, 17, 31, 16 + 16 * 17, 0x1_0000] {
            attacker.long_request(0, len, 1);
        }
    }
}

/// Frames that are cut off, too long, from somebody else, or to be cut up at impossible places; and
/// buffers that hold no frame.
fn net(attacker: &mut Attacker<'_>) {
    attacker.phase("frames");
    let [low, high] = [0, 4].map(|at| attacker.device.config_word(at));
    let [m0, m1, m2, m3] = low.to_le_bytes();
    let [m4, m5, ..] = high.to_le_bytes();
    let frame = |header: [u8; 12], source: [u8; 6]| {
        Bytes::of(&[&header, &[0xff; 6], &source, &[0xb5, 0x88], &[0; 64]])
    };
    let own = [m0, m1, m2, m3, m4, m5];
    for len in [1, 11, 12, 13, 18, 24, 25, 26] {
        let bytes = frame([0; 12], own);
        attacker.request(1, bytes.get().get(..len).unwrap_or_default(), 0);
    }
    for source in [[0; 6], [0xff; 6], [m0 ^ 2, m1, m2, m3, m4, m5]] {
        attacker.request(1, frame([0; 12], source).get(), 0);
    }
    // Flags, kind, header length, segment size, start and offset of the checksum, buffers.
    for flags in [0, 1, 2, 4, 0xff] {
        for gso in [0, 1, 3, 4, 5, 6, 0x80, 0x81, 0xff] {
            let header = [flags, gso, 0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
            attacker.request(1, frame(header, own).get(), 0);
        }
    }
    for sizes in [[0; 4], [1, 0, 1, 0], [0, 0, 0xff, 0xff], [78, 0, 0, 0]] {
        let [h0, h1, s0, s1] = sizes;
        let header = [1, 1, h0, h1, s0, s1, 77, 0, 2, 0, 0xff, 0xff];
        attacker.request(1, frame(header, own).get(), 0);
    }
    attacker.memory.put_bytes(DATA, frame([0; 12], own).get());
    for len in [1531, 65_562, 65_563, 0x2_0000] {
        attacker.long_request(1, len, 0);
    }
    attacker.request(1, frame([0; 12], own).get(), 64);
    for room in [1, 9, 10, 11, 12, 13, 26, 64] {
        attacker.request(0, &[], room);
        attacker.request(0, &[0; 12], room);
    }
    net_control(attacker);
}

/// Commands on the control queue of an interface with several pairs of queues: class, code, pairs.
fn net_control(attacker: &mut Attacker<'_>) {
    attacker.device.negotiate();
    let queues = attacker.device.queues();
    if queues < 3 {
        return;
    }
    attacker.phase("commands");
    for class in [0, 1, 4, 5, 0xff] {
        for pairs in [0, 1, 2, 3, 0x8000, 0xffff_u16] {
            let [low, high] = pairs.to_le_bytes();
            for code in [0, 1] {
                attacker.request(queues - 1, &[class, code, low, high], 1);
            }
        }
    }
    for len in [1, 2, 3, 5, 0x1_0000] {
        attacker.memory.put_bytes(DATA, &[4, 0, 2, 0]);
        attacker.long_request(queues - 1, len, 1);
        attacker.long_request(queues - 1, len, 0);
    }
    attacker.long_request(queues - 1, 0, 1);
}

/// Buffers of every size but a good one.
fn entropy(attacker: &mut Attacker<'_>) {
    attacker.phase("entropy requests");
    for room in [1, 4095, 4097, 0x10_0000] {
        attacker.request(0, &[1, 2, 3], room);
        attacker.request(0, &[], room);
    }
}

/// Messages for ports that there are not, of things there are not; data on ports nobody has opened.
fn console(attacker: &mut Attacker<'_>) {
    const CONTROL: u32 = 3;
    attacker.phase("console messages");
    let message = |id: u32, event: u16, value: u16| {
        let (id, event, value) = (id.to_le_bytes(), event.to_le_bytes(), value.to_le_bytes());
        Bytes::of(&[&id, &event, &value])
    };
    for id in [0, 1, 2, 3, 17, 0x7fff_ffff, u32::MAX] {
        for event in [0, 3, 6, 1, 0xffff] {
            for value in [1, 0xffff] {
                attacker.request(CONTROL, message(id, event, value).get(), 0);
            }
        }
    }
    for len in [1, 7] {
        let whole = message(0, 0, 1);
        attacker.request(CONTROL, whole.get().get(..len).unwrap_or_default(), 8);
    }
    attacker.memory.put_bytes(DATA, message(1, 6, 1).get());
    attacker.long_request(CONTROL, 0x1_0000, 0);
    // Input, into buffers of odd sizes, on a port that is opened and closed meanwhile.
    for (room, open) in [(1, 1), (7, 1), (0x1_0000, 1), (64, 0), (64, 0xffff)] {
        let (device, memory) = (attacker.device, attacker.memory);
        if device.negotiate()
            && let Some(mut heard) = attacker.prepare_at(CONTROL, RINGS, false)
            && let Some(mut input) = attacker.prepare_at(4, RINGS + QUEUE_BYTES, false)
        {
            device.start();
            for (at, value) in [(DATA, 1), (DATA + 8, open)] {
                memory.put_bytes(at, message(1, 6, value).get());
                heard.submit(device, memory, &[(memory.start + at, 8, 0)]);
            }
            for _ in 0..8 {
                input.submit(device, memory, &[(memory.start + ROOM, room, WRITE)]);
            }
            attacker.await_answer(&input);
        }
        attacker.recover();
    }
    // Everything is asked for, and there is no room for an answer.
    for room in [0, 1, 7, 8, 12] {
        for control_first in [true, false] {
            let (device, memory) = (attacker.device, attacker.memory);
            if !device.negotiate() {
                continue;
            }
            let told = attacker.prepare_at(2, RINGS, false);
            let heard = attacker.prepare_at(CONTROL, RINGS + QUEUE_BYTES, false);
            let (Some(mut told), Some(mut heard)) = (told, heard) else {
                continue;
            };
            device.start();
            let room = (memory.start + ROOM, room, WRITE);
            if control_first && room.1 != 0 {
                told.submit(device, memory, &[room]);
            }
            for (at, (id, event)) in
                (DATA..)
                    .step_by(8)
                    .zip([(0, 0), (0, 3), (1, 3), (2, 3), (1, 6), (9, 6)])
            {
                memory.put_bytes(at, message(id, event, 1).get());
                heard.submit(device, memory, &[(memory.start + at, 8, 0)]);
            }
            if !control_first && room.1 != 0 {
                told.submit(device, memory, &[room]);
            }
            attacker.await_answer(&heard);
            attacker.recover();
        }
    }
}

/// Pages that are not memory, those of the rings themselves, and reports that are none.
fn balloon(attacker: &mut Attacker<'_>) {
    attacker.phase("pages");
    let page = |address: u64| ((address / 4096) as u32).to_le_bytes();
    let memory = attacker.memory;
    let own = page(memory.start + PAGES);
    let rings = page(memory.start + RINGS);
    let behind = page(memory.end_of_ram);
    let far = page(1 << 32);
    for queue in [0, 1] {
        for numbers in [
            [u32::MAX.to_le_bytes(); 4],
            [behind, behind, own, own],
            [page(NOWHERE), page(0xfee0_0000), page(0xffff_f000), own],
            [far, page((1 << 32) + (64 << 20)), page(u64::MAX >> 21), own],
            [own, 0x8000_0000u32.to_le_bytes(), [0; 4], own],
            [rings; 4],
        ] {
            attacker.request(queue, numbers.as_flattened(), 0);
        }
        for len in [1, 2, 3, 5, 7] {
            let numbers = [own; 2];
            attacker.request(
                queue,
                numbers.as_flattened().get(..len).unwrap_or_default(),
                0,
            );
        }
        // More than it acts on, and all of it nonsense.
        for word in 0..32 {
            memory.put(DATA + 8 * word, u64::MAX);
        }
        attacker.long_request(queue, 0x1_0000, 0);
        attacker.long_request(queue, 0, 64);
    }
    // Tags and values of statistics.
    attacker.phase("statistics");
    for tag in [0u16, 9, 10, 0xffff] {
        let tag = tag.to_le_bytes();
        attacker.request(2, Bytes::of(&[&tag, &[0xff; 8], &tag, &[0xff; 8]]).get(), 0);
    }
    for len in [1, 2, 9, 11, 0x2_0000] {
        attacker.long_request(2, len, 0);
    }
    // Two buffers, where a driver has one.
    if let Some(mut queue) = attacker.prepare(2) {
        for _ in 0..3 {
            queue.submit(attacker.device, memory, &[(memory.start + DATA, 10, 0)]);
        }
    }
    attacker.count_silence();
    attacker.recover();
    attacker.phase("reports");
    let start = memory.start;
    for chain in [
        [(start + PAGES + 1, 4095, WRITE); 2],
        [(start + PAGES, 0x1_0000, WRITE), (start + PAGES, 1, WRITE)],
        [(start + RINGS, 0x1000, WRITE); 2],
        [
            (start + PAGES, 0x1000, WRITE),
            (0x200_0000, 0x200_0000, WRITE),
        ],
        [(start + PAGES, 0x1000, 0); 2],
    ] {
        if let Some(mut queue) = attacker.prepare(3) {
            queue.submit(attacker.device, memory, &chain);
            attacker.await_answer(&queue);
        }
        attacker.recover();
    }
}

/// Blocks outside the region, none, too many, and what was not asked for.
fn memory(attacker: &mut Attacker<'_>) {
    attacker.phase("blocks");
    let words = [16, 20, 24, 28].map(|at| u64::from(attacker.device.config_word(at)));
    let [start, len] = [words[0] | words[1] << 32, words[2] | words[3] << 32];
    let request = |kind: u16, address: u64, count: u16| {
        let (kind, address, count) = (
            kind.to_le_bytes(),
            address.to_le_bytes(),
            count.to_le_bytes(),
        );
        Bytes::of(&[&kind, &[0; 6], &address, &count, &[0; 6]])
    };
    for kind in [0, 1, 3, 4, 0xffff] {
        for (address, count) in [
            (start, 0),
            (start, 1),
            (start, 0xffff),
            (start + 1, 1),
            (start - 1, 1),
            (start + len, 1),
            (start + len - (2 << 20), 2),
            (0, 1),
            (u64::MAX, 0xffff),
            (NOWHERE, 1),
        ] {
            attacker.request(0, request(kind, address, count).get(), 10);
        }
    }
    // All that may be plugged, plugged and unplugged, and the device reset meanwhile.
    let blocks = (len >> 21) as u16;
    for _ in 0..3 {
        attacker.request(0, request(0, start, blocks).get(), 10);
        attacker.request(0, request(1, start, 3).get(), 10);
        if let Some(mut queue) = attacker.prepare(0) {
            let (device, memory) = (attacker.device, attacker.memory);
            memory.put_bytes(DATA, request(2, 0, 0).get());
            let data = (memory.start + DATA, 24, 0);
            for _ in 0..4 {
                queue.submit(device, memory, &[data, (memory.start + ROOM, 10, WRITE)]);
            }
            device.write(Register::Status, 0);
        }
        attacker.count_silence();
        attacker.recover();
    }
    for len in [1, 7, 17, 23] {
        let whole = request(3, start, 1);
        attacker.request(0, whole.get().get(..len).unwrap_or_default(), 10);
    }
    for room in [0, 1, 9] {
        attacker.request(0, request(3, start, 1).get(), room);
        attacker.request(0, request(2, start, 1).get(), room);
    }
    // Buffers in memory that was never plugged.
    attacker.offer(0, &[(start, 24, 0, 0), (0, 0, 0, 0)]);
}

/// Requests that are no flush, and flushes without number.
fn persistent_memory(attacker: &mut Attacker<'_>) {
    attacker.phase("flushes");
    let [low, high] = [0, 4].map(|at| u64::from(attacker.device.config_word(at)));
    let own = low | high << 32;
    for kind in [1u32, 0x100, u32::MAX] {
        attacker.request(0, &kind.to_le_bytes(), 4);
    }
    for (len, room) in [(1, 4), (3, 4), (4, 0), (4, 1), (4, 3), (0x1_0000, 0x1000)] {
        attacker.memory.put(DATA, 0u64);
        attacker.long_request(0, len, room);
    }
    // A buffer in the persistent memory itself.
    attacker.offer(0, &[(own, 4, 0, 0)]);
    attacker.offer(0, &[(own, 4, WRITE, 0)]);
    for _ in 0..200 {
        if let Some(mut queue) = attacker.prepare(0) {
            let (device, memory) = (attacker.device, attacker.memory);
            let start = memory.start;
            let chain = [(start + DATA, 4, 0), (start + ROOM, 4, WRITE)];
            queue.submit(device, memory, &chain);
        }
    }
    attacker.count_silence();
    attacker.recover();
}

/// Operations there are none of, lengths that lie, nodes nobody has, and no room for an answer.
fn share(attacker: &mut Attacker<'_>) {
    attacker.phase("file requests");
    for opcode in (0..52).chain([100, 4096, u32::MAX]) {
        attacker.request(1, &fuse(opcode, 1, 40), 256);
    }
    for opcode in [2, FUSE_INIT, 36, 42, u32::MAX] {
        attacker.request(0, &fuse(opcode, 1, 40), 256);
    }
    for len in [0, 39, 41, u32::MAX] {
        attacker.request(1, &fuse(FUSE_INIT, 0, len), 4096);
        // READ, WRITE, READDIR, BATCH_FORGET and LOOKUP, with arguments that are nonsense.
        for opcode in [1, 15, 16, 28, 42] {
            for node in [0, 1, u64::MAX] {
                let head = fuse(opcode, node, len);
                attacker.request(1, Bytes::of(&[&head, &[0xff; 88]]).get(), 4096);
            }
        }
    }
    for len in [1, 4, 39] {
        let whole = fuse(FUSE_INIT, 0, 40);
        attacker.request(1, whole.get(..len).unwrap_or_default(), 4096);
    }
    for room in [0, 1, 15, 16, 17] {
        attacker.request(1, &fuse(FUSE_INIT, 0, INIT_BYTES), room);
    }
    for len in [0x1_0000, 0x3_0000] {
        attacker.memory.put_bytes(DATA, &fuse(16, 1, len));
        attacker.long_request(1, len, 0x10_0000);
    }
}
