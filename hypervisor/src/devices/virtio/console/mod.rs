//! virtio-console (virtio 1.2, section 5.3) with one port: guest output to one host stream, one
//! host stream to guest input.
//!
//! Nothing is buffered on the host. A transmitted chain stays with the device until the host
//! stream has taken its last byte, and input is read only into a buffer the driver has supplied:
//! a slow reader slows its guest down, and costs the VMM neither memory nor time. When the output
//! stream is closed, output is discarded. The end of input is not signalled to the guest (the
//! device has no way to say it); there is just no more input.

mod stream;

use std::ops::Range;
use std::os::fd::{OwnedFd, RawFd};

use rustix::termios::tcgetwinsize;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::queue::Chain;
use super::{
    Activation, DeviceError, DeviceIo, DeviceType, Interest, Progress, TURN_BYTES, VirtioDevice,
    read_config_bytes,
};
use stream::{Moved, Stream};

/// Feature bit: the configuration space holds the terminal's size (section 5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// Index of the queue of input buffers, `receiveq(port0)`.
const RECEIVE: usize = 0;
/// Index of the queue of output, `transmitq(port0)`.
const TRANSMIT: usize = 1;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;
/// What a chain counts at least against a turn's [`TURN_BYTES`].
const CHAIN_COST: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub struct Console {
    /// None once the input has ended.
    input: Option<Stream>,
    /// None once the output is closed.
    output: Option<Stream>,
    /// Streams that have ended. They stay open, so that the event loop can take them out of epoll:
    /// closed here while another process has the same description open, they would be reported
    /// for ever.
    ended: Vec<Stream>,
    config: [u8; 12],
    has_size: bool,
    /// A driver's buffer that waits for input.
    receiving: Option<Chain>,
    /// Output that the host has not taken in full, and the bytes of it that it has.
    transmitting: Option<(Chain, u64)>,
}

impl Console {
    /// A console over the given streams. With `tty` the guest learns the terminal's size as it is
    /// now. Call before the jail closes: pipes and terminals are opened anew, through `/proc`.
    pub fn new(input: Option<OwnedFd>, output: OwnedFd, tty: bool) -> Self {
        let size = if tty {
            tcgetwinsize(&output).ok()
        } else {
            None
        };
        let mut config = [0; 12];
        if let (Some(size), [c0, c1, r0, r1, ..]) = (size, &mut config) {
            [*c0, *c1] = size.ws_col.to_le_bytes();
            [*r0, *r1] = size.ws_row.to_le_bytes();
        }
        Self {
            input: input.map(Stream::reader),
            output: Some(Stream::writer(output)),
            ended: Vec::new(),
            config,
            has_size: size.is_some(),
            receiving: None,
            transmitting: None,
        }
    }

    /// Keeps one of the driver's buffers at hand, for input to come.
    fn arm_receive(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let Some(queue) = io.queues.get_mut(RECEIVE) else {
            return Ok(());
        };
        if self.receiving.is_none() && self.input.is_some() {
            self.receiving = queue.pop(io.memory)?;
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
    fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let (Some(input), Some(chain)) = (&self.input, &self.receiving) else {
            return Ok(());
        };
        let slices = chain.writable.slices(io.memory, 0, chain.writable.len())?;
        let Some(first) = slices.first() else {
            return Err(DeviceError::Unanswerable);
        };
        match input.read(first) {
            Moved::Bytes(count) => {
                if let Some(queue) = io.queues.get_mut(RECEIVE) {
                    queue.push(io.memory, chain, count as u32)?;
                }
                self.receiving = None;
                self.arm_receive(io)?;
            }
            Moved::WouldBlock => {}
            Moved::Closed => self.ended.extend(self.input.take()),
        }
        Ok(())
    }

    /// Writes until the queue is empty, the host takes no more, or the turn is over.
    fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        let Some(queue) = io.queues.get_mut(TRANSMIT) else {
            return Ok(Progress::Idle);
        };
        let mut spent = 0;
        while spent < TURN_BYTES {
            let (chain, done) = match self.transmitting.take() {
                Some(current) => current,
                None => match queue.pop(io.memory)? {
                    Some(chain) => (chain, 0),
                    None => return Ok(Progress::Idle),
                },
            };
            let end = chain
                .readable
                .len()
                .min(done.saturating_add(TURN_BYTES - spent));
            let now = match write_some(self.output.as_ref(), &chain, done..end, io.memory)? {
                Some(now) => now,
                None => {
                    self.ended.extend(self.output.take());
                    end
                }
            };
            spent += CHAIN_COST.max(now - done);
            if now == chain.readable.len() {
                queue.push(io.memory, &chain, 0)?;
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

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        if self.has_size {
            1 << VIRTIO_CONSOLE_F_SIZE
        } else {
            0
        }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, _activation: Activation<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        match index {
            RECEIVE => self.arm_receive(io).map(|()| Progress::Idle),
            TRANSMIT => self.transmit(io),
            _ => Ok(Progress::Idle),
        }
    }

    fn interests(&self) -> Vec<Interest> {
        let input = self.input.as_ref().filter(|_| self.receiving.is_some());
        let output = self.output.as_ref().filter(|_| self.transmitting.is_some());
        let interest = |stream: &Stream, events| Interest {
            fd: stream.raw_fd(),
            events,
        };
        input
            .map(|stream| interest(stream, EventSet::IN))
            .into_iter()
            .chain(output.map(|stream| interest(stream, EventSet::OUT)))
            .collect()
    }

    fn process_backend(
        &mut self,
        fd: RawFd,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        if self
            .input
            .as_ref()
            .is_some_and(|input| input.raw_fd() == fd)
        {
            self.receive(io)?;
            Ok(Progress::Idle)
        } else {
            self.transmit(io)
        }
    }

    fn reset(&mut self) {
        self.receiving = None;
        self.transmitting = None;
    }
}

#[cfg(test)]
mod tests;
