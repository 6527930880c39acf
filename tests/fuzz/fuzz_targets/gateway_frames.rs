//! A hostile guest and a hostile host of the gateway: frames, events, time and a link that is full
//! at times. The guest sees the gateway's sequence numbers, so that connections come to exist.
//! Whatever happens, nothing is asked of the host that no rule allows.
#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use bulkhead_network::http::HttpRule;
use bulkhead_network::{Connect, Fd, Forward, Jail, NetworkDescription, Web};
use gateway::host::{Datagrams, Host, Readiness, Stream};
use gateway::{Chatter, Flow, Gateway, Instant, Quotas, Token};
use libfuzzer_sys::fuzz_target;

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OWN_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const GUEST: [u8; 4] = [10, 0, 2, 15];
const MTU: u16 = 1500;
const MAX_CONNECTIONS: u16 = 4;
/// Where the guest's packets go: router, DNS, allowed, not allowed, loopback, metadata, broadcast.
const ADDRESSES: [[u8; 4]; 8] = [
    [10, 0, 2, 2],
    [10, 0, 2, 3],
    [192, 0, 2, 7],
    [198, 51, 100, 1],
    [127, 0, 0, 1],
    [169, 254, 169, 254],
    [255, 255, 255, 255],
    [10, 0, 2, 77],
];
const PORTS: [u16; 8] = [80, 53, 443, 444, 67, 22, 0, 65_535];

/// The world outside the gateway.
#[derive(Default)]
struct World {
    /// What the host's calls do next.
    fate: VecDeque<u8>,
    /// Tokens of sockets that exist or existed.
    tokens: Vec<Token>,
    waiting: usize,
    link_full: bool,
    /// The last segment to the guest: address, port, guest's port, next sequence number,
    /// acknowledged.
    segment: Option<([u8; 4], u16, u16, u32, u32)>,
    random: u64,
}

type Shared = Rc<RefCell<World>>;

impl World {
    fn next(&mut self) -> u8 {
        self.fate.pop_front().unwrap_or(0)
    }

    /// Fills `buffer` as the script says.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.next() {
            0..64 => Err(ErrorKind::WouldBlock.into()),
            64..80 => Ok(0),
            80..96 => Err(ErrorKind::ConnectionReset.into()),
            many @ 96..128 => {
                buffer.fill(many);
                Ok(buffer.len())
            }
            few => {
                let count = usize::from(few - 127).min(buffer.len());
                for byte in &mut buffer[..count] {
                    *byte = self.fate.pop_front().unwrap_or(few);
                }
                Ok(count)
            }
        }
    }

    fn send(&mut self, len: usize) -> io::Result<usize> {
        match self.next() {
            0..128 => Ok(len),
            part @ 128..192 => Ok(len.min(usize::from(part))),
            192..240 => Err(ErrorKind::WouldBlock.into()),
            _ => Err(ErrorKind::BrokenPipe.into()),
        }
    }

    fn open(&mut self, token: Token) -> io::Result<()> {
        match self.next() {
            240..248 => Err(ErrorKind::ConnectionRefused.into()),
            248.. => Err(ErrorKind::HostUnreachable.into()),
            _ => {
                self.tokens.push(token);
                Ok(())
            }
        }
    }
}

/// What the rules below allow, said once more.
fn check_allowed(to: SocketAddr, tcp: bool) {
    let IpAddr::V4(ip) = to.ip() else {
        panic!("{to}")
    };
    let service = ip.is_loopback() && (to.port() == 8080 && tcp || to.port() == 8081 && !tcp);
    let resolver = to == SocketAddr::from(([192, 0, 2, 53], 53));
    let subnet = ip.octets()[..3] == [192, 0, 2] && to.port() == 80;
    // Names may stand for anything but these.
    let named = tcp
        && [443, 444].contains(&to.port())
        && !(ip.is_loopback() || ip.is_link_local() || ip.is_private() || ip.is_multicast());
    assert!(service || resolver || subnet || named, "{to}");
}

struct Outside(Shared);
struct Socket(Shared);

impl Host for Outside {
    type Stream = Socket;
    type Datagrams = Socket;

    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<Socket> {
        check_allowed(to, true);
        self.0.borrow_mut().open(token)?;
        Ok(Socket(self.0.clone()))
    }

    fn hand_over(&mut self, flow: Flow, token: Token) -> io::Result<Socket> {
        // What the proxy is for: the one rule that is narrowed, under its name.
        assert_eq!(
            (flow.port, flow.names.as_ref()),
            (444, &["b.example".to_owned()][..])
        );
        check_allowed(flow.to, true);
        self.0.borrow_mut().open(token)?;
        Ok(Socket(self.0.clone()))
    }

    fn hand_to_models(&mut self, _token: Token) -> io::Result<Socket> {
        panic!("the description has no models");
    }

    fn datagrams(&mut self, to: SocketAddr, token: Token) -> io::Result<Socket> {
        check_allowed(to, false);
        self.0.borrow_mut().open(token)?;
        Ok(Socket(self.0.clone()))
    }

    fn accept(&mut self, listener: usize, token: Token) -> io::Result<(Socket, SocketAddr)> {
        assert_eq!(listener, 0);
        let mut world = self.0.borrow_mut();
        if world.waiting == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        world.waiting -= 1;
        world.open(token)?;
        drop(world);
        Ok((Socket(self.0.clone()), (Ipv4Addr::LOCALHOST, 1024).into()))
    }

    fn transmit(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        if world.link_full {
            return Err(ErrorKind::WouldBlock.into());
        }
        assert!(frame.len() <= usize::from(MTU) + 14);
        assert_eq!(frame[..12], [GUEST_MAC, OWN_MAC].concat());
        if frame[12..14] == [8, 0] {
            let packet = &frame[14..];
            assert_eq!(packet[0], 0x45);
            let length = u16::from_be_bytes([packet[2], packet[3]]);
            assert_eq!(usize::from(length), packet.len());
            if packet[9] == 6 {
                let tcp = &packet[20..];
                let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().expect("4"));
                let ports = word(0);
                let data = tcp.len() as u32 - u32::from(tcp[12] >> 4) * 4;
                let control = u32::from(tcp[13] & 1 != 0) + u32::from(tcp[13] & 2 != 0);
                let from = packet[12..16].try_into().expect("4");
                let next = word(4).wrapping_add(data + control);
                world.segment = Some((from, (ports >> 16) as u16, ports as u16, next, word(8)));
            }
        }
        Ok(())
    }

    fn random(&mut self) -> u64 {
        let mut world = self.0.borrow_mut();
        world.random += 1;
        world.random
    }
}

impl Stream for Socket {
    fn outcome(&mut self) -> io::Result<()> {
        match self.0.borrow_mut().next() {
            0..192 => Ok(()),
            192..224 => Err(ErrorKind::WouldBlock.into()),
            _ => Err(ErrorKind::TimedOut.into()),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty(), "0 would pass for the end");
        self.0.borrow_mut().receive(buffer)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!bytes.is_empty());
        self.0.borrow_mut().send(bytes.len())
    }

    fn end_output(&mut self) {}

    fn reset(self) {}
}

impl Datagrams for Socket {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().receive(buffer)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().send(bytes.len()).map(drop)
    }
}

fn description() -> NetworkDescription {
    let mut d = NetworkDescription::new("fuzz", Fd(3), GUEST_MAC, Jail::None);
    let rule = |text: &str| text.parse().expect("rule");
    d.mtu = MTU;
    d.max_connections = MAX_CONNECTIONS;
    d.hostname = Some("guest".into());
    d.resolvers = vec![([192, 0, 2, 53], 53).into()];
    d.allow = [
        "tcp:192.0.2.0/24:80",
        "udp:192.0.2.0/24:80",
        "tcp:a.example:443",
    ]
    .map(rule)
    .into();
    let mut narrowed: Connect = "tcp:b.example:444".parse().expect("rule");
    narrowed.http = Some(HttpRule::default());
    d.allow.push(narrowed);
    d.web = Some(Web {
        authority: Fd(5),
        trust: Vec::new(),
    });
    d.hosts = vec!["b.example".into()];
    d.loopback = ["tcp:80=8080", "udp:80=8081", "tcp:444=8080"]
        .map(|s| s.parse().expect("service"))
        .into();
    d.forwards = vec![Forward {
        listener: Fd(4),
        address: (Ipv4Addr::LOCALHOST, 22).into(),
        guest_port: 22,
        quotas: Vec::new(),
        lifetime: None,
    }];
    d
}

/// The rest of the input.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn word(&mut self) -> u32 {
        self.take(4)
            .iter()
            .fold(0, |word, byte| word << 8 | u32::from(*byte))
    }
}

/// A frame of the guest with a packet whose header is right.
fn frame(to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    packet.extend([GUEST, to].concat());
    let sum: u32 = packet
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(c[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    [&OWN_MAC, &GUEST_MAC, &[8, 0][..], &packet, payload].concat()
}

fn tcp(script: &mut Script, world: &Shared) -> Vec<u8> {
    let choice = script.byte();
    let fresh = (
        ADDRESSES[usize::from(choice & 7)],
        PORTS[usize::from(choice >> 3 & 7)],
        1000 + u16::from(choice >> 6),
        0,
        1000,
    );
    let shape = script.byte();
    let follow = world.borrow().segment.filter(|_| shape & 0x80 != 0);
    let (to, port, guest_port, mut ack, mut seq) = follow.unwrap_or(fresh);
    if shape & 0x40 != 0 {
        seq = seq.wrapping_add(script.word());
    }
    if shape & 0x20 != 0 {
        ack = ack.wrapping_add(script.word());
    }
    let mut segment = [guest_port.to_be_bytes(), port.to_be_bytes()].concat();
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    let flags = script.byte();
    let options = usize::from(shape & 3) * 4;
    segment.extend([(5 + options as u8 / 4) << 4, flags]);
    segment.extend([script.byte(), script.byte(), 0, 0, 0, 0]);
    let mut rest = script.take(options).to_vec();
    rest.resize(options, 0);
    segment.extend(rest);
    let len = usize::from(script.byte()) << (shape >> 2 & 3);
    segment.extend(script.take(len.min(1400)));
    frame(to, 6, &segment)
}

fn udp(script: &mut Script) -> Vec<u8> {
    let choice = script.byte();
    let to = ADDRESSES[usize::from(choice & 7)];
    let port = PORTS[usize::from(choice >> 3 & 7)];
    let len = usize::from(script.byte());
    let payload = script.take(len);
    let mut datagram = [
        1000 + u16::from(choice >> 6),
        port,
        8 + payload.len() as u16,
        0,
    ]
    .map(u16::to_be_bytes)
    .concat();
    datagram.extend(payload);
    frame(to, 17, &datagram)
}

fuzz_target!(|bytes: &[u8]| {
    let world = Shared::default();
    let outside = Outside(world.clone());
    let description = description();
    let quotas = Quotas::new(&description.quotas);
    let mut gateway =
        Gateway::new(&description, quotas, outside, Chatter::silent()).expect("description");
    let mut script = Script(bytes);
    let mut now = 0;
    while !script.0.is_empty() {
        match script.byte() % 10 {
            0 => {
                let len = usize::from(script.byte());
                gateway.frame(script.take(len));
            }
            1 => {
                let len = usize::from(script.byte());
                let packet = [&OWN_MAC, &GUEST_MAC, script.take(len)].concat();
                gateway.frame(&packet);
            }
            2 | 3 => gateway.frame(&tcp(&mut script, &world)),
            4 => gateway.frame(&udp(&mut script)),
            5 => {
                let len = usize::from(script.byte());
                let fate = script.take(len);
                world.borrow_mut().fate.extend(fate);
            }
            6 => {
                let which = usize::from(script.byte());
                let token = world.borrow().tokens.get(which % 16).copied();
                let ready = Readiness {
                    readable: which & 16 != 0,
                    writable: which & 32 != 0,
                };
                if let Some(token) = token {
                    gateway.event(token, ready);
                }
            }
            7 => {
                now += i64::from(script.word() & 0x3ff_ffff);
                gateway.set_time(Instant::from_micros(now));
            }
            8 => {
                let full = script.byte() & 1 != 0;
                world.borrow_mut().link_full = full;
                if !full {
                    gateway.link_writable();
                }
            }
            _ => {
                world.borrow_mut().waiting += 1;
                gateway.event(Token::listener(0), Readiness::default());
            }
        }
        gateway.turn();
        let stats = gateway.stats();
        assert!(stats.tcp_open <= u64::from(MAX_CONNECTIONS) && stats.udp_open <= 512);
    }
});
