//! Conditions as a guest meets them at a real gateway in its jail: connections, datagrams and names are
//! asked about before anybody outside hears of them, and the others are served meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod guest;

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_capability::Capability;
use bulkhead_conditions::wire::MAX_REQUEST_BYTES;
use bulkhead_conditions::{
    Act, DecisionDescription, Denied, Member, Ruling, VERSION, WOULD_DENY, denied,
};
use bulkhead_decision::process::Judge;
use bulkhead_network::{Fd, Jail, NetworkDescription};
use bulkhead_record::{Entry, Kind};
use guest::ledger::writer;
use guest::{DNS, Gateway, Guest, MAC, ROUTER, pair, start_with};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use smoltcp::socket::{tcp, udp};

const GRANTS: [&str; 3] = [
    "net.loopback:tcp:80",
    "net.connect:*.example:443",
    "dns.resolve:*.example",
];

/// The gateway's end of a socket on which the conditions `text` of who has `grants` answer.
fn answering(text: &str, grants: &[&str], learn: bool) -> OwnedFd {
    let grants = grants
        .iter()
        .map(|grant| grant.parse::<Capability>().unwrap());
    let judge = Judge::new(DecisionDescription {
        version: VERSION,
        system: "demo".to_owned(),
        partition: "test".to_owned(),
        lineage: Vec::new(),
        started: 0,
        text: text.to_owned(),
        learn,
        world: vec![Member {
            name: "test".to_owned(),
            grants: grants.collect(),
        }],
        inherited: Vec::new(),
        control: Fd(-1),
        jail: Jail::None,
    });
    let (judge, (ours, theirs)) = (judge.unwrap(), pair());
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_REQUEST_BYTES];
        while let Ok((_, length @ 1..)) = recv(&theirs, &mut buffer[..], RecvFlags::empty()) {
            let answer = judge.answer(&buffer[..length], Duration::from_secs(9));
            let answer = serde_json::to_vec(&answer.unwrap()).unwrap();
            let _ = send(&theirs, &answer, SendFlags::NOSIGNAL);
        }
    });
    ours
}

/// A gateway with these conditions, the guest at its link, and the ledger.
fn begin(
    conditions: OwnedFd,
    change: impl FnOnce(&mut NetworkDescription),
) -> (Gateway, Guest, Arc<Mutex<Vec<Entry>>>) {
    let (ours, theirs) = pair();
    let entries = writer(ours, usize::MAX);
    let mut described = NetworkDescription::new("test", Fd(4), MAC, Jail::BestEffort);
    described.ledger = Some(Fd(60));
    described.actor = Some("demo/test".into());
    described.conditions = Some(Fd(61));
    change(&mut described);
    let files = vec![(theirs, 60), (conditions, 61)];
    let (gateway, mut guest) = start_with(described, Vec::new(), files);
    guest.configure();
    (gateway, guest, entries)
}

fn service() -> (TcpListener, String, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (
        listener,
        format!("tcp:443={port}"),
        format!("tcp:80={port}"),
    )
}

/// Two names and a port of the host behind the router's address.
fn named(described: &mut NetworkDescription, service: &str, other: &str) {
    described.hosts = vec!["a.example".to_owned()];
    described.allow = vec!["tcp:a.example:443".parse().unwrap()];
    described.loopback = vec![service.parse().unwrap(), other.parse().unwrap()];
}

#[test]
fn a_connection_that_a_condition_forbids_reaches_nobody() {
    let (listener, secure, plain) = service();
    listener.set_nonblocking(true).unwrap();
    let text = r#"
        permit(principal, action, resource);
        @id("not there")
        forbid(principal, action == Action::"net.connect", resource in Domain::"example")
        when { context.port == 443 };
    "#;
    let conditions = answering(text, &GRANTS, false);
    let (gateway, mut guest, entries) = begin(conditions, |d| named(d, &secure, &plain));
    assert!(!guest.connects(ROUTER, 443));
    assert!(listener.accept().is_err(), "nobody came");
    assert!(guest.connects(ROUTER, 80));
    let said = gateway.end();
    assert!(
        said.contains("refused tcp to 10.0.2.2:443: forbidden by condition not there"),
        "{said}"
    );
    let entries = entries.lock().unwrap();
    let refusal = entries.iter().find(|entry| entry.kind == Kind::Refusal);
    let refusal = refusal.unwrap();
    assert_eq!(refusal.action, "net.connect");
    assert!(
        refusal.reason.contains("condition not there"),
        "{refusal:?}"
    );
    let intents = entries.iter().filter(|entry| entry.kind == Kind::Intent);
    let intents: Vec<&str> = intents.map(|entry| entry.object.as_str()).collect();
    assert_eq!(intents, ["tcp 10.0.2.2:80"]);
}

#[test]
fn who_learns_lets_it_through_and_has_it_on_record() {
    let (_listener, secure, plain) = service();
    let text = r#"permit(principal, action == Action::"dns.resolve", resource);"#;
    let conditions = answering(text, &GRANTS, true);
    let (gateway, mut guest, entries) = begin(conditions, |d| named(d, &secure, &plain));
    assert!(guest.connects(ROUTER, 443));
    // No grant speaks of it: nobody learns from that.
    assert!(!guest.connects(ROUTER, 22));
    gateway.end();
    let entries = entries.lock().unwrap();
    let [intent, outcome, refusal] = &entries[..] else {
        panic!("{entries:?}");
    };
    assert_eq!(intent.detail[WOULD_DENY], "permitted by no condition");
    let denied = denied(&intent.detail).unwrap();
    let [Denied { act, ruling }] = &denied[..] else {
        panic!("{denied:?}");
    };
    assert!(
        matches!(act, Act::Connect { name: Some(name), port: 443, .. } if name == "a.example"),
        "{act:?}"
    );
    assert_eq!(*ruling, Ruling::NotPermitted);
    let kinds = [outcome.kind, refusal.kind];
    assert!(kinds.contains(&Kind::Outcome) && kinds.contains(&Kind::Refusal));
}

#[test]
fn datagrams_are_asked_about() {
    let echo = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    echo.set_nonblocking(true).unwrap();
    let port = echo.local_addr().unwrap().port();
    for (text, reaches) in [
        ("permit(principal, action, resource);", true),
        (
            r#"permit(principal, action == Action::"tool.call", resource);"#,
            false,
        ),
    ] {
        let conditions = answering(text, &GRANTS, false);
        let (gateway, mut guest, entries) = begin(conditions, |described| {
            described.loopback = vec![format!("udp:9={port}").parse().unwrap()];
        });
        let metadata = || vec![udp::PacketMetadata::EMPTY; 4];
        let buffer = || udp::PacketBuffer::new(metadata(), vec![0; 4096]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(1234).unwrap();
        let handle = guest.sockets.add(socket);
        let socket = guest.get::<udp::Socket<'_>>(handle);
        socket.send_slice(b"hello", (ROUTER, 9)).unwrap();
        let mut buffer = [0; 16];
        guest.until("a record", |_| {
            (!entries.lock().unwrap().is_empty()).then_some(())
        });
        let arrived = guest.until("a verdict", |_| match echo.recv(&mut buffer) {
            Ok(_) => Some(true),
            Err(_) => (gateway.stats().refused > 0).then_some(false),
        });
        assert_eq!(arrived, reaches);
        gateway.end();
    }
}

/// A resolver that knows no name, and the names that it was asked for.
fn resolver() -> (u16, Arc<Mutex<Vec<String>>>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let names: Arc<Mutex<Vec<String>>> = Arc::default();
    let asked = names.clone();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let first = usize::from(buffer[12]);
            let label = String::from_utf8_lossy(&buffer[13..13 + first]).into_owned();
            asked.lock().unwrap().push(label);
            buffer[2] |= 0x80;
            buffer[3] = 0x83;
            socket.send_to(&buffer[..length], from).unwrap();
        }
    });
    (port, names)
}

#[test]
fn names_are_asked_about_over_udp_and_tcp() {
    let (port, asked) = resolver();
    let text =
        r#"permit(principal, action == Action::"dns.resolve", resource == Host::"a.example");"#;
    let conditions = answering(text, &GRANTS, false);
    let (gateway, mut guest, entries) = begin(conditions, |described| {
        described.allow = vec!["tcp:*.example:443".parse().unwrap()];
        described.resolvers = vec![(Ipv4Addr::LOCALHOST, port).into()];
    });
    assert!(guest.resolve("a.example").is_err());
    assert!(guest.resolve("b.example").is_err());
    assert_eq!(*asked.lock().unwrap(), ["a"], "nobody hears of the other");
    // Over TCP the answer says why.
    let handle = guest.connect(4096, DNS, 53);
    guest.until("a connection", |guest| {
        guest
            .get::<tcp::Socket<'_>>(handle)
            .may_send()
            .then_some(())
    });
    let mut query = vec![0, 27, 0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'b'];
    query.extend(b"\x07example\0\0\x01\0\x01");
    query[1] = query.len() as u8 - 2;
    let socket = guest.get::<tcp::Socket<'_>>(handle);
    socket.send_slice(&query).unwrap();
    let mut heard = Vec::new();
    guest.until("an answer", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        let _ = socket.recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes)));
        (heard.len() > 12).then_some(())
    });
    assert_eq!(heard[5] & 15, 5, "refused");
    assert_eq!(asked.lock().unwrap().len(), 1);
    gateway.end();
    let entries = entries.lock().unwrap();
    let of = |kind| entries.iter().filter(move |entry| entry.kind == kind);
    let asked: Vec<&str> = of(Kind::Intent).map(|entry| &*entry.object).collect();
    assert_eq!(asked, ["a.example"]);
    assert_eq!(of(Kind::Outcome).count(), 1);
    assert_eq!(of(Kind::Refusal).count(), 2, "{entries:?}");
    for entry in of(Kind::Refusal) {
        assert_eq!(entry.object, "b.example");
        assert_eq!(entry.reason, "permitted by no condition");
    }
}

#[test]
fn nothing_is_done_that_nobody_answers_for() {
    let (listener, secure, plain) = service();
    listener.set_nonblocking(true).unwrap();
    let (port, asked) = resolver();
    let (ours, theirs) = pair();
    drop(theirs);
    let (gateway, mut guest, _) = begin(ours, |described| {
        named(described, &secure, &plain);
        described.allow.push("tcp:*.example:443".parse().unwrap());
        described.resolvers = vec![(Ipv4Addr::LOCALHOST, port).into()];
    });
    for _ in 0..2 {
        assert!(!guest.connects(ROUTER, 80));
        assert!(guest.resolve("b.example").is_err());
    }
    assert!(listener.accept().is_err(), "nobody came");
    assert!(asked.lock().unwrap().is_empty());
    assert!(gateway.end().contains("their process is gone"));
}

#[test]
fn who_answers_slowly_holds_up_nobody_else() {
    let (listener, secure, plain) = service();
    listener.set_nonblocking(true).unwrap();
    let (ours, theirs) = pair();
    let (gateway, mut guest, _) = begin(ours, |d| named(d, &secure, &plain));
    let handle = guest.connect(4096, ROUTER, 80);
    let mut buffer = [0; 512];
    guest.until("a question", |_| {
        matches!(
            recv(&theirs, &mut buffer[..], RecvFlags::DONTWAIT),
            Ok((_, 1..))
        )
        .then_some(())
    });
    let begun = Instant::now();
    // What needs no answer is served while it is waited for.
    assert!(guest.resolve("a.example").is_ok());
    assert_eq!(gateway.stats().tcp_open, 1);
    assert!(begun.elapsed() < Duration::from_secs(3));
    // No answer is a no.
    guest.until("a reset", |guest| {
        let state = guest.get::<tcp::Socket<'_>>(handle).state();
        (state == tcp::State::Closed).then_some(())
    });
    assert!(begun.elapsed() > Duration::from_secs(2));
    assert!(listener.accept().is_err(), "nobody came");
    assert!(gateway.end().contains("their process does not answer"));
}
