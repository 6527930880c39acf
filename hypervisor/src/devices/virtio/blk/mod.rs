//! virtio-blk (virtio 1.2, section 5.2): a disk with one request queue for each vCPU that wants one.
//!
//! A request is checked as a whole before the disk or guest memory is touched; what it asks wrongly
//! is answered with `VIRTIO_BLK_S_IOERR` or `VIRTIO_BLK_S_UNSUPP`, and a chain that cannot even hold
//! that answer stops the device until it is reset. Requests then run side by side (`engine`), and
//! are answered in the order in which they end: the event loop starts and ends them, and never
//! waits for one.
//!
//! Rooms: `request` (what the driver wants), `config` (what it is told), `disk` (raw or overlay),
//! `file`, `overlay`, `map`, `base`, `qcow2`, `inflate` (what a disk consists of), `engine`, `ring`, `workers`
//! (who does the work). Formats and promises: docs/disks.md.

mod base;
mod config;
mod disk;
mod engine;
mod file;
pub mod image;
mod inflate;
mod map;
mod overlay;
mod qcow2;
mod request;
mod ring;
pub mod workers;

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;

use bulkhead_machine::Fd;
use bulkhead_machine::control::Resize;
use bulkhead_machine::device::{self as description, MAX_QUEUES};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::queue::Chain;
use super::{
    Activation, DeviceError, DeviceIo, DeviceType, Interest, Progress, ResizeError, TURN_BYTES,
    VirtioDevice, read_config_bytes,
};
use crate::devices::rate_limiter::RateLimiter;
use crate::error::Error;
pub use disk::DiskError;
use disk::{Disk, Files, Operation};
use engine::{Completion, Engine};
use request::{ID_BYTES, Limits, Request};
use workers::Workers;

/// Entries of each request queue.
const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: a queue's size less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of a segment.
const SIZE_MAX: u32 = 64 * 1024;
/// Most data bytes of a request, which is what the two limits above allow: a little under 16 MiB.
/// A longer one is answered with an error.
pub const MAX_REQUEST_BYTES: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Most requests of a disk under way, whatever its queues hold; what comes then waits in its queue.
/// With the length of chains it bounds what a guest can make the host allocate: under 5 MiB.
const MAX_IN_FLIGHT: usize = QUEUE_SIZE as usize;
/// What a request counts at least against a turn's [`TURN_BYTES`].
const REQUEST_COST: u64 = 4096;

/// A request under way.
struct Pending {
    queue: usize,
    chain: Arc<Chain>,
    /// What is being done.
    now: Operation,
    /// What is to be done after that, last first.
    later: Vec<Operation>,
}

/// What the device did, by [`VirtioDevice::counters`].
#[derive(Debug, Default)]
struct Counters {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    write_bytes: u64,
    flushes: u64,
    discards: u64,
    write_zeroes: u64,
    errors: u64,
    throttled: u64,
}

/// See the module.
pub struct Block {
    disk: Arc<Disk>,
    engine: Engine,
    /// Requests under way, by token.
    pending: Vec<Option<Pending>>,
    limiter: RateLimiter,
    /// Name, padded with zeros: what `VIRTIO_BLK_T_GET_ID` answers.
    serial: [u8; ID_BYTES as usize],
    queue_sizes: Vec<u16>,
    /// Negotiated; nothing before activation.
    features: u64,
    /// The driver's choice of a write cache, where it may choose.
    writeback: bool,
    counters: Counters,
}

impl Block {
    /// The disk that `block` describes, whose descriptors `take` hands out. What cannot be done by
    /// io_uring is left to `workers`.
    ///
    /// # Errors
    /// See [`DiskError`]; or `take` fails, or the host has no descriptor left.
    pub fn new(
        name: &str,
        block: &description::Block,
        take: &mut dyn FnMut(Fd) -> Result<File, Error>,
        workers: &Workers,
    ) -> Result<Self, Error> {
        Self::with_engine(name, block, take, workers, true)
    }

    /// As [`Self::new`]; without `ring`, by workers alone.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_engine(
        name: &str,
        block: &description::Block,
        take: &mut dyn FnMut(Fd) -> Result<File, Error>,
        workers: &Workers,
        ring: bool,
    ) -> Result<Self, Error> {
        let mut serial = [0; ID_BYTES as usize];
        match serial.get_mut(..name.len()) {
            Some(start) => start.copy_from_slice(name.as_bytes()),
            None => return Err(DiskError::LongName { name: name.into() }.into()),
        }
        if block.queues == 0 || block.queues > MAX_QUEUES {
            let (name, queues) = (name.into(), block.queues);
            return Err(DiskError::Queues { name, queues }.into());
        }
        let overlay = match &block.overlay {
            None => None,
            Some(overlay) => {
                let map = take(overlay.map)?;
                let bases = overlay.base.iter();
                let bases = bases.map(|base| Ok((take(base.file)?, base.format)));
                Some((map, bases.collect::<Result<_, Error>>()?))
            }
        };
        let files = Files {
            file: take(block.file)?,
            overlay,
        };
        let disk = Arc::new(Disk::new(name, files, block.read_only)?);
        let engine = Engine::new(disk.clone(), workers, ring)
            .map_err(Error::io("cannot create an eventfd for a disk"))?;
        let limiter = RateLimiter::new(&block.rate)
            .map_err(Error::io("cannot create a timer for a disk's rate limit"))?;
        Ok(Self {
            disk,
            engine,
            pending: Vec::new(),
            limiter,
            serial,
            queue_sizes: vec![QUEUE_SIZE; block.queues.into()],
            features: 0,
            writeback: true,
            counters: Counters::default(),
        })
    }

    fn queues(&self) -> u16 {
        self.queue_sizes.len() as u16
    }

    /// Whether an answered write has to be durable (section 5.2.6.2): the driver has chosen
    /// write-through, or does not know of flushes.
    fn write_through(&self) -> bool {
        if self.features & 1 << VIRTIO_BLK_F_CONFIG_WCE != 0 {
            !self.writeback
        } else {
            self.features & 1 << VIRTIO_BLK_F_FLUSH == 0
        }
    }

    /// Takes requests from queue `index` and starts them, for a turn.
    fn serve(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        let mut memory = None;
        let mut spent = 0;
        while spent < TURN_BYTES && self.engine.in_flight() < MAX_IN_FLIGHT {
            if !self.limiter.allows(1) {
                self.counters.throttled += 1;
                return Ok(Progress::Idle);
            }
            let Some(queue) = io.queues.get_mut(index) else {
                return Ok(Progress::Idle);
            };
            let Some(chain) = queue.pop(io.memory)? else {
                return Ok(Progress::Idle);
            };
            // One handle keeps the buffers of all requests of this turn mapped.
            let memory = memory.get_or_insert_with(|| Arc::new(io.memory.clone()));
            let bytes = self.begin(index, chain, memory, io)?;
            self.limiter.charge(bytes);
            spent += bytes.max(REQUEST_COST);
        }
        // With too many under way, the end of the first goes on here.
        Ok(if spent < TURN_BYTES {
            Progress::Idle
        } else {
            Progress::More
        })
    }

    /// Checks and starts one request, or answers it at once; the data bytes it moves.
    fn begin(
        &mut self,
        queue: usize,
        chain: Chain,
        memory: &Arc<GuestMemoryMmap>,
        io: &mut DeviceIo<'_>,
    ) -> Result<u64, DeviceError> {
        let limits = Limits {
            bytes: self.disk.bytes(),
            block: self.disk.block(),
            read_only: self.disk.read_only(),
        };
        let (now, mut later) = match request::parse(&chain, memory, limits)? {
            Ok(Request::Disk(now, later)) => (now, later),
            Ok(Request::GetId { len }) => {
                let id = self.serial.get(..len as usize).unwrap_or(&self.serial);
                chain.writable.write_at(memory, 0, id)?;
                answer(io, queue, &chain, VIRTIO_BLK_S_OK as u8, len)?;
                return Ok(0);
            }
            Err(status) => {
                self.counters.errors += 1;
                answer(io, queue, &chain, status, 0)?;
                return Ok(0);
            }
        };
        let bytes = self.count(now);
        if self.write_through() && !matches!(now, Operation::Read { .. } | Operation::Flush) {
            later.insert(0, Operation::Flush);
        }
        let token = match self.pending.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.pending.push(None);
                self.pending.len() - 1
            }
        };
        let chain = Arc::new(chain);
        self.engine.start(token, now, &chain, memory);
        if let Some(slot) = self.pending.get_mut(token) {
            *slot = Some(Pending {
                queue,
                chain,
                now,
                later,
            });
        }
        Ok(bytes)
    }

    /// Counts a request by its first operation; the data bytes it moves.
    fn count(&mut self, operation: Operation) -> u64 {
        let counters = &mut self.counters;
        match operation {
            Operation::Read { len, .. } => {
                counters.reads += 1;
                counters.read_bytes += len;
                return len;
            }
            Operation::Write { len, .. } => {
                counters.writes += 1;
                counters.write_bytes += len;
                return len;
            }
            Operation::Flush => counters.flushes += 1,
            Operation::Discard { .. } => counters.discards += 1,
            Operation::WriteZeroes { .. } => counters.write_zeroes += 1,
        }
        0
    }

    /// Answers what has ended, or goes on with it.
    fn finish(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let completions = self.engine.reap().map_err(backend)?;
        let mut memory = None;
        for Completion { token, outcome } in completions {
            let Some(slot) = self.pending.get_mut(token) else {
                continue;
            };
            let Some(mut request) = slot.take() else {
                continue;
            };
            let data = match request.now {
                Operation::Read { len, .. } => len,
                _ => 0,
            };
            match (outcome, request.later.pop()) {
                (Ok(()), Some(next)) => {
                    let memory = memory.get_or_insert_with(|| Arc::new(io.memory.clone()));
                    self.engine.start(token, next, &request.chain, memory);
                    request.now = next;
                    *slot = Some(request);
                }
                (Ok(()), None) => {
                    let status = VIRTIO_BLK_S_OK as u8;
                    answer(io, request.queue, &request.chain, status, data)?;
                }
                (Err(_), _) => {
                    self.counters.errors += 1;
                    let status = VIRTIO_BLK_S_IOERR as u8;
                    answer(io, request.queue, &request.chain, status, 0)?;
                }
            }
        }
        self.engine.submit().map_err(backend)
    }
}

fn backend(error: std::io::Error) -> DeviceError {
    DeviceError::Backend(format!("io_uring refuses requests: {error}"))
}

/// Writes the status and returns the chain; `data` bytes of its data were written.
fn answer(
    io: &mut DeviceIo<'_>,
    queue: usize,
    chain: &Chain,
    status: u8,
    data: u64,
) -> Result<(), DeviceError> {
    let status_at = chain.writable.len().saturating_sub(1);
    chain.writable.write_at(io.memory, status_at, &[status])?;
    // Section 2.7.8.2: only bytes written without a gap from the first on may be counted.
    let written = if data == status_at { data + 1 } else { data };
    if let Some(queue) = io.queues.get_mut(queue) {
        queue.push(io.memory, chain, written as u32)?;
    }
    Ok(())
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        config::features(&self.disk, self.queues())
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config::space(&self.disk, self.queues(), self.writeback);
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // From write-back to write-through: the flush after the next write covers all before it.
        if let (config::WRITEBACK, [value], false) = (offset, data, self.disk.read_only()) {
            self.writeback = *value != 0;
        }
    }

    fn activate(&mut self, activation: Activation<'_>) -> Result<(), DeviceError> {
        self.features = activation.features;
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        vec![
            ("reads", counters.reads),
            ("writes", counters.writes),
            ("read-bytes", counters.read_bytes),
            ("write-bytes", counters.write_bytes),
            ("flushes", counters.flushes),
            ("discards", counters.discards),
            ("write-zeroes", counters.write_zeroes),
            ("errors", counters.errors),
            ("throttled", counters.throttled),
        ]
    }

    fn resize(&mut self, resize: &Resize, io: &mut DeviceIo<'_>) -> Result<(), ResizeError> {
        if !matches!(resize, Resize::Block { .. }) {
            return Err(ResizeError::Fixed);
        }
        let before = self.disk.bytes();
        let now = self.disk.resize().map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidInput => ResizeError::OutOfRange(
                "the file's length is not one this disk can have: whole blocks, more than none, \
                 and not fewer than before under an overlay"
                    .into(),
            ),
            _ => ResizeError::Host(error),
        })?;
        *io.config_changed |= now != before;
        Ok(())
    }

    fn quiesce(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        while self.engine.in_flight() > 0 {
            self.engine.wait();
            self.finish(io)?;
        }
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let progress = self.serve(index, io)?;
        self.engine.submit().map_err(backend)?;
        Ok(progress)
    }

    fn interests(&self) -> Vec<Interest> {
        let mut interests = vec![Interest {
            fd: self.engine.event(),
            events: EventSet::IN,
        }];
        interests.extend(self.limiter.interest());
        interests
    }

    fn process_backend(
        &mut self,
        fd: RawFd,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        if fd == self.engine.event() {
            self.finish(io)?;
        } else if !self.limiter.take_expiry(fd) {
            return Ok(Progress::Idle);
        }
        // What had to wait for an end or for the limit may go on.
        let mut progress = Progress::Idle;
        for index in 0..io.queues.len() {
            if self.serve(index, io)? == Progress::More {
                progress = Progress::More;
            }
        }
        self.engine.submit().map_err(backend)?;
        Ok(progress)
    }

    /// When it returns, nothing writes to the guest memory of an earlier request any more: see
    /// `Engine::abandon`.
    fn reset(&mut self) {
        self.engine.abandon();
        self.pending.clear();
        self.limiter.cancel();
        self.features = 0;
        self.writeback = true;
    }
}

#[cfg(test)]
pub(super) mod tests;
