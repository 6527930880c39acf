//! The host's resolver, as far as a gateway sees it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;

/// Sockets of a resolver on the host's loopback, and their port.
pub fn sockets() -> (TcpListener, UdpSocket, u16) {
    // A port that is free for both; another test may have it for one.
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        if let Ok(udp) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) {
            return (tcp, udp, port);
        }
    }
}

/// The same of one that says nothing, and is not waited for.
pub fn silent() -> (TcpListener, UdpSocket, u16) {
    let (tcp, udp, port) = sockets();
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    (tcp, udp, port)
}

/// A resolver on the host's loopback that knows `a.example` alone, and answers each query over UDP
/// or TCP once.
pub fn resolver(queries: usize, over_tcp: bool) -> (u16, thread::JoinHandle<Vec<Vec<u8>>>) {
    let (tcp, udp, port) = sockets();
    let answer = |query: &[u8]| {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        answer[7] = 1;
        answer[11] = 0;
        let end = query[12..].iter().position(|byte| *byte == 0).unwrap() + 12 + 5;
        answer.truncate(end);
        answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x05");
        answer
    };
    let serving = thread::spawn(move || {
        let mut seen = Vec::new();
        let mut buffer = vec![0; 4096];
        for _ in 0..queries {
            let query = if over_tcp {
                let (mut stream, _) = tcp.accept().unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut query).unwrap();
                let answer = answer(&query);
                let length = (answer.len() as u16).to_be_bytes();
                stream.write_all(&length).unwrap();
                stream.write_all(&answer).unwrap();
                query
            } else {
                let (len, from) = udp.recv_from(&mut buffer).unwrap();
                udp.send_to(&answer(&buffer[..len]), from).unwrap();
                buffer[..len].to_vec()
            };
            seen.push(query);
        }
        seen
    });
    (port, serving)
}
