//! virtio-vsock (virtio 1.2, section 5.10): stream sockets between the guest and Unix sockets of the
//! host, by the conventions of Firecracker.
//!
//! A host process connects to the device's listening socket, writes `CONNECT port\n`, and reads
//! `OK number\n` when the guest has accepted. A guest that connects to CID 2 reaches whoever the
//! supervisor finds behind the port: the device asks over its connector, and gets a connected
//! socket back, or a refusal ([`bulkhead_machine::control::vsock`]).
//!
//! What a guest can make the device hold is bounded: [`MAX_CONNECTIONS`], for each the credit of
//! `credit::BUFFER_BYTES`, and `MAX_RESETS` refusals that it has not read. A guest that reads
//! none of those is not served until it does.

mod connection;
mod credit;
mod packet;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use bulkhead_machine::control::vsock::{Connect, Connected};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
    accept_with, recvmsg, send,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::IntoBytes;

use super::queue::Chain;
use super::{
    Activation, DeviceError, DeviceIo, DeviceType, Interest, Progress, TURN_BYTES, VirtioDevice,
    read_config_bytes,
};
use crate::trace::now_ns;
use connection::{Connection, Fate, Phase};
use packet::{HEADER_BYTES, Header, Key, Op};
use stream::Stream;

/// Most connections at a time, those that are not established yet among them. Each needs a
/// descriptor.
pub const MAX_CONNECTIONS: usize = 256;
/// Most refusals that wait for the guest to read them.
const MAX_RESETS: usize = 256;
/// Feature bit: stream sockets.
const VIRTIO_VSOCK_F_STREAM: u32 = 0;
/// Index of the queue of packets to the guest.
const RECEIVE: usize = 0;
/// Index of the queue of packets from it.
const TRANSMIT: usize = 1;
/// Index of the queue of events.
const EVENT: usize = 2;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;
/// What a packet counts at least against a turn's [`TURN_BYTES`].
const PACKET_COST: u64 = 4096;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: u32 = 0;
/// Ports on the host's side of connections that begin there (as Firecracker's).
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

const SECOND: u64 = 1_000_000_000;
/// How long a host process may take to name a port, and guest or supervisor to answer.
const HANDSHAKE_NS: u64 = 10 * SECOND;
/// How long a connection that is closing may take to come to its end.
const CLOSING_NS: u64 = 60 * SECOND;

/// What the device's own epoll instance says; other values are connections ([`Key::token`], which
/// no port pair of `u32::MAX` uses: it is the wildcard).
const LISTENER: u64 = u64::MAX;
const CONNECTOR: u64 = u64::MAX - 1;
const TIMER: u64 = u64::MAX - 2;

/// The vsock device cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The description, or a descriptor it names, breaks a rule.
    #[error("the vsock device cannot be built: {0}")]
    Rule(&'static str),
    /// The host refused a call.
    #[error("the vsock device cannot be built: {0}")]
    Host(#[from] io::Error),
}

impl VsockError {
    /// Stable code for users.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rule(_) => "vsock-invalid",
            Self::Host(_) => "vsock-refused",
        }
    }
}

/// See the module.
pub struct Vsock {
    cid: u32,
    config: [u8; 8],
    listener: OwnedFd,
    connector: OwnedFd,
    /// Ticks while a connection has a deadline.
    timer: OwnedFd,
    ticking: bool,
    /// Watches all of these and every connection, edge-triggered: the event loop waits for it alone.
    epoll: Epoll,
    /// Somebody may wait to be accepted.
    accepting: bool,
    connections: BTreeMap<Key, Connection>,
    /// Connections that may have a packet for the guest, each once, in the order of their turns.
    listed: VecDeque<Key>,
    /// Refusals for the guest.
    resets: VecDeque<Key>,
    /// The guest sends, but does not read its refusals.
    stalled: bool,
    /// A buffer of the driver's, for the next packet.
    held: Option<Chain>,
    /// The guest has to be told that all connections are lost.
    reset_due: bool,
    next_port: u32,
    next_id: u64,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    host_connections: u64,
    guest_connections: u64,
    refused: u64,
    receive_bytes: u64,
    transmit_bytes: u64,
    malformed: u64,
}

impl Vsock {
    /// The device of the guest with address `cid`. Call before the jail closes.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn new(cid: u32, listener: OwnedFd, connector: OwnedFd) -> Result<Self, VsockError> {
        if cid < 3 || cid == u32::MAX {
            return Err(VsockError::Rule("its cid is not 3 to 4294967294"));
        }
        if !matches!(socket_acceptconn(&listener), Ok(true))
            || !matches!(socket_type(&listener), Ok(SocketType::STREAM))
        {
            return Err(VsockError::Rule(
                "its listener is not a listening SOCK_STREAM socket",
            ));
        }
        if !matches!(socket_type(&connector), Ok(SocketType::SEQPACKET)) {
            return Err(VsockError::Rule("its connector is not SOCK_SEQPACKET"));
        }
        let flags = fcntl_getfl(&listener).map_err(io::Error::from)?;
        fcntl_setfl(&listener, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(io::Error::from)?;
        let epoll = Epoll::new()?;
        for (fd, data) in [
            (&listener, LISTENER),
            (&connector, CONNECTOR),
            (&timer, TIMER),
        ] {
            watch(&epoll, ControlOperation::Add, fd.as_raw_fd(), data)?;
        }
        Ok(Self {
            cid,
            config: u64::from(cid).to_le_bytes(),
            listener,
            connector,
            timer,
            ticking: false,
            epoll,
            accepting: true,
            connections: BTreeMap::new(),
            listed: VecDeque::new(),
            resets: VecDeque::new(),
            stalled: false,
            held: None,
            reset_due: false,
            next_port: HOST_PORTS.start,
            next_id: 0,
            counters: Counters::default(),
        })
    }

    /// Ends every connection and tells the guest that it has to begin anew: what it sees of the host
    /// is another one than before, as after a restore.
    pub fn reset_transport(&mut self) {
        self.forget_connections();
        self.reset_due = true;
    }

    fn forget_connections(&mut self) {
        self.connections.clear();
        self.listed.clear();
        self.resets.clear();
        self.stalled = false;
        self.accepting = true;
    }

    // ---- connections ----

    /// Does what `fate` says to connection `key`.
    fn settle(&mut self, key: Key, fate: Fate) {
        if let (Fate::Lives, Some(connection)) = (fate, self.connections.get_mut(&key)) {
            if connection.has_packet() && !connection.listed {
                connection.listed = true;
                self.listed.push_back(key);
            }
            return;
        }
        if let Some(stream) = self.connections.get(&key).and_then(Connection::stream) {
            // Closing it is not enough where the supervisor has the same socket open.
            let fd = stream.raw_fd();
            let _ = self
                .epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        self.connections.remove(&key);
        if fate == Fate::Reset {
            self.resets.push_back(key);
        }
    }

    /// Accepts host processes while there is room.
    fn accept(&mut self) {
        while self.accepting && self.connections.len() < MAX_CONNECTIONS {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match accept_with(&self.listener, flags) {
                Ok(socket) => self.add_host(Stream::new(socket)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // None left, or the host has no descriptor left: the next one that comes is tried.
                Err(_) => self.accepting = false,
            }
        }
    }

    fn add_host(&mut self, stream: Stream) {
        let key = Key {
            host_port: self.free_port(),
            guest_port: 0,
        };
        let fd = stream.raw_fd();
        if watch(&self.epoll, ControlOperation::Add, fd, key.token()).is_ok() {
            let phase = Phase::Greeting(Vec::new());
            let connection = Connection::new(phase, Some(stream), now_ns() + HANDSHAKE_NS);
            self.connections.insert(key, connection);
            self.greet(key);
        }
    }

    /// A port that no connection has. There are far more ports than connections.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = match port + 1 {
                next if HOST_PORTS.contains(&next) => next,
                _ => HOST_PORTS.start,
            };
            if !self.connections.keys().any(|key| key.host_port == port) {
                return port;
            }
        }
    }

    /// Listens to a host process that has not named its port yet.
    fn greet(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let guest_port = match connection.greet() {
            Ok(Some(port)) => port,
            Ok(None) => return,
            Err(fate) => return self.settle(key, fate),
        };
        let new = Key { guest_port, ..key };
        let taken = new != key && self.connections.contains_key(&new);
        let Some(mut connection) = self.connections.remove(&key).filter(|_| !taken) else {
            return;
        };
        let fd = connection.stream().map_or(-1, Stream::raw_fd);
        if watch(&self.epoll, ControlOperation::Modify, fd, new.token()).is_ok() {
            connection.request(now_ns() + HANDSHAKE_NS);
            self.counters.host_connections += 1;
            self.connections.insert(new, connection);
            self.settle(new, Fate::Lives);
        }
    }

    /// The guest wants to connect: asks the supervisor.
    fn ask(&mut self, key: Key, header: &Header) {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let question = Connect {
            id,
            port: key.host_port,
        };
        // Plain numbers always serialise.
        let packet = serde_json::to_vec(&question).unwrap_or_default();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // A supervisor that is gone or does not read connects nobody.
        if self.connections.len() >= MAX_CONNECTIONS
            || send(&self.connector, &packet, flags).is_err()
        {
            self.counters.refused += 1;
            self.resets.push_back(key);
            return;
        }
        let mut connection = Connection::new(Phase::Asked(id), None, now_ns() + HANDSHAKE_NS);
        connection.learn(header);
        self.connections.insert(key, connection);
    }

    /// Takes the supervisor's answers.
    fn take_answers(&mut self) {
        let mut buffer = [0; 512];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let len = match recvmsg(&self.connector, &mut parts, &mut ancillary, flags) {
                Err(Errno::INTR) => continue,
                // The end of the socket: what was asked is refused when its time is up.
                Err(_) => return,
                Ok(message) if message.bytes == 0 => return,
                Ok(message) => message.bytes,
            };
            let socket = ancillary.drain().find_map(|part| match part {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            let text = buffer.get(..len).unwrap_or_default();
            if let Ok(answer) = serde_json::from_slice(text) {
                self.take_answer(&answer, socket);
            }
        }
    }

    fn take_answer(&mut self, answer: &Connected, socket: Option<OwnedFd>) {
        let asked = Phase::Asked(answer.id);
        let found = self.connections.iter_mut().find(|(_, c)| c.phase == asked);
        let Some((key, connection)) = found else {
            return;
        };
        let key = *key;
        let stream = socket.filter(|_| answer.accepted).map(Stream::new);
        let watched = stream.filter(|stream| {
            let fd = stream.raw_fd();
            watch(&self.epoll, ControlOperation::Add, fd, key.token()).is_ok()
        });
        let fate = match watched {
            Some(stream) => {
                connection.accept(stream);
                self.counters.guest_connections += 1;
                Fate::Lives
            }
            None => {
                self.counters.refused += 1;
                Fate::Reset
            }
        };
        self.settle(key, fate);
    }

    /// Ends the connections whose time is up.
    fn expire(&mut self) {
        self.ticking = false;
        let now = now_ns();
        let late = |c: &Connection| c.deadline.is_some_and(|deadline| deadline <= now);
        let expired: Vec<Key> = self
            .connections
            .iter()
            .filter_map(|(key, connection)| late(connection).then_some(*key))
            .collect();
        for key in expired {
            let shared = self
                .connections
                .get(&key)
                .is_some_and(Connection::is_shared);
            let fate = if shared { Fate::Reset } else { Fate::Gone };
            self.settle(key, fate);
        }
    }

    /// Lets the timer tick in a second, where a connection has a deadline.
    fn tick(&mut self) {
        if self.ticking || self.connections.values().all(|c| c.deadline.is_none()) {
            return;
        }
        let span = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
        let once = Itimerspec {
            it_interval: span(0),
            it_value: span(1),
        };
        self.ticking = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok();
    }

    /// Takes what the device's epoll instance has to say now.
    fn take_events(&mut self) {
        let mut events = [EpollEvent::default(); 64];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            match event.data() {
                LISTENER => self.accepting = true,
                CONNECTOR => self.take_answers(),
                TIMER => self.expire(),
                token => self.wake(Key::from_token(token), event.event_set()),
            }
        }
    }

    fn wake(&mut self, key: Key, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        connection.wake(events.intersects(EventSet::HANG_UP | EventSet::ERROR));
        if matches!(connection.phase, Phase::Greeting(_)) {
            return self.greet(key);
        }
        let fate = connection.flush();
        self.settle(key, fate);
    }

    // ---- queues ----

    /// Everything there is to do now, in bounded portions.
    fn turn(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        self.send_event(io)?;
        self.accept();
        let transmitted = self.transmit(io)?;
        let delivered = self.deliver(io)?;
        self.tick();
        let unstalled = self.stalled && self.resets.len() < MAX_RESETS;
        let room = self.accepting && self.connections.len() < MAX_CONNECTIONS;
        if unstalled || room || transmitted == Progress::More || delivered == Progress::More {
            Ok(Progress::More)
        } else {
            Ok(Progress::Idle)
        }
    }

    fn send_event(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let Some(queue) = io.queues.get_mut(EVENT).filter(|_| self.reset_due) else {
            return Ok(());
        };
        if let Some(chain) = queue.pop(io.memory)? {
            let event = TRANSPORT_RESET.to_le_bytes();
            if chain.writable.len() < event.len() as u64 {
                return Err(DeviceError::Unanswerable);
            }
            chain.writable.write_at(io.memory, 0, &event)?;
            queue.push(io.memory, &chain, event.len() as u32)?;
            self.reset_due = false;
        }
        Ok(())
    }

    /// Takes packets from the guest.
    fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        let mut spent = 0;
        while spent < TURN_BYTES {
            self.stalled = self.resets.len() >= MAX_RESETS;
            let Some(queue) = io.queues.get_mut(TRANSMIT).filter(|_| !self.stalled) else {
                return Ok(Progress::Idle);
            };
            let Some(chain) = queue.pop(io.memory)? else {
                return Ok(Progress::Idle);
            };
            match packet::read(&chain, io.memory, self.cid) {
                Some(header) => {
                    spent += u64::from(header.len.get());
                    self.take_packet(&header, &chain, io.memory)?;
                }
                None => self.counters.malformed += 1,
            }
            spent += PACKET_COST;
            if let Some(queue) = io.queues.get_mut(TRANSMIT) {
                queue.push(io.memory, &chain, 0)?;
            }
        }
        Ok(Progress::More)
    }

    fn take_packet(
        &mut self,
        header: &Header,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<(), DeviceError> {
        let key = header.key();
        let closing = now_ns() + CLOSING_NS;
        match (self.connections.get_mut(&key), header.op()) {
            (Some(connection), Some(op)) => {
                let fate = connection.take(key, op, header, chain, memory, closing)?;
                if op == Op::Data {
                    self.counters.transmit_bytes += u64::from(header.len.get());
                }
                self.settle(key, fate);
            }
            (None, Some(Op::Request)) => self.ask(key, header),
            // Nothing answers a reset, lest two sides answer each other for ever.
            (None, Some(Op::Reset)) => {}
            (_, _) => self.settle(key, Fate::Reset),
        }
        Ok(())
    }

    /// Gives packets to the guest: refusals, then each connection in its turn.
    fn deliver(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        let closing = now_ns() + CLOSING_NS;
        let mut spent = 0;
        while spent < TURN_BYTES {
            let Some(queue) = io.queues.get_mut(RECEIVE) else {
                return Ok(Progress::Idle);
            };
            if self.resets.is_empty() && self.listed.is_empty() {
                return Ok(Progress::Idle);
            }
            let chain = match self.held.take() {
                Some(chain) => chain,
                None => match queue.pop(io.memory)? {
                    Some(chain) => chain,
                    None => return Ok(Progress::Idle),
                },
            };
            if chain.writable.len() <= HEADER_BYTES {
                return Err(DeviceError::Unanswerable);
            }
            let len = match self.resets.pop_front() {
                Some(key) => {
                    let header = Header::to_guest(self.cid, key, Op::Reset);
                    chain.writable.write_at(io.memory, 0, header.as_bytes())?;
                    Some(HEADER_BYTES as u32)
                }
                None => self.next_packet(&chain, io.memory, closing)?,
            };
            spent += PACKET_COST;
            match len {
                Some(len) => {
                    queue.push(io.memory, &chain, len)?;
                    spent += u64::from(len);
                    self.counters.receive_bytes += u64::from(len) - HEADER_BYTES;
                }
                None => self.held = Some(chain),
            }
        }
        Ok(Progress::More)
    }

    fn next_packet(
        &mut self,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        closing: u64,
    ) -> Result<Option<u32>, DeviceError> {
        let Some(key) = self.listed.pop_front() else {
            return Ok(None);
        };
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(None);
        };
        connection.listed = false;
        let len = connection.next_packet(self.cid, key, chain, memory, closing)?;
        self.settle(key, Fate::Lives);
        Ok(len)
    }
}

/// Watches `fd` for everything that happens there, edge-triggered.
fn watch(epoll: &Epoll, operation: ControlOperation, fd: RawFd, data: u64) -> io::Result<()> {
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    epoll.ctl(operation, fd, EpollEvent::new(events, data))
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, _activation: Activation<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        vec![
            ("connections", self.connections.len() as u64),
            ("host-connections", counters.host_connections),
            ("guest-connections", counters.guest_connections),
            ("refused-connections", counters.refused),
            ("receive-bytes", counters.receive_bytes),
            ("transmit-bytes", counters.transmit_bytes),
            ("malformed-packets", counters.malformed),
        ]
    }

    fn process_queue(
        &mut self,
        _index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        self.turn(io)
    }

    fn interests(&self) -> Vec<Interest> {
        vec![Interest {
            fd: self.epoll.as_raw_fd(),
            events: EventSet::IN,
        }]
    }

    fn process_backend(
        &mut self,
        _fd: RawFd,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        self.take_events();
        self.turn(io)
    }

    fn reset(&mut self) {
        self.forget_connections();
        self.held = None;
        self.reset_due = false;
    }
}

#[cfg(test)]
mod tests;
