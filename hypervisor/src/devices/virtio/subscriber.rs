//! Puts any virtio device into the event loop: the queue notifications of its transport, and the
//! host descriptors it waits for. The machine adds one of these for each device; all of them run
//! on the event loop's thread.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::mmio::MmioTransport;
use super::{Interest, Progress};

/// `data` of an event on a host descriptor; queue events carry the queue's index.
const BACKEND: u32 = u32::MAX;

/// See the module.
pub struct VirtioSubscriber {
    transport: Arc<MmioTransport>,
    /// What epoll watches for the device now.
    watched: Vec<Interest>,
    /// Descriptors the device waits for that epoll cannot watch (regular files, some character
    /// devices): they are always ready.
    unwatchable: Vec<RawFd>,
}

impl VirtioSubscriber {
    /// An adapter for the device behind `transport`.
    pub fn new(transport: Arc<MmioTransport>) -> Self {
        Self {
            transport,
            watched: Vec::new(),
            unwatchable: Vec::new(),
        }
    }

    /// Brings what epoll watches in line with what the device waits for.
    fn update(&mut self, ops: &mut EventOps<'_>) {
        let wanted = self.transport.interests();
        self.watched.retain(|old| {
            let keep = wanted.contains(old);
            if !keep {
                // Cannot fail: the descriptor is open as long as the device lives.
                let _ = ops.remove(Events::empty_raw(old.fd));
            }
            keep
        });
        for new in wanted {
            if self.watched.contains(&new) {
                continue;
            }
            if self.unwatchable.contains(&new.fd) {
                self.serve_unwatchable(new.fd);
                continue;
            }
            match ops.add(Events::with_data_raw(new.fd, BACKEND, new.events)) {
                Ok(()) => self.watched.push(new),
                Err(event_manager::Error::Epoll(error))
                    if error.errno() == rustix::io::Errno::PERM.raw_os_error() =>
                {
                    self.unwatchable.push(new.fd);
                    self.serve_unwatchable(new.fd);
                }
                // The host is out of memory: this direction of the device stands still, and is
                // tried again at its next event.
                Err(_) => {}
            }
        }
    }

    /// Comes back through the loop, so that other devices have their turn.
    fn wake(&self) {
        for index in 0..self.transport.queue_events().len() {
            self.transport.signal(index);
        }
    }

    /// Gives an always-ready descriptor one turn, and comes back through the loop for the next.
    fn serve_unwatchable(&self, fd: RawFd) {
        let progress = self.transport.process_backend(fd);
        let waits = self
            .transport
            .interests()
            .iter()
            .any(|interest| interest.fd == fd);
        if progress == Progress::More || waits {
            self.wake();
        }
    }
}

impl MutEventSubscriber for VirtioSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (event, index) in self.transport.queue_events().iter().zip(0..) {
            // A descriptor of our own that epoll refuses would be a host out of memory; the
            // device then stays silent, which the guest sees as a device that does not answer.
            let _ = ops.add(Events::with_data(event, index, EventSet::IN));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == BACKEND {
            if self.transport.process_backend(events.fd()) == Progress::More {
                self.wake();
            }
        } else {
            let index = events.data() as usize;
            if let Some(event) = self.transport.queue_events().get(index) {
                debug_assert_eq!(event.as_raw_fd(), events.fd());
                // Read before serving: a notification that comes meanwhile signals again.
                let _ = event.read();
            }
            if self.transport.process_queue(index) == Progress::More {
                self.transport.signal(index);
            }
        }
        self.update(ops);
    }
}
