//! Puts any virtio device into the event loop: the queue notifications of its transport, and the
//! host descriptors it waits for. The machine adds one of these for each device; all of them run
//! on the event loop's thread.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::transport::Transport;
use super::{Interest, Progress};

/// `data` of an event on a host descriptor; queue events carry the queue's index.
const BACKEND: u32 = u32::MAX;
/// `data` of the transport's own event.
const WAKE: u32 = u32::MAX - 1;

/// See the module.
pub struct VirtioSubscriber {
    transport: Arc<Transport>,
    /// What epoll watches for the device now.
    watched: Vec<Interest>,
    /// Descriptors the device waits for that epoll cannot watch (regular files, some character
    /// devices): they are always ready.
    unwatchable: Vec<RawFd>,
    /// Descriptors whose turn was over before the device had done all.
    again: Vec<RawFd>,
}

impl VirtioSubscriber {
    /// An adapter for the device behind `transport`.
    pub fn new(transport: Arc<Transport>) -> Self {
        Self {
            transport,
            watched: Vec::new(),
            unwatchable: Vec::new(),
            again: Vec::new(),
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

    /// Gives the device a turn for `fd`, and comes back through the loop for the next, so that other
    /// devices have theirs.
    fn serve_backend(&mut self, fd: RawFd) {
        if self.transport.process_backend(fd) == Progress::More {
            self.again.push(fd);
            self.transport.wake();
        }
    }

    /// As [`Self::serve_backend`], for a descriptor that is always ready.
    fn serve_unwatchable(&mut self, fd: RawFd) {
        self.serve_backend(fd);
        let interests = self.transport.interests();
        if interests.iter().any(|interest| interest.fd == fd) {
            self.transport.wake();
        }
    }
}

impl MutEventSubscriber for VirtioSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // A descriptor of our own that epoll refuses would be a host out of memory; the device
        // then stays silent, which the guest sees as a device that does not answer.
        let _ = ops.add(Events::with_data(
            self.transport.wake_event(),
            WAKE,
            EventSet::IN,
        ));
        if self.transport.queues_are_foreign() {
            return;
        }
        for (event, index) in self.transport.queue_events().iter().zip(0..) {
            let _ = ops.add(Events::with_data(event, index, EventSet::IN));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            BACKEND => self.serve_backend(events.fd()),
            WAKE => {
                // Read before looking: what changes meanwhile signals again.
                let _ = self.transport.wake_event().read();
                for fd in std::mem::take(&mut self.again) {
                    self.serve_backend(fd);
                }
            }
            index => {
                let index = index as usize;
                if let Some(event) = self.transport.queue_events().get(index) {
                    debug_assert_eq!(event.as_raw_fd(), events.fd());
                    // As above.
                    let _ = event.read();
                }
                if self.transport.process_queue(index) == Progress::More {
                    self.transport.signal(index);
                }
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
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::super::console::Console;
    use super::super::mmio::MmioTransport;
    use super::super::mmio::testing::bring_up;
    use super::super::testing::*;
    use super::super::{Activation, DeviceError, DeviceIo, DeviceType, VirtioDevice};
    use super::*;

    const RECEIVE: usize = 0;
    const TRANSMIT: usize = 1;

    fn start(
        device: impl VirtioDevice + 'static,
        rig: &Rig,
    ) -> (EventManager<VirtioSubscriber>, Arc<MmioTransport>) {
        let transport = Arc::new(MmioTransport::new(Box::new(device), rig.memory.clone()).unwrap());
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(VirtioSubscriber::new(transport.transport().clone()));
        bring_up(&transport, 2);
        (manager, transport)
    }

    /// A device whose queue another process serves; it asks for an interrupt when `call` is rung.
    struct Foreign {
        call: EventFd,
    }

    impl VirtioDevice for Foreign {
        fn device_type(&self) -> DeviceType {
            DeviceType::Fs
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_max_sizes(&self) -> &[u16] {
            &[SIZE, SIZE]
        }
        fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
        fn activate(&mut self, activation: Activation<'_>) -> Result<(), DeviceError> {
            assert_eq!(activation.doorbells.len(), 2);
            Ok(())
        }
        fn queues_are_foreign(&self) -> bool {
            true
        }
        fn process_queue(
            &mut self,
            _: usize,
            _: &mut DeviceIo<'_>,
        ) -> Result<Progress, DeviceError> {
            panic!("this queue is another's")
        }
        fn interests(&self) -> Vec<Interest> {
            let fd = self.call.as_raw_fd();
            let events = EventSet::IN;
            vec![Interest { fd, events }]
        }
        fn process_backend(
            &mut self,
            _: RawFd,
            io: &mut DeviceIo<'_>,
        ) -> Result<Progress, DeviceError> {
            self.call.read()?;
            io.queues[1].interrupt();
            Ok(Progress::Idle)
        }
        fn reset(&mut self) {}
    }

    #[test]
    fn foreign_queues_are_left_to_their_process() {
        let call = EventFd::new(EFD_NONBLOCK).unwrap();
        let ring = call.try_clone().unwrap();
        let (mut manager, transport) = start(Foreign { call }, &Rig::new(2));
        settle(&mut manager);
        assert_eq!(
            transport.transport().queue_events()[1].read().unwrap(),
            1,
            "nobody took it"
        );
        ring.write(1).unwrap();
        settle(&mut manager);
        assert_ne!(transport.interrupt().status(), 0);
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
        transport.transport().signal(RECEIVE);
        settle(&mut manager);
        assert_eq!(rig.used(RECEIVE), [(0, 2)]);

        rig.fill(DATA + 0x1000, &[7; 0xf000]);
        rig.describe(TRANSMIT, 0, &[(DATA + 0x1000, 0xf000, 0, 0)]);
        for _ in 0..3 {
            rig.offer(TRANSMIT, 0);
        }
        transport.transport().signal(TRANSMIT);
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
        transport.transport().signal(RECEIVE);
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
        assert_eq!(transport.transport().interests().len(), 1);
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
