//! One TCP connection with the guest: a TCP/IP stack with a single socket. Segments are told apart
//! before they come here, so that a flood of one connection costs the others nothing, and no
//! stack looks through the sockets of all. Used by the table of connections.

use std::net::Ipv4Addr;

use bulkhead_network::control::Stats;
use smoltcp::iface::{Config as InterfaceConfig, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetProtocol, HardwareAddress, IpCidr};

use crate::config::Config;
use crate::core::Core;
use crate::host::Host;
use crate::outbox::Outbox;

/// How often a silent guest is asked whether it still knows a connection: one that was rebooted
/// says no. One that says nothing is paused, perhaps, and is waited for.
const KEEP_ALIVE: Duration = Duration::from_secs(120);

/// The four numbers of a connection, as the gateway's side sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The address the guest speaks to.
    pub address: Ipv4Addr,
    /// The port there.
    pub port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

/// A connection's stack.
pub(super) struct Connection {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
}

impl Connection {
    /// A connection that waits for the guest's SYN. `buffer` is the bytes it holds each way.
    pub(super) fn accept<H: Host>(core: &mut Core<H>, key: Key, buffer: usize) -> Option<Self> {
        let mut connection = Self::new(core, key, buffer);
        let (socket, _) = connection.parts();
        socket.listen((key.address, key.port)).ok()?;
        Some(connection)
    }

    /// A connection that sends a SYN to the guest.
    pub(super) fn connect<H: Host>(core: &mut Core<H>, key: Key, buffer: usize) -> Option<Self> {
        let mut connection = Self::new(core, key, buffer);
        let guest = core.config.guest;
        let (socket, interface) = connection.parts();
        let (remote, local) = ((guest, key.guest_port), (key.address, key.port));
        socket.connect(interface.context(), remote, local).ok()?;
        Some(connection)
    }

    fn new<H: Host>(core: &mut Core<H>, key: Key, buffer: usize) -> Self {
        let mut config = InterfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = core.host.random();
        let now = core.now;
        let mut interface = Interface::new(config, &mut Port::new(core, None), now);
        interface.update_ip_addrs(|addresses| {
            // The list is empty, and has room for one.
            let _ = addresses.push(IpCidr::new(key.address.into(), 32));
        });
        let ring = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(ring(), ring());
        // What the host sends goes on at once, and acknowledgements of a burst go as one anyway.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let socket = sockets.add(socket);
        Self {
            interface,
            sockets,
            socket,
        }
    }

    /// The socket.
    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// The socket's state.
    pub(super) fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.socket).state()
    }

    fn parts(&mut self) -> (&mut Socket<'static>, &mut Interface) {
        (self.sockets.get_mut(self.socket), &mut self.interface)
    }

    /// Takes a packet from the guest.
    pub(super) fn input<H: Host>(&mut self, core: &mut Core<H>, packet: &[u8]) {
        let now = core.now;
        let mut port = Port::new(core, Some(packet));
        self.interface
            .poll_ingress_single(now, &mut port, &mut self.sockets);
    }

    /// Sends at most one packet; whether one was sent.
    pub(super) fn output<H: Host>(&mut self, core: &mut Core<H>) -> bool {
        let now = core.now;
        let mut port = Port::new(core, None);
        let sent = self
            .interface
            .poll_egress(now, &mut port, &mut self.sockets);
        sent == PollResult::SocketStateChanged
    }

    /// When it wants to send next.
    pub(super) fn next_output(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }
}

/// What a stack takes for its network interface: a packet from the guest, and the outbox.
struct Port<'a, H: Host> {
    received: Option<&'a [u8]>,
    outbox: &'a mut Outbox,
    host: &'a mut H,
    stats: &'a mut Stats,
    config: &'a Config,
}

impl<'a, H: Host> Port<'a, H> {
    fn new(core: &'a mut Core<H>, received: Option<&'a [u8]>) -> Self {
        Self {
            received,
            outbox: &mut core.outbox,
            host: &mut core.host,
            stats: &mut core.stats,
            config: &core.config,
        }
    }

    fn sender(&mut self) -> Sender<'_, H> {
        Sender {
            outbox: self.outbox,
            host: self.host,
            stats: self.stats,
        }
    }
}

impl<H: Host> Device for Port<'_, H> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sender<'a, H>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sender<'_, H>)> {
        let received = Received(self.received.take()?);
        Some((received, self.sender()))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_, H>> {
        self.outbox.is_clear().then(|| self.sender())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.config.mtu.into();
        capabilities.checksum = self.config.checksums.clone();
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

struct Sender<'a, H: Host> {
    outbox: &'a mut Outbox,
    host: &'a mut H,
    stats: &'a mut Stats,
}

impl<H: Host> phy::TxToken for Sender<'_, H> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let protocol = EthernetProtocol::Ipv4;
        self.outbox.emit(self.host, self.stats, protocol, len, fill)
    }
}
