//! What the gateway asks of the host: sockets, and the link to the guest. Implemented by
//! [`crate::sockets`] for the real ones, and by tests.
//!
//! Everything is non-blocking. Readiness is told once, when it begins ([`crate::Gateway::event`]);
//! until then operations answer [`io::ErrorKind::WouldBlock`].

use std::io;
use std::net::SocketAddr;

use bulkhead_network::tools::Wanted;
use bulkhead_proxy::Flow;

use crate::table::Token;

/// The host's side.
pub trait Host {
    /// A TCP connection.
    type Stream: Stream;
    /// A UDP socket that is connected to one address.
    type Datagrams: Datagrams;

    /// Begins a TCP connection. When it can be written to, [`Stream::outcome`] tells how that went.
    ///
    /// # Errors
    /// As of `connect`.
    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<Self::Stream>;

    /// Hands a TCP connection of the guest to the proxy, which decides what becomes of it. The
    /// stream leads there.
    ///
    /// # Errors
    /// As of `socketpair`; there is no proxy.
    fn hand_over(&mut self, flow: Flow, token: Token) -> io::Result<Self::Stream>;

    /// Hands a TCP connection of the guest to the router of models. The stream leads there.
    ///
    /// # Errors
    /// As of `socketpair`; there are no models.
    fn hand_to_models(&mut self, token: Token) -> io::Result<Self::Stream>;

    /// Makes a UDP socket.
    ///
    /// # Errors
    /// As of `socket` and `connect`.
    fn datagrams(&mut self, to: SocketAddr, token: Token) -> io::Result<Self::Datagrams>;

    /// Accepts the next connection of the listener with this index in the description; whose it is.
    ///
    /// # Errors
    /// As of `accept`.
    fn accept(&mut self, listener: usize, token: Token) -> io::Result<(Self::Stream, SocketAddr)>;

    /// Sends a frame to the guest.
    ///
    /// # Errors
    /// As of `send`.
    fn transmit(&mut self, frame: &[u8]) -> io::Result<()>;

    /// What the partition's tools want next.
    fn wanted(&mut self) -> Option<Wanted> {
        None
    }

    /// Makes a stream for the partition's tools, whose other end the proxy takes.
    ///
    /// # Errors
    /// As of `socketpair`; there is no proxy, or nobody who waits for it.
    fn hand_to_tools(&mut self, _wanted: &Wanted, _flow: Flow) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Tells the partition's tools why not.
    fn refuse_tools(&mut self, _wanted: &Wanted, _why: &str) {}

    /// A number that nobody can guess.
    fn random(&mut self) -> u64;
}

/// A TCP connection of the host. Dropping it closes it.
pub trait Stream {
    /// Whether it is connected now.
    ///
    /// # Errors
    /// Why not.
    fn outcome(&mut self) -> io::Result<()>;

    /// Receives; 0 at the end.
    ///
    /// # Errors
    /// As of `recv`.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends.
    ///
    /// # Errors
    /// As of `send`.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// No more bytes will be sent.
    fn end_output(&mut self);

    /// Closes without a good end: the peer sees a reset.
    fn reset(self);
}

/// A connected UDP socket of the host. Dropping it closes it.
pub trait Datagrams {
    /// Receives one; a longer one is cut off.
    ///
    /// # Errors
    /// As of `recv`.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends one.
    ///
    /// # Errors
    /// As of `send`.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Readiness that began. An error or the end of a stream counts as both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There is something to receive, or to accept.
    pub readable: bool,
    /// There is room to send.
    pub writable: bool,
}
