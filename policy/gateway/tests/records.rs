//! What a gateway has recorded of refusals and of its end, and that nobody reads its memory.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod guest;

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use bulkhead_network::{Fd, Jail, NetworkDescription};
use bulkhead_record::{Entry, Kind, Verdict};
use guest::ledger::writer;
use guest::resolver::{resolver, silent};
use guest::{DNS, Gateway, Guest, MAC, ROUTER, start, start_with};
use smoltcp::socket::{dns, tcp};

/// A gateway that records, the guest at its link, and the ledger.
fn recording(
    change: impl FnOnce(&mut NetworkDescription),
) -> (Gateway, Guest, Arc<Mutex<Vec<Entry>>>) {
    recording_in(usize::MAX, Vec::new(), change)
}

/// The same with a ledger that has `space` for so many records, and with ways in.
fn recording_in(
    space: usize,
    forwards: Vec<(TcpListener, u16)>,
    change: impl FnOnce(&mut NetworkDescription),
) -> (Gateway, Guest, Arc<Mutex<Vec<Entry>>>) {
    let (ours, theirs) = guest::pair();
    let entries = writer(ours, space);
    let mut described = NetworkDescription::new("test", Fd(4), MAC, Jail::BestEffort);
    described.ledger = Some(Fd(60));
    described.actor = Some("demo/test".into());
    change(&mut described);
    let (gateway, mut guest) = start_with(described, forwards, vec![(theirs, 60)]);
    guest.configure();
    (gateway, guest, entries)
}

#[test]
fn refused_connections_are_recorded_and_a_flood_of_them_is_counted() {
    let (gateway, mut guest, entries) = recording(|_| {});
    for port in 1000..1200 {
        assert!(!guest.connects(ROUTER, port));
    }
    // The same again: it is another one.
    assert!(!guest.connects(ROUTER, 1199));
    gateway.end();
    let entries = entries.lock().unwrap();
    assert!(entries.iter().all(|entry| entry.kind == Kind::Refusal));
    assert_eq!(entries[0].object, "tcp 10.0.2.2:1000");
    assert!(entries.len() < 60, "{} of 201 are records", entries.len());
    let counted = entries.iter().filter_map(|e| e.detail.get("unrecorded"));
    let counted: usize = counted.map(|count| count.parse::<usize>().unwrap()).sum();
    // The last tells of those that had none after them.
    let last = usize::from(entries.last().unwrap().object.is_empty());
    assert_eq!(entries.len() - last + counted, 201);
}

#[test]
fn what_a_guest_leaves_under_way_has_its_outcome_on_record() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut gateway, mut guest, entries) = recording(|described| {
        described
            .loopback
            .push(format!("tcp:80={port}").parse().unwrap());
    });
    let handle = guest.connect(4096, ROUTER, 80);
    guest.until("a connection", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        let may = socket.may_send();
        may.then(|| socket.send_slice(b"hello").unwrap())
    });
    let (mut server, _) = listener.accept().unwrap();
    let mut word = [0; 5];
    server.read_exact(&mut word).unwrap();
    // The virtual machine ends, and its end of the link with it.
    drop(guest);
    assert!(gateway.child.wait().unwrap().success());
    let entries = entries.lock().unwrap();
    let [intent, outcome] = &entries[..] else {
        panic!("{entries:?}");
    };
    assert_eq!((intent.kind, outcome.kind), (Kind::Intent, Kind::Outcome));
    assert_eq!(outcome.verdict, Verdict::Failed);
    assert_eq!(outcome.reason, "the guest is gone");
    assert_eq!(outcome.detail["sent"], "5");
}

/// Lets `a.example` resolve, and asks that port.
fn resolving(described: &mut NetworkDescription, port: u16) {
    described.allow = vec!["tcp:a.example:80".parse().unwrap()];
    described.resolvers = vec![(Ipv4Addr::LOCALHOST, port).into()];
}

/// A query for the address of `a.example` over TCP.
fn ask_over_tcp(guest: &mut Guest) -> smoltcp::iface::SocketHandle {
    let handle = guest.connect(4096, DNS, 53);
    guest.until("a connection", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        socket.may_send().then_some(())
    });
    let query = b"\0\x1b\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";
    let socket = guest.get::<tcp::Socket<'_>>(handle);
    assert_eq!(socket.send_slice(query), Ok(query.len()));
    handle
}

/// The code of the answer there.
fn answer_over_tcp(guest: &mut Guest, handle: smoltcp::iface::SocketHandle) -> u8 {
    let mut heard = Vec::new();
    guest.until("an answer", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        let _ = socket.recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes)));
        (heard.len() > 6).then_some(())
    });
    heard[5] & 15
}

#[test]
fn names_are_on_record_with_what_they_stand_for() {
    for over_tcp in [false, true] {
        let (port, resolver) = resolver(1, over_tcp);
        let (gateway, mut guest, entries) = recording(|described| resolving(described, port));
        if over_tcp {
            let handle = ask_over_tcp(&mut guest);
            assert_eq!(answer_over_tcp(&mut guest, handle), 0);
        } else {
            guest.resolve("a.example").unwrap();
        }
        resolver.join().unwrap();
        gateway.end();
        let entries = entries.lock().unwrap();
        let [intent, outcome] = &entries[..] else {
            panic!("{entries:?}");
        };
        assert_eq!((intent.kind, outcome.kind), (Kind::Intent, Kind::Outcome));
        assert_eq!((outcome.intent, outcome.verdict), (Some(0), Verdict::Done));
        for entry in [intent, outcome] {
            assert_eq!(entry.action, "dns.resolve");
            assert_eq!(entry.object, "a.example");
        }
        assert_eq!(intent.reason, "net.connect:tcp:a.example:80");
        assert_eq!(outcome.detail["addresses"], "192.0.2.5");
    }
}

#[test]
fn a_name_that_is_not_on_record_is_asked_of_nobody() {
    let (tcp, udp, port) = silent();
    let (gateway, mut guest, entries) =
        recording_in(0, Vec::new(), |described| resolving(described, port));
    assert!(guest.resolve("a.example").is_err());
    let handle = ask_over_tcp(&mut guest);
    assert_eq!(answer_over_tcp(&mut guest, handle), 5, "it is refused");
    let heard = udp.recv(&mut [0; 512]).unwrap_err();
    assert_eq!(heard.kind(), ErrorKind::WouldBlock);
    assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(gateway.stats().refused, 2);
    let said = gateway.end();
    assert!(
        said.contains("refused to resolve a.example: ") && said.contains("no space left"),
        "{said}"
    );
    assert!(entries.lock().unwrap().is_empty());
}

#[test]
fn a_record_that_comes_too_late_lets_no_name_be_asked_for() {
    let (tcp, udp, port) = silent();
    let (ledger, theirs) = guest::pair();
    let mut described = NetworkDescription::new("test", Fd(4), MAC, Jail::BestEffort);
    (described.ledger, described.actor) = (Some(Fd(60)), Some("demo/test".into()));
    resolving(&mut described, port);
    let (gateway, mut guest) = start_with(described, Vec::new(), vec![(theirs, 60)]);
    guest.configure();
    // Two queries, whose records nobody writes for now.
    let over_tcp = ask_over_tcp(&mut guest);
    let (over_udp, query) = guest.ask("a.example");
    assert_eq!(answer_over_tcp(&mut guest, over_tcp), 5, "it is refused");
    guest.until("a refusal", |guest| {
        let socket = guest.get::<dns::Socket<'_>>(over_udp);
        let answer = socket.get_query_result(query);
        (answer != Err(dns::GetQueryResultError::Pending)).then_some(())
    });
    let entries = writer(ledger, usize::MAX);
    // Of each that was asked, the repeated ones among them.
    guest.until("the outcomes", |_| {
        let entries = entries.lock().unwrap();
        let count = |kind| entries.iter().filter(|entry| entry.kind == kind).count();
        let intents = count(Kind::Intent);
        (intents >= 2 && count(Kind::Outcome) == intents).then_some(())
    });
    assert_eq!(
        udp.recv(&mut [0; 512]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    // The next one is not taken for one of these.
    assert!(!guest.get::<tcp::Socket<'_>>(over_tcp).can_recv());
    gateway.end();
    let entries = entries.lock().unwrap();
    let outcomes = entries.iter().filter(|entry| entry.kind == Kind::Outcome);
    for outcome in outcomes {
        assert_eq!(outcome.verdict, Verdict::Failed);
        assert_eq!(outcome.reason, "its record came too late");
    }
}

#[test]
fn names_that_nobody_answers_for_have_an_outcome_on_record() {
    for (over_tcp, gone) in [(false, true), (true, true), (true, false)] {
        // They listen, and say nothing.
        let (tcp, udp, port) = silent();
        let (mut gateway, mut guest, entries) = recording(|described| resolving(described, port));
        let mut held = None;
        if over_tcp {
            let handle = ask_over_tcp(&mut guest);
            let (mut stream, _) = guest.until("the resolver to be asked", |_| tcp.accept().ok());
            stream.set_nonblocking(false).unwrap();
            stream.read_exact(&mut [0; 29]).unwrap();
            // The resolver gives up, or the guest does.
            if gone {
                held = Some(stream);
            } else {
                drop(stream);
                assert_eq!(answer_over_tcp(&mut guest, handle), 2, "it failed");
            }
        } else {
            guest.ask("a.example");
            guest.until("the resolver to be asked", |_| udp.recv(&mut [0; 512]).ok());
        }
        drop(guest);
        assert!(gateway.child.wait().unwrap().success());
        drop(held);
        let entries = entries.lock().unwrap();
        let [intent, outcome] = &entries[..] else {
            panic!("{entries:?}");
        };
        assert_eq!((intent.kind, outcome.kind), (Kind::Intent, Kind::Outcome));
        assert_eq!(outcome.verdict, Verdict::Failed);
        let why = match gone {
            true => "the guest is gone",
            false => "no resolver answers",
        };
        assert_eq!(outcome.reason, why);
    }
}

#[test]
fn connections_from_outside_are_on_record() {
    let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = outside.local_addr().unwrap();
    let (gateway, mut guest, entries) = recording_in(usize::MAX, vec![(outside, 22)], |_| {});
    let handle = guest.tcp(4096);
    guest.get::<tcp::Socket<'_>>(handle).listen(22).unwrap();
    let client = TcpStream::connect(address).unwrap();
    let from = client.local_addr().unwrap();
    guest.until("a connection", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        let may = socket.may_send();
        may.then(|| socket.send_slice(b"hello").unwrap())
    });
    let reading = std::thread::spawn(move || {
        let mut word = [0; 5];
        (&client).read_exact(&mut word).unwrap();
        word
    });
    guest.until("the word to be read", |_| {
        reading.is_finished().then_some(())
    });
    assert_eq!(&reading.join().unwrap(), b"hello");
    // The guest answers the end with its own.
    guest.until("the end", |guest| {
        let socket = guest.get::<tcp::Socket<'_>>(handle);
        socket.close();
        (gateway.stats().tcp_open == 0).then_some(())
    });
    gateway.end();
    let entries = entries.lock().unwrap();
    let [intent, outcome] = &entries[..] else {
        panic!("{entries:?}");
    };
    assert_eq!((intent.kind, outcome.kind), (Kind::Intent, Kind::Outcome));
    assert_eq!(intent.action, "net.listen");
    assert_eq!(intent.object, "tcp 22");
    assert_eq!(intent.reason, format!("net.listen:{address}=22"));
    assert_eq!(intent.detail["from"], from.to_string());
    assert_eq!(outcome.verdict, Verdict::Done);
    assert_eq!(outcome.detail["received"], "0");
    assert_eq!(outcome.detail["sent"], "5");
}

#[test]
fn a_connection_from_outside_that_is_not_on_record_reaches_nobody() {
    let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = outside.local_addr().unwrap();
    let (gateway, mut guest, _) = recording_in(0, vec![(outside, 22)], |_| {});
    let handle = guest.tcp(4096);
    guest.get::<tcp::Socket<'_>>(handle).listen(22).unwrap();
    let client = TcpStream::connect(address).unwrap();
    let from = client.local_addr().unwrap();
    let reading = std::thread::spawn(move || (&client).read(&mut [0; 1]).unwrap_err().kind());
    guest.until("a reset", |_| reading.is_finished().then_some(()));
    assert_eq!(reading.join().unwrap(), ErrorKind::ConnectionReset);
    let socket = guest.get::<tcp::Socket<'_>>(handle);
    assert_eq!(socket.state(), tcp::State::Listen, "it heard of nobody");
    let said = gateway.end();
    assert!(
        said.contains(&format!("refused a connection of {from} to 22: ")),
        "{said}"
    );
}

#[test]
fn nobody_of_the_same_user_reads_a_gateways_memory() {
    let (gateway, _guest) = start(Vec::new(), |_| {});
    let pid = gateway.child.id();
    // What only its own user may look at belongs to root where the process is not dumpable (proc(5)).
    let owner = std::fs::metadata(format!("/proc/{pid}/environ"))
        .unwrap()
        .uid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = status.lines().find(|line| line.starts_with("Uid:"));
    assert_ne!(uid.unwrap().split_whitespace().nth(1), Some("0"));
    assert_eq!(owner, 0);
}
