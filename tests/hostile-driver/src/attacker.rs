//! Who attacks one device, and looks after each attack, or in a hurry after some, whether all is well:
//! the device comes up again and serves, and so does another, each in its turn.

use crate::honest;
use crate::machine::{Memory, say};
use crate::queue::{Answer, Descriptor, LITTLE_PATIENCE, PATIENCE, Queue, WRITE};
use crate::transport::Device;

/// Offsets in [`Memory`] of the rings under attack, of an indirect table, and of buffers.
pub(crate) const RINGS: u64 = 0x1000;
pub(crate) const INDIRECT_TABLE: u64 = 0x4000;
pub(crate) const DATA: u64 = 0x1_0000;
pub(crate) const ROOM: u64 = 0x4_0000;
/// Guest-physical address behind all memory that the driver uses itself, or its image lies in.
pub(crate) const END_OF_BUFFERS: u64 = 0x200_0000;
/// Guest-physical address of device registers.
pub(crate) const NOWHERE: u64 = 0xd000_0000;

/// How the attacks on one device ended.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) needs_reset: u32,
    pub(crate) returned: u32,
    pub(crate) kept: u32,
    pub(crate) silent: u32,
    pub(crate) recovered: u32,
    pub(crate) others: u32,
    pub(crate) broken: u32,
}

/// How it is done.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    /// Somebody sends back what goes to the network.
    pub(crate) echo: bool,
    /// After how many attacks it is looked whether all is well.
    pub(crate) every: u32,
}

/// See the module.
pub(crate) struct Attacker<'a> {
    pub(crate) device: &'a Device,
    pub(crate) memory: &'a Memory,
    pub(crate) tally: Tally,
    devices: &'a [Option<Device>],
    way: Way,
    /// Attacks after which nobody has looked.
    unseen: u32,
    patience: u32,
    phase: &'static str,
    number: u32,
    turn: usize,
}

impl<'a> Attacker<'a> {
    /// Who attacks `device`, which is one of `devices`.
    pub(crate) fn new(
        device: &'a Device,
        devices: &'a [Option<Device>],
        memory: &'a Memory,
        way: Way,
    ) -> Self {
        Self {
            device,
            memory,
            tally: Tally::default(),
            devices,
            way,
            unseen: 0,
            patience: PATIENCE,
            phase: "",
            number: 0,
            turn: 0,
        }
    }

    /// What is done next, for messages.
    pub(crate) fn phase(&mut self, phase: &'static str) {
        self.phase = phase;
        self.number = 0;
    }

    /// The device with `queue` at [`RINGS`], ready for descriptors; nothing where it refuses it.
    pub(crate) fn prepare(&self, queue: u32) -> Option<Queue> {
        self.prepare_at(queue, RINGS, true)
    }

    /// As [`Self::prepare`], elsewhere, and maybe behind others.
    pub(crate) fn prepare_at(&self, queue: u32, at: u64, alone: bool) -> Option<Queue> {
        let rings = Queue::new(self.memory, queue, at);
        let ready = (!alone || self.device.negotiate()) && rings.place(self.device, self.memory);
        if alone && ready {
            self.device.start();
        }
        ready.then_some(rings)
    }

    /// Offers these descriptors on `queue`, from number 0 on.
    pub(crate) fn offer(&mut self, queue: u32, descriptors: &[Descriptor]) {
        self.offer_at(queue, descriptors, 0, 1);
    }

    /// As [`Self::offer`], with `head` as the first of `index`.
    pub(crate) fn offer_at(&mut self, queue: u32, chain: &[Descriptor], head: u16, index: u16) {
        if let Some(mut rings) = self.prepare(queue) {
            rings.describe(self.memory, chain);
            rings.offer(self.device, self.memory, head, index);
            self.await_answer(&rings);
        }
        self.recover();
    }

    /// A request on `queue` that is in order as a chain: `readable`, then room for `writable` bytes.
    pub(crate) fn request(&mut self, queue: u32, readable: &[u8], writable: u32) {
        self.memory.put_bytes(DATA, readable);
        self.long_request(queue, readable.len() as u32, writable);
    }

    /// As [`Self::request`], of what lies at [`DATA`].
    pub(crate) fn long_request(&mut self, queue: u32, readable: u32, writable: u32) {
        let start = self.memory.start;
        let chain = [(start + DATA, readable, 0), (start + ROOM, writable, WRITE)];
        if let Some(mut rings) = self.prepare(queue) {
            let chain = match (readable, writable) {
                (0, _) => chain.get(1..),
                (_, 0) => chain.get(..1),
                _ => chain.get(..),
            };
            rings.submit(self.device, self.memory, chain.unwrap_or_default());
            self.await_answer(&rings);
        }
        self.recover();
    }

    /// Learns whether the device looks at `queue` at all: some it does not, such as one for input that
    /// has ended.
    pub(crate) fn try_out(&mut self, queue: u32) {
        self.patience = PATIENCE;
        let before = self.tally.silent;
        let start = self.memory.start;
        self.offer(queue, &[(start + ROOM, 0x1000, WRITE, 0)]);
        if self.tally.silent != before {
            self.patience = LITTLE_PATIENCE;
        }
    }

    /// From now on the device is expected to look at every queue.
    pub(crate) fn be_patient(&mut self) {
        self.patience = PATIENCE;
    }

    /// Waits for what the device makes of what was offered on `queue`.
    pub(crate) fn await_answer(&mut self, queue: &Queue) {
        let answer = queue.answer(self.device, self.memory, self.patience);
        self.count(answer);
    }

    fn count(&mut self, answer: Answer) {
        *match answer {
            Answer::NeedsReset => &mut self.tally.needs_reset,
            Answer::Returned => &mut self.tally.returned,
            Answer::Kept => &mut self.tally.kept,
            Answer::Silence => &mut self.tally.silent,
        } += 1;
    }

    /// An attack that nothing answers.
    pub(crate) fn count_silence(&mut self) {
        self.count(Answer::Silence);
    }

    /// What the specification forbids the device.
    pub(crate) fn demand(&mut self, holds: bool) {
        self.count_silence();
        if !holds {
            self.broken("does what it must not", self.device);
        }
    }

    /// Demands that the device serves again, and one of the others as well.
    pub(crate) fn recover(&mut self) {
        self.number += 1;
        self.unseen += 1;
        if self.unseen < self.way.every {
            return;
        }
        self.unseen = 0;
        let echo = self.way.echo;
        if honest::serves(self.device, self.memory, echo) {
            self.tally.recovered += 1;
        } else {
            self.broken("does not serve", self.device);
        }
        let devices = self.devices;
        self.turn = (self.turn + 1) % devices.len().max(1);
        if let Some(Some(other)) = devices.get(self.turn)
            && other.kind != self.device.kind
        {
            if honest::serves(other, self.memory, echo) {
                self.tally.others += 1;
            } else {
                self.broken("does not serve", other);
            }
        }
    }

    fn broken(&mut self, what: &str, device: &Device) {
        self.tally.broken += 1;
        let (attacked, name) = (self.device.name(), device.name());
        let (phase, number) = (self.phase, self.number);
        say(format_args!(
            "BROKEN: {name} {what} after {phase} {number} on {attacked}\n"
        ));
    }
}
