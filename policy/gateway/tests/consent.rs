//! A person's consent to flows of UDP: the first datagram asks, and waits for the answer.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed expectation is the report"
)]

mod guest;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use bulkhead_approval::{Answer, MAX_MESSAGE_BYTES, MAX_PENDING, Request};
use bulkhead_network::{Connect, Fd, Jail, NetworkDescription};
use bulkhead_record::{Entry, Kind};
use guest::ledger::writer;
use guest::{Gateway, Guest, MAC, ROUTER, start_with};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use smoltcp::socket::udp;

/// A service of the host that takes consent, a guest that uses it, and the person's end.
struct World {
    gateway: Gateway,
    guest: Guest,
    host: UdpSocket,
    person: OwnedFd,
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl World {
    /// With these rules beside the one that takes consent.
    fn new(more: &[&str]) -> Self {
        Self::lasting(more, None)
    }

    /// The rule that takes consent has an end, so many seconds after the start.
    fn lasting(more: &[&str], lifetime: Option<u64>) -> Self {
        let host = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        host.set_nonblocking(true).unwrap();
        let port = host.local_addr().unwrap().port();
        let (person, approvals) = guest::pair();
        let (ledger, way) = guest::pair();
        let entries = writer(ledger, usize::MAX);
        let mut described = NetworkDescription::new("test", Fd(4), MAC, Jail::BestEffort);
        let mut asks: Connect = "udp:svc.example:9".parse().unwrap();
        (asks.approval, asks.lifetime) = (true, lifetime);
        described.allow.push(asks);
        let more = more.iter().map(|rule| rule.parse::<Connect>().unwrap());
        described.allow.extend(more);
        described.hosts = vec!["svc.example".to_owned()];
        described.loopback = vec![format!("udp:9={port}").parse().unwrap()];
        described.approvals = Some(Fd(60));
        described.ledger = Some(Fd(61));
        let files = vec![(approvals, 60), (way, 61)];
        let (gateway, mut guest) = start_with(described, Vec::new(), files);
        guest.configure();
        Self {
            gateway,
            guest,
            host,
            person,
            entries,
        }
    }

    /// Sends from this port of the guest's.
    fn says(&mut self, from: u16, text: &str) {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(from).unwrap();
        socket.send_slice(text.as_bytes(), (ROUTER, 9)).unwrap();
        let handle = self.guest.sockets.add(socket);
        self.guest.until("a datagram to go", |guest| {
            let socket = guest.get::<udp::Socket<'_>>(handle);
            (socket.send_queue() == 0).then_some(())
        });
        self.guest.sockets.remove(handle);
    }

    /// The next question, if one has come.
    fn question(&mut self) -> Option<Request> {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let received = recv(&self.person, &mut buffer[..], RecvFlags::DONTWAIT);
        let (_, length) = received.ok()?;
        Some(serde_json::from_slice(&buffer[..length]).unwrap())
    }

    fn asked(&mut self) -> Request {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            if let Some(request) = self.question() {
                return request;
            }
            assert!(std::time::Instant::now() < end, "no question comes");
            self.guest.poll();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn answer(&self, request: &Request, allowed: bool) {
        let answer = Answer {
            id: request.id,
            allowed,
            reason: "a person said so".to_owned(),
        };
        let answer = serde_json::to_vec(&answer).unwrap();
        send(&self.person, &answer, SendFlags::NOSIGNAL).unwrap();
    }

    /// What the service hears next.
    fn heard(&mut self) -> String {
        let mut buffer = [0; 100];
        let host = &self.host;
        let (length, _) = (self.guest).until("a datagram", |_| host.recv_from(&mut buffer).ok());
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn hears_nothing(&self) {
        assert!(self.host.recv_from(&mut [0]).is_err());
    }

    /// Waits until so many datagrams were dropped: what was said may be on its way yet.
    fn dropped(&mut self, times: u64) {
        let gateway = &self.gateway;
        let count = || gateway.stats().dropped_out;
        (self.guest).until("a dropped datagram", |_| (count() >= times).then_some(()));
        assert_eq!(count(), times);
    }

    fn refused(&mut self, times: u64) {
        let gateway = &self.gateway;
        let count = || gateway.stats().refused;
        (self.guest).until("a refusal", |_| (count() >= times).then_some(()));
        assert_eq!(count(), times);
    }
}

#[test]
fn a_flow_waits_for_a_person() {
    let mut world = World::new(&[]);
    world.says(1000, "first");
    let request = world.asked();
    assert_eq!(request.question.capability, "net.connect");
    assert_eq!(request.question.object, "udp svc.example:9");
    world.says(1000, "while it waits");
    world.dropped(1);
    assert!(world.question().is_none(), "one question for a flow");
    world.hears_nothing();
    world.answer(&request, true);
    assert_eq!(world.heard(), "first");
    world.says(1000, "second");
    assert_eq!(world.heard(), "second");
    assert!(world.question().is_none());
    let entries = world.entries.lock().unwrap();
    let intents = entries.iter().filter(|entry| entry.kind == Kind::Intent);
    let consents: Vec<&str> = intents.map(|e| e.detail["consent"].as_str()).collect();
    assert_eq!(consents, ["a person said so"]);
}

#[test]
fn a_rule_that_ends_while_a_person_thinks_opens_nothing() {
    let seconds = 3;
    let mut world = World::lasting(&[], Some(seconds));
    world.says(1000, "first");
    let request = world.asked();
    std::thread::sleep(std::time::Duration::from_secs(seconds));
    world.answer(&request, true);
    world.refused(1);
    world.hears_nothing();
}

#[test]
fn a_no_holds_for_the_flow() {
    let mut world = World::new(&[]);
    world.says(1000, "first");
    let request = world.asked();
    world.answer(&request, false);
    world.refused(1);
    // Programs send again what nobody answers.
    for _ in 0..10 {
        world.says(1000, "again");
    }
    world.refused(1);
    assert!(world.question().is_none(), "nobody is asked again");
    world.says(1001, "another");
    let request = world.asked();
    world.answer(&request, true);
    assert_eq!(world.heard(), "another");
    world.hears_nothing();
    let entries = world.entries.lock().unwrap();
    let refusal = entries.iter().find(|entry| entry.kind == Kind::Refusal);
    let reason = &refusal.unwrap().reason;
    assert!(
        reason.ends_with("there was none: a person said so"),
        "{reason}"
    );
}

#[test]
fn a_guest_buries_nobody_under_questions() {
    let mut world = World::new(&[]);
    for from in 0..20 {
        world.says(1000 + from, "x");
    }
    world.refused(20 - MAX_PENDING as u64);
    let requests: Vec<Request> = (0..MAX_PENDING).map(|_| world.asked()).collect();
    assert!(world.question().is_none());
    for request in &requests {
        world.answer(request, true);
    }
    for _ in &requests {
        assert_eq!(world.heard(), "x");
    }
    // There is room again.
    world.says(3000, "y");
    let request = world.asked();
    world.answer(&request, true);
    assert_eq!(world.heard(), "y");
}

#[test]
fn nobody_is_asked_where_another_rule_allows_the_same() {
    let mut world = World::new(&["udp:*.example:9"]);
    world.says(1000, "x");
    assert_eq!(world.heard(), "x");
    assert!(world.question().is_none());
}

#[test]
fn where_nobody_can_be_asked_it_is_a_no() {
    let mut world = World::new(&[]);
    world.says(1000, "x");
    let _ = world.asked();
    // The supervisor is gone.
    drop(std::mem::replace(&mut world.person, guest::pair().0));
    world.refused(1);
    world.hears_nothing();
}
