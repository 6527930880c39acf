//! Runs a disk's operations without ever blocking the event loop: by io_uring where one operation
//! is one system call on one file and the host allows it, else on the partition's worker threads.
//! Used by the block device alone.
//!
//! Disks attached after lock-down have no ring, since the filter allows no io_uring to be set up or
//! changed then; they have the workers. A ring made beforehand would be paid for by every partition
//! that never attaches a disk.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::disk::{Disk, Operation};
use super::request::HEADER_BYTES;
use super::ring::{Ring, Transfer};
use super::workers::Workers;
use crate::devices::virtio::queue::Chain;

/// An operation that has ended.
#[derive(Debug)]
pub(super) struct Completion {
    /// What [`Engine::start`] was given.
    pub(super) token: usize,
    pub(super) outcome: io::Result<()>,
}

/// Where operations end, whoever carried them out.
#[derive(Debug)]
struct Done {
    by_workers: Mutex<Vec<Completion>>,
    event: EventFd,
}

impl Done {
    fn push(&self, completion: Completion) {
        self.list().push(completion);
        // Only a full counter refuses the write, and then the eventfd is signalled anyway.
        let _ = self.event.write(1);
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Completion>> {
        // Nothing panics while it holds the list.
        self.by_workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(super) struct Engine {
    disk: Arc<Disk>,
    ring: Option<Ring>,
    workers: Workers,
    done: Arc<Done>,
    /// Operations started and not reaped.
    in_flight: usize,
}

impl Engine {
    /// An engine for `disk`; with a ring, if `with_ring` and the host allows it.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(super) fn new(disk: Arc<Disk>, workers: &Workers, with_ring: bool) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let files: Vec<RawFd> = disk.files().iter().map(|fd| fd.as_raw_fd()).collect();
        // A host that refuses is not in the way of the partition: there are the workers.
        let ring = if with_ring && !workers.started() {
            Ring::new(&files, event.as_raw_fd()).ok()
        } else {
            None
        };
        workers.need(disk.workers(ring.is_some()));
        Ok(Self {
            disk,
            ring,
            workers: workers.clone(),
            done: Arc::new(Done {
                by_workers: Mutex::default(),
                event,
            }),
            in_flight: 0,
        })
    }

    /// Readable when operations have ended.
    pub(super) fn event(&self) -> RawFd {
        self.done.event.as_raw_fd()
    }

    /// Operations under way.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Starts `operation` on the buffers of `chain`. `token` is below [`super::MAX_IN_FLIGHT`] and
    /// no other operation's under way. What fails at once ends with an error like anything else.
    pub(super) fn start(
        &mut self,
        token: usize,
        operation: Operation,
        chain: &Arc<Chain>,
        memory: &Arc<GuestMemoryMmap>,
    ) {
        self.in_flight += 1;
        let started = match self.transfer(operation, chain, memory) {
            Ok(Some((ring, transfer))) => ring.start(token, transfer),
            Ok(None) => self.hand_over(token, operation, chain, memory),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            self.done.push(Completion {
                token,
                outcome: Err(error),
            });
        }
    }

    /// The operation as one transfer of the ring, if it can be.
    fn transfer(
        &mut self,
        operation: Operation,
        chain: &Chain,
        memory: &Arc<GuestMemoryMmap>,
    ) -> io::Result<Option<(&mut Ring, Transfer)>> {
        let Some(ring) = &mut self.ring else {
            return Ok(None);
        };
        let slices = operation.slices(chain, memory)?;
        let route = self.disk.route(operation, &slices);
        Ok(route.map(|(file, action)| {
            let (offset, len) = operation.range();
            let transfer = Transfer {
                action,
                file,
                offset,
                len,
                iovecs: super::file::iovecs(&slices),
                _memory: memory.clone(),
            };
            (ring, transfer)
        }))
    }

    fn hand_over(
        &self,
        token: usize,
        operation: Operation,
        chain: &Arc<Chain>,
        memory: &Arc<GuestMemoryMmap>,
    ) -> io::Result<()> {
        let (disk, done) = (self.disk.clone(), self.done.clone());
        let (chain, memory) = (chain.clone(), memory.clone());
        let work = move || {
            let slices = operation.slices(&chain, &memory);
            let outcome = slices.and_then(|slices| disk.execute(operation, &slices));
            done.push(Completion { token, outcome });
        };
        if self.workers.submit(self.owner(), Box::new(work)) {
            Ok(())
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Gives what was started to the kernel; at the end of each turn.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        match &mut self.ring {
            Some(ring) => ring.submit(),
            None => Ok(()),
        }
    }

    /// What has ended since the last call.
    pub(super) fn reap(&mut self) -> io::Result<Vec<Completion>> {
        // Before looking, so that what ends meanwhile signals again.
        let _ = self.done.event.read();
        let mut completions = std::mem::take(&mut *self.done.list());
        if let Some(ring) = &mut self.ring {
            ring.reap(&mut completions)?;
        }
        self.in_flight = self.in_flight.saturating_sub(completions.len());
        Ok(completions)
    }

    /// Waits until [`Self::reap`] has something to say.
    pub(super) fn wait(&self) {
        let event = self.done.event.as_raw_fd();
        // SAFETY: the eventfd is open as long as `self.done`.
        let event = unsafe { std::os::fd::BorrowedFd::borrow_raw(event) };
        let mut fds = [PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN)];
        // Interrupted or not: the caller looks, and waits again.
        let _ = poll(&mut fds, None);
    }

    /// Takes back what nobody has begun, waits for the rest, and forgets how it went.
    ///
    /// When this returns, no operation of this disk is queued or running: neither the kernel nor a
    /// worker writes to guest memory any more, whatever the driver does with its buffers next. It
    /// makes no system call but `poll`, `read` and, after io_uring has failed, `close`: a vCPU
    /// that resets its device comes here too.
    pub(super) fn abandon(&mut self) {
        self.in_flight = self
            .in_flight
            .saturating_sub(self.workers.withdraw(self.owner()));
        // Queued, but refused by the kernel: the ring must not be used again.
        let stale = self.ring.as_mut().map_or(0, Ring::queued);
        loop {
            let _ = self.done.event.read();
            let mut ended = std::mem::take(&mut *self.done.list()).len();
            if let Some(ring) = &mut self.ring {
                ended += ring.forget();
            }
            self.in_flight = self.in_flight.saturating_sub(ended);
            if self.in_flight <= stale {
                break;
            }
            self.wait();
        }
        if stale > 0 {
            self.ring = None;
        }
        self.in_flight = 0;
    }

    /// What the workers know this disk by.
    fn owner(&self) -> usize {
        Arc::as_ptr(&self.done) as usize
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.abandon();
        if self.disk.is_dirty() {
            // By a worker: a vCPU may be the one that lets go of the disk. Nobody is there to hear
            // of a failure; what was not flushed may be lost.
            let (disk, done) = (self.disk.clone(), self.done.clone());
            let flush = move || {
                let outcome = disk.execute(Operation::Flush, &[]);
                done.push(Completion { token: 0, outcome });
            };
            if self.workers.submit(self.owner(), Box::new(flush)) {
                while self.done.list().is_empty() {
                    self.wait();
                }
            }
        }
    }
}

impl Operation {
    /// The buffers in guest memory; none for what moves no data.
    fn slices<'m>(
        self,
        chain: &Chain,
        memory: &'m GuestMemoryMmap,
    ) -> io::Result<Vec<vm_memory::VolatileSlice<'m>>> {
        match self {
            Self::Read { len, .. } => chain.writable.slices(memory, 0, len),
            Self::Write { len, .. } => chain.readable.slices(memory, HEADER_BYTES, len),
            Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } => Ok(Vec::new()),
        }
    }
}
