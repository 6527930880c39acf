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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write, pipe};

    use event_manager::{EventManager, SubscriberOps};

    use super::super::console::Console;
    use super::super::mmio::testing::bring_up;
    use super::super::testing::*;
    use super::*;

    const RECEIVE: usize = 0;
    const TRANSMIT: usize = 1;

    fn start(device: Console, rig: &Rig) -> (EventManager<VirtioSubscriber>, Arc<MmioTransport>) {
        let transport = Arc::new(MmioTransport::new(Box::new(device), rig.memory.clone()).unwrap());
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(VirtioSubscriber::new(transport.clone()));
        bring_up(&transport, 2);
        (manager, transport)
    }

    /// Lets the loop run until nothing happens; the number of events.
    fn settle(manager: &mut EventManager<VirtioSubscriber>) -> usize {
        let mut total = 0;
        for _ in 0..1000 {
            match manager.run_with_timeout(0).unwrap() {
                0 => return total,
                count => total += count,
            }
        }
        panic!("the loop does not come to rest");
    }

    #[test]
    fn a_console_lives_in_the_loop() {
        let (input, mut typed) = pipe().unwrap();
        let (mut seen, output) = pipe().unwrap();
        let rig = Rig::new(2);
        let console = Console::new(Some(input.into()), output.into(), false);
        let (mut manager, transport) = start(console, &rig);
        settle(&mut manager);

        typed.write_all(b"in").unwrap();
        assert_eq!(
            settle(&mut manager),
            0,
            "no buffer, so the loop does not look"
        );
        rig.describe(RECEIVE, 0, &[(DATA, 5, WRITE, 0)]);
        rig.offer(RECEIVE, 0);
        transport.signal(RECEIVE);
        settle(&mut manager);
        assert_eq!(rig.used(RECEIVE), [(0, 2)]);

        rig.fill(DATA + 0x1000, &[7; 0xf000]);
        rig.describe(TRANSMIT, 0, &[(DATA + 0x1000, 0xf000, 0, 0)]);
        for _ in 0..3 {
            rig.offer(TRANSMIT, 0);
        }
        transport.signal(TRANSMIT);
        settle(&mut manager);
        assert_eq!(rig.used(TRANSMIT).len(), 1, "the pipe is full");
        let mut got = 0;
        while got < 3 * 0xf000 {
            got += seen.read(&mut [0; 8192]).unwrap();
            settle(&mut manager);
        }
        assert_eq!(rig.used(TRANSMIT).len(), 3);

        drop(typed);
        rig.offer(RECEIVE, 0);
        transport.signal(RECEIVE);
        settle(&mut manager);
        assert_eq!(rig.used(RECEIVE).len(), 1, "the end of input is no input");
    }

    #[test]
    fn a_reset_device_is_not_looked_at() {
        let (input, mut typed) = pipe().unwrap();
        let (_seen, output) = pipe().unwrap();
        let rig = Rig::new(2);
        let console = Console::new(Some(input.into()), output.into(), false);
        let (mut manager, transport) = start(console, &rig);
        rig.describe(RECEIVE, 0, &[(DATA, 5, WRITE, 0)]);
        rig.offer(RECEIVE, 0);
        settle(&mut manager);
        assert_eq!(transport.interests().len(), 1);
        transport.write(0x70, &0u32.to_le_bytes());
        settle(&mut manager);
        typed.write_all(b"in").unwrap();
        assert_eq!(settle(&mut manager), 0);
    }

    #[test]
    fn a_stream_that_ended_is_not_watched_though_others_have_it_open() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (_seen, output) = pipe().unwrap();
        let rig = Rig::new(2);
        let shared = ours.try_clone().unwrap();
        let console = Console::new(Some(ours.into()), output.into(), false);
        let (mut manager, _transport) = start(console, &rig);
        rig.describe(RECEIVE, 0, &[(DATA, 5, WRITE, 0)]);
        rig.offer(RECEIVE, 0);
        settle(&mut manager);
        drop(theirs);
        settle(&mut manager);
        drop(shared);
    }

    #[test]
    fn what_epoll_cannot_watch_is_always_ready() {
        let mut input = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        input.write_all(b"0123456789").unwrap();
        std::io::Seek::rewind(&mut input).unwrap();
        let output = File::options().write(true).open("/dev/null").unwrap();
        let rig = Rig::new(2);
        let console = Console::new(Some(input.into()), output.into(), false);
        let (mut manager, _transport) = start(console, &rig);
        rig.describe(RECEIVE, 0, &[(DATA, 4, WRITE, 0)]);
        for _ in 0..4 {
            rig.offer(RECEIVE, 0);
        }
        settle(&mut manager);
        assert_eq!(rig.used(RECEIVE), [(0, 4), (0, 4), (0, 2)]);
    }
}
