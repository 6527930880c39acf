//! The vsock device between a guest and host processes that behave, and such that do not.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, recv, sendmsg, socketpair,
};
use std::os::fd::AsFd;
use vm_memory::{Address, Bytes};

use super::super::testing::*;
use super::*;
use credit::BUFFER_BYTES;
use packet::{MAX_PAYLOAD, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

const CID: u32 = 7;
const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
/// The driver's receive buffers: one for each entry of the queue.
const BUFFERS: u64 = DATA + 0x1_0000;
const BUFFER_LEN: u32 = 0xc00;

fn abstract_address() -> SocketAddr {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("bulkhead-vsock-test-{}-{number}", std::process::id());
    SocketAddr::from_abstract_name(name).unwrap()
}

/// A guest, its device, and the supervisor's end of the connector.
struct World {
    rig: Rig,
    device: Vsock,
    supervisor: OwnedFd,
    address: SocketAddr,
    /// Receive buffers taken back so far.
    seen: u16,
    /// What the guest's headers say.
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl World {
    fn new() -> Self {
        let address = abstract_address();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let (supervisor, connector) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let device = Vsock::new(CID, listener.into(), connector).unwrap();
        let world = Self {
            rig: Rig::new(3),
            device,
            supervisor,
            address,
            seen: 0,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
        };
        for n in 0..SIZE {
            let at = BUFFERS + u64::from(n) * u64::from(BUFFER_LEN);
            world
                .rig
                .describe(RECEIVE, n, &[(at, BUFFER_LEN, WRITE, 0)]);
            world.rig.offer(RECEIVE, n);
        }
        world
    }

    /// A host process that connects.
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect_addr(&self.address).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    fn header(&self, key: Key, op: u16, len: usize, flags: u32) -> Header {
        Header {
            src_cid: u64::from(CID).into(),
            dst_cid: packet::HOST_CID.into(),
            src_port: key.guest_port.into(),
            dst_port: key.host_port.into(),
            len: (len as u32).into(),
            kind: 1.into(),
            op: op.into(),
            flags: flags.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
        }
    }

    /// The guest sends these bytes as one packet.
    fn send_raw(&mut self, bytes: &[u8]) {
        self.rig.fill(DATA, bytes);
        let first = bytes.len().min(20) as u32;
        let rest = bytes.len() as u32 - first;
        if rest == 0 {
            self.rig.describe(TRANSMIT, 0, &[(DATA, first, 0, 0)]);
        } else {
            let second = (DATA + u64::from(first), rest, 0, 0);
            self.rig
                .describe(TRANSMIT, 0, &[(DATA, first, NEXT, 1), second]);
        }
        self.rig.offer(TRANSMIT, 0);
        let _ = self
            .device
            .process_queue(TRANSMIT, &mut self.rig.io())
            .unwrap();
    }

    fn send(&mut self, key: Key, op: Op, payload: &[u8], flags: u32) {
        let header = self.header(key, op as u16, payload.len(), flags);
        self.send_raw(&[header.as_bytes(), payload].concat());
    }

    /// What the event loop does when the device's descriptor is ready.
    fn turn(&mut self) {
        for _ in 0..3 {
            let fd = self.device.interests()[0].fd;
            let _ = self.device.process_backend(fd, &mut self.rig.io()).unwrap();
        }
    }

    /// The packets that the guest got, whose buffers it gives back.
    fn take(&mut self) -> Vec<(Header, Vec<u8>)> {
        let [_, _, used] = ring_addresses(RECEIVE);
        let mut packets = Vec::new();
        loop {
            let index: u16 = self.rig.memory.read_obj(used.unchecked_add(2)).unwrap();
            if index == self.seen {
                return packets;
            }
            let slot = used.unchecked_add(4 + 8 * u64::from(self.seen % SIZE));
            let [id, len]: [u32; 2] = self.rig.memory.read_obj(slot).unwrap();
            self.seen = self.seen.wrapping_add(1);
            let bytes = self.rig.bytes(
                BUFFERS + u64::from(id) * u64::from(BUFFER_LEN),
                len as usize,
            );
            let (header, payload) = bytes.split_at(HEADER_BYTES as usize);
            let header = <Header as zerocopy::FromBytes>::read_from_bytes(header).unwrap();
            assert_eq!(header.len.get() as usize, payload.len());
            assert_eq!(
                (header.src_cid.get(), header.dst_cid.get()),
                (2, CID.into())
            );
            packets.push((header, payload.to_vec()));
            self.rig.offer(RECEIVE, id as u16);
            let _ = self
                .device
                .process_queue(RECEIVE, &mut self.rig.io())
                .unwrap();
        }
    }

    /// Operation and flags of the packets that the guest got.
    fn ops(&mut self) -> Vec<(Op, u32)> {
        self.turn();
        let packets = self.take();
        packets
            .iter()
            .map(|(header, _)| (header.op().unwrap(), header.flags.get()))
            .collect()
    }

    /// A connection from the host to the guest's port 52, established.
    fn connect_from_host(&mut self) -> (UnixStream, Key) {
        let mut stream = self.connect();
        stream.write_all(b"CONNECT 52\n").unwrap();
        self.turn();
        let packets = self.take();
        let [(header, _)] = packets.as_slice() else {
            panic!("{packets:?}");
        };
        assert_eq!(header.op(), Some(Op::Request));
        let key = Key {
            host_port: header.src_port.get(),
            guest_port: 52,
        };
        self.send(key, Op::Response, &[], 0);
        let mut line = [0; 64];
        let len = stream.read(&mut line).unwrap();
        assert_eq!(
            std::str::from_utf8(&line[..len]).unwrap(),
            format!("OK {}\n", key.host_port)
        );
        (stream, key)
    }

    /// What the supervisor is asked.
    fn question(&self) -> Option<Connect> {
        let mut buffer = [0; 512];
        let (len, _) = recv(&self.supervisor, &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
        Some(serde_json::from_slice(&buffer[..len]).unwrap())
    }

    fn answer(&self, id: u64, socket: Option<&UnixStream>) {
        let answer = Connected {
            id,
            accepted: socket.is_some(),
        };
        let text = serde_json::to_vec(&answer).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = socket.iter().map(|socket| socket.as_fd()).collect();
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let parts = [io::IoSlice::new(&text)];
        sendmsg(&self.supervisor, &parts, &mut ancillary, SendFlags::empty()).unwrap();
    }

    /// A connection from the guest to the host's port 80, established.
    fn connect_from_guest(&mut self, guest_port: u32) -> (UnixStream, Key) {
        let key = Key {
            host_port: 80,
            guest_port,
        };
        self.send(key, Op::Request, &[], 0);
        let question = self.question().unwrap();
        assert_eq!(question.port, 80);
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.answer(question.id, Some(&theirs));
        drop(theirs);
        assert_eq!(self.ops(), [(Op::Response, 0)]);
        ours.set_nonblocking(true).unwrap();
        (ours, key)
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.device.counters();
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }
}

/// Everything that can be read now; the flag: the other side has ended.
fn drain(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return (bytes, true),
            Ok(len) => bytes.extend(&part[..len]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return (bytes, true),
            Err(_) => return (bytes, false),
        }
    }
}

#[test]
fn rules_of_the_description() {
    let packets = || {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
        socketpair(kind.0, kind.1, SocketFlags::empty(), None)
            .unwrap()
            .0
    };
    let listener = || OwnedFd::from(UnixListener::bind_addr(&abstract_address()).unwrap());
    let stream = || OwnedFd::from(UnixStream::pair().unwrap().0);
    for (cid, listener, connector, fine) in [
        (3, listener(), packets(), true),
        (2, listener(), packets(), false),
        (u32::MAX, listener(), packets(), false),
        (3, stream(), packets(), false),
        (3, listener(), stream(), false),
    ] {
        assert_eq!(Vsock::new(cid, listener, connector).is_ok(), fine);
    }
}

#[test]
fn the_guest_learns_its_address() {
    let world = World::new();
    let mut config = [0xff; 10];
    world.device.read_config(0, &mut config);
    assert_eq!(config, [7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_host_process_reaches_the_guest_and_back() {
    let mut world = World::new();
    let (mut stream, key) = world.connect_from_host();
    stream.write_all(b"hello").unwrap();
    world.turn();
    let packets = world.take();
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].0.op(), Some(Op::Data));
    assert_eq!(packets[0].1, b"hello");
    world.send(key, Op::Data, b"and back", 0);
    assert_eq!(drain(&mut stream), (b"and back".to_vec(), false));
    assert_eq!(world.counter("receive-bytes"), 5);
    assert_eq!(world.counter("transmit-bytes"), 8);
}

#[test]
fn what_a_host_process_sends_early_is_not_lost() {
    let mut world = World::new();
    let mut stream = world.connect();
    stream.write_all(b"CONN").unwrap();
    assert_eq!(world.ops(), []);
    stream.write_all(b"ECT 52\nearly").unwrap();
    world.turn();
    let request = world.take()[0].0;
    let key = Key {
        host_port: request.src_port.get(),
        guest_port: 52,
    };
    assert_eq!(world.ops(), [], "the guest has not accepted yet");
    world.send(key, Op::Response, &[], 0);
    world.turn();
    assert_eq!(world.take()[0].1, b"early");
}

#[test]
fn a_host_process_that_says_something_else_is_closed() {
    for line in [&b"HELLO 52\n"[..], &[b'C'; 100], b"CONNECT x\n"] {
        let mut world = World::new();
        let mut stream = world.connect();
        stream.write_all(line).unwrap();
        assert_eq!(world.ops(), []);
        assert!(drain(&mut stream).1);
        assert_eq!(world.counter("connections"), 0);
    }
}

#[test]
fn a_guest_that_refuses_closes_the_host_process() {
    let mut world = World::new();
    let mut stream = world.connect();
    stream.write_all(b"CONNECT 9\n").unwrap();
    world.turn();
    let port = world.take()[0].0.src_port.get();
    let key = Key {
        host_port: port,
        guest_port: 9,
    };
    world.send(key, Op::Reset, &[], 0);
    assert_eq!(drain(&mut stream), (vec![], true));
    assert_eq!(world.ops(), []);
}

#[test]
fn a_guest_reaches_whom_the_supervisor_names() {
    let mut world = World::new();
    let (mut stream, key) = world.connect_from_guest(1000);
    world.send(key, Op::Data, b"ping", 0);
    assert_eq!(drain(&mut stream), (b"ping".to_vec(), false));
    stream.write_all(b"pong").unwrap();
    world.turn();
    assert_eq!(world.take()[0].1, b"pong");
    assert_eq!(world.counter("guest-connections"), 1);
}

#[test]
fn a_refusal_resets() {
    let mut world = World::new();
    let key = Key {
        host_port: 80,
        guest_port: 1000,
    };
    world.send(key, Op::Request, &[], 0);
    let question = world.question().unwrap();
    // An answer to something else, and one that is none, change nothing.
    world.answer(question.id + 1, None);
    rustix::net::send(&world.supervisor, b"{", SendFlags::empty()).unwrap();
    assert_eq!(world.ops(), []);
    world.answer(question.id, None);
    assert_eq!(world.ops(), [(Op::Reset, 0)]);
    // And so does a supervisor that is gone.
    world.supervisor = UnixStream::pair().unwrap().0.into();
    world.send(key, Op::Request, &[], 0);
    assert_eq!(world.ops(), [(Op::Reset, 0)]);
    assert_eq!(world.counter("refused-connections"), 2);
}

#[test]
fn an_answer_that_comes_too_late_is_dropped() {
    let mut world = World::new();
    let key = Key {
        host_port: 80,
        guest_port: 1000,
    };
    world.send(key, Op::Request, &[], 0);
    let question = world.question().unwrap();
    world.send(key, Op::Reset, &[], 0);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    world.answer(question.id, Some(&theirs));
    drop(theirs);
    assert_eq!(world.ops(), []);
    ours.set_nonblocking(true).unwrap();
    assert!(drain(&mut ours).1, "the socket is closed");
}

#[test]
fn nonsense_is_answered_with_a_reset() {
    let key = Key {
        host_port: 80,
        guest_port: 1000,
    };
    for op in [0, 2, 4, 5, 6, 7, 8, u16::MAX] {
        let mut world = World::new();
        let header = world.header(key, op, 0, 0);
        world.send_raw(header.as_bytes());
        assert_eq!(world.ops(), [(Op::Reset, 0)], "operation {op}");
        // On a connection it ends that.
        if matches!(op, 0 | 2 | 8 | u16::MAX) {
            let (mut stream, key) = world.connect_from_guest(1001);
            let header = world.header(key, op, 0, 0);
            world.send_raw(header.as_bytes());
            assert_eq!(world.ops(), [(Op::Reset, 0)], "operation {op}");
            assert!(drain(&mut stream).1);
        }
    }
    let mut world = World::new();
    world.send(key, Op::Reset, &[], 0);
    assert_eq!(world.ops(), [], "a reset is not answered");
    let mut header = world.header(key, 1, 0, 0);
    header.kind = 2.into();
    world.send_raw(header.as_bytes());
    assert_eq!(world.ops(), [(Op::Reset, 0)], "no streams");
}

#[test]
fn what_is_no_packet_is_counted_and_dropped() {
    let key = Key {
        host_port: 80,
        guest_port: 1000,
    };
    let mut world = World::new();
    let good = world.header(key, 1, 0, 0);
    let (mut foreign, mut elsewhere, mut long, mut huge) = (good, good, good, good);
    foreign.src_cid = 8.into();
    elsewhere.dst_cid = 1.into();
    long.len = 1.into();
    huge.len = (MAX_PAYLOAD + 1).into();
    world.send_raw(&good.as_bytes()[..43]);
    for header in [foreign, elsewhere, long, huge] {
        world.send_raw(header.as_bytes());
    }
    assert_eq!(world.ops(), []);
    assert_eq!(world.question(), None);
    assert_eq!(world.counter("malformed-packets"), 5);
}

#[test]
fn a_slow_host_process_holds_the_guest_back_by_credit() {
    let mut world = World::new();
    let (mut stream, key) = world.connect_from_guest(1000);
    let portion: Vec<u8> = (0..4096u32).map(|n| n as u8).collect();
    // The socket takes what it takes; then the device holds what it promised, and no more.
    let mut sent = 0u32;
    let mut forwarded = 0u32;
    while sent - forwarded < BUFFER_BYTES {
        world.send(key, Op::Data, &portion, 0);
        sent += portion.len() as u32;
        for (header, _) in world.take() {
            assert_eq!(header.op(), Some(Op::CreditUpdate));
            assert_eq!(header.buf_alloc.get(), BUFFER_BYTES);
            forwarded = header.fwd_cnt.get();
        }
        assert!(sent < 64 << 20);
    }
    let mut got = 0;
    while got < sent as usize {
        let (bytes, ended) = drain(&mut stream);
        assert!(!ended);
        for byte in bytes {
            assert_eq!(byte, (got % 4096) as u8);
            got += 1;
        }
        world.turn();
    }
    let told = world.take().last().unwrap().0;
    assert!(sent - told.fwd_cnt.get() < BUFFER_BYTES / 4);
    world.send(key, Op::CreditRequest, &[], 0);
    let packets = world.take();
    assert_eq!(packets[0].0.op(), Some(Op::CreditUpdate));
    assert_eq!(packets[0].0.fwd_cnt.get(), sent);
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut world = World::new();
    let (mut stream, key) = world.connect_from_guest(1000);
    let portion = [7; 0x4000];
    let mut reset = false;
    for _ in 0..10_000 {
        world.send(key, Op::Data, &portion, 0);
        reset = world.ops().contains(&(Op::Reset, 0));
        if reset {
            break;
        }
    }
    assert!(reset);
    assert!(drain(&mut stream).1);
}

#[test]
fn a_slow_guest_holds_the_host_process_back() {
    let mut world = World::new();
    world.buf_alloc = 5000;
    let (mut stream, key) = world.connect_from_guest(1000);
    stream.write_all(&[7; 20_000]).unwrap();
    world.turn();
    let packets = world.take();
    let total: usize = packets.iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(total, 5000, "as much as the guest has room for");
    let ops: Vec<_> = packets.iter().filter_map(|(h, _)| h.op()).collect();
    assert_eq!(
        ops.last(),
        Some(&Op::CreditRequest),
        "and it is asked, once"
    );
    assert_eq!(world.ops(), []);
    world.fwd_cnt = 3000;
    world.send(key, Op::CreditUpdate, &[], 0);
    let total: usize = world.take().iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(total, 3000);
    // A guest that has passed on more than it got has no room at all.
    world.fwd_cnt = 9000;
    world.send(key, Op::CreditUpdate, &[], 0);
    assert!(world.take().iter().all(|(_, payload)| payload.is_empty()));
}

#[test]
fn half_closed_connections_work_in_the_other_direction() {
    let mut world = World::new();
    let (mut stream, key) = world.connect_from_guest(1000);
    world.send(key, Op::Data, b"last words", 0);
    world.send(key, Op::Shutdown, &[], SHUTDOWN_SEND);
    assert_eq!(drain(&mut stream), (b"last words".to_vec(), true));
    stream.write_all(b"answer").unwrap();
    world.turn();
    assert_eq!(world.take()[0].1, b"answer");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // Both directions have ended by now.
    assert_eq!(world.ops(), [(Op::Shutdown, BOTH)]);
    world.send(key, Op::Shutdown, &[], BOTH);
    assert_eq!(world.ops(), [(Op::Reset, 0)]);
    assert_eq!(world.counter("connections"), 0);

    let (mut stream, key) = world.connect_from_guest(1001);
    stream.write_all(b"first").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    world.turn();
    let packets = world.take();
    assert_eq!(packets[0].1, b"first");
    assert_eq!(packets[1].0.flags.get(), SHUTDOWN_SEND);
    world.send(key, Op::Data, b"still", 0);
    assert_eq!(drain(&mut stream), (b"still".to_vec(), false));
}

#[test]
fn a_host_process_that_closes_shuts_the_guest_down_after_its_data() {
    let mut world = World::new();
    let (mut stream, key) = world.connect_from_guest(1000);
    stream.write_all(b"bye").unwrap();
    drop(stream);
    world.turn();
    let packets = world.take();
    assert_eq!(packets[0].1, b"bye");
    assert_eq!(packets.last().unwrap().0.flags.get(), BOTH);
    world.send(key, Op::Data, b"unheard", 0);
    world.send(key, Op::Reset, &[], 0);
    assert_eq!(world.counter("connections"), 0);
}

#[test]
fn what_the_guest_sent_before_it_closed_arrives() {
    let mut world = World::new();
    let (mut stream, key) = world.connect_from_guest(1000);
    let portion = [7; 0x4000];
    let mut sent = 0;
    // Until the device holds something.
    while world.device.connections[&key].held() == 0 {
        world.send(key, Op::Data, &portion, 0);
        sent += portion.len();
        world.take();
    }
    world.send(key, Op::Shutdown, &[], BOTH);
    world.send(key, Op::Reset, &[], 0);
    let mut got = 0;
    loop {
        let (bytes, ended) = drain(&mut stream);
        got += bytes.len();
        if ended {
            break;
        }
        assert_eq!(world.ops(), []);
    }
    assert_eq!(got, sent);
    assert_eq!(world.counter("connections"), 0);
}

#[test]
fn connections_are_bounded_and_their_places_come_back() {
    let mut world = World::new();
    let mut streams: Vec<_> = (0..MAX_CONNECTIONS as u32 / 2)
        .map(|n| world.connect_from_guest(n))
        .collect();
    streams.extend((0..MAX_CONNECTIONS / 2).map(|_| world.connect_from_host()));
    let key = Key {
        host_port: 80,
        guest_port: 5000,
    };
    world.send(key, Op::Request, &[], 0);
    assert_eq!(world.ops(), [(Op::Reset, 0)]);
    assert_eq!(world.question(), None);
    let mut waiting = world.connect();
    waiting.write_all(b"CONNECT 52\n").unwrap();
    assert_eq!(world.ops(), []);
    let (_, gone) = streams.pop().unwrap();
    world.send(gone, Op::Reset, &[], 0);
    assert_eq!(world.ops(), [(Op::Request, 0)], "the one that waited");
}

#[test]
fn a_guest_that_reads_no_refusals_is_not_served() {
    let mut world = World::new();
    let buffers = usize::from(SIZE);
    for n in 0..1000 {
        let key = Key {
            host_port: n,
            guest_port: 1,
        };
        world.rig.set_avail_idx(TRANSMIT, n as u16);
        world.send(key, Op::Data, &[], 0);
        assert!(world.device.resets.len() <= MAX_RESETS);
        if world.device.stalled {
            break;
        }
    }
    assert!(world.device.stalled);
    let mut read = 0;
    while read < MAX_RESETS {
        let now = world.take().len();
        assert!(now >= buffers.min(MAX_RESETS - read));
        read += now;
    }
    assert!(!world.device.stalled || world.device.resets.is_empty());
}

#[test]
fn connections_whose_time_is_up_end() {
    let mut world = World::new();
    let mut greeting = world.connect();
    world.turn();
    let key = Key {
        host_port: 80,
        guest_port: 1000,
    };
    world.send(key, Op::Request, &[], 0);
    assert!(world.device.ticking);
    let (mut open, _) = world.connect_from_guest(1001);
    for connection in world.device.connections.values_mut() {
        if let Some(deadline) = &mut connection.deadline {
            *deadline = 0;
        }
    }
    world.device.expire();
    assert_eq!(world.ops(), [(Op::Reset, 0)]);
    assert!(drain(&mut greeting).1);
    assert_eq!(drain(&mut open), (vec![], false));
    assert!(!world.device.ticking);
}

#[test]
fn a_reset_ends_all_connections() {
    let mut world = World::new();
    let (mut stream, _) = world.connect_from_guest(1000);
    world.device.reset();
    assert!(drain(&mut stream).1);
    assert_eq!(world.counter("connections"), 0);
}

#[test]
fn the_guest_is_told_of_a_transport_reset() {
    let mut world = World::new();
    let (mut stream, _) = world.connect_from_guest(1000);
    world.device.reset_transport();
    assert!(drain(&mut stream).1);
    world.turn();
    assert_eq!(world.rig.used(EVENT), []);
    world.rig.fill(DATA, &[0xff; 4]);
    world.rig.describe(EVENT, 0, &[(DATA, 4, WRITE, 0)]);
    world.rig.offer(EVENT, 0);
    let _ = world
        .device
        .process_queue(EVENT, &mut world.rig.io())
        .unwrap();
    assert_eq!(world.rig.used(EVENT), [(0, 4)]);
    assert_eq!(world.rig.bytes(DATA, 4), [0; 4]);
    world.turn();
    assert_eq!(world.rig.used(EVENT).len(), 1, "once");
}

#[test]
fn malformed_chains_stop_the_device() {
    for (what, descriptors, table) in malformed_chains() {
        let mut world = World::new();
        world.rig.describe(TRANSMIT, 0, &descriptors);
        world.rig.describe_at(DATA, &table);
        world.rig.offer(TRANSMIT, 0);
        let outcome = world.device.process_queue(TRANSMIT, &mut world.rig.io());
        assert!(outcome.is_err(), "{what}");
        assert_eq!(world.rig.used(TRANSMIT), [], "{what}");
    }
    let mut world = World::new();
    let mut rig = Rig::new(3);
    rig.describe(RECEIVE, 0, &[(DATA, 44, WRITE, 0)]);
    rig.offer(RECEIVE, 0);
    world.device.resets.push_back(Key::from_token(1));
    let outcome = world.device.process_queue(RECEIVE, &mut rig.io());
    assert!(outcome.is_err(), "no room for a payload");
}
