//! The gateway as a guest sees it, with a real process and real sockets on the host's side.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod guest;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;

use bulkhead_network::control::Event;
use guest::{DNS, GUEST, Guest, ROUTER, start};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress};

type Tcp = tcp::Socket<'static>;

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn loopback(ports: &[u16]) -> Vec<bulkhead_network::Loopback> {
    let service = |port| format!("tcp:{port}").parse().unwrap();
    ports.iter().map(service).collect()
}

#[test]
fn a_guest_is_told_its_addresses() {
    let (gateway, mut guest) = start(Vec::new(), |_| {});
    let config = guest.dhcp();
    assert_eq!(config.address.to_string(), "10.0.2.15/24");
    assert_eq!(config.router, Some(ROUTER));
    assert_eq!(config.dns_servers.as_slice(), [DNS]);
    assert_eq!(config.server.identifier, ROUTER);
    assert_eq!(gateway.stats().dropped_out, 0);
}

#[test]
fn the_gateway_answers_ping_for_itself_alone() {
    let (gateway, mut guest) = start(Vec::new(), |_| {});
    guest.configure();
    let buffer = || {
        let metadata = vec![icmp::PacketMetadata::EMPTY; 4];
        icmp::PacketBuffer::new(metadata, vec![0; 4096])
    };
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(7)).unwrap();
    let handle = guest.sockets.add(socket);
    for (to, answers) in [
        (ROUTER, true),
        (DNS, true),
        (Ipv4Addr::new(192, 0, 2, 1), false),
    ] {
        let echo = Icmpv4Repr::EchoRequest {
            ident: 7,
            seq_no: 1,
            data: b"abc",
        };
        let socket = guest.get::<icmp::Socket<'_>>(handle);
        let bytes = socket.send(echo.buffer_len(), to.into()).unwrap();
        let all = smoltcp::phy::ChecksumCapabilities::default();
        echo.emit(&mut Icmpv4Packet::new_unchecked(bytes), &all);
        if !answers {
            guest.until("a refusal", |_| {
                (gateway.stats().refused == 1).then_some(())
            });
            continue;
        }
        guest.until("an answer", |guest| {
            let socket = guest.get::<icmp::Socket<'_>>(handle);
            let (bytes, from) = socket.recv().ok()?;
            let message = Icmpv4Packet::new_unchecked(bytes);
            let message = Icmpv4Repr::parse(&message, &all).unwrap();
            let Icmpv4Repr::EchoReply { data, .. } = message else {
                panic!("{message:?}");
            };
            assert_eq!((from, data), (IpAddress::from(to), &b"abc"[..]));
            Some(())
        });
    }
    assert!(gateway.end().contains("refused ping to 192.0.2.1"));
}

#[test]
fn nothing_is_reachable_without_a_rule() {
    let (listener, port) = listener();
    let (gateway, mut guest) = start(Vec::new(), |_| {});
    guest.configure();
    for to in [
        ROUTER,
        DNS,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(192, 0, 2, 1),
    ] {
        assert!(!guest.connects(to, port), "{to}");
    }
    assert_eq!(gateway.stats().refused, 4);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody came");
    let said = gateway.end();
    for line in [
        format!("the loopback service tcp:{port} would allow it"),
        format!("refused tcp to 192.0.2.1:{port}: the rule tcp:192.0.2.1:{port} would allow it"),
        "no rule can allow it".into(),
    ] {
        assert!(said.contains(&line), "{said}");
    }
}

#[test]
fn a_closed_port_of_the_host_is_a_refusal() {
    let (unused, port) = listener();
    drop(unused);
    let (gateway, mut guest) = start(Vec::new(), |d| d.loopback = loopback(&[port]));
    guest.configure();
    assert!(!guest.connects(ROUTER, port));
    assert_eq!(
        (gateway.stats().tcp_failed, gateway.stats().refused),
        (1, 0)
    );
}

/// Byte number `n` of what flows from the guest, or to it.
fn byte(n: usize, salt: usize) -> u8 {
    (n.wrapping_mul(31)
        .wrapping_add(n >> 8)
        .wrapping_add(n >> 16)
        + salt) as u8
}

fn check(stream: &mut impl Read, len: usize, salt: usize) {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        for (n, found) in buffer[..count].iter().enumerate() {
            assert_eq!(*found, byte(at + n, salt), "at {}", at + n);
        }
        at += count;
    }
    assert_eq!(at, len);
}

fn write(stream: &mut impl Write, len: usize, salt: usize) {
    let mut at = 0;
    while at < len {
        let part: Vec<u8> = (at..len.min(at + 50_000)).map(|n| byte(n, salt)).collect();
        stream.write_all(&part).unwrap();
        at += part.len();
    }
}

/// Moves `len` bytes each way at once over a connection, and its ends.
fn exchange(guest: &mut Guest, handle: smoltcp::iface::SocketHandle, len: usize) {
    let (mut sent, mut received) = (0, 0);
    guest.until("the transfer's end", |guest| {
        let socket = guest.get::<Tcp>(handle);
        while sent < len && socket.can_send() {
            sent += socket
                .send(|buffer| {
                    let count = buffer.len().min(len - sent);
                    for (n, target) in buffer[..count].iter_mut().enumerate() {
                        *target = byte(sent + n, 1);
                    }
                    (count, count)
                })
                .unwrap();
            if sent == len {
                socket.close();
            }
        }
        while socket.can_recv() {
            received += socket
                .recv(|bytes| {
                    for (n, found) in bytes.iter().enumerate() {
                        assert_eq!(*found, byte(received + n, 2), "at {}", received + n);
                    }
                    (bytes.len(), bytes.len())
                })
                .unwrap();
        }
        let over = matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed);
        (over && sent == len && received == len).then_some(())
    });
}

#[test]
fn bytes_arrive_whole_both_ways_at_once() {
    const LEN: usize = 64 << 20;
    let (listener, port) = listener();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = stream.try_clone().unwrap();
        let reading = thread::spawn(move || check(&mut reader, LEN, 1));
        write(&mut stream, LEN, 2);
        stream.shutdown(Shutdown::Write).unwrap();
        reading.join().unwrap();
    });
    let (gateway, mut guest) = start(Vec::new(), |d| d.loopback = loopback(&[port]));
    guest.configure();
    let handle = guest.connect(1 << 20, ROUTER, port);
    exchange(&mut guest, handle, LEN);
    server.join().unwrap();
    let stats = gateway.stats();
    assert_eq!((stats.bytes_out, stats.bytes_in), (LEN as u64, LEN as u64));
    assert_eq!(stats.dropped_in, 0);
}

#[test]
fn small_frames_serve_as_well() {
    const LEN: usize = 1 << 20;
    for mtu in [576, 1500] {
        let (listener, port) = listener();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            write(&mut stream, LEN, 2);
            stream.shutdown(Shutdown::Write).unwrap();
            check(&mut stream, LEN, 1);
        });
        let (_gateway, mut guest) = start(Vec::new(), |d| {
            d.loopback = loopback(&[port]);
            d.mtu = mtu;
        });
        guest.configure();
        let handle = guest.connect(1 << 17, ROUTER, port);
        exchange(&mut guest, handle, LEN);
        server.join().unwrap();
    }
}

#[test]
fn one_direction_ends_before_the_other() {
    let (listener, port) = listener();
    let (gateway, mut guest) = start(Vec::new(), |d| d.loopback = loopback(&[port]));
    guest.configure();
    // The guest ends first, and hears what comes of it.
    let handle = guest.connect(4096, ROUTER, port);
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(format!("{question}?").as_bytes()).unwrap();
        drop(stream);
        // The host ends first, and hears what comes of it.
        let (mut stream, _) = listener.accept().unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    guest.until("a connection", |guest| {
        guest.get::<Tcp>(handle).may_send().then_some(())
    });
    guest.get::<Tcp>(handle).send_slice(b"well").unwrap();
    guest.get::<Tcp>(handle).close();
    let mut heard: Vec<u8> = Vec::new();
    guest.until("an answer", |guest| {
        let socket = guest.get::<Tcp>(handle);
        let _ = socket.recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes)));
        (!socket.may_recv()).then_some(())
    });
    assert_eq!(heard, b"well?");

    let handle = guest.connect(4096, ROUTER, port);
    guest.until("the end", |guest| {
        let socket = guest.get::<Tcp>(handle);
        (socket.state() == tcp::State::CloseWait).then_some(())
    });
    guest.get::<Tcp>(handle).send_slice(b"late").unwrap();
    guest.get::<Tcp>(handle).close();
    guest.until("the end", |guest| {
        (!guest.get::<Tcp>(handle).is_open()).then_some(())
    });
    assert_eq!(server.join().unwrap(), "late");
    guest.until("an empty table", |_| {
        (gateway.stats().tcp_open == 0).then_some(())
    });
}

#[test]
fn a_reset_is_a_reset_on_the_other_side() {
    let (listener, port) = listener();
    let (gateway, mut guest) = start(Vec::new(), |d| d.loopback = loopback(&[port]));
    guest.configure();
    let mut connected = || {
        let handle = guest.connect(4096, ROUTER, port);
        let (stream, _) = listener.accept_while(&mut guest);
        guest.until("a connection", |guest| {
            guest.get::<Tcp>(handle).may_send().then_some(())
        });
        (handle, stream)
    };
    let (one, mut stream) = connected();
    let (other, to_reset) = connected();
    guest.get::<Tcp>(one).abort();
    guest.poll();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    rustix::net::sockopt::set_socket_linger(&to_reset, Some(std::time::Duration::ZERO)).unwrap();
    drop(to_reset);
    guest.until("a reset", |guest| {
        let state = guest.get::<Tcp>(other).state();
        (state == tcp::State::Closed).then_some(())
    });
    guest.until("an empty table", |_| {
        (gateway.stats().tcp_open == 0).then_some(())
    });
}

/// Accepting while the guest goes on.
trait AcceptWhile {
    fn accept_while(&self, guest: &mut Guest) -> (TcpStream, std::net::SocketAddr);
}

impl AcceptWhile for TcpListener {
    fn accept_while(&self, guest: &mut Guest) -> (TcpStream, std::net::SocketAddr) {
        self.set_nonblocking(true).unwrap();
        let (stream, from) = guest.until("a connection", |_| self.accept().ok());
        stream.set_nonblocking(false).unwrap();
        (stream, from)
    }
}

#[test]
fn a_side_that_does_not_read_fills_no_memory() {
    let (listener, port) = listener();
    let (gateway, mut guest) = start(Vec::new(), |d| d.loopback = loopback(&[port]));
    guest.configure();
    let handle = guest.connect(1 << 16, ROUTER, port);
    let (mut stream, _) = listener.accept_while(&mut guest);
    let (before, _) = gateway.weight();
    // Neither reads: the host writes until it must wait, and the guest too.
    stream.set_nonblocking(true).unwrap();
    let begin = std::time::Instant::now();
    let (mut from_host, mut from_guest) = (0, 0);
    guest.until("the buffers' end", |guest| {
        while let Ok(count) = stream.write(&[0; 1 << 16]) {
            from_host += count;
        }
        let socket = guest.get::<Tcp>(handle);
        from_guest += socket.send_slice(&[0; 1 << 16]).unwrap_or(0);
        (begin.elapsed().as_millis() > 700).then_some(())
    });
    let (after, _) = gateway.weight();
    assert!(from_host < 32 << 20 && from_guest < 32 << 20);
    assert!(after < before + (2 << 20), "{before} {after}");
    // And go on once they read.
    let mut read = 0;
    guest.until("the rest", |guest| {
        let socket = guest.get::<Tcp>(handle);
        let _ = socket.recv(|bytes| (bytes.len(), read += bytes.len()));
        (read == from_host).then_some(())
    });
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let (listener, port) = listener();
    let server = thread::spawn(move || {
        for _ in 0..10_000 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
    });
    let (gateway, mut guest) = start(Vec::new(), |d| d.loopback = loopback(&[port]));
    guest.configure();
    let mut before = gateway.weight();
    for round in 0..100 {
        let handles: Vec<_> = (0..100).map(|_| guest.connect(64, ROUTER, port)).collect();
        for handle in handles {
            let mut sent = false;
            guest.until("an echo", |guest| {
                let socket = guest.get::<Tcp>(handle);
                if socket.may_send() && !sent {
                    sent = socket.send_slice(b"x").is_ok();
                }
                let mut byte = [0];
                let received = socket.recv_slice(&mut byte).unwrap_or(0);
                (received == 1).then(|| socket.close())
            });
            guest.until("the end", |guest| {
                let state = guest.get::<Tcp>(handle).state();
                matches!(state, tcp::State::TimeWait | tcp::State::Closed).then_some(())
            });
            guest.sockets.remove(handle);
        }
        if round == 9 {
            before = gateway.weight();
        }
    }
    server.join().unwrap();
    guest.until("an empty table", |_| {
        (gateway.stats().tcp_open == 0).then_some(())
    });
    let after = gateway.weight();
    assert_eq!(gateway.stats().tcp_out, 10_000);
    // A kilobyte for each of the last 9,000: far more than the allocator's ups and downs, far less
    // than the buffers of one.
    assert!(after.0 < before.0 + 9_000 * 1024, "{before:?} {after:?}");
    assert!(after.1 < 16, "{after:?}");
}

#[test]
fn there_are_only_so_many_connections() {
    let (listener, port) = listener();
    let (gateway, mut guest) = start(Vec::new(), |d| {
        d.loopback = loopback(&[port]);
        d.max_connections = 10;
    });
    guest.configure();
    let open: Vec<_> = (0..10).map(|_| guest.connect(64, ROUTER, port)).collect();
    guest.until("connections", |guest| {
        let connected = |handle: &_| guest.get::<Tcp>(*handle).may_send();
        open.iter().all(connected).then_some(())
    });
    assert!(!guest.connects(ROUTER, port));
    assert_eq!(gateway.stats().full, 1);
    guest.get::<Tcp>(open[0]).abort();
    guest.until("room", |_| (gateway.stats().tcp_open == 9).then_some(()));
    assert!(guest.connects(ROUTER, port));
    drop(listener);
}

#[test]
fn connections_from_outside_reach_the_guest() {
    let (outside, port) = listener();
    let (gateway, mut guest) = start(vec![(outside, 22)], |_| {});
    guest.configure();
    let handle = guest.tcp(4096);
    guest.get::<Tcp>(handle).listen(22).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let mut heard: Vec<u8> = Vec::new();
    guest.until("a greeting", |guest| {
        let socket = guest.get::<Tcp>(handle);
        let _ = socket.recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes)));
        (heard == b"hello" && !socket.may_recv()).then_some(())
    });
    let from = guest.get::<Tcp>(handle).remote_endpoint().unwrap();
    assert_eq!(from.addr, ROUTER.into());
    guest.get::<Tcp>(handle).send_slice(b"welcome").unwrap();
    guest.get::<Tcp>(handle).close();
    guest.until("the end", |guest| {
        (!guest.get::<Tcp>(handle).is_open()).then_some(())
    });
    assert_eq!(client.join().unwrap(), "welcome");
    assert_eq!(gateway.stats().tcp_in, 1);
}

#[test]
fn a_guest_that_does_not_listen_resets_those_from_outside() {
    let (outside, port) = listener();
    let (gateway, mut guest) = start(vec![(outside, 22)], |_| {});
    guest.configure();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_nonblocking(true).unwrap();
    let error = guest.until("a reset", |_| match stream.read(&mut [0]) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        other => Some(other.unwrap_err()),
    });
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(gateway.stats().tcp_failed, 1);
}

/// A UDP socket of the guest.
fn udp_socket(guest: &mut Guest, port: u16) -> smoltcp::iface::SocketHandle {
    let buffer = || {
        let metadata = vec![udp::PacketMetadata::EMPTY; 16];
        udp::PacketBuffer::new(metadata, vec![0; 1 << 18])
    };
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).unwrap();
    guest.sockets.add(socket)
}

#[test]
fn datagrams_go_both_ways() {
    let host = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    host.set_nonblocking(true).unwrap();
    let port = host.local_addr().unwrap().port();
    let (gateway, mut guest) = start(Vec::new(), |d| {
        d.loopback = vec![format!("udp:9={port}").parse().unwrap()];
    });
    guest.configure();
    let handle = udp_socket(&mut guest, 1234);
    for len in [0, 1, 1472, 65_492] {
        let payload: Vec<u8> = (0..len).map(|n| byte(n, 3)).collect();
        let socket = guest.get::<udp::Socket<'_>>(handle);
        socket.send_slice(&payload, (ROUTER, 9)).unwrap();
        let mut buffer = vec![0; 1 << 16];
        let (count, from) = guest.until("a datagram", |_| host.recv_from(&mut buffer).ok());
        assert!(buffer[..count] == payload, "{len}");
        host.send_to(&buffer[..count], from).unwrap();
        guest.until("an echo", |guest| {
            let (bytes, from) = guest.get::<udp::Socket<'_>>(handle).recv().ok()?;
            assert_eq!(from.endpoint, (ROUTER, 9).into());
            assert!(bytes == payload, "{len}");
            Some(())
        });
    }
    assert_eq!(gateway.stats().udp_flows, 1);
    // No rule for the same port at another address.
    let socket = guest.get::<udp::Socket<'_>>(handle);
    socket
        .send_slice(b"x", (Ipv4Addr::new(192, 0, 2, 1), port))
        .unwrap();
    guest.until("a refusal", |_| {
        (gateway.stats().refused == 1).then_some(())
    });
}

#[test]
fn flows_of_datagrams_make_room_for_each_other() {
    let host = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    host.set_nonblocking(true).unwrap();
    let port = host.local_addr().unwrap().port();
    let (gateway, mut guest) = start(Vec::new(), |d| {
        d.loopback = vec![format!("udp:{port}").parse().unwrap()];
    });
    guest.configure();
    for from in 1..=2000 {
        let handle = udp_socket(&mut guest, from);
        let socket = guest.get::<udp::Socket<'_>>(handle);
        socket.send_slice(b"x", (ROUTER, port)).unwrap();
        guest.until("a datagram", |_| host.recv_from(&mut [0]).ok());
        guest.sockets.remove(handle);
    }
    let stats = gateway.stats();
    assert_eq!((stats.udp_flows, stats.udp_open), (2000, 512));
    assert!(gateway.weight().1 < 512 + 32);
}

/// A ClientHello for this server, as small as it gets.
fn client_hello(server: &str) -> Vec<u8> {
    let list = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let name = list(&[&[0][..], &list(server.as_bytes())].concat());
    let extensions = match server {
        "" => vec![],
        _ => [&[0, 0][..], &list(&name)].concat(),
    };
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(list(&extensions));
    let message = [&[1, 0][..], &list(&body)].concat();
    [&[22, 3, 1][..], &list(&message)].concat()
}

/// Says `pieces` to the router, one after the other; what comes back until the end, or `None` after a
/// reset.
fn converse(guest: &mut Guest, port: u16, pieces: &[&[u8]]) -> Option<Vec<u8>> {
    let handle = guest.connect(1 << 16, ROUTER, port);
    guest.until("a connection", |guest| {
        guest.get::<Tcp>(handle).may_send().then_some(())
    });
    for piece in pieces {
        guest.get::<Tcp>(handle).send_slice(piece).unwrap();
        guest.poll();
    }
    let mut heard = Vec::new();
    let whole = guest.until("an end", |guest| {
        let socket = guest.get::<Tcp>(handle);
        let _ = socket.recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes)));
        match socket.state() {
            tcp::State::Closed => Some(false),
            tcp::State::CloseWait if !socket.can_recv() => Some(true),
            _ => None,
        }
    });
    guest.get::<Tcp>(handle).abort();
    guest.poll();
    guest.sockets.remove(handle);
    whole.then_some(heard)
}

/// A server that answers each connection with the first bytes it got, then ends it.
fn echo() -> u16 {
    let (listener, port) = listener();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut buffer = vec![0; 1 << 16];
            let count = stream.read(&mut buffer).unwrap_or(0);
            let _ = stream.write_all(&buffer[..count]);
        }
    });
    port
}

#[test]
fn tls_asks_for_a_server_that_was_granted_or_is_reset() {
    let port = echo();
    let (gateway, mut guest) = start(Vec::new(), |d| {
        d.allow = vec!["tcp:a.example:443".parse().unwrap()];
        d.loopback = vec![format!("tcp:443={port}").parse().unwrap()];
        d.hosts = vec!["a.example".into(), "b.example".into()];
    });
    guest.configure();
    let found = guest.resolve("a.example").unwrap();
    assert_eq!(found, [IpAddress::from(ROUTER)]);
    let hello = client_hello("a.example");
    let (first, second) = hello.split_at(hello.len() / 2);
    let said = converse(&mut guest, 443, &[first, second]);
    assert_eq!(said, Some(hello.clone()), "held back until it is whole");
    for (server, reason) in [
        ("b.example", "its TLS asks for b.example"),
        ("evil.example", "its TLS asks for evil.example"),
        ("", "its TLS names no server"),
    ] {
        let said = converse(&mut guest, 443, &[&client_hello(server)]);
        assert_eq!(said, None, "{reason}");
    }
    let mut broken = client_hello("a.example");
    broken[5] = 2;
    assert_eq!(converse(&mut guest, 443, &[&broken]), None);
    assert_eq!(gateway.stats().refused, 4);
    // What is no TLS is as before: an address is all it has.
    let other = b"SSH-2.0-x\r\n".to_vec();
    assert_eq!(converse(&mut guest, 443, &[&other]), Some(other));
    let said = gateway.end();
    for reason in [
        "b.example",
        "evil.example",
        "names no server",
        "is malformed",
    ] {
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn the_supervisor_is_answered_and_obeyed() {
    let (gateway, _guest) = start(Vec::new(), |_| {});
    gateway.say(b"nonsense");
    assert!(matches!(gateway.hear(), Event::Refused { .. }));
    assert_eq!(gateway.stats(), Default::default());
    assert_eq!(gateway.end(), "");
}

#[test]
fn it_ends_with_the_link() {
    let (mut gateway, guest) = start(Vec::new(), |_| {});
    drop(guest);
    assert!(gateway.child.wait().unwrap().success());
}

#[test]
fn frames_of_any_kind_leave_it_well() {
    let (gateway, mut guest) = start(Vec::new(), |_| {});
    guest.configure();
    let mut seed = 1_u64;
    for n in 0..20_000 {
        let len = [0, 1, 13, 14, 33, 34, 60, 1514, 65_535][n % 9];
        let mut frame: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u8
        })
        .take(len)
        .collect();
        if len > 34 {
            frame[..6].copy_from_slice(&[0x52, 0x55, 10, 0, 2, 2]);
            frame[6..12].copy_from_slice(&guest::MAC);
            frame[12..14].copy_from_slice(&[8, if n % 2 == 0 { 0 } else { 6 }]);
        }
        guest.inject(&frame);
    }
    assert!(guest.dhcp().address.address() == GUEST);
    assert!(gateway.stats().frames_out > 10_000);
}
