//! Uses up what it can: connections, flows, names, refusals, and all of its own memory. After each, a
//! granted request has to work.

use std::io::Write;
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{EVIL, GRANTED, RESOLVER, allowed, dns, http};

const MANY: usize = 1200;

/// Everything, one after the other.
pub(crate) fn all() {
    let most = Rlimit {
        current: Some(3 * MANY as u64),
        maximum: Some(3 * MANY as u64),
    };
    setrlimit(Resource::Nofile, most).expect("a guest of our own");
    // A rule with a name is about the addresses that it was resolved to.
    let resolved = dns::addresses(RESOLVER, "plain.example.org");
    assert_eq!(resolved, Ok(vec![GRANTED]));
    works("before");
    connections();
    works("after connections");
    half_requests();
    works("after half requests");
    datagrams();
    works("after datagrams");
    names();
    works("after names");
    refusals();
    works("after refusals");
    memory();
    works("after memory");
}

fn works(when: &str) {
    let answer = http::plain(GRANTED, 80, &http::get("plain.example.org", "/v1/ok"));
    allowed(when, http::read(answer));
}

fn connections() {
    let open: Vec<TcpStream> = (0..MANY)
        .filter_map(|_| http::connect(GRANTED, 22).ok())
        .collect();
    println!("count connections: {} of {MANY}", open.len());
}

fn half_requests() {
    let mut open = Vec::new();
    for _ in 0..MANY / 4 {
        if let Ok(mut stream) = http::connect(GRANTED, 80)
            && stream
                .write_all(b"GET /v1/ok HTTP/1.1\r\nHost: plain.exam")
                .is_ok()
        {
            open.push(stream);
        }
    }
    println!("count half requests: {} of {}", open.len(), MANY / 4);
}

fn datagrams() {
    let mut open = Vec::new();
    for _ in 0..MANY {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        if socket.send_to(b"x", SocketAddrV4::new(GRANTED, 9)).is_ok() {
            open.push(socket);
        }
    }
    println!("count datagrams: {} of {MANY}", open.len());
}

fn names() {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let query = dns::query("plain.example.org", dns::A, 1, &[]);
    for _ in 0..MANY {
        // What does not fit is dropped.
        let _ = socket.send_to(&query, SocketAddrV4::new(RESOLVER, 53));
    }
    println!("count names: {MANY}");
}

fn refusals() {
    let few = MANY / 4;
    let refused = (0..few)
        .filter(|_| http::connect(EVIL, 80).is_err())
        .count();
    println!("count refusals: {refused} of {few}");
}

/// In a process of its own, which the guest's kernel ends.
fn memory() {
    let fill = "x=x; while :; do x=$x$x; done";
    let ended = Command::new("/bin/busybox")
        .args(["sh", "-c", fill])
        .status()
        .expect("busybox");
    println!("count memory: its process ended: {}", !ended.success());
}
