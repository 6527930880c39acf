//! Raw frames for the gateway, past every driver and device: a whole TCP/IP of our own on the VMM's end
//! of the link.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use bulkhead_machine::device::{DeviceKind, MAX_FRAME_BYTES, NetBackend};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant as Time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use crate::{Outcome, Rogue};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DNS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 3), 53);
/// How long an answer may take that has to come: only a hang is ended by it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long silence is waited for before it counts as an answer.
const SILENCE: Duration = Duration::from_secs(1);

/// Tries each address by TCP and as a DNS server, and each name at the gateway's own.
pub(crate) fn attack(rogue: &mut Rogue) {
    let net = rogue
        .description
        .devices
        .iter()
        .find_map(|device| match &device.kind {
            DeviceKind::Net(net) => Some(net),
            _ => None,
        });
    let net = net.expect("a network");
    let NetBackend::Socket { socket } = &net.backend else {
        panic!("a user-mode network");
    };
    // SAFETY: the description names it as one of this process's, which nobody here closes.
    let link = unsafe { BorrowedFd::borrow_raw(socket.0) };
    let mut stack = Stack::new(link, net.mac);
    for address in rogue.targets.addresses.clone() {
        let address: SocketAddrV4 = address.parse().expect("an address");
        let outcome = stack.fetch(address);
        rogue.tell(&format!("connect to {address}"), &outcome);
        let outcome = stack.ask(SocketAddrV4::new(*address.ip(), 53), "granted.example");
        rogue.tell(&format!("ask {}", address.ip()), &outcome);
    }
    for name in rogue.targets.names.clone() {
        let outcome = stack.ask(DNS, &name);
        rogue.tell(&format!("resolve {name}"), &outcome);
    }
    let outcome = stack.pretend();
    rogue.tell("frames of somebody else", &outcome);
}

struct Stack<'l> {
    link: Link<'l>,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
    port: u16,
    mac: [u8; 6],
}

impl<'l> Stack<'l> {
    fn new(fd: BorrowedFd<'l>, mac: [u8; 6]) -> Self {
        let mut link = Link { fd };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        let start = Instant::now();
        let mut interface = Interface::new(config, &mut link, Time::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(OWN.into(), 24)).unwrap();
        });
        interface
            .routes_mut()
            .add_default_ipv4_route(ROUTER)
            .unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self {
            link,
            interface,
            sockets,
            start,
            port: 40_000,
            mac,
        }
    }

    fn poll(&mut self) {
        let now = Time::from_micros(self.start.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        std::thread::sleep(Duration::from_millis(1));
    }

    /// Asks a web server for its first page.
    fn fetch(&mut self, to: SocketAddrV4) -> Outcome {
        let ring = || tcp::SocketBuffer::new(vec![0; 4096]);
        let handle = self.sockets.add(tcp::Socket::new(ring(), ring()));
        self.port += 1;
        let from = self.port;
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket
            .connect(context, (*to.ip(), to.port()), from)
            .is_err()
        {
            self.sockets.remove(handle);
            return Err("no address to connect to".to_owned());
        }
        let mut asked = false;
        let begin = Instant::now();
        let outcome = loop {
            self.poll();
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.state() == tcp::State::Closed {
                break Err("a reset".to_owned());
            }
            if socket.can_send() && !asked {
                socket.send_slice(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                asked = true;
            }
            if socket.can_recv() {
                let text =
                    socket.recv(|bytes| (bytes.len(), String::from_utf8_lossy(bytes).into_owned()));
                break Ok(text.unwrap().lines().next().unwrap_or_default().to_owned());
            }
            if begin.elapsed() > PATIENCE {
                break Err("silence".to_owned());
            }
        };
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
        self.poll();
        self.sockets.remove(handle);
        outcome
    }

    /// Asks a DNS server for the address of a name.
    fn ask(&mut self, server: SocketAddrV4, name: &str) -> Outcome {
        let ring = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let mut socket = udp::Socket::new(ring(), ring());
        self.port += 1;
        socket.bind(self.port).unwrap();
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        let to = (*server.ip(), server.port());
        if socket.send_slice(&query, to).is_err() {
            return Err("no address to send to".to_owned());
        }
        let handle = self.sockets.add(socket);
        let silence = if server == DNS { PATIENCE } else { SILENCE };
        let begin = Instant::now();
        let outcome = loop {
            self.poll();
            let socket = self.sockets.get_mut::<udp::Socket<'_>>(handle);
            if let Ok((answer, _)) = socket.recv() {
                // The code is in the fourth byte, the number of answers in the eighth.
                break match (answer[3] & 15, answer[7]) {
                    (0, 1..) => Ok(format!("{} answers", answer[7])),
                    (code, _) => Err(format!("code {code}")),
                };
            }
            if begin.elapsed() > silence {
                break Err("silence".to_owned());
            }
        };
        self.sockets.remove(handle);
        outcome
    }

    /// Frames that no driver sends: from other addresses, to other machines, of other protocols. The
    /// gateway is the only one that could answer; that it still does says that it lives.
    fn pretend(&mut self) -> Outcome {
        let syn = |from: [u8; 4], to: [u8; 4]| {
            let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0];
            packet.extend(from);
            packet.extend(to);
            let sum: u32 = packet
                .chunks(2)
                .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
                .sum();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet.extend([
                0xc0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
            ]);
            packet
        };
        let frame = |to: [u8; 6], kind: [u8; 2], payload: &[u8]| {
            [&to[..], &self.mac, &kind, payload].concat()
        };
        let broadcast = [0xff; 6];
        let host = [127, 0, 0, 1];
        let mut frames = vec![
            frame(broadcast, [8, 0], &syn([127, 0, 0, 1], host)),
            frame(broadcast, [8, 0], &syn([10, 0, 2, 2], host)),
            frame(broadcast, [8, 0], &syn([192, 0, 2, 1], [10, 0, 2, 2])),
            frame(broadcast, [0x86, 0xdd], &[0x60; 60]),
            frame([1, 0x80, 0xc2, 0, 0, 0], [0, 38], &[0x42; 40]),
            frame(broadcast, [0x81, 0], &syn(OWN.octets(), host)),
            vec![0; 13],
            Vec::from([0xff; 1500]),
        ];
        frames.push(vec![0x45; MAX_FRAME_BYTES]);
        for frame in &frames {
            let _ = send(self.link.fd, frame, SendFlags::NOSIGNAL);
        }
        let begin = Instant::now();
        let mut buffer = vec![0; MAX_FRAME_BYTES];
        while begin.elapsed() < Duration::from_millis(300) {
            if let Ok((count, _)) = recv(self.link.fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                let frame = &buffer[..count];
                // SYN and ACK in an answer of IPv4 and TCP.
                if frame.get(12..14) == Some(&[8, 0]) && frame.get(47) == Some(&0x12) {
                    return Ok("somebody accepts a connection".to_owned());
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("{} frames, and nobody accepts", frames.len()))
    }
}

/// The VMM's end of the link.
struct Link<'l> {
    fd: BorrowedFd<'l>,
}

struct Received(Vec<u8>);
struct Sending<'l>(BorrowedFd<'l>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        // A frame that is lost is sent again.
        let _ = send(self.0, &frame, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        result
    }
}

impl<'l> phy::Device for Link<'l> {
    type RxToken<'a>
        = Received
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'l>
    where
        Self: 'a;

    fn receive(&mut self, _: Time) -> Option<(Received, Sending<'l>)> {
        let mut buffer = vec![0; MAX_FRAME_BYTES];
        let (count, _) = recv(self.fd, &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
        buffer.truncate(count);
        Some((Received(buffer), Sending(self.fd)))
    }

    fn transmit(&mut self, _: Time) -> Option<Sending<'l>> {
        Some(Sending(self.fd))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        // As over virtio-net, nobody has filled them in, and nobody needs to.
        let checksums = &mut capabilities.checksum;
        checksums.tcp = Checksum::Tx;
        checksums.udp = Checksum::Tx;
        capabilities
    }
}
