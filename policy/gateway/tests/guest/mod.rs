//! A guest without a virtual machine: smoltcp on the other end of the link of a real
//! `bulkhead-gateway`, and the supervisor's side of the control socket.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod ledger;
pub mod resolver;
pub mod stream;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bulkhead_network::control::{self, Event, Stats};
use bulkhead_network::{Fd, Forward, Jail, MAX_FRAME_BYTES, NetworkDescription};
use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::socket::{AnySocket, dhcpv4, dns, tcp};
use smoltcp::wire::{DnsQueryType, EthernetAddress, HardwareAddress, IpAddress, IpCidr};

pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// No test waits longer for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// A running gateway, ended with the value.
pub struct Gateway {
    pub child: Child,
    pub control: OwnedFd,
    pub stderr: Option<File>,
}

/// Starts a gateway, and the guest at its link. Each listener is forwarded to the port beside it.
pub fn start(
    forwards: Vec<(TcpListener, u16)>,
    change: impl FnOnce(&mut NetworkDescription),
) -> (Gateway, Guest) {
    let mut description = NetworkDescription::new("test", Fd(4), MAC, Jail::BestEffort);
    change(&mut description);
    start_with(description, forwards, Vec::new())
}

/// The same with a description that is done but for its link, with files under these numbers.
pub fn start_with(
    description: NetworkDescription,
    forwards: Vec<(TcpListener, u16)>,
    files: Vec<(OwnedFd, i32)>,
) -> (Gateway, Guest) {
    start_changed(description, forwards, files, |_| {})
}

/// The same with forwards that `change` narrows.
pub fn start_changed(
    mut description: NetworkDescription,
    forwards: Vec<(TcpListener, u16)>,
    files: Vec<(OwnedFd, i32)>,
    change: impl Fn(&mut Forward),
) -> (Gateway, Guest) {
    let (link, guest_link) = pair();
    let (control, our_control) = pair();
    description.control = Some(Fd(5));
    description.hostname = Some("guest".into());
    let mut mappings = Vec::new();
    let mut map = |fd: OwnedFd, child_fd| {
        mappings.push(FdMapping {
            parent_fd: fd,
            child_fd,
        });
    };
    for (child_fd, (listener, guest_port)) in (6..).zip(forwards) {
        let listener_fd = Fd(child_fd);
        let address = listener.local_addr().unwrap();
        map(listener.into(), child_fd);
        let mut forward = Forward {
            listener: listener_fd,
            address,
            guest_port,
            quotas: Vec::new(),
            lifetime: None,
        };
        change(&mut forward);
        description.forwards.push(forward);
    }
    let mtu = description.mtu;
    let json = serde_json::to_vec(&description).unwrap();
    map(memory_file(&json).into(), 3);
    for (file, child_fd) in files {
        map(file, child_fd);
    }
    map(link, 4);
    map(control, 5);
    let mut command = Command::new(program());
    command.args(["--description-fd", "3"]);
    let (read, write) = rustix::pipe::pipe().unwrap();
    command.stderr(Stdio::from(write));
    command.fd_mappings(mappings).unwrap();
    let child = command.spawn().unwrap();
    drop(command);
    let gateway = Gateway {
        child,
        control: our_control,
        stderr: Some(read.into()),
    };
    let event = gateway.hear();
    let Event::Running { jail_gaps } = event else {
        panic!("it did not start: {event:?}");
    };
    // A benchmark takes the host as it is.
    let whole = PROGRAM.get().is_some() || jail_gaps.is_empty();
    assert!(whole, "{jail_gaps:?}");
    (gateway, Guest::new(guest_link, mtu))
}

/// The gateway that is started, where it is no test's or example's own.
pub static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// The built gateway: for examples, two directories up.
fn program() -> PathBuf {
    if let Some(program) = PROGRAM.get() {
        return program.clone();
    }
    match option_env!("CARGO_BIN_EXE_bulkhead-gateway") {
        Some(program) => program.into(),
        None => {
            let own = std::env::current_exe().unwrap();
            own.ancestors().nth(2).unwrap().join("bulkhead-gateway")
        }
    }
}

pub fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// A file in memory.
pub fn memory_file(bytes: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("file", flags).unwrap());
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

impl Gateway {
    /// The next event.
    pub fn hear(&self) -> Event {
        wait_readable(&self.control, LIMIT);
        let mut buffer = vec![0; control::MAX_MESSAGE_BYTES];
        let (_, len) = recv(&self.control, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
        serde_json::from_slice(&buffer[..len]).unwrap()
    }

    pub fn say(&self, message: &[u8]) {
        send(&self.control, message, SendFlags::NOSIGNAL).unwrap();
    }

    pub fn stats(&self) -> Stats {
        self.say(br#"{"command":"stats"}"#);
        match self.hear() {
            Event::Stats(stats) => stats,
            other => panic!("{other:?}"),
        }
    }

    /// Resident memory in bytes, and open descriptors.
    pub fn weight(&self) -> (usize, usize) {
        let process = format!("/proc/{}", self.child.id());
        let statm = std::fs::read_to_string(format!("{process}/statm")).unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        let descriptors = std::fs::read_dir(format!("{process}/fd")).unwrap().count();
        (pages * 4096, descriptors)
    }

    /// Ends it, and gives what it said on standard error.
    pub fn end(mut self) -> String {
        self.say(br#"{"command":"stop"}"#);
        let status = self.child.wait().unwrap();
        let text = io::read_to_string(self.stderr.take().unwrap()).unwrap();
        assert!(status.success(), "{status}: {text}");
        text
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait_readable(fd: impl AsFd, limit: Duration) -> bool {
    wait(fd, PollFlags::IN, limit)
}

fn wait(fd: impl AsFd, what: PollFlags, limit: Duration) -> bool {
    let limit = rustix::time::Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: limit.subsec_nanos().into(),
    };
    poll(&mut [PollFd::new(&fd, what)], Some(&limit)).unwrap() > 0
}

/// A guest with smoltcp for a system.
pub struct Guest {
    pub link: Link,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    start: Instant,
    next_port: u16,
}

impl Guest {
    fn new(link: OwnedFd, mtu: u16) -> Self {
        let mut link = Link {
            fd: link,
            mtu: mtu.into(),
            checksums: Checksum::Rx,
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        config.random_seed = 7;
        let start = Instant::now();
        let interface = Interface::new(config, &mut link, time(start));
        Self {
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            start,
            next_port: 40_000,
        }
    }

    /// Looks at no checksum, as with `VIRTIO_NET_F_GUEST_CSUM`. Before anything else.
    pub fn trust_checksums(&mut self) {
        self.link.checksums = Checksum::None;
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        config.random_seed = 7;
        self.interface = Interface::new(config, &mut self.link, time(self.start));
    }

    /// Takes the address as any guest of these tests knows it.
    pub fn configure(&mut self) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap();
        });
        self.interface
            .routes_mut()
            .add_default_ipv4_route(ROUTER)
            .unwrap();
    }

    /// Lets time and frames pass until `done` gives something.
    pub fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            self.poll();
            if let Some(result) = done(self) {
                self.poll();
                return result;
            }
            assert!(begin.elapsed() < LIMIT, "{what} does not come");
            let now = time(self.start);
            let delay = self.interface.poll_delay(now, &self.sockets);
            let delay = delay.map_or(20_000, |delay| delay.total_micros().min(20_000));
            match delay {
                // There is something to send, and no room.
                0 => wait(&self.link.fd, PollFlags::IN | PollFlags::OUT, LIMIT),
                _ => wait_readable(&self.link.fd, Duration::from_micros(delay)),
            };
        }
    }

    pub fn poll(&mut self) {
        let now = time(self.start);
        self.interface.poll(now, &mut self.link, &mut self.sockets);
    }

    pub fn get<T: AnySocket<'static>>(&mut self, handle: SocketHandle) -> &mut T {
        self.sockets.get_mut(handle)
    }

    /// A TCP socket with buffers of this many bytes.
    pub fn tcp(&mut self, buffer: usize) -> SocketHandle {
        let ring = || tcp::SocketBuffer::new(vec![0; buffer]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    /// Begins to connect.
    pub fn connect(&mut self, buffer: usize, to: Ipv4Addr, port: u16) -> SocketHandle {
        let handle = self.tcp(buffer);
        self.next_port = self.next_port.checked_add(1).unwrap_or(10_000);
        let from = self.next_port;
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(context, (to, port), from).unwrap();
        handle
    }

    /// Connects; false where that is refused.
    pub fn connects(&mut self, to: Ipv4Addr, port: u16) -> bool {
        let handle = self.connect(4096, to, port);
        let connected = self.until("a verdict", |guest| {
            match guest.get::<tcp::Socket<'_>>(handle).state() {
                tcp::State::Established => Some(true),
                tcp::State::Closed => Some(false),
                _ => None,
            }
        });
        self.get::<tcp::Socket<'_>>(handle).abort();
        self.poll();
        self.sockets.remove(handle);
        connected
    }

    /// Gets an address as any system does.
    pub fn dhcp(&mut self) -> dhcpv4::Config<'static> {
        let mut socket = dhcpv4::Socket::new();
        let buffer: &'static mut [u8] = Box::leak(vec![0; 1500].into_boxed_slice());
        socket.set_receive_packet_buffer(buffer);
        let handle = self.sockets.add(socket);
        let config = self.until("an address", |guest| {
            match guest.get::<dhcpv4::Socket<'_>>(handle).poll() {
                Some(dhcpv4::Event::Configured(config)) => Some(dhcpv4::Config {
                    server: config.server,
                    address: config.address,
                    router: config.router,
                    dns_servers: config.dns_servers.clone(),
                    packet: None,
                }),
                _ => None,
            }
        });
        self.sockets.remove(handle);
        config
    }

    /// Asks the DNS server for the addresses of `name`.
    pub fn resolve(&mut self, name: &str) -> Result<Vec<IpAddress>, dns::GetQueryResultError> {
        let (handle, query) = self.ask(name);
        let result = self.until("an answer", |guest| {
            let socket = guest.get::<dns::Socket<'_>>(handle);
            match socket.get_query_result(query) {
                Err(dns::GetQueryResultError::Pending) => None,
                result => Some(result.map(|addresses| addresses.to_vec())),
            }
        });
        self.sockets.remove(handle);
        result
    }

    /// The same without the answer.
    pub fn ask(&mut self, name: &str) -> (SocketHandle, dns::QueryHandle) {
        let servers = [IpAddress::from(DNS)];
        let queries: Vec<Option<dns::DnsQuery>> = vec![None];
        let handle = self.sockets.add(dns::Socket::new(&servers, queries));
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<dns::Socket<'_>>(handle);
        let query = socket.start_query(context, name, DnsQueryType::A).unwrap();
        self.poll();
        (handle, query)
    }

    /// Sends bytes as a frame.
    pub fn inject(&self, frame: &[u8]) {
        send(&self.link.fd, frame, SendFlags::NOSIGNAL).unwrap();
    }
}

fn time(start: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(start.elapsed().as_micros() as i64)
}

/// The guest's network interface.
pub struct Link {
    pub fd: OwnedFd,
    mtu: usize,
    checksums: Checksum,
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sender<'_>)> {
        let mut frame = vec![0; MAX_FRAME_BYTES];
        let (_, len) = recv(&self.fd, &mut frame[..], RecvFlags::DONTWAIT).ok()?;
        // A gateway that has ended, and no frame.
        if len == 0 {
            return None;
        }
        frame.truncate(len);
        Some((Received(frame), Sender(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sender<'_>> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let nothing = rustix::time::Timespec::default();
        (poll(&mut fds, Some(&nothing)).unwrap() > 0).then_some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        // As a guest whose device offers VIRTIO_NET_F_CSUM: it sends none, and looks at all.
        capabilities.checksum.tcp = self.checksums;
        capabilities
    }
}

pub struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

pub struct Sender<'a>(&'a Link);

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        let _ = send(
            &self.0.fd,
            &frame,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
        result
    }
}
