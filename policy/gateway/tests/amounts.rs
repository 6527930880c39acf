//! What a partition may move in all, through whichever way, and however often its guest resets itself.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod guest;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use bulkhead_network::{Fd, Jail, NetworkDescription, Quota};
use guest::{Gateway, Guest, MAC, ROUTER, start_changed, start_with};
use smoltcp::socket::{tcp, udp};

/// Most bytes of the partition.
const BUDGET: u64 = 1_000_000;

/// A host's services: what is sent to the TCP port comes back.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// A gateway with that budget, which keeps what is used in `file`, before `port` of the host.
fn begin(port: u16, file: &File) -> (Gateway, Guest) {
    let mut described = NetworkDescription::new("test", Fd(4), MAC, Jail::BestEffort);
    let quota = |name: &str, calls_per_minute, bytes| Quota {
        name: name.into(),
        calls_per_minute,
        bytes,
    };
    described.quotas = vec![
        quota("the name", Some(2), None),
        quota("the partition's budget", None, Some(BUDGET)),
    ];
    described.budget = Some(1);
    described.used = Some(Fd(40));
    described.loopback = vec![
        format!("tcp:80={port}").parse().unwrap(),
        format!("udp:53={port}").parse().unwrap(),
    ];
    described.hosts = vec!["time.example".into()];
    let mut counted: bulkhead_network::Connect = "udp:time.example:53".parse().unwrap();
    counted.quotas = vec![0];
    described.allow = vec![counted];
    let file = file.try_clone().unwrap();
    let (gateway, mut guest) = start_with(described, Vec::new(), vec![(file.into(), 40)]);
    guest.configure();
    (gateway, guest)
}

/// Sends and receives up to this many bytes; how many came back before the end.
fn moves(guest: &mut Guest, bytes: usize) -> usize {
    let handle = guest.connect(16 * 1024, ROUTER, 80);
    let mut sent = 0;
    let mut heard = 0;
    guest.until("the end", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        if socket.can_send() && sent < bytes {
            let piece = [7; 8192];
            sent += socket
                .send_slice(&piece[..piece.len().min(bytes - sent)])
                .unwrap();
        }
        if socket.can_recv() {
            heard += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
        }
        let over = socket.state() == tcp::State::Closed || heard == bytes;
        over.then_some(())
    });
    let socket = guest.get::<tcp::Socket<'_>>(handle);
    socket.abort();
    guest.poll();
    guest.sockets.remove(handle);
    heard
}

#[test]
fn a_partition_moves_no_more_than_its_budget() {
    let port = echo();
    let file = guest::memory_file(&[]);
    let (gateway, mut guest) = begin(port, &file);
    // Both ways count.
    assert_eq!(moves(&mut guest, 400_000), 400_000);
    let last = moves(&mut guest, 4_000_000);
    assert!(last < 1_000_000, "{last}");
    let stats = gateway.stats();
    let moved = stats.bytes_in + stats.bytes_out;
    // What one turn of a connection can move is what it may be late by: its buffers, both ways.
    assert!(
        (BUDGET..BUDGET + 2 * 256 * 1024).contains(&moved),
        "{moved}"
    );
    assert!(!guest.connects(ROUTER, 80));
    assert!(guest.resolve("time.example").is_err());
    let said = gateway.end();
    let reason = "the bytes of the partition's budget are used up";
    assert!(said.contains(reason), "{said}");
    // The guest resets itself, and has another gateway.
    let (gateway, mut guest) = begin(port, &file);
    assert!(!guest.connects(ROUTER, 80));
    assert!(gateway.end().contains(reason));
}

#[test]
fn a_guest_that_resets_itself_has_no_more_calls() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = socket.local_addr().unwrap().port();
    let file = guest::memory_file(&[]);
    let sends = |gateway: &Gateway, guest: &mut Guest| {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let mut flow = udp::Socket::new(buffer(), buffer());
        flow.bind(1234).unwrap();
        flow.send_slice(b"hello", (ROUTER, 53)).unwrap();
        guest.sockets.add(flow);
        let mut bytes = [0; 16];
        guest.until("a verdict", |_| match socket.recv_from(&mut bytes) {
            Ok(_) => Some(true),
            Err(_) => (gateway.stats().refused > 0).then_some(false),
        })
    };
    let (gateway, mut guest) = begin(port, &file);
    assert!(sends(&gateway, &mut guest));
    // This one is killed, the next one is asked to end.
    drop(gateway);
    let (gateway, mut guest) = begin(port, &file);
    assert!(sends(&gateway, &mut guest));
    gateway.end();
    let (gateway, mut guest) = begin(port, &file);
    assert!(!sends(&gateway, &mut guest));
    assert!(gateway.end().contains("the calls per minute of the name"));
}

#[test]
fn connections_from_outside_are_bounded_as_well() {
    let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = outside.local_addr().unwrap();
    let file = guest::memory_file(&[]);
    let begin = |lifetime| {
        let mut described = NetworkDescription::new("test", Fd(4), MAC, Jail::BestEffort);
        described.quotas = vec![Quota {
            name: "net.listen:8080=22".into(),
            calls_per_minute: Some(2),
            bytes: None,
        }];
        described.used = Some(Fd(40));
        let forwards = vec![(outside.try_clone().unwrap(), 22)];
        let files = vec![(file.try_clone().unwrap().into(), 40)];
        let (gateway, mut guest) = start_changed(described, forwards, files, |forward| {
            (forward.quotas, forward.lifetime) = (vec![0], lifetime);
        });
        guest.configure();
        (gateway, guest)
    };
    // Whether one is let in: the guest hears of it, or its client of a reset.
    let comes_in = |guest: &mut Guest| {
        let handle = guest.tcp(4096);
        guest.get::<tcp::Socket<'_>>(handle).listen(22).unwrap();
        let client = TcpStream::connect(address).unwrap();
        client.set_nonblocking(true).unwrap();
        guest.until("an end", |guest| {
            let heard = guest.get::<tcp::Socket<'_>>(handle).may_send();
            let reset = (&client).read(&mut [0]);
            let reset = reset.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
            (heard || reset).then_some(heard)
        })
    };
    let (gateway, mut guest) = begin(None);
    assert!(comes_in(&mut guest));
    assert!(comes_in(&mut guest));
    assert!(!comes_in(&mut guest));
    let said = gateway.end();
    let reason = "the calls per minute of net.listen:8080=22 are used up";
    assert!(said.contains(reason), "{said}");
    // Another gateway goes on counting.
    let (gateway, mut guest) = begin(None);
    assert!(!comes_in(&mut guest));
    drop(gateway);
    file.set_len(0).unwrap();
    let (gateway, mut guest) = begin(Some(0));
    assert!(!comes_in(&mut guest));
    let said = gateway.end();
    assert!(said.contains("to 22: its grant is over"), "{said}");
}
