//! How fast one TCP connection is through the gateway: a guest of smoltcp, the built process, a
//! server on the host's loopback. The guest is part of what is measured, so this is a lower bound.
//!
//!     cargo build --release -p bulkhead-gateway
//!     cargo run --release -p bulkhead-gateway --example throughput [MTU]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a developer's tool, beside the tests"
)]

#[path = "../tests/guest/mod.rs"]
mod guest;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::thread;
use std::time::Instant;

use bulkhead_network::{Checksums, MAX_MTU};
use guest::{ROUTER, start};
use smoltcp::socket::tcp;

/// Bytes moved in each run.
const LEN: usize = 1 << 28;

fn main() {
    let mtu = std::env::args().nth(1).map(|mtu| mtu.parse().unwrap());
    let mtu = mtu.unwrap_or(MAX_MTU);
    for checksums in [Checksums::Computed, Checksums::Omitted] {
        for upload in [true, false] {
            let direction = if upload { "from" } else { "to" };
            let rate = run(mtu, checksums, upload);
            println!("mtu {mtu}, checksums {checksums:?}, {direction} the guest: {rate:.2} Gb/s");
        }
    }
}

/// Gb/s of one connection.
fn run(mtu: u16, checksums: Checksums, upload: bool) -> f64 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 18];
        if upload {
            while stream.read(&mut buffer).unwrap() > 0 {}
        } else {
            for _ in 0..LEN >> 18 {
                stream.write_all(&buffer).unwrap();
            }
        }
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let (_gateway, mut guest) = start(Vec::new(), |d| {
        d.mtu = mtu;
        d.checksums = checksums;
        d.loopback = vec![format!("tcp:{port}").parse().unwrap()];
    });
    guest.trust_checksums();
    guest.configure();
    let begin = Instant::now();
    let handle = guest.connect(4 << 20, ROUTER, port);
    let mut moved = 0;
    guest.until("the end", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        while upload && moved < LEN && socket.can_send() {
            moved += socket
                .send(|buffer| {
                    let count = buffer.len().min(LEN - moved);
                    (count, count)
                })
                .unwrap();
            if moved == LEN {
                socket.close();
            }
        }
        while !upload && socket.can_recv() {
            moved += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
        }
        (moved == LEN && !socket.may_recv()).then_some(())
    });
    server.join().unwrap();
    LEN as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9
}
