//! One connection: a Unix socket on the host, credit both ways, and what the guest has to be told.
//! Used by the vsock device alone.
//!
//! Data for the guest is read straight into its buffer. Data from it is written straight out of its
//! buffer; what the host process does not take at once is held, up to the credit the guest has.

use std::collections::VecDeque;

use vm_memory::GuestMemoryMmap;

use super::credit::{BUFFER_BYTES, Credit};
use super::packet::{HEADER_BYTES, Header, Key, MAX_PAYLOAD, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::stream::{Moved, Stream};
use crate::devices::virtio::DeviceError;
use crate::devices::virtio::queue::Chain;

/// Both directions have ended.
const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
/// Longest line that a host process begins with: `CONNECT ` and ten digits, and some grace.
const MAX_GREETING: usize = 32;

/// How far a connection has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host process has not said yet which port it wants; the line so far.
    Greeting(Vec<u8>),
    /// The guest was asked to accept.
    Requested,
    /// The supervisor was asked to connect, by a request of this number.
    Asked(u64),
    /// Data flows.
    Open,
    /// The guest is done with it; what it sent before is still on its way.
    Draining,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) phase: Phase,
    /// Ends what does not come to its end by itself, on the device's clock.
    pub(super) deadline: Option<u64>,
    /// In the device's list of connections that have something for the guest.
    pub(super) listed: bool,
    /// None while the supervisor is asked.
    stream: Option<Stream>,
    credit: Credit,
    /// From the guest, for the host process; at most [`BUFFER_BYTES`].
    held: VecDeque<u8>,
    /// The socket may have data, or its end.
    readable: bool,
    /// The host process sends no more.
    host_ended: bool,
    /// The host process receives no more.
    host_closed: bool,
    /// Shutdown flags that the guest knows of.
    told: u32,
    /// Shutdown flags of the guest.
    guest_flags: u32,
    /// A packet that is due before all others.
    due: Option<Op>,
    /// The guest wants to know its credit.
    credit_due: bool,
    /// The guest was asked for credit, and has not said anything since.
    asked_credit: bool,
}

/// What a connection makes of a packet or an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It is over, and the guest has to be told.
    Reset,
    /// It is over, and the guest knows, or never knew of it.
    Gone,
}

impl Connection {
    /// One that begins in `phase`.
    pub(super) fn new(phase: Phase, stream: Option<Stream>, deadline: u64) -> Self {
        Self {
            phase,
            deadline: Some(deadline),
            listed: false,
            readable: stream.is_some(),
            stream,
            credit: Credit::default(),
            held: VecDeque::new(),
            host_ended: false,
            host_closed: false,
            told: 0,
            guest_flags: 0,
            due: None,
            credit_due: false,
            asked_credit: false,
        }
    }

    /// The socket, to wait for.
    pub(super) fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Whether the guest knows of it, and has to be told when it ends.
    pub(super) fn is_shared(&self) -> bool {
        !matches!(self.phase, Phase::Greeting(_) | Phase::Draining) && self.due != Some(Op::Request)
    }

    /// Reads the line that a host process begins with; the port, when it is whole. The line of one
    /// that says something else, or nothing, is over.
    pub(super) fn greet(&mut self) -> Result<Option<u32>, Fate> {
        let (Phase::Greeting(line), Some(stream)) = (&mut self.phase, &self.stream) else {
            return Ok(None);
        };
        // A byte at a time: what comes behind the line is the guest's.
        loop {
            match stream.receive_byte() {
                (Moved::WouldBlock, _) => return Ok(None),
                (Moved::Bytes(_), b'\n') => {
                    return parse_greeting(line).map(Some).ok_or(Fate::Gone);
                }
                (Moved::Bytes(_), byte) if line.len() < MAX_GREETING => line.push(byte),
                _ => return Err(Fate::Gone),
            }
        }
    }

    /// The guest is to be asked to accept.
    pub(super) fn request(&mut self, deadline: u64) {
        self.phase = Phase::Requested;
        self.deadline = Some(deadline);
        self.due = Some(Op::Request);
    }

    /// The supervisor has connected; the guest is to be told.
    pub(super) fn accept(&mut self, stream: Stream) {
        self.stream = Some(stream);
        self.phase = Phase::Open;
        self.deadline = None;
        self.due = Some(Op::Response);
        self.readable = true;
    }

    /// Takes the credit that a packet of the guest brings.
    pub(super) fn learn(&mut self, header: &Header) {
        self.credit
            .learn(header.buf_alloc.get(), header.fwd_cnt.get());
        self.asked_credit = false;
    }

    /// Takes a packet other than `Request` from the guest; `chain` holds its payload. `closing` is
    /// the deadline of what is about to end.
    pub(super) fn take(
        &mut self,
        key: Key,
        op: Op,
        header: &Header,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        closing: u64,
    ) -> Result<Fate, DeviceError> {
        self.learn(header);
        Ok(match (op, &self.phase) {
            (Op::Reset, Phase::Open)
                if !self.held.is_empty() && self.guest_flags & SHUTDOWN_SEND != 0 =>
            {
                self.phase = Phase::Draining;
                self.deadline = Some(closing);
                Fate::Lives
            }
            (Op::Reset, Phase::Draining) => Fate::Lives,
            (Op::Reset, _) => Fate::Gone,
            (Op::Response, Phase::Requested) => {
                self.phase = Phase::Open;
                self.deadline = None;
                let line = format!("OK {}\n", key.host_port);
                match self.stream.as_ref().map(|s| s.send_bytes(line.as_bytes())) {
                    Some(Moved::Bytes(len)) if len == line.len() => Fate::Lives,
                    _ => Fate::Reset,
                }
            }
            (Op::Request | Op::Response, _) => Fate::Reset,
            (Op::Data, Phase::Open) => self.take_data(header.len.get(), chain, memory)?,
            (Op::Shutdown, Phase::Open) => {
                self.guest_flags |= header.flags.get() & SHUTDOWN_BOTH;
                if self.guest_flags == SHUTDOWN_BOTH {
                    self.deadline.get_or_insert(closing);
                }
                self.after_sending()
            }
            (Op::CreditUpdate, Phase::Open) => Fate::Lives,
            (Op::CreditRequest, Phase::Open) => {
                self.credit_due = true;
                Fate::Lives
            }
            _ => Fate::Reset,
        })
    }

    fn take_data(
        &mut self,
        len: u32,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Fate, DeviceError> {
        let beyond = self.held.len() + len as usize > BUFFER_BYTES as usize;
        if beyond || self.guest_flags & SHUTDOWN_SEND != 0 {
            return Ok(Fate::Reset);
        }
        let mut done = 0u64;
        while self.held.is_empty() && !self.host_closed && done < u64::from(len) {
            let rest = u64::from(len) - done;
            let slices = chain.readable.slices(memory, HEADER_BYTES + done, rest)?;
            match self.stream.as_ref().map(|stream| stream.send(&slices)) {
                Some(Moved::Bytes(count)) => done += count as u64,
                Some(Moved::WouldBlock) => break,
                Some(Moved::Closed) | None => self.host_closed = true,
            }
        }
        let rest = u64::from(len) - done;
        if self.host_closed {
            // Nobody will read it; the guest learns so.
            done += rest;
        } else if rest > 0 {
            let mut bytes = vec![0; rest as usize];
            chain
                .readable
                .read_at(memory, HEADER_BYTES + done, &mut bytes)?;
            self.held.extend(bytes);
        }
        self.credit.forward(done as usize);
        Ok(Fate::Lives)
    }

    /// Passes on what is held, as far as the host process takes it.
    pub(super) fn flush(&mut self) -> Fate {
        while let (false, (first, _), Some(stream)) =
            (self.host_closed, self.held.as_slices(), &self.stream)
        {
            if first.is_empty() {
                break;
            }
            match stream.send_bytes(first) {
                Moved::Bytes(count) => {
                    self.held.drain(..count);
                    self.credit.forward(count);
                }
                Moved::WouldBlock => break,
                Moved::Closed => self.host_closed = true,
            }
        }
        if self.host_closed {
            self.credit.forward(self.held.len());
            self.held.clear();
        }
        self.after_sending()
    }

    /// Ends the direction to the host process, when the guest has and nothing is held any more.
    fn after_sending(&mut self) -> Fate {
        if !self.held.is_empty() || self.guest_flags & SHUTDOWN_SEND == 0 {
            return Fate::Lives;
        }
        if self.phase == Phase::Draining {
            return Fate::Gone;
        }
        if self.guest_flags == SHUTDOWN_BOTH {
            return Fate::Reset;
        }
        if let Some(stream) = &self.stream {
            stream.end_sending();
        }
        Fate::Lives
    }

    /// The socket has something to say.
    pub(super) fn wake(&mut self, hung_up: bool) {
        self.readable = true;
        self.host_closed |= hung_up;
    }

    /// Bytes that the host process has not taken yet.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packet(&self) -> bool {
        self.due.is_some()
            || self.phase == Phase::Open
                && (self.can_read()
                    || self.shutdown_flags() != self.told
                    || self.credit_due
                    || self.credit.is_stale()
                    || self.wants_credit())
    }

    fn wants_data(&self) -> bool {
        self.readable && !self.host_ended && self.guest_flags & SHUTDOWN_RECEIVE == 0
    }

    fn can_read(&self) -> bool {
        self.wants_data() && self.credit.room() > 0
    }

    fn wants_credit(&self) -> bool {
        self.wants_data() && self.credit.room() == 0 && !self.asked_credit
    }

    fn shutdown_flags(&self) -> u32 {
        let receive = if self.host_closed {
            SHUTDOWN_RECEIVE
        } else {
            0
        };
        let send = if self.host_ended { SHUTDOWN_SEND } else { 0 };
        receive | send
    }

    /// Puts the next packet for the guest with address `cid` into `chain`; its length with the
    /// header, or nothing when there is none after all.
    pub(super) fn next_packet(
        &mut self,
        cid: u32,
        key: Key,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        closing: u64,
    ) -> Result<Option<u32>, DeviceError> {
        let mut len = 0;
        let mut flags = 0;
        let op = if let Some(op) = self.due.take() {
            op
        } else if self.phase != Phase::Open {
            return Ok(None);
        } else {
            if self.can_read() {
                len = self.read(chain, memory)?;
            }
            if len > 0 {
                Op::Data
            } else if self.shutdown_flags() != self.told {
                flags = self.shutdown_flags();
                self.told = flags;
                if flags == SHUTDOWN_BOTH {
                    self.deadline.get_or_insert(closing);
                }
                Op::Shutdown
            } else if self.credit_due || self.credit.is_stale() {
                Op::CreditUpdate
            } else if self.wants_credit() {
                self.asked_credit = true;
                Op::CreditRequest
            } else {
                return Ok(None);
            }
        };
        let mut header = Header::to_guest(cid, key, op);
        let (alloc, forwarded) = self.credit.announce();
        self.credit_due = false;
        header.len = len.into();
        header.flags = flags.into();
        header.buf_alloc = alloc.into();
        header.fwd_cnt = forwarded.into();
        let bytes = zerocopy::IntoBytes::as_bytes(&header);
        chain.writable.write_at(memory, 0, bytes)?;
        Ok(Some(HEADER_BYTES as u32 + len))
    }

    /// Reads from the socket behind the header in `chain`; so many bytes.
    fn read(&mut self, chain: &Chain, memory: &GuestMemoryMmap) -> Result<u32, DeviceError> {
        let room = chain.writable.len().saturating_sub(HEADER_BYTES);
        let most = room.min(self.credit.room().min(MAX_PAYLOAD).into());
        let slices = chain.writable.slices(memory, HEADER_BYTES, most)?;
        match self.stream.as_ref().map(|stream| stream.receive(&slices)) {
            Some(Moved::Bytes(count)) => {
                self.credit.send(count as u32);
                return Ok(count as u32);
            }
            Some(Moved::WouldBlock) => self.readable = false,
            Some(Moved::Closed) | None => self.host_ended = true,
        }
        Ok(0)
    }
}

/// The port in `CONNECT port`.
fn parse_greeting(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    let text = std::str::from_utf8(digits).ok()?;
    // `parse` would take a sign.
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_name_a_port() {
        for (line, port) in [
            (&b"CONNECT 52"[..], Some(52)),
            (b"CONNECT 4294967295", Some(u32::MAX)),
            (b"CONNECT 4294967296", None),
            (b"CONNECT +1", None),
            (b"CONNECT  1", None),
            (b"CONNECT ", None),
            (b"CONNECT", None),
            (b"connect 1", None),
            (b"CONNECT 1 ", None),
            (b"CONNECT 1\r", None),
            (b"CONNECT \xff", None),
            (b"", None),
        ] {
            assert_eq!(parse_greeting(line), port, "{line:?}");
        }
    }
}
