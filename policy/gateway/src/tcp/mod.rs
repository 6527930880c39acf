//! TCP: the table of connections. The guest's go where a rule allows, forwarded ones come in.
//! Used by [`crate::Gateway`].
//!
//! A SYN of the guest is answered when the host has connected, so that the guest sees a refusal as
//! a refusal; only then does a connection have buffers.

mod connection;
mod flow;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use bulkhead_network::{Forward, Protocol};
use bulkhead_proxy::Flow as Web;
use bulkhead_proxy::quota::Exhausted;
use bulkhead_proxy::records::{Act, NotDone};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{Icmpv4DstUnreachable, TcpPacket};

use crate::core::Core;
use crate::dns::session::Session;
use crate::frame::Packet;
use crate::host::{Host, Readiness, Stream};
use crate::journal::{self, UNDECIDED};
use crate::rules::Refusal;
use crate::schedule::{Schedule, Slot};
use crate::table::{Kind, Table, Token};
use connection::{Connection, Key};
use flow::{Arrived, Connecting, Flow, Next, Open, Peer, Recording, Stage};

/// Bytes a connection buffers each way, while few are open.
const LARGE_BUFFER: usize = 256 * 1024;
/// Most connections with large buffers.
const MAX_LARGE: usize = 64;
/// Bytes the others buffer each way.
const SMALL_BUFFER: usize = 32 * 1024;
/// How long the host may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest, which may be booting, may take to accept a forwarded connection.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest SYN that is kept: headers with all options.
const MAX_SYN: usize = 120;
/// Ports from which forwarded connections come.
const FORWARD_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;
/// The port of DNS.
const DNS_PORT: u16 = 53;

/// All connections.
pub(crate) struct Tcp<H: Host> {
    flows: Table<Flow<H::Stream>>,
    by_key: HashMap<Key, Token>,
    large: usize,
    forward_port: u16,
}

impl<H: Host> Tcp<H> {
    /// No connections, of at most `limit`.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            flows: Table::new(Kind::Tcp, limit),
            by_key: HashMap::new(),
            large: 0,
            forward_port: *FORWARD_PORTS.start(),
        }
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Takes a packet from the guest.
    pub(crate) fn packet(&mut self, core: &mut Core<H>, packet: &Packet<'_>) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else {
            core.stats.dropped_out += 1;
            return;
        };
        let key = Key {
            address: packet.destination,
            port: segment.dst_port(),
            guest_port: segment.src_port(),
        };
        if key.port == 0 || key.guest_port == 0 || packet.source.is_unspecified() {
            core.stats.dropped_out += 1;
            return;
        }
        let begins = segment.syn() && !segment.ack() && !segment.rst();
        if let Some(token) = self.by_key.get(&key).copied()
            && let Some(flow) = self.flows.get_mut(token)
        {
            match &mut flow.stage {
                Stage::Recording(_) | Stage::Connecting(_) if segment.rst() => {
                    self.close(core, token, false);
                    return;
                }
                // The SYN again; or what the guest cannot know of.
                Stage::Recording(_) | Stage::Connecting(_) | Stage::Arrived(_) => return,
                Stage::Open(open) if begins && open.is_over() => {
                    // What is left goes to the host under no key.
                    self.by_key.remove(&key);
                }
                Stage::Open(open) => {
                    open.input(core, packet.bytes);
                    core.schedule.wake(token, &mut flow.slot);
                    return;
                }
            }
        }
        match begins {
            true => self.begin(core, packet, &segment, key),
            false if segment.rst() => {}
            false => core.send_reset(packet, &segment),
        }
    }

    /// A SYN of the guest.
    fn begin(
        &mut self,
        core: &mut Core<H>,
        packet: &Packet<'_>,
        segment: &TcpPacket<&[u8]>,
        key: Key,
    ) {
        if packet.bytes.len() > MAX_SYN {
            // With data, which no system sends unasked.
            core.stats.dropped_out += 1;
            return;
        }
        let Some(token) = self.flows.next() else {
            core.full("TCP connections");
            core.send_reset(packet, segment);
            return;
        };
        if (key.address, key.port) == (core.config.dns, DNS_PORT) {
            if let Some(mut connection) = Connection::accept(core, key, SMALL_BUFFER) {
                connection.input(core, packet.bytes);
                let peer = Peer::Dns(Session::new(core.now));
                let open = Open::new(connection, peer, None);
                self.add(core, key, Stage::Open(open), false);
            }
            return;
        }
        let (config, now) = (&core.config, core.now);
        let allowed = core
            .rules
            .outbound(config, now, Protocol::Tcp, key.address, key.port);
        let mut route = match allowed {
            Ok(route) => route,
            Err(refusal) => {
                core.refuse(&refusal);
                core.send_reset(packet, segment);
                return;
            }
        };
        core.stats.tcp_out += 1;
        // The proxy and the models record what they do by themselves.
        if core.journal.is_kept() && !route.web && !route.models {
            let object = match route.names.iter().flatten().next() {
                Some(name) => format!("tcp {name}:{}", key.port),
                None => format!("tcp {}:{}", key.address, key.port),
            };
            let question = route.question(Protocol::Tcp, key.address, key.port);
            let reason = route.grant.clone();
            core.journal.begin(token, object, reason, None, question);
            let recording = Recording {
                syn: packet.bytes.to_vec(),
                route,
                until: now + CONNECT_TIMEOUT,
            };
            self.add(core, key, Stage::Recording(Box::new(recording)), false);
            return;
        }
        let opened = match (route.models, route.web) {
            (true, _) => core.host.hand_to_models(token),
            (false, true) => {
                let address = (key.address != core.config.router).then_some(key.address);
                let flow = Web {
                    to: route.to,
                    port: key.port,
                    address,
                    by_address: route.by_address,
                    names: route.names.take().unwrap_or_default(),
                    pinned: std::mem::take(&mut route.pinned),
                };
                core.host.hand_over(flow, token)
            }
            (false, false) => core.host.connect(route.to, token),
        };
        match opened {
            Ok(stream) => {
                let connecting = Connecting {
                    stream: Some(stream),
                    syn: packet.bytes.to_vec(),
                    until: now + CONNECT_TIMEOUT,
                    names: route.names,
                };
                self.add(core, key, Stage::Connecting(connecting), false);
            }
            Err(error) => fail(core, packet.bytes, &error),
        }
    }

    /// A connection is permitted and its intent on record, or it must not be made.
    pub(crate) fn recorded(&mut self, core: &mut Core<H>, token: Token, act: Result<Act, NotDone>) {
        let Some(flow) = self.flows.get_mut(token) else {
            // Nothing was done.
            return core.journal.late(act);
        };
        if let Stage::Arrived(_) = &flow.stage {
            self.announce(core, token, act);
            return;
        }
        if let Stage::Open(open) = &mut flow.stage
            && let Peer::Dns(session) = &mut open.peer
        {
            session.decided(core, act, &mut flow.ready, token);
            core.schedule.wake(token, &mut flow.slot);
            return;
        }
        let Stage::Recording(recording) = &mut flow.stage else {
            return core.journal.late(act);
        };
        let syn = std::mem::take(&mut recording.syn);
        let opened = match act {
            Ok(mut act) => {
                if let Some(names) = act.names.take() {
                    recording.route.names = Some(names);
                }
                flow.act = Some(act);
                core.host.connect(recording.route.to, token)
            }
            Err(NotDone::Denied(ruling)) => {
                let (protocol, to, port) = (Protocol::Tcp, flow.key.address, flow.key.port);
                core.refuse(&Refusal::Condition {
                    protocol,
                    to,
                    port,
                    ruling,
                });
                Err(ErrorKind::ConnectionRefused.into())
            }
            Err(NotDone::NotRecorded(error)) => {
                let (to, port) = (flow.key.address, flow.key.port);
                let text = format_args!("refused tcp to {to}:{port}: {error}");
                core.stats.refused += 1;
                core.chatter.say(core.now, text);
                Err(ErrorKind::ConnectionRefused.into())
            }
        };
        match opened {
            Ok(stream) => {
                flow.stage = Stage::Connecting(Connecting {
                    stream: Some(stream),
                    syn,
                    until: core.now + CONNECT_TIMEOUT,
                    names: recording.route.names.take(),
                });
                core.schedule.wake(token, &mut flow.slot);
            }
            Err(error) => {
                fail(core, &syn, &error);
                self.close(core, token, false);
            }
        }
    }

    /// A forwarded connection came in, or several.
    pub(crate) fn accept(&mut self, core: &mut Core<H>, listener: usize) {
        let Some(forward) = core.config.forwards.get(listener).cloned() else {
            return;
        };
        // Told once, so until there is no other. A refused one is dropped at once.
        loop {
            let token = self.flows.next();
            let unused = Token::lone(Kind::Tcp, u32::MAX);
            match core.host.accept(listener, token.unwrap_or(unused)) {
                Ok((stream, from)) => match token {
                    Some(token) => self.forward(core, token, stream, from, &forward),
                    None => {
                        stream.reset();
                        core.full("TCP connections");
                    }
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    let port = forward.guest_port;
                    let text = format_args!("cannot accept a connection to {port}: {error}");
                    core.chatter.say(core.now, text);
                    return;
                }
            }
        }
    }

    /// A connection of `from` came in, which is to be handed to the guest.
    fn forward(
        &mut self,
        core: &mut Core<H>,
        token: Token,
        stream: H::Stream,
        from: SocketAddr,
        forward: &Forward,
    ) {
        if let Err(why) = core.rules.admits(core.now, forward) {
            stream.reset();
            refuse_outside(core, forward.guest_port, from, &why);
            return;
        }
        core.stats.tcp_in += 1;
        let Some(key) = self.forward_key(core, forward.guest_port) else {
            stream.reset();
            core.full("forwarded connections");
            return;
        };
        let until = core.now + ACCEPT_TIMEOUT;
        let arrived = Arrived {
            stream: Some(stream),
            from,
            until,
        };
        self.add(core, key, Stage::Arrived(arrived), false);
        match core.journal.is_kept() {
            true => core.journal.accept(token, from, forward),
            false => self.open(core, token, None),
        }
    }

    /// A forwarded connection is on record, or must not be handed on.
    fn announce(&mut self, core: &mut Core<H>, token: Token, act: Result<Act, NotDone>) {
        match act {
            Ok(act) => self.open(core, token, Some(act)),
            Err(error) => {
                if let Some(flow) = self.flows.get_mut(token)
                    && let Stage::Arrived(arrived) = &flow.stage
                {
                    let port = flow.key.guest_port;
                    refuse_outside(core, port, arrived.from, &error.to_string());
                }
                self.close(core, token, false);
            }
        }
    }

    /// Hands a connection that came in to the guest.
    fn open(&mut self, core: &mut Core<H>, token: Token, act: Option<Act>) {
        let (buffer, large) = self.buffer();
        let Some(flow) = self.flows.get_mut(token) else {
            return;
        };
        flow.act = act;
        let Stage::Arrived(Arrived { stream, .. }) = &mut flow.stage else {
            return;
        };
        let connection = Connection::connect(core, flow.key, buffer);
        if let Some(connection) = connection
            && let Some(stream) = stream.take()
        {
            let until = core.now + ACCEPT_TIMEOUT;
            flow.stage = Stage::Open(Open::new(connection, Peer::Host(stream), Some(until)));
            flow.large = large;
            self.large += usize::from(large);
            core.schedule.wake(token, &mut flow.slot);
        } else {
            core.full("forwarded connections");
            self.close(core, token, false);
        }
    }

    /// A key for a connection from the router, which no other has.
    fn forward_key(&mut self, core: &Core<H>, guest_port: u16) -> Option<Key> {
        // More ports than connections: one is free.
        for _ in FORWARD_PORTS {
            self.forward_port = match self.forward_port.checked_add(1) {
                Some(next) if FORWARD_PORTS.contains(&next) => next,
                _ => *FORWARD_PORTS.start(),
            };
            let key = Key {
                address: core.config.router,
                port: self.forward_port,
                guest_port,
            };
            if !self.by_key.contains_key(&key) {
                return Some(key);
            }
        }
        None
    }

    /// The size of the next connection's buffers, and whether that is large.
    fn buffer(&self) -> (usize, bool) {
        match self.large < MAX_LARGE {
            true => (LARGE_BUFFER, true),
            false => (SMALL_BUFFER, false),
        }
    }

    fn add(&mut self, core: &mut Core<H>, key: Key, stage: Stage<H::Stream>, large: bool) {
        let flow = Flow {
            key,
            slot: Slot::default(),
            ready: Readiness::default(),
            stage,
            large,
            act: None,
            bytes: (0, 0),
        };
        if let Ok(token) = self.flows.insert(flow)
            && let Some(flow) = self.flows.get_mut(token)
        {
            self.large += usize::from(large);
            self.by_key.insert(key, token);
            core.schedule.wake(token, &mut flow.slot);
        }
    }

    /// The host told that something became possible.
    pub(crate) fn event(&mut self, core: &mut Core<H>, token: Token, ready: Readiness) {
        if let Some(flow) = self.flows.get_mut(token) {
            flow.ready.readable |= ready.readable;
            flow.ready.writable |= ready.writable;
            core.schedule.wake(token, &mut flow.slot);
        }
    }

    /// A deadline has passed.
    pub(crate) fn due(&mut self, core: &mut Core<H>, token: Token) {
        if let Some(flow) = self.flows.get_mut(token) {
            core.schedule.set_deadline(token, &mut flow.slot, None);
            core.schedule.wake(token, &mut flow.slot);
        }
    }

    /// Looks after a connection that has work.
    pub(crate) fn turn(&mut self, core: &mut Core<H>, token: Token) {
        let (buffer, large) = self.buffer();
        let Some(flow) = self.flows.get_mut(token) else {
            return;
        };
        Schedule::taken(&mut flow.slot);
        let recorded_until = match &flow.stage {
            Stage::Recording(recording) => Some(recording.until),
            Stage::Arrived(arrived) => Some(arrived.until),
            Stage::Connecting(_) | Stage::Open(_) => None,
        };
        if let Some(until) = recorded_until {
            if until > core.now {
                core.schedule
                    .set_deadline(token, &mut flow.slot, Some(until));
                return;
            }
            match &flow.stage {
                Stage::Recording(recording) => {
                    let (to, port) = (flow.key.address, flow.key.port);
                    let said = format_args!("refused tcp to {to}:{port}: {UNDECIDED}");
                    let object = format!("tcp {to}:{port}");
                    core.refuse_act("net.connect", &object, said, UNDECIDED);
                    fail(core, &recording.syn, &ErrorKind::TimedOut.into());
                }
                Stage::Arrived(arrived) => {
                    let port = flow.key.guest_port;
                    refuse_outside(core, port, arrived.from, UNDECIDED);
                }
                Stage::Connecting(_) | Stage::Open(_) => {}
            }
            self.close(core, token, false);
            return;
        }
        if let Stage::Connecting(connecting) = &mut flow.stage {
            match outcome(connecting, flow.ready, core.now) {
                Ok(None) => {
                    flow.ready = Readiness::default();
                    let until = Some(connecting.until);
                    core.schedule.set_deadline(token, &mut flow.slot, until);
                    return;
                }
                Ok(Some(stream)) => {
                    let Some(mut connection) = Connection::accept(core, flow.key, buffer) else {
                        self.close(core, token, false);
                        return;
                    };
                    connection.input(core, &connecting.syn);
                    let mut open = Open::new(connection, Peer::Host(stream), None);
                    open.names = connecting.names.take();
                    flow.stage = Stage::Open(open);
                    flow.large = large;
                    self.large += usize::from(large);
                }
                Err(error) => {
                    fail(core, &connecting.syn, &error);
                    self.close(core, token, false);
                    return;
                }
            }
        }
        let Stage::Open(open) = &mut flow.stage else {
            return;
        };
        let before = (core.stats.bytes_out, core.stats.bytes_in);
        let mut next = open.turn(core, flow.key, &mut flow.ready, token);
        let moved = (
            core.stats.bytes_out - before.0,
            core.stats.bytes_in - before.1,
        );
        flow.bytes.0 += moved.0;
        flow.bytes.1 += moved.1;
        if let Err(what) = core.rules.spend(&[], moved.0 + moved.1)
            && moved != (0, 0)
        {
            core.refuse(&exhausted(flow.key, what));
            next = open.abort(core);
        }
        let slot = &mut flow.slot;
        match next {
            Next::Wait(until) => core.schedule.set_deadline(token, slot, until),
            Next::Stall => core.schedule.stall(token, slot),
            Next::Again => core.schedule.wake(token, slot),
            Next::Close => self.close(core, token, true),
            Next::Reset => self.close(core, token, false),
        }
    }

    /// Ends all of them, since the guest is gone.
    pub(crate) fn end(&mut self, core: &mut Core<H>) {
        let tokens: Vec<Token> = self.flows.iter().map(|(token, _)| token).collect();
        for token in tokens {
            if let Some(flow) = self.flows.get_mut(token) {
                if let Some(act) = flow.act.take() {
                    core.journal.gone(&act, flow.bytes);
                }
                if let Some(act) = flow.take_lookup() {
                    core.journal.unanswered(&act);
                }
            }
            self.close(core, token, false);
        }
    }

    fn close(&mut self, core: &mut Core<H>, token: Token, well: bool) {
        let Some(mut flow) = self.flows.remove(token) else {
            return;
        };
        core.schedule.forget(token, &mut flow.slot);
        if self.by_key.get(&flow.key) == Some(&token) {
            self.by_key.remove(&flow.key);
        }
        self.large -= usize::from(flow.large);
        if let Some(act) = &flow.act {
            let failure = match flow.stage {
                Stage::Open(_) if well => None,
                Stage::Open(_) => Some("it was reset"),
                _ => Some("it was not accepted"),
            };
            core.journal.outcome(act, failure, flow.bytes);
        }
        core.journal.given_up(flow.take_lookup());
        let stream = match flow.stage {
            Stage::Open(open) => match open.peer {
                Peer::Host(stream) => Some(stream),
                Peer::Dns(_) => None,
            },
            Stage::Arrived(arrived) => arrived.stream,
            Stage::Recording(_) | Stage::Connecting(_) => None,
        };
        if let Some(stream) = stream.filter(|_| !well) {
            stream.reset();
        }
    }
}

/// An amount that a connection is counted against is used up.
fn exhausted(key: Key, what: Exhausted) -> Refusal {
    Refusal::Exhausted {
        protocol: Protocol::Tcp,
        to: key.address,
        port: key.port,
        what,
    }
}

/// Tells that a connection of `from` is not handed to the guest, and why.
fn refuse_outside<H: Host>(core: &mut Core<H>, port: u16, from: SocketAddr, why: &str) {
    let said = format_args!("refused a connection of {from} to {port}: {why}");
    core.refuse_act("net.listen", &journal::listened(port), said, why);
}

/// The stream, when the host has connected it; nothing as long as it tries.
fn outcome<S: Stream>(
    connecting: &mut Connecting<S>,
    ready: Readiness,
    now: Instant,
) -> io::Result<Option<S>> {
    if ready != Readiness::default()
        && let Some(stream) = &mut connecting.stream
    {
        return match stream.outcome() {
            Ok(()) => Ok(connecting.stream.take()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        };
    }
    match connecting.until <= now {
        true => Err(ErrorKind::TimedOut.into()),
        false => Ok(None),
    }
}

/// The host could not connect: tells the guest what its own system would have.
fn fail<H: Host>(core: &mut Core<H>, syn: &[u8], error: &io::Error) {
    core.stats.tcp_failed += 1;
    let Some(packet) = Packet::whole(syn) else {
        return;
    };
    let Ok(segment) = TcpPacket::new_checked(packet.payload) else {
        return;
    };
    let reason = match error.kind() {
        ErrorKind::NetworkUnreachable => Icmpv4DstUnreachable::NetUnreachable,
        ErrorKind::HostUnreachable | ErrorKind::TimedOut => Icmpv4DstUnreachable::HostUnreachable,
        _ => return core.send_reset(&packet, &segment),
    };
    if let Some(head) = packet.payload.first_chunk() {
        core.send_unreachable(packet.destination, packet.protocol, *head, reason);
    }
}

/// Whether `accept` failed for one connection, and the next may do better (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::Interrupted | ErrorKind::ConnectionReset
    )
}
