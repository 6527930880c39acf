//! What a good driver does: brings a device up and has it serve one request, whose outcome is
//! checked.

use crate::machine::Memory;
use crate::queue::{QUEUE_BYTES, Queue, WRITE};
use crate::transport::{Device, Register};

/// Offset of the rings and of the buffers of honest requests.
const RINGS: u64 = 0x10_0000;
const DATA: u64 = 0x11_0000;
const ANSWER: u64 = 0x12_0000;
/// Room for one answer.
const ROOM: u32 = 4096;
/// What is written to a disk, and sent to a network.
const STAMP: u64 = 0x7473_656e_6f68;
/// A port of the host that accepts.
const PORT: u32 = 80;

/// Brings `device` up from nothing and has it serve; true when it does. `echo`: somebody sends back
/// what goes to the network.
pub(crate) fn serves(device: &Device, memory: &Memory, echo: bool) -> bool {
    for word in 0..16 {
        memory.put(ANSWER + 8 * word, 0u64);
    }
    let mut driver = Driver {
        device,
        memory,
        queues: [const { None }; 4],
    };
    if !device.negotiate() {
        return false;
    }
    let served = match device.kind {
        1 => driver.net(echo),
        2 => driver.disk(),
        3 => driver.console(),
        4 => driver.entropy(),
        5 => driver.balloon(),
        19 => driver.vsock(),
        24 => driver.memory(),
        26 => driver.share(),
        27 => driver.persistent_memory(),
        _ => None,
    };
    // The next reset finds it at rest.
    device.write(Register::Status, 0);
    served.is_some() && device.read(Register::Status) == 0
}

struct Driver<'a> {
    device: &'a Device,
    memory: &'a Memory,
    queues: [Option<Queue>; 4],
}

impl Driver<'_> {
    /// Places these queues and starts the device.
    fn start(&mut self, indices: &[u32]) -> Option<()> {
        for ((index, slot), at) in indices
            .iter()
            .zip(&mut self.queues)
            .zip((RINGS..).step_by(QUEUE_BYTES as usize))
        {
            let queue = Queue::new(self.memory, *index, at);
            if !queue.place(self.device, self.memory) {
                return None;
            }
            *slot = Some(queue);
        }
        self.device.start();
        Some(())
    }

    /// Offers a chain on the `n`-th of these queues.
    fn submit(&mut self, n: usize, chain: &[(u64, u32, u16)]) -> Option<()> {
        let queue = self.queues.get_mut(n)?.as_mut()?;
        queue.submit(self.device, self.memory, chain);
        Some(())
    }

    /// Waits for the `count`-th answer on it: its length.
    fn wait(&self, n: usize, count: u16) -> Option<u32> {
        let queue = self.queues.get(n)?.as_ref()?;
        queue.wait(self.device, self.memory, count)
    }

    fn data(&self) -> u64 {
        self.memory.start + DATA
    }

    fn answer(&self) -> u64 {
        self.memory.start + ANSWER
    }

    /// A request of `len` bytes at [`DATA`], with room for `room` bytes; what was answered must be
    /// as long.
    fn exchange(&mut self, n: usize, len: u32, room: u32) -> Option<()> {
        let chain = [(self.data(), len, 0), (self.answer(), room, WRITE)];
        self.submit(n, &chain)?;
        (self.wait(n, 1)? == room).then_some(())
    }

    /// Writes a sector, and reads it.
    fn disk(&mut self) -> Option<()> {
        const SECTOR: u64 = 3;
        self.start(&[0])?;
        let (header, data, status) = (self.data(), self.data() + 0x200, self.answer() + 0x400);
        for (number, kind) in [(1, 1u64), (2, 0)] {
            self.memory.put(DATA, kind);
            self.memory.put(DATA + 8, SECTOR);
            self.memory.put(DATA + 0x200, STAMP * (2 - kind));
            self.memory.put(ANSWER + 0x400, 0xffu8);
            let (data, flags) = match kind {
                0 => (self.answer(), WRITE),
                _ => (data, 0),
            };
            let chain = [(header, 16, 0), (data, 512, flags), (status, 1, WRITE)];
            self.submit(0, &chain)?;
            self.wait(0, number)?;
            if self.memory.get::<u8>(ANSWER + 0x400) != 0 {
                return None;
            }
        }
        (self.memory.get::<u64>(ANSWER) == STAMP).then_some(())
    }

    fn entropy(&mut self) -> Option<()> {
        self.start(&[0])?;
        self.submit(0, &[(self.answer(), 64, WRITE)])?;
        (self.wait(0, 1)? == 64).then_some(())
    }

    /// Sends a frame, which comes back: behind what came back of others.
    fn net(&mut self, echo: bool) -> Option<()> {
        const HEADER: u64 = 12;
        const BUFFERS: u16 = 7;
        const MOST: u16 = 1000;
        let buffer = |number: u16| u64::from(number % BUFFERS) * u64::from(ROOM);
        self.start(&[0, 1])?;
        for number in 0..BUFFERS {
            let room = (self.answer() + buffer(number), ROOM, WRITE);
            self.submit(0, &[room])?;
        }
        for word in 0..10 {
            self.memory.put(DATA + 8 * word, 0u64);
        }
        for at in 0..6 {
            let byte = self.device.config_word(at) as u8;
            self.memory.put(DATA + HEADER + at, 0xffu8);
            self.memory.put(DATA + HEADER + 6 + at, byte);
        }
        self.memory.put(DATA + HEADER + 12, 0xb588u16);
        self.memory.put(DATA + HEADER + 14, STAMP);
        self.submit(1, &[(self.data(), 72, 0)])?;
        self.wait(1, 1)?;
        for number in 0..if echo { MOST } else { 0 } {
            let len = self.wait(0, number + 1)?;
            let at = ANSWER + buffer(number);
            if len == 72 && self.memory.get::<u64>(at + HEADER + 14) == STAMP {
                return Some(());
            }
            self.submit(0, &[(self.memory.start + at, ROOM, WRITE)])?;
        }
        (!echo).then_some(())
    }

    /// Connects to the host.
    fn vsock(&mut self) -> Option<()> {
        const RESPONSE: u16 = 2;
        self.start(&[0, 1])?;
        self.submit(0, &[(self.answer(), ROOM, WRITE)])?;
        let cid = u64::from(self.device.config_word(0));
        self.memory.put_bytes(DATA, &request(cid, PORT).to_bytes());
        self.submit(1, &[(self.data(), PACKET as u32, 0)])?;
        self.wait(1, 1)?;
        self.wait(0, 1)?;
        let (from, to): (u32, u32) = (self.memory.get(ANSWER + 16), self.memory.get(ANSWER + 20));
        let op: u16 = self.memory.get(ANSWER + 30);
        ((from, to, op) == (PORT, PORT + 1, RESPONSE)).then_some(())
    }

    /// Asks for ports, and prints an empty line.
    fn console(&mut self) -> Option<()> {
        const DEVICE_ADD: u16 = 1;
        self.start(&[1, 2, 3])?;
        self.submit(1, &[(self.answer(), 64, WRITE)])?;
        // DEVICE_READY, 1.
        self.memory.put(DATA, 0x0001_0000_0000_0000u64);
        self.submit(2, &[(self.data(), 8, 0)])?;
        self.wait(2, 1)?;
        self.wait(1, 1)?;
        self.memory.put(DATA + 8, b'\n');
        self.submit(0, &[(self.data() + 8, 1, 0)])?;
        self.wait(0, 1)?;
        (self.memory.get::<u16>(ANSWER + 4) == DEVICE_ADD).then_some(())
    }

    /// Gives a page of its own.
    fn balloon(&mut self) -> Option<()> {
        const PAGE: u64 = 0x13_0000;
        self.start(&[0])?;
        self.memory.put(PAGE, STAMP);
        let number = (self.memory.start + PAGE) / 4096;
        self.memory.put(DATA, number as u32);
        self.submit(0, &[(self.data(), 4, 0)])?;
        self.wait(0, 1)?;
        (self.memory.get::<u64>(PAGE) == 0).then_some(())
    }

    /// Asks for the state of the first block.
    fn memory(&mut self) -> Option<()> {
        const STATE: u64 = 3;
        self.start(&[0])?;
        let [low, high] = [16, 20].map(|at| self.device.config_word(at));
        self.memory.put(DATA, STATE);
        self.memory.put(DATA + 8, low);
        self.memory.put(DATA + 12, high);
        self.memory.put(DATA + 16, 1u64);
        self.memory.put(ANSWER, u16::MAX);
        self.exchange(0, 24, 10)?;
        (self.memory.get::<u16>(ANSWER) == 0).then_some(())
    }

    /// Has what it wrote made durable.
    fn persistent_memory(&mut self) -> Option<()> {
        self.start(&[0])?;
        self.memory.put(DATA, 0u32);
        self.memory.put(ANSWER, u32::MAX);
        self.exchange(0, 4, 4)?;
        (self.memory.get::<u32>(ANSWER) == 0).then_some(())
    }

    /// Mounts.
    fn share(&mut self) -> Option<()> {
        self.start(&[0, 1])?;
        self.memory.put_bytes(DATA, &fuse(FUSE_INIT, 0, INIT_BYTES));
        self.memory.put(DATA + 40, 7u32);
        self.memory.put(DATA + 44, 31u32);
        self.memory.put(DATA + 48, 0u64);
        let chain = [(self.data(), INIT_BYTES, 0), (self.answer(), ROOM, WRITE)];
        self.submit(1, &chain)?;
        let len = self.wait(1, 1)?;
        let error: i32 = self.memory.get(ANSWER + 4);
        let unique: u64 = self.memory.get(ANSWER + 8);
        (len > 16 && error == 0 && unique == STAMP).then_some(())
    }
}

/// Bytes of a vsock header (section 5.10.6).
pub(crate) const PACKET: usize = 44;

/// A vsock header.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) cids: [u64; 2],
    pub(crate) ports: [u32; 2],
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) credit: [u32; 2],
}

impl Packet {
    pub(crate) fn to_bytes(self) -> [u8; PACKET] {
        let mut bytes = [0; PACKET];
        let [source, target] = self.cids.map(u64::to_le_bytes);
        let [from, to] = self.ports.map(u32::to_le_bytes);
        let [alloc, forwarded] = self.credit.map(u32::to_le_bytes);
        let fields: [&[u8]; 10] = [
            &source,
            &target,
            &from,
            &to,
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &alloc,
            &forwarded,
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }
}

/// The guest with address `cid` wants to connect to `port` of the host.
pub(crate) fn request(cid: u64, port: u32) -> Packet {
    Packet {
        cids: [cid, 2],
        ports: [port + 1, port],
        len: 0,
        kind: 1,
        op: 1,
        flags: 0,
        credit: [0x1_0000, 0],
    }
}

pub(crate) const FUSE_INIT: u32 = 26;
/// Bytes of that request.
pub(crate) const INIT_BYTES: u32 = 56;

/// The header of a FUSE request of `len` bytes in all.
pub(crate) fn fuse(opcode: u32, node: u64, len: u32) -> [u8; 40] {
    let mut bytes = [0; 40];
    let fields: [&[u8]; 4] = [
        &len.to_le_bytes(),
        &opcode.to_le_bytes(),
        &STAMP.to_le_bytes(),
        &node.to_le_bytes(),
    ];
    for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    bytes
}
