//! Messages: built, sent, received.

use core::time::Duration;

use bulkhead_abi::syscall::{CALL, NB_RECV, NB_SEND, RECV, REPLY, REPLY_RECV, SEND, Status};
use bulkhead_abi::timeout::Timeout;

use crate::object::{Endpoint, Reply};
use crate::syscall::{Registers, exchange};

/// Words of a message that travel in registers.
pub const REGISTER_WORDS: usize = bulkhead_abi::object::REGISTER_WORDS as usize;

/// A message: a label and words. Those beyond [`REGISTER_WORDS`], and handles of capabilities, are
/// put into the thread's message buffer by whoever has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    label: u32,
    length: usize,
    capabilities: u64,
    words: [u64; REGISTER_WORDS],
}

impl Message {
    /// A message without words.
    #[must_use]
    pub const fn new(label: u32) -> Self {
        Self {
            label,
            length: 0,
            capabilities: 0,
            words: [0; REGISTER_WORDS],
        }
    }

    /// The message with another word at its end; beyond [`REGISTER_WORDS`] only its length grows.
    #[must_use]
    pub fn word(mut self, word: u64) -> Self {
        if let Some(place) = self.words.get_mut(self.length) {
            *place = word;
        }
        self.length += 1;
        self
    }

    /// The message with these words.
    #[must_use]
    pub fn words(self, words: &[u64]) -> Self {
        words.iter().fold(self, |message, word| message.word(*word))
    }

    /// The message with so many words, of which those that are not set are zero.
    #[must_use]
    pub const fn length(mut self, length: usize) -> Self {
        self.length = length;
        self
    }

    /// The message with so many capabilities, whose handles are in the message buffer.
    #[must_use]
    pub const fn capabilities(mut self, count: u64) -> Self {
        self.capabilities = count;
        self
    }

    const fn registers(&self, operation: u64, handle: u64) -> Registers {
        let info = (self.length as u64 & 0xff) << 8
            | (self.capabilities & 3) << 16
            | (self.label as u64) << 32;
        let [rdx, r8, r9, r10, r12, r13, r14, r15, rbx, rbp] = self.words;
        Registers {
            rax: operation | info,
            rdi: handle,
            rsi: 0,
            rdx,
            r8,
            r9,
            r10,
            r12,
            r13,
            r14,
            r15,
            rbx,
            rbp,
        }
    }
}

/// What was received: a message, or the answer of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Badge of the capability that it was sent by, or of the signals that came instead.
    pub badge: u64,
    /// What the sender calls it.
    pub label: u32,
    /// Number of words.
    pub length: usize,
    /// Number of capabilities that came with it.
    pub capabilities: u64,
    words: [u64; REGISTER_WORDS],
}

impl Received {
    fn of(registers: &Registers) -> Result<Self, Status> {
        registers.status()?;
        let info = registers.rsi;
        Ok(Self {
            badge: registers.rdi,
            label: (info >> 32) as u32,
            length: (info >> 8 & 0xff) as usize,
            capabilities: info >> 16 & 3,
            words: registers.words(),
        })
    }

    /// The words that came in registers.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        self.words
            .get(..self.length.min(REGISTER_WORDS))
            .unwrap_or_default()
    }
}

/// A timeout, as it stands beside an operation's number.
pub(crate) const fn within(time: Duration) -> u64 {
    Timeout::after(time).bits()
}

fn run(mut registers: Registers) -> Registers {
    // SAFETY: messages change no memory but that of message buffers, which nothing refers to while
    // the kernel has them.
    unsafe { exchange(&mut registers) };
    registers
}

impl Endpoint {
    /// Sends a message; waits for a receiver.
    ///
    /// # Errors
    /// See [`SEND`].
    pub fn send(self, message: &Message) -> Result<(), Status> {
        run(message.registers(SEND, self.0)).status()
    }

    /// Sends a message; waits for a receiver no longer than that.
    ///
    /// # Errors
    /// See [`SEND`]; [`Status::TimedOut`].
    pub fn send_within(self, message: &Message, time: Duration) -> Result<(), Status> {
        run(message.registers(SEND | within(time), self.0)).status()
    }

    /// Sends a message if somebody is receiving.
    ///
    /// # Errors
    /// See [`NB_SEND`].
    pub fn try_send(self, message: &Message) -> Result<(), Status> {
        run(message.registers(NB_SEND, self.0)).status()
    }

    /// Sends a message and waits for the answer.
    ///
    /// # Errors
    /// See [`CALL`].
    pub fn call(self, message: &Message) -> Result<Received, Status> {
        Received::of(&run(message.registers(CALL, self.0)))
    }

    /// Sends a message and waits for the answer, no longer than that in all.
    ///
    /// # Errors
    /// See [`CALL`]; [`Status::TimedOut`].
    pub fn call_within(self, message: &Message, time: Duration) -> Result<Received, Status> {
        Received::of(&run(message.registers(CALL | within(time), self.0)))
    }

    fn take(self, operation: u64, reply: Option<Reply>) -> Result<Received, Status> {
        let registers = Message::new(0).registers(operation, self.0);
        let rsi = reply.map_or(0, |reply| reply.0);
        Received::of(&run(Registers { rsi, ..registers }))
    }

    /// Waits for a message; calls are answered through `reply`.
    ///
    /// # Errors
    /// See [`RECV`].
    pub fn receive(self, reply: Option<Reply>) -> Result<Received, Status> {
        self.take(RECV, reply)
    }

    /// Waits for a message, no longer than that.
    ///
    /// # Errors
    /// See [`RECV`]; [`Status::TimedOut`].
    pub fn receive_within(self, reply: Option<Reply>, time: Duration) -> Result<Received, Status> {
        self.take(RECV | within(time), reply)
    }

    /// Receives a message if somebody is sending; badge 0 and no words else.
    ///
    /// # Errors
    /// See [`NB_RECV`].
    pub fn try_receive(self, reply: Option<Reply>) -> Result<Received, Status> {
        self.take(NB_RECV, reply)
    }

    /// Answers the call that `reply` holds, then waits for the next message.
    ///
    /// # Errors
    /// See [`REPLY_RECV`].
    pub fn reply_receive(self, reply: Reply, message: &Message) -> Result<Received, Status> {
        let registers = message.registers(REPLY_RECV, self.0);
        let rsi = reply.0;
        Received::of(&run(Registers { rsi, ..registers }))
    }

    /// Answers the call that `reply` holds, then waits for the next message, no longer than that.
    ///
    /// # Errors
    /// See [`REPLY_RECV`]; [`Status::TimedOut`] when the answer was given and nothing came.
    pub fn reply_receive_within(
        self,
        reply: Reply,
        message: &Message,
        time: Duration,
    ) -> Result<Received, Status> {
        let registers = message.registers(REPLY_RECV | within(time), self.0);
        let rsi = reply.0;
        Received::of(&run(Registers { rsi, ..registers }))
    }
}

impl Reply {
    /// Answers the call that it holds.
    ///
    /// # Errors
    /// See [`REPLY`].
    pub fn answer(self, message: &Message) -> Result<(), Status> {
        run(message.registers(REPLY, self.0)).status()
    }
}
