//! virtio-pmem (virtio 1.3, section 5.19): the guest is told where a file lies in its memory, and has
//! what it wrote there made durable. It reads and writes the file without a request: see
//! [`crate::machine::pmem`].
//!
//! A flush waits for the disk, so it is somebody else's work. All requests that came while one flush
//! was under way share the next.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::Chain;
use super::{
    Activation, DeviceError, DeviceIo, DeviceType, Interest, Progress, VirtioDevice,
    read_config_bytes,
};

/// Entries of the request queue, and with it the most requests that wait.
const QUEUE_SIZE: u16 = 64;
/// The one request (section 5.19.6), and its answers.
const REQ_FLUSH: u32 = 0;
const RESP_OK: u32 = 0;
const RESP_ERROR: u32 = 1;
/// Bytes of a request and of an answer.
const WORD: usize = 4;

/// Has somebody do what may block; false when nobody is there to do it.
pub type Defer = Box<dyn Fn(Box<dyn FnOnce() + Send>) -> bool + Send>;

/// See the module.
pub struct Pmem {
    config: [u64; 2],
    file: Arc<File>,
    defer: Defer,
    /// Requests that the next flush answers.
    waiting: Vec<Chain>,
    /// Requests that the flush under way answers: none where the driver has reset the device since.
    flushing: Vec<Chain>,
    /// A flush is under way. There is never more than one, however often the device is reset: each
    /// is work that waits for its turn.
    under_way: bool,
    finished: Receiver<bool>,
    finish: Sender<bool>,
    /// Written when a flush is over.
    event: Arc<EventFd>,
    flushes: u64,
    failed: u64,
}

impl Pmem {
    /// The device for `file`, which the guest sees at `start`, `len` bytes of it.
    ///
    /// # Errors
    /// The host gives no eventfd.
    pub fn new(
        start: GuestAddress,
        len: u64,
        file: Arc<File>,
        defer: Defer,
    ) -> std::io::Result<Self> {
        let (finish, finished) = channel();
        Ok(Self {
            config: [start.0, len],
            file,
            defer,
            waiting: Vec::new(),
            flushing: Vec::new(),
            under_way: false,
            finished,
            finish,
            event: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            flushes: 0,
            failed: 0,
        })
    }

    /// Begins a flush for all that wait, unless one is under way.
    fn begin(&mut self) {
        if self.waiting.is_empty() || self.under_way {
            return;
        }
        self.under_way = true;
        self.flushing = std::mem::take(&mut self.waiting);
        let (file, finish, event) = (self.file.clone(), self.finish.clone(), self.event.clone());
        let deferred = (self.defer)(Box::new(move || {
            // The guest's writes are those of a shared mapping, which this covers. A device that is
            // gone hears nothing.
            let _ = finish.send(rustix::fs::fdatasync(&*file).is_ok());
            let _ = event.write(1);
        }));
        if !deferred {
            let _ = self.finish.send(false);
            let _ = self.event.write(1);
        }
    }

    /// Answers the requests of a flush that is over.
    fn end(&mut self, done: bool, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        self.under_way = false;
        self.flushes += 1;
        self.failed += u64::from(!done);
        for chain in std::mem::take(&mut self.flushing) {
            answer(&chain, io, if done { RESP_OK } else { RESP_ERROR })?;
        }
        Ok(())
    }
}

/// What `chain` asks for, when there is room to answer it.
fn parse(chain: &Chain, memory: &GuestMemoryMmap) -> Result<u32, DeviceError> {
    if chain.writable.len() < WORD as u64 {
        return Err(DeviceError::Unanswerable);
    }
    let mut kind = [0; WORD];
    chain.readable.read_at(memory, 0, &mut kind)?;
    Ok(u32::from_le_bytes(kind))
}

fn answer(chain: &Chain, io: &mut DeviceIo<'_>, response: u32) -> Result<(), DeviceError> {
    let bytes = response.to_le_bytes();
    chain.writable.write_at(io.memory, 0, &bytes)?;
    if let Some(queue) = io.queues.first_mut() {
        queue.push(io.memory, chain, WORD as u32)?;
    }
    Ok(())
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> DeviceType {
        DeviceType::Pmem
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.map(u64::to_le_bytes);
        read_config_bytes(config.as_flattened(), offset, data);
    }

    fn activate(&mut self, _activation: Activation<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("flushes", self.flushes), ("failed-flushes", self.failed)]
    }

    fn quiesce(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        while self.under_way {
            let done = self.finished.recv().unwrap_or(false);
            self.end(done, io)?;
            self.begin();
        }
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        for _ in 0..QUEUE_SIZE {
            let Some(queue) = io.queues.get_mut(index) else {
                return Ok(Progress::Idle);
            };
            // A driver may offer a chain again that waits: no more wait than the queue holds.
            if self.waiting.len() >= usize::from(QUEUE_SIZE) {
                break;
            }
            let Some(chain) = queue.pop(io.memory)? else {
                break;
            };
            match parse(&chain, io.memory)? {
                REQ_FLUSH => self.waiting.push(chain),
                _ => answer(&chain, io, RESP_ERROR)?,
            }
        }
        self.begin();
        Ok(Progress::Idle)
    }

    fn interests(&self) -> Vec<Interest> {
        vec![Interest {
            fd: self.event.as_raw_fd(),
            events: EventSet::IN,
        }]
    }

    fn process_backend(
        &mut self,
        _fd: RawFd,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let _ = self.event.read();
        if let Ok(done) = self.finished.try_recv() {
            self.end(done, io)?;
        }
        // What came while nothing more could wait.
        self.process_queue(0, io)
    }

    /// A flush that is under way answers nobody any more; the next begins when it is over.
    fn reset(&mut self) {
        self.waiting.clear();
        self.flushing.clear();
    }
}

#[cfg(test)]
mod tests;
