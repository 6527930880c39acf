//! What a gateway has recorded of refusals and of its end, and that nobody reads its memory.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod guest;

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use bulkhead_network::{Fd, Jail, NetworkDescription};
use bulkhead_record::{Entry, Kind, Verdict};
use guest::ledger::writer;
use guest::{Gateway, Guest, MAC, ROUTER, start, start_with};
use smoltcp::socket::tcp;

/// A gateway that records, the guest at its link, and the ledger.
fn recording(
    change: impl FnOnce(&mut NetworkDescription),
) -> (Gateway, Guest, Arc<Mutex<Vec<Entry>>>) {
    let (ours, theirs) = guest::pair();
    let entries = writer(ours, usize::MAX);
    let mut described = NetworkDescription::new("test", Fd(4), MAC, Jail::BestEffort);
    described.ledger = Some(Fd(60));
    described.actor = Some("demo/test".into());
    change(&mut described);
    let (gateway, mut guest) = start_with(described, Vec::new(), vec![(theirs, 60)]);
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
