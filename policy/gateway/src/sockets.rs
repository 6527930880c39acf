//! The host's side with real sockets. Every socket is added to the event queue once, edge-triggered.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bulkhead_network::tools::{Answer, MAX_PACKET, Wanted};
use bulkhead_proxy::Flow;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay, socket_error};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown,
    SocketFlags, SocketType, acceptfrom_with, connect, recv, send, sendmsg, shutdown, socket_with,
    socketpair,
};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::control::shortened;
use crate::host::{Datagrams, Host, Readiness, Stream};
use crate::models::Models;
use crate::table::{Kind, Token};
use crate::web::Web;

const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// Descriptors from the description, and the event queue.
pub struct Sockets {
    queue: OwnedFd,
    link: OwnedFd,
    control: Option<OwnedFd>,
    listeners: Vec<OwnedFd>,
    web: Option<Web>,
    models: Option<Models>,
    tools: Option<OwnedFd>,
}

/// An event of the host.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// About whom.
    pub token: Token,
    /// What became possible.
    pub ready: Readiness,
    /// The other side is gone.
    pub ended: bool,
}

impl Sockets {
    /// Waits for all of them.
    ///
    /// # Errors
    /// The host refuses.
    pub fn new(
        link: OwnedFd,
        control: Option<OwnedFd>,
        listeners: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let sockets = Self {
            queue,
            link,
            control,
            listeners,
            web: None,
            models: None,
            tools: None,
        };
        sockets.add(&sockets.link, Token::lone(Kind::Link, 0))?;
        if let Some(control) = &sockets.control {
            sockets.add(control, Token::lone(Kind::Control, 0))?;
        }
        for (index, listener) in (0..).zip(&sockets.listeners) {
            // Whoever made it may have left it blocking, and `accept` takes no flag for that.
            rustix::io::ioctl_fionbio(listener, true)?;
            sockets.add(listener, Token::listener(index))?;
        }
        Ok(sockets)
    }

    /// Hands connections to the proxy from now on.
    pub(crate) fn set_web(&mut self, web: Web) {
        self.web = Some(web);
    }

    /// Hands connections to the router of models from now on.
    pub(crate) fn set_models(&mut self, models: Models) {
        self.models = Some(models);
    }

    /// Hears of what the partition's tools want from now on: told as long as there is something.
    pub(crate) fn set_tools(&mut self, tools: OwnedFd) -> io::Result<()> {
        let data = EventData::new_u64(Token::lone(Kind::Tools, 0).pack());
        epoll::add(&self.queue, &tools, data, EventFlags::IN)?;
        self.tools = Some(tools);
        Ok(())
    }

    /// Two ends of a stream, the first of which is waited for.
    fn pair(&self, token: Token) -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        self.add(&own, token)?;
        Ok((own, other))
    }

    /// Hears of what was recorded by this eventfd from now on.
    pub(crate) fn hear_records(&self, wake: impl AsFd) -> io::Result<()> {
        self.add(wake, Token::lone(Kind::Records, 0))
    }

    fn add(&self, socket: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(token.pack());
        Ok(epoll::add(&self.queue, socket, data, flags)?)
    }

    /// Waits for events, at most `timeout`; forever without. They are added to `events`.
    ///
    /// # Errors
    /// As of `epoll_wait`; an interruption is no error.
    pub fn wait(
        &self,
        timeout: Option<std::time::Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let mut raw = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; 64];
        let timeout = timeout.map(|timeout| rustix::time::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let count = match epoll::wait(&self.queue, &mut raw[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in raw.iter().take(count) {
            let (flags, data) = (event.flags, event.data);
            let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            let ready = Readiness {
                readable: failed || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                writable: failed || flags.contains(EventFlags::OUT),
            };
            if let Some(token) = Token::unpack(data.u64()) {
                events.push(Event {
                    token,
                    ready,
                    ended: flags.intersects(EventFlags::HUP | EventFlags::RDHUP),
                });
            }
        }
        Ok(())
    }

    /// Receives a frame of the guest; an empty one when the link is closed, and as often as
    /// somebody sends one.
    ///
    /// # Errors
    /// As of `recv`.
    pub fn receive_frame(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (_, len) = recv(&self.link, buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)?;
        Ok(len)
    }

    /// The control socket.
    pub fn control(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }

    fn new_socket(&self, to: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(socket_with(family, kind, flags, None)?)
    }
}

impl Host for Sockets {
    type Stream = TcpSocket;
    type Datagrams = UdpSocket;

    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<TcpSocket> {
        let socket = self.new_socket(to, SocketType::STREAM)?;
        // A delay is the guest's to choose, and it has chosen already.
        set_tcp_nodelay(&socket, true)?;
        match connect(&socket, &to) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        self.add(&socket, token)?;
        Ok(TcpSocket::new(socket))
    }

    fn hand_over(&mut self, flow: Flow, token: Token) -> io::Result<TcpSocket> {
        let web = self.web.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let (own, other) = self.pair(token)?;
        let broken = web.hand_over(flow, other, None)?;
        Ok(TcpSocket {
            socket: own,
            broken: Some(broken),
        })
    }

    fn hand_to_models(&mut self, token: Token) -> io::Result<TcpSocket> {
        let models = self.models.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let (own, other) = self.pair(token)?;
        models.hand_over(other)?;
        Ok(TcpSocket::new(own))
    }

    fn datagrams(&mut self, to: SocketAddr, token: Token) -> io::Result<UdpSocket> {
        let socket = self.new_socket(to, SocketType::DGRAM)?;
        connect(&socket, &to)?;
        self.add(&socket, token)?;
        Ok(UdpSocket(socket))
    }

    fn accept(&mut self, listener: usize, token: Token) -> io::Result<(TcpSocket, SocketAddr)> {
        let Some(listener) = self.listeners.get(listener) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, from) = acceptfrom_with(listener, flags)?;
        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
        // Only what listens to TCP was described.
        let from = from.ok_or(io::ErrorKind::Unsupported)?;
        let _ = set_tcp_nodelay(&socket, true);
        self.add(&socket, token)?;
        Ok((TcpSocket::new(socket), from))
    }

    fn transmit(&mut self, frame: &[u8]) -> io::Result<()> {
        send(&self.link, frame, SEND)?;
        Ok(())
    }

    fn wanted(&mut self) -> Option<Wanted> {
        let mut buffer = [0; MAX_PACKET];
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let received = recv(self.tools.as_ref()?, &mut buffer[..], flags);
        let wanted = match received {
            Ok((len @ 1.., _)) => {
                serde_json::from_slice(buffer.get(..len).unwrap_or_default()).ok()
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return None,
            Ok(_) | Err(_) => None,
        };
        // They are gone, or speak nonsense; closed, the socket is waited for no more.
        if wanted.is_none() {
            self.tools = None;
        }
        wanted
    }

    fn hand_to_tools(&mut self, wanted: &Wanted, flow: Flow) -> io::Result<()> {
        let web = self.web.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let tools = self.tools.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let answer = Answer {
            id: wanted.id,
            refused: None,
        };
        let answer = serde_json::to_vec(&answer)?;
        let passed = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&passed)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(tools, &[IoSlice::new(&answer)], &mut ancillary, SEND)?;
        web.hand_over(flow, own, Some(wanted.clone()))?;
        Ok(())
    }

    fn refuse_tools(&mut self, wanted: &Wanted, why: &str) {
        let answer = Answer {
            id: wanted.id,
            refused: Some(shortened(why)),
        };
        if let (Some(tools), Ok(answer)) = (&self.tools, serde_json::to_vec(&answer)) {
            // Those who do not listen wait until their time is over.
            let _ = send(tools, &answer, SEND);
        }
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        // At most 256 bytes never fail once the pool is initialised (getrandom(2)); and if they
        // did, a guess would gain somebody on the host's own network a forged answer.
        let _ = getrandom(&mut bytes, GetRandomFlags::empty());
        u64::from_ne_bytes(bytes)
    }
}

/// A TCP socket, or one that leads to the proxy.
pub struct TcpSocket {
    socket: OwnedFd,
    /// Set by the proxy before it ends a connection otherwise than well.
    broken: Option<Arc<AtomicBool>>,
}

impl TcpSocket {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            broken: None,
        }
    }
}

impl Stream for TcpSocket {
    fn outcome(&mut self) -> io::Result<()> {
        socket_error(&self.socket)?.map_err(io::Error::from)?;
        match rustix::net::getpeername(&self.socket) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::NOTCONN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (_, len) = recv(&self.socket, buffer, RecvFlags::DONTWAIT)?;
        let broken = || {
            self.broken
                .as_ref()
                .is_some_and(|b| b.load(Ordering::Acquire))
        };
        match len == 0 && broken() {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok(len),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(&self.socket, bytes, SEND)?)
    }

    fn end_output(&mut self) {
        // Fails where the peer has reset the connection, which the next call shows.
        let _ = shutdown(&self.socket, Shutdown::Write);
    }

    fn reset(self) {
        let _ = set_socket_linger(&self.socket, Some(std::time::Duration::ZERO));
    }
}

/// A UDP socket.
pub struct UdpSocket(OwnedFd);

impl Datagrams for UdpSocket {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (_, len) = recv(&self.0, buffer, RecvFlags::DONTWAIT)?;
        Ok(len)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        send(&self.0, bytes, SEND)?;
        Ok(())
    }
}
