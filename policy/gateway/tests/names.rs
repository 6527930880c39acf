//! Names as a guest of a real gateway asks for them, over UDP and TCP.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod guest;

use std::net::{Ipv4Addr, TcpListener};

use guest::resolver::resolver;
use guest::{DNS, start};
use smoltcp::socket::tcp;
use smoltcp::wire::IpAddress;

type Tcp = tcp::Socket<'static>;

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn names_resolve_that_a_rule_speaks_of() {
    let (port, resolver) = resolver(1, false);
    let (gateway, mut guest) = start(Vec::new(), |d| {
        d.allow = vec!["tcp:a.example:80".parse().unwrap()];
        d.resolvers = vec![(Ipv4Addr::LOCALHOST, port).into()];
    });
    guest.configure();
    let found = guest.resolve("a.example").unwrap();
    assert_eq!(found, [IpAddress::v4(192, 0, 2, 5)]);
    assert!(guest.resolve("b.example").is_err());
    assert!(guest.resolve("_http._tcp.a.example").is_err());
    assert_eq!(
        resolver.join().unwrap().len(),
        1,
        "nobody was asked for the others"
    );
    let stats = gateway.stats();
    assert_eq!((stats.dns_queries, stats.refused), (3, 2));
    // The answer speaks of port 80, and of no other.
    assert!(!guest.connects(Ipv4Addr::new(192, 0, 2, 5), 81));
    let said = gateway.end();
    assert!(said.contains("refused to resolve b.example"), "{said}");
    assert!(!said.contains("_http"), "nobody misses it: {said}");
    assert!(
        said.contains("(a.example): the rule tcp:a.example:81"),
        "{said}"
    );
}

#[test]
fn a_resolver_that_is_not_there_is_not_waited_for() {
    let (unused, port) = listener();
    drop(unused);
    let (_gateway, mut guest) = start(Vec::new(), |d| {
        d.allow = vec!["tcp:*:80".parse().unwrap()];
        d.resolvers = vec![(Ipv4Addr::LOCALHOST, port).into()];
    });
    guest.configure();
    assert!(guest.resolve("a.example").is_err());
}

#[test]
fn names_resolve_over_tcp() {
    let (port, resolver) = resolver(2, true);
    let (gateway, mut guest) = start(Vec::new(), |d| {
        d.allow = vec!["tcp:a.example:80".parse().unwrap()];
        d.resolvers = vec![(Ipv4Addr::LOCALHOST, port).into()];
    });
    guest.configure();
    let handle = guest.connect(4096, DNS, 53);
    guest.until("a connection", |guest| {
        guest.get::<Tcp>(handle).may_send().then_some(())
    });
    let query = |id: u8, name: &[u8; 2]| {
        let mut query = vec![0, 28, 0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1];
        query.push(name[0]);
        query.extend(b"\x07example\0\0\x01\0\x01");
        query[1] = query.len() as u8 - 2;
        query
    };
    // Three at once, in two pieces.
    let all = [query(1, b"a "), query(2, b"b "), query(3, b"a ")].concat();
    let (first, second) = all.split_at(40);
    guest.get::<Tcp>(handle).send_slice(first).unwrap();
    guest.poll();
    guest.get::<Tcp>(handle).send_slice(second).unwrap();
    guest.get::<Tcp>(handle).close();
    let mut heard: Vec<u8> = Vec::new();
    guest.until("answers", |guest| {
        let socket = guest.get::<Tcp>(handle);
        let _ = socket.recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes)));
        (!socket.may_recv()).then_some(())
    });
    let mut answers = Vec::new();
    let mut rest = &heard[..];
    while let Some((length, after)) = rest.split_first_chunk() {
        let (answer, after) = after.split_at(u16::from_be_bytes(*length).into());
        answers.push((answer[1], answer[3] & 15, answer[7]));
        rest = after;
    }
    assert_eq!(answers, [(1, 0, 1), (2, 5, 0), (3, 0, 1)]);
    assert_eq!(resolver.join().unwrap().len(), 2);
    assert_eq!(gateway.stats().dns_queries, 3);
    // The rules learnt it here too: the refusal knows the name.
    assert!(!guest.connects(Ipv4Addr::new(192, 0, 2, 5), 81));
    assert!(gateway.end().contains("(a.example)"));
}
