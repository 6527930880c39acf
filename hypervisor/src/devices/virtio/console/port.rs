//! One port of a console: guest output to one host stream, one host stream to guest input.

use std::ops::Range;
use std::os::fd::{OwnedFd, RawFd};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::super::queue::{Chain, Virtqueue};
use super::super::{DeviceError, Interest, Progress, TURN_BYTES};
use super::stream::{Moved, Stream};

/// What a chain counts at least against a turn's [`TURN_BYTES`].
const CHAIN_COST: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Port {
    /// None once the input has ended.
    input: Option<Stream>,
    /// None once the output is closed.
    output: Option<Stream>,
    /// Streams that have ended. They stay open, so that the event loop can take them out of epoll:
    /// closed here while another process has the same description open, they would be reported
    /// for ever.
    ended: Vec<Stream>,
    /// A driver's buffer that waits for input.
    receiving: Option<Chain>,
    /// Output that the host has not taken in full, and the bytes of it that it has.
    transmitting: Option<(Chain, u64)>,
    /// Bytes to the guest so far.
    pub(super) received: u64,
    /// Bytes from the guest so far, those that nobody took included.
    pub(super) transmitted: u64,
}

impl Port {
    /// A port over the given streams. Call before the jail closes: pipes and terminals are opened
    /// anew, through `/proc`.
    pub(super) fn new(input: Option<OwnedFd>, output: OwnedFd) -> Self {
        Self {
            input: input.map(Stream::reader),
            output: Some(Stream::writer(output)),
            ended: Vec::new(),
            receiving: None,
            transmitting: None,
            received: 0,
            transmitted: 0,
        }
    }

    /// Somebody is on the other side.
    pub(super) fn is_connected(&self) -> bool {
        self.input.is_some() || self.output.is_some()
    }

    /// Forgets the driver's buffers.
    pub(super) fn reset(&mut self) {
        self.receiving = None;
        self.transmitting = None;
    }

    /// What it waits for: for input only where the guest listens.
    pub(super) fn interests(&self, listens: bool) -> impl Iterator<Item = Interest> {
        let waits = listens && self.receiving.is_some();
        let input = self.input.as_ref().filter(|_| waits);
        let output = self.output.as_ref().filter(|_| self.transmitting.is_some());
        let interest = |stream: &Stream, events| Interest {
            fd: stream.raw_fd(),
            events,
        };
        input
            .map(|stream| interest(stream, EventSet::IN))
            .into_iter()
            .chain(output.map(|stream| interest(stream, EventSet::OUT)))
    }

    /// `fd` is its input.
    pub(super) fn reads(&self, fd: RawFd) -> bool {
        self.input.as_ref().is_some_and(|own| own.raw_fd() == fd)
    }

    /// `fd` is its output.
    pub(super) fn writes(&self, fd: RawFd) -> bool {
        self.output.as_ref().is_some_and(|own| own.raw_fd() == fd)
    }

    /// Keeps one of the driver's buffers at hand, for input to come.
    pub(super) fn arm(
        &mut self,
        queue: &mut Virtqueue,
        memory: &GuestMemoryMmap,
    ) -> Result<(), DeviceError> {
        if self.receiving.is_none() && self.input.is_some() {
            self.receiving = queue.pop(memory)?;
            if self
                .receiving
                .as_ref()
                .is_some_and(|chain| chain.writable.is_empty())
            {
                return Err(DeviceError::Unanswerable);
            }
        }
        Ok(())
    }

    /// Reads once into the buffer at hand.
    pub(super) fn receive(
        &mut self,
        queue: &mut Virtqueue,
        memory: &GuestMemoryMmap,
    ) -> Result<(), DeviceError> {
        let (Some(input), Some(chain)) = (&self.input, &self.receiving) else {
            return Ok(());
        };
        let slices = chain.writable.slices(memory, 0, chain.writable.len())?;
        let Some(first) = slices.first() else {
            return Err(DeviceError::Unanswerable);
        };
        match input.read(first) {
            Moved::Bytes(count) => {
                queue.push(memory, chain, count as u32)?;
                self.received += count as u64;
                self.receiving = None;
                self.arm(queue, memory)?;
            }
            Moved::WouldBlock => {}
            Moved::Closed => self.ended.extend(self.input.take()),
        }
        Ok(())
    }

    /// Writes until the queue is empty, the host takes no more, or the turn is over.
    pub(super) fn transmit(
        &mut self,
        queue: &mut Virtqueue,
        memory: &GuestMemoryMmap,
    ) -> Result<Progress, DeviceError> {
        let mut spent = 0;
        while spent < TURN_BYTES {
            let (chain, done) = match self.transmitting.take() {
                Some(current) => current,
                None => match queue.pop(memory)? {
                    Some(chain) => (chain, 0),
                    None => return Ok(Progress::Idle),
                },
            };
            let end = chain
                .readable
                .len()
                .min(done.saturating_add(TURN_BYTES - spent));
            let now = match write_some(self.output.as_ref(), &chain, done..end, memory)? {
                Some(now) => now,
                None => {
                    self.ended.extend(self.output.take());
                    end
                }
            };
            spent += CHAIN_COST.max(now - done);
            self.transmitted += now - done;
            if now == chain.readable.len() {
                queue.push(memory, &chain, 0)?;
                continue;
            }
            self.transmitting = Some((chain, now));
            if now < end {
                return Ok(Progress::Idle);
            }
        }
        Ok(Progress::More)
    }
}

/// Writes `range` of the bytes of `chain`, or a first part of it; returns where the rest begins, or
/// nothing when nobody takes output any more.
fn write_some(
    output: Option<&Stream>,
    chain: &Chain,
    range: Range<u64>,
    memory: &GuestMemoryMmap,
) -> Result<Option<u64>, DeviceError> {
    let Some(stream) = output else {
        return Ok(None);
    };
    let mut done = range.start;
    for slice in chain
        .readable
        .slices(memory, range.start, range.end - range.start)?
    {
        let mut rest = slice;
        while !rest.is_empty() {
            match stream.write(&rest) {
                Moved::Bytes(count) => {
                    done += count as u64;
                    rest = rest.offset(count).map_err(std::io::Error::other)?;
                }
                Moved::WouldBlock => return Ok(Some(done)),
                Moved::Closed => return Ok(None),
            }
        }
    }
    Ok(Some(done))
}
