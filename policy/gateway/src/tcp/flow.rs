//! One proxied TCP connection, from the guest's SYN or a forwarded connection to its end: bytes go
//! from one side's buffer to the other's, and not beyond; the end of one direction, refusals and
//! resets are handed on as what they are. Used by the table of connections.

use std::io::ErrorKind;
use std::net::SocketAddr;

use bulkhead_proxy::client_hello::{self, FirstBytes};
use bulkhead_proxy::records::Act;
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::{Duration, Instant};

use super::connection::{Connection, Key};
use crate::core::Core;
use crate::dns::session::Session;
use crate::host::{Host, Readiness, Stream};
use crate::rules::{Asked, Names, Refusal, Route};
use crate::schedule::Slot;

/// Most segments sent before others have a turn.
const BURST: usize = 8;
/// How long to wait before a stack is asked again that wants to send and does not.
const RETRY: Duration = Duration::from_millis(10);

/// An entry of the table.
pub(super) struct Flow<S> {
    pub(super) key: Key,
    pub(super) slot: Slot,
    /// What the host told since the last turn.
    pub(super) ready: Readiness,
    pub(super) stage: Stage<S>,
    /// Counted among those with large buffers.
    pub(super) large: bool,
    /// Its intent, where that is on record, and the bytes out and in since.
    pub(super) act: Option<Act>,
    pub(super) bytes: (u64, u64),
}

/// How far a connection is.
pub(super) enum Stage<S> {
    /// Its intent is being recorded; the guest's SYN waits.
    Recording(Box<Recording>),
    /// The host connects for the guest, whose SYN waits.
    Connecting(Connecting<S>),
    /// The host has accepted it, and its intent is being recorded.
    Arrived(Arrived<S>),
    /// The guest has, or is sent, a SYN.
    Open(Box<Open<S>>),
}

/// A connection that may be made once that is on record.
pub(super) struct Recording {
    pub(super) syn: Vec<u8>,
    pub(super) route: Route,
    pub(super) until: Instant,
}

/// The host connects.
pub(super) struct Connecting<S> {
    /// Taken when it is connected.
    pub(super) stream: Option<S>,
    pub(super) syn: Vec<u8>,
    pub(super) until: Instant,
    /// Which servers the guest's TLS may then ask for.
    pub(super) names: Option<Names>,
}

/// A forwarded connection that the guest may hear of once that is on record.
pub(super) struct Arrived<S> {
    /// Taken when it is.
    pub(super) stream: Option<S>,
    /// Whose it is.
    pub(super) from: SocketAddr,
    pub(super) until: Instant,
}

/// Both sides exist.
pub(super) struct Open<S> {
    pub(super) connection: Connection,
    pub(super) peer: Peer<S>,
    /// When a forwarded connection must have been accepted; none once it is.
    pub(super) accept_until: Option<Instant>,
    /// Which servers the guest's TLS may ask for; none any more once it has.
    pub(super) names: Option<Names>,
    /// The guest has ended its direction.
    guest_ended: bool,
    /// The host knows it.
    output_ended: bool,
    /// The host has ended its direction.
    host_ended: bool,
}

/// Who the guest speaks to.
pub(super) enum Peer<S> {
    /// A socket of the host.
    Host(S),
    /// The DNS server.
    Dns(Session<S>),
}

/// What becomes of a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It waits for the guest, the host, or this moment.
    Wait(Option<Instant>),
    /// It waits for the link.
    Stall,
    /// It has more to do.
    Again,
    /// It has ended well.
    Close,
    /// It has ended otherwise.
    Reset,
}

impl<S: Stream> Flow<S> {
    /// The act of a query to the DNS server that is under way, which ends with the connection.
    pub(super) fn take_lookup(&mut self) -> Option<Act> {
        match &mut self.stage {
            Stage::Open(open) => match &mut open.peer {
                Peer::Dns(session) => session.take_act(),
                Peer::Host(_) => None,
            },
            _ => None,
        }
    }
}

impl<S: Stream> Open<S> {
    pub(super) fn new(
        connection: Connection,
        peer: Peer<S>,
        accept_until: Option<Instant>,
    ) -> Box<Self> {
        Box::new(Self {
            connection,
            peer,
            accept_until,
            names: None,
            guest_ended: false,
            output_ended: false,
            host_ended: false,
        })
    }

    /// Whether both directions have ended and a new SYN may take the key.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.connection.state(), State::Closed | State::TimeWait)
    }

    /// Takes a packet from the guest.
    pub(super) fn input<H: Host<Stream = S>>(&mut self, core: &mut Core<H>, packet: &[u8]) {
        self.connection.input(core, packet);
    }

    /// Moves what can be moved.
    pub(super) fn turn<H: Host<Stream = S>>(
        &mut self,
        core: &mut Core<H>,
        key: Key,
        ready: &mut Readiness,
        token: crate::table::Token,
    ) -> Next {
        let socket = self.connection.socket();
        self.guest_ended |= matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        match socket.state() {
            State::SynSent | State::SynReceived => {}
            // The guest said no.
            State::Closed if self.accept_until.take().is_some() => core.stats.tcp_failed += 1,
            _ => self.accept_until = None,
        }
        if let Some(names) = &self.names
            && let Some(verdict) = asked(socket, names, self.guest_ended)
        {
            self.names = None;
            if let Err(asked) = verdict {
                let (to, port) = (key.address, key.port);
                core.refuse(&Refusal::ServerName { to, port, asked });
                socket.abort();
                return self.output(core);
            }
        }
        let sound = match &mut self.peer {
            Peer::Host(stream) if self.names.is_some() => {
                let mut ends = Ends {
                    guest: false,
                    output: &mut self.output_ended,
                    host: &mut self.host_ended,
                };
                to_guest(core, socket, stream, ready, &mut ends)
            }
            Peer::Host(stream) => {
                let mut ends = Ends {
                    guest: self.guest_ended,
                    output: &mut self.output_ended,
                    host: &mut self.host_ended,
                };
                to_host(core, socket, stream, ready, &mut ends)
                    && to_guest(core, socket, stream, ready, &mut ends)
            }
            Peer::Dns(session) => session.turn(core, socket, ready, token),
        };
        if let Peer::Dns(session) = &self.peer
            && (session.is_over() || self.guest_ended && session.is_idle())
        {
            self.host_ended = true;
            self.output_ended = true;
            socket.close();
        }
        if self.accept_until.is_some_and(|until| until <= core.now) {
            self.accept_until = None;
            core.stats.tcp_failed += 1;
            let text = format_args!(
                "the guest does not accept connections to {}",
                key.guest_port
            );
            core.chatter.say(core.now, text);
            socket.abort();
        } else if !sound {
            socket.abort();
        }
        self.output(core)
    }

    /// Ends it, with a reset for both sides.
    pub(super) fn abort<H: Host<Stream = S>>(&mut self, core: &mut Core<H>) -> Next {
        self.connection.socket().abort();
        self.output(core)
    }

    /// Sends to the guest, and sees what is left to do.
    fn output<H: Host<Stream = S>>(&mut self, core: &mut Core<H>) -> Next {
        let mut sent = 0;
        while sent < BURST && core.outbox.is_clear() && self.connection.output(core) {
            sent += 1;
        }
        let wanted = self.connection.next_output(core.now);
        let now = wanted.is_some_and(|at| at <= core.now);
        let socket = self.connection.socket();
        let drained = !socket.can_recv() || self.output_ended;
        match socket.state() {
            _ if now && !core.outbox.is_clear() => Next::Stall,
            _ if now && sent == BURST => Next::Again,
            State::Closed if !(self.guest_ended && self.host_ended) => Next::Reset,
            // The link neither reorders nor repeats: nothing old can come that TIME-WAIT is for.
            State::Closed | State::TimeWait if drained && self.output_ended => Next::Close,
            _ if now => Next::Wait(Some(core.now + RETRY)),
            _ => Next::Wait(earliest(wanted, self.deadline())),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.peer {
            Peer::Host(_) => self.accept_until,
            Peer::Dns(session) => session.deadline(),
        }
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

/// Whether the guest's TLS asks for one of `names`, and whom else; `None` while that cannot be told.
/// What is no TLS asks for nobody, and may go on.
fn asked(socket: &mut Socket<'_>, names: &Names, ended: bool) -> Option<Result<(), Asked>> {
    // Nothing has been taken out of the buffer before, so that it begins with the connection.
    let bytes = socket.peek(client_hello::MAX_BYTES).unwrap_or_default();
    match client_hello::read(bytes) {
        FirstBytes::Incomplete if ended && bytes.is_empty() => Some(Ok(())),
        FirstBytes::Incomplete if !ended => None,
        FirstBytes::Incomplete | FirstBytes::Malformed => Some(Err(Asked::Unreadable)),
        FirstBytes::Other => Some(Ok(())),
        FirstBytes::Tls(None) => Some(Err(Asked::Nobody)),
        FirstBytes::Tls(Some(name)) if names.contains(&name) => Some(Ok(())),
        FirstBytes::Tls(Some(name)) => Some(Err(Asked::Other(name))),
    }
}

/// Which directions have ended.
struct Ends<'a> {
    guest: bool,
    output: &'a mut bool,
    host: &'a mut bool,
}

/// Hands on what the guest sent; false when the host's side is broken.
fn to_host<H: Host>(
    core: &mut Core<H>,
    socket: &mut Socket<'_>,
    stream: &mut H::Stream,
    ready: &mut Readiness,
    ends: &mut Ends<'_>,
) -> bool {
    while ready.writable && socket.can_recv() {
        let sent = socket.recv(|bytes| match stream.send(bytes) {
            Ok(sent) => (sent, Ok(sent)),
            Err(error) => (0, Err(error.kind())),
        });
        match sent {
            Ok(Ok(sent)) => core.stats.bytes_out += sent as u64,
            Ok(Err(ErrorKind::WouldBlock)) => ready.writable = false,
            Ok(Err(ErrorKind::Interrupted)) => {}
            Ok(Err(_)) => return false,
            Err(_) => break,
        }
    }
    if ends.guest && !*ends.output && !socket.can_recv() {
        stream.end_output();
        *ends.output = true;
    }
    true
}

/// Hands on what the host received; false when its side is broken.
fn to_guest<H: Host>(
    core: &mut Core<H>,
    socket: &mut Socket<'_>,
    stream: &mut H::Stream,
    ready: &mut Readiness,
    ends: &mut Ends<'_>,
) -> bool {
    while ready.readable && !*ends.host && socket.can_send() {
        let received = socket.send(|buffer| match stream.receive(buffer) {
            Ok(received) => (received, Ok(received)),
            Err(error) => (0, Err(error.kind())),
        });
        match received {
            Ok(Ok(0)) => {
                socket.close();
                *ends.host = true;
            }
            Ok(Ok(received)) => core.stats.bytes_in += received as u64,
            Ok(Err(ErrorKind::WouldBlock)) => ready.readable = false,
            Ok(Err(ErrorKind::Interrupted)) => {}
            Ok(Err(_)) => return false,
            Err(_) => break,
        }
    }
    true
}
