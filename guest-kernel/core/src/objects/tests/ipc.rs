//! Messages, notifications and faults, case by case.

use bulkhead_abi::syscall::Status;

use super::super::fault::Fault;
use super::super::ipc::{MAX_WORDS, MessageInfo, Sending};
use super::*;

const SERVER: u64 = 10;
const CLIENT: u64 = 12;
pub(super) const ENDPOINT: u64 = 14;
pub(super) const REPLY: u64 = 15;

/// A server and a client, ready; an endpoint and a reply object.
fn pair(server: u64, client: u64) -> (Rig, Ref<Thread>, Ref<Thread>) {
    let mut rig = Rig::new();
    let server = rig.thread(SERVER, server);
    let client = rig.thread(CLIENT, client);
    rig.make(ObjectType::Endpoint, ENDPOINT);
    rig.make(ObjectType::Reply, REPLY);
    (rig, server, client)
}

impl Rig {
    fn send(
        &mut self,
        thread: Ref<Thread>,
        by: u64,
        info: MessageInfo,
        how: Sending,
    ) -> Result<(), Error> {
        self.run(thread);
        let by = self.capability(by);
        self.objects.send(thread, by, info, how)
    }

    pub(super) fn receive(&mut self, thread: Ref<Thread>, reply: bool) -> Result<(), Error> {
        self.run(thread);
        let reply = reply.then(|| self.capability(REPLY));
        let from = self.capability(ENDPOINT);
        self.objects.receive(thread, from, reply, false)
    }

    fn reply(&mut self, thread: Ref<Thread>, info: MessageInfo) -> Result<(), Error> {
        self.run(thread);
        let by = self.capability(REPLY);
        self.objects.reply(thread, by, info)
    }
}

fn info(words: u64) -> MessageInfo {
    MessageInfo::new(words, 7)
}

#[test]
fn every_length_arrives_whole_whoever_comes_first() {
    for (server, client) in [(98, 100), (100, 100), (102, 100)] {
        for sender_first in [false, true] {
            for length in 0..=MAX_WORDS {
                let (mut rig, to, from) = pair(server, client);
                let (out, into) = (rig.buffer(from, 16), rig.buffer(to, 17));
                let words: Vec<u64> = (0..length).map(|n| 0x1000 + n * 3).collect();
                rig.words(from, &words[..words.len().min(10)]);
                for (n, word) in (0..).zip(&words).skip(10) {
                    rig.objects.memory.store(out + n * 8, *word);
                }
                if sender_first {
                    rig.send(from, ENDPOINT, info(length), Sending::Blocking)
                        .unwrap();
                    assert_eq!(rig.state(from), State::Sending);
                    rig.receive(to, false).unwrap();
                } else {
                    rig.receive(to, false).unwrap();
                    assert_eq!(rig.state(to), State::Receiving);
                    rig.send(from, ENDPOINT, info(length), Sending::Blocking)
                        .unwrap();
                }
                assert_eq!(
                    (rig.state(to), rig.state(from)),
                    (State::Ready, State::Ready)
                );
                let got = rig.registers(to);
                assert_eq!(MessageInfo::from_bits(got.rsi), info(length));
                assert_eq!(
                    (rig.status(to), rig.status(from)),
                    (Some(Status::Ok), Some(Status::Ok))
                );
                for (n, word) in (0..).zip(&words) {
                    let arrived = match got.message().get(n as usize) {
                        Some(register) => *register,
                        None => rig.objects.memory.load(into + n * 8),
                    };
                    assert_eq!(arrived, *word, "word {n} of {length}");
                }
            }
        }
    }
}

#[test]
fn what_is_too_long_is_refused_and_what_finds_no_buffer_is_cut() {
    let (mut rig, server, client) = pair(100, 100);
    let too_long = rig.send(client, ENDPOINT, info(MAX_WORDS + 1), Sending::Blocking);
    assert_eq!(too_long, Err(Error::Range { min: 0, max: 120 }));
    let no_buffer = rig.send(client, ENDPOINT, info(11), Sending::Blocking);
    assert_eq!(no_buffer, Err(Error::InvalidArgument));
    rig.buffer(client, 16);
    rig.receive(server, false).unwrap();
    rig.send(client, ENDPOINT, info(11), Sending::Blocking)
        .unwrap();
    assert_eq!(
        MessageInfo::from_bits(rig.registers(server).rsi).words(),
        10
    );
}

#[test]
fn a_send_that_does_not_block_is_dropped_or_delivered() {
    let (mut rig, server, client) = pair(100, 100);
    rig.send(client, ENDPOINT, info(0), Sending::NonBlocking)
        .unwrap();
    assert_eq!(
        (rig.state(client), rig.status(client)),
        (State::Ready, Some(Status::Ok))
    );
    rig.run(server);
    let from = rig.capability(ENDPOINT);
    rig.objects.receive(server, from, None, true).unwrap();
    assert_eq!(
        (rig.registers(server).rdi, rig.registers(server).rsi),
        (0, 0),
        "nothing came"
    );
    rig.receive(server, false).unwrap();
    rig.words(client, &[42]);
    rig.send(client, ENDPOINT, info(1), Sending::NonBlocking)
        .unwrap();
    assert_eq!(rig.registers(server).message()[0], 42);
    assert_eq!(rig.state(server), State::Ready);
}

#[test]
fn badges_tell_senders_apart() {
    let (mut rig, server, client) = pair(100, 100);
    rig.mint(20, ENDPOINT, 5).unwrap();
    rig.copy(21, 20).unwrap();
    for by in [20, 21] {
        rig.send(client, by, info(1), Sending::Blocking).unwrap();
        rig.run(server);
        let from = rig.capability(ENDPOINT);
        rig.objects.receive(server, from, None, true).unwrap();
        assert_eq!(rig.registers(server).rdi, 5);
        rig.objects.receive(server, from, None, true).unwrap();
        assert_eq!(rig.registers(server).rdi, 0);
    }
}

#[test]
fn rights_are_what_they_say() {
    for bits in 0..16 {
        let rights = Rights::from_bits(bits);
        let (mut rig, server, client) = pair(100, 100);
        let (to, from) = (rig.slot(20), rig.slot(ENDPOINT));
        rig.objects.copy(to, from, rights).unwrap();
        rig.receive(server, true).unwrap();
        let sent = rig.send(client, 20, info(0), Sending::Blocking);
        assert_eq!(rig.state(client), State::Ready, "the sender goes on");
        let writes = rights.any(Rights::WRITE);
        assert_eq!(sent.is_ok(), writes, "{bits}");
        assert_eq!(rig.state(server) == State::Ready, writes);
        if writes {
            rig.receive(server, true).unwrap();
        }
        let called = rig.send(client, 20, info(0), Sending::Call);
        let calls = writes && rights.any(Rights::GRANT.or(Rights::GRANT_REPLY));
        assert_eq!(called.is_ok(), calls, "{bits}");
        assert_eq!(rig.state(client) == State::Calling, calls);
        let (mut rig, server, _) = pair(100, 100);
        let (to, from) = (rig.slot(20), rig.slot(ENDPOINT));
        rig.objects.copy(to, from, rights).unwrap();
        rig.run(server);
        let reader = rig.capability(20);
        let received = rig.objects.receive(server, reader, None, false);
        assert_eq!(received.is_ok(), rights.any(Rights::READ));
    }
}

#[test]
fn a_call_is_answered_once() {
    for server_first in [false, true] {
        let (mut rig, server, client) = pair(100, 100);
        rig.words(client, &[1, 2]);
        if server_first {
            rig.receive(server, true).unwrap();
        }
        rig.send(client, ENDPOINT, info(2), Sending::Call).unwrap();
        if !server_first {
            rig.receive(server, true).unwrap();
        }
        assert_eq!(rig.state(client), State::Calling);
        assert_eq!(rig.registers(server).message()[..2], [1, 2]);
        rig.words(server, &[3, 4, 5]);
        rig.reply(server, info(3)).unwrap();
        assert_eq!(
            (rig.state(client), rig.status(client)),
            (State::Ready, Some(Status::Ok))
        );
        assert_eq!(rig.registers(client).message()[..3], [3, 4, 5]);
        assert_eq!(rig.registers(client).rdi, 0, "answers have no badge");
        assert_eq!(rig.reply(server, info(3)), Err(Error::NoCaller));
        assert_eq!(rig.state(client), State::Ready);
    }
}

#[test]
fn a_call_switches_straight_to_the_server_and_back() {
    let (mut rig, server, client) = pair(100, 100);
    let bystander = rig.thread(30, 100);
    rig.receive(server, true).unwrap();
    rig.send(client, ENDPOINT, info(0), Sending::Call).unwrap();
    // Whoever is called runs in the caller's place, though another of that priority is ready.
    assert_eq!(rig.objects.current(), Some(server));
    assert_eq!(rig.state(bystander), State::Ready);
    let (from, reply) = (rig.capability(ENDPOINT), rig.capability(REPLY));
    rig.objects
        .reply_receive(server, from, reply, info(0))
        .unwrap();
    assert_eq!(rig.objects.current(), Some(client));
    rig.objects
        .send(client, from, info(0), Sending::Call)
        .unwrap();
    assert_eq!(rig.objects.current(), Some(server));
    // Not so where a more urgent one is ready.
    rig.objects.set_priority(bystander, 101, 0, 255).unwrap();
    (rig.objects)
        .reply_receive(server, from, reply, info(0))
        .unwrap();
    assert_eq!(rig.objects.current(), None);
    rig.objects.schedule(rig.now);
    assert_eq!(rig.objects.current(), Some(bystander));
}

#[test]
fn a_reply_object_serves_one_at_a_time() {
    let (mut rig, server, client) = pair(100, 100);
    let other = rig.thread(30, 100);
    rig.receive(server, true).unwrap();
    assert_eq!(
        rig.receive(other, true),
        Err(Error::Busy),
        "it is waited with"
    );
    rig.send(client, ENDPOINT, info(0), Sending::Call).unwrap();
    assert_eq!(
        rig.receive(other, true),
        Err(Error::Busy),
        "it holds a call"
    );
    assert_eq!(rig.state(other), State::Ready);
    rig.reply(server, info(0)).unwrap();
    assert_eq!(rig.receive(other, true), Ok(()));
}

/// A call that is received by somebody who cannot answer it does not wait for ever.
#[test]
fn a_receiver_without_a_reply_object_ends_the_call() {
    for server_first in [false, true] {
        let (mut rig, server, client) = pair(100, 100);
        if server_first {
            rig.receive(server, false).unwrap();
        }
        rig.send(client, ENDPOINT, info(0), Sending::Call).unwrap();
        if !server_first {
            rig.receive(server, false).unwrap();
        }
        assert_eq!(
            (rig.state(client), rig.status(client)),
            (State::Ready, Some(Status::Aborted))
        );
        assert_eq!(rig.status(server), Some(Status::Ok), "the words arrived");
    }
}

#[test]
fn a_caller_that_is_stopped_or_deleted_cannot_be_answered() {
    let (mut rig, server, client) = pair(100, 100);
    let call = |rig: &mut Rig| {
        rig.receive(server, true).unwrap();
        rig.send(client, ENDPOINT, info(0), Sending::Call).unwrap();
        assert_eq!(rig.state(client), State::Calling);
    };
    call(&mut rig);
    rig.objects.suspend(client);
    assert_eq!(rig.state(client), State::Stopped);
    assert_eq!(rig.reply(server, info(0)), Err(Error::NoCaller));
    rig.objects.resume(client);
    assert_eq!(
        (rig.state(client), rig.status(client)),
        (State::Ready, Some(Status::Aborted))
    );
    rig.objects.suspend(client);
    rig.objects.resume(client);
    call(&mut rig);
    rig.delete(CLIENT);
    assert_eq!(rig.reply(server, info(0)), Err(Error::NoCaller));
    // The reply object serves the next caller, not the one that is gone.
    let other = rig.thread(30, 100);
    rig.receive(server, true).unwrap();
    rig.send(other, ENDPOINT, info(0), Sending::Call).unwrap();
    rig.reply(server, info(0)).unwrap();
    assert_eq!(rig.status(other), Some(Status::Ok));
}

#[test]
fn who_waits_on_what_is_deleted_goes_on_with_an_error() {
    let (mut rig, server, client) = pair(100, 100);
    let other = rig.thread(30, 100);
    rig.send(client, ENDPOINT, info(0), Sending::Call).unwrap();
    rig.send(other, ENDPOINT, info(0), Sending::Blocking)
        .unwrap();
    rig.delete(ENDPOINT);
    for thread in [client, other] {
        assert_eq!(
            (rig.state(thread), rig.status(thread)),
            (State::Ready, Some(Status::Aborted))
        );
    }
    rig.make(ObjectType::Endpoint, ENDPOINT);
    rig.receive(server, true).unwrap();
    rig.send(client, ENDPOINT, info(0), Sending::Call).unwrap();
    rig.delete(REPLY);
    assert_eq!(
        (rig.state(client), rig.status(client)),
        (State::Ready, Some(Status::Aborted))
    );
    rig.make(ObjectType::Reply, REPLY);
    rig.receive(server, true).unwrap();
    rig.delete(REPLY);
    assert_eq!(
        rig.state(server),
        State::Receiving,
        "messages that need no answer still come"
    );
    rig.delete(ENDPOINT);
    assert_eq!(
        (rig.state(server), rig.status(server)),
        (State::Ready, Some(Status::Aborted))
    );
}

#[test]
fn cancelling_sends_meets_one_badge_only() {
    let (mut rig, server, client) = pair(100, 100);
    let others = [30, 32, 34].map(|n| rig.thread(n, 100));
    let threads = [client, others[0], others[1], others[2]];
    for (n, badge) in (20..).zip([1, 2, 1, 3]) {
        rig.mint(n, ENDPOINT, badge).unwrap();
    }
    for (n, thread) in (20..).zip(threads) {
        rig.send(thread, n, info(0), Sending::Blocking).unwrap();
    }
    // Revoke takes away the capabilities, cancel the messages that were sent by them.
    rig.revoke(20);
    rig.objects.cancel_badged_sends(rig.capability(20)).unwrap();
    let states = threads.map(|thread| (rig.state(thread), rig.status(thread)));
    let (aborted, waiting) = (State::Ready, State::Sending);
    assert_eq!(
        states.map(|(state, _)| state),
        [aborted, waiting, aborted, waiting]
    );
    assert_eq!(states[0].1, Some(Status::Aborted));
    for badge in [2, 3] {
        rig.receive(server, false).unwrap();
        assert_eq!(rig.registers(server).rdi, badge);
    }
    let reader = rig.slot(25);
    rig.objects
        .copy(reader, rig.slot(ENDPOINT), Rights::READ)
        .unwrap();
    assert_eq!(
        rig.objects.cancel_badged_sends(rig.capability(25)),
        Err(Error::IllegalOperation)
    );
}

/// Many senders, two badges, an interrupt after every step: nobody is forgotten, nobody is
/// aborted who has another badge, and no step goes over more than a few senders.
#[test]
fn cancelling_sends_is_interrupted_and_goes_on() {
    const SENDERS: u64 = 90;
    let mut rig = Rig::new();
    rig.make(ObjectType::Endpoint, ENDPOINT);
    rig.mint(20, ENDPOINT, 1).unwrap();
    rig.mint(21, ENDPOINT, 2).unwrap();
    let senders: Vec<_> = (0..SENDERS)
        .map(|n| {
            let thread = rig.passive_thread(30, 100);
            // The root has too few slots for all of them: each keeps its own capability.
            let place = thread.slot(ThreadSlot::FaultHandler);
            rig.objects.relocate(place, rig.slot(30), None).unwrap();
            // One of each badge at the ends, and long rows of the other one in between.
            let badge = 20 + u64::from(n % 40 != 0);
            rig.send(thread, badge, info(0), Sending::Blocking).unwrap();
            (thread, badge)
        })
        .collect();
    let waiting = |rig: &Rig, badge| {
        let all = senders.iter().filter(|(_, by)| *by == badge);
        all.filter(|(thread, _)| rig.state(*thread) == State::Sending)
            .count()
    };
    let cancel = |rig: &mut Rig, badge| {
        let mut interrupted = 0;
        loop {
            rig.objects.memory.interrupt_in = Some(0);
            match rig.objects.cancel_badged_sends(rig.capability(badge)) {
                Ok(()) => return interrupted,
                Err(error) => assert_eq!(error, Error::Preempted),
            }
            interrupted += 1;
            assert!(interrupted < 1000, "it makes no progress");
        }
    };
    // Left half done, and finished by who cancels the other badge.
    rig.objects.memory.interrupt_in = Some(0);
    let begun = rig.objects.cancel_badged_sends(rig.capability(20));
    assert_eq!(begun, Err(Error::Preempted));
    assert_eq!(waiting(&rig, 20), 2);
    // The one that would be looked at next goes meanwhile.
    rig.objects.suspend(senders[1].0);
    let before = waiting(&rig, 21);
    let interrupted = cancel(&mut rig, 21);
    assert_eq!((waiting(&rig, 20), waiting(&rig, 21)), (0, 0));
    assert!(interrupted >= before, "{interrupted} interrupts");
    for (thread, _) in &senders {
        assert_eq!(rig.status(*thread), Some(Status::Aborted));
    }
    // Who comes while it is interrupted comes behind.
    for (thread, badge) in &senders[..80] {
        rig.send(*thread, *badge, info(0), Sending::Blocking)
            .unwrap();
    }
    rig.objects.memory.interrupt_in = Some(0);
    let begun = rig.objects.cancel_badged_sends(rig.capability(20));
    assert_eq!(begun, Err(Error::Preempted));
    rig.send(senders[80].0, 20, info(0), Sending::Blocking)
        .unwrap();
    let interrupted = cancel(&mut rig, 20);
    assert!(interrupted >= 3, "{interrupted} interrupts over 80 senders");
    assert_eq!((waiting(&rig, 20), waiting(&rig, 21)), (0, 78));
    rig.objects.memory.interrupt_in = None;
    rig.delete(ENDPOINT);
}

#[test]
fn capabilities_come_with_messages_where_granted() {
    for granted in [true, false] {
        let (mut rig, server, client) = pair(100, 100);
        let (out, into) = (rig.buffer(client, 16), rig.buffer(server, 17));
        let rights = if granted { Rights::ALL } else { Rights::WRITE };
        let (to, from) = (rig.slot(20), rig.slot(ENDPOINT));
        rig.objects.copy(to, from, rights).unwrap();
        for (n, handle) in [REPLY, SERVER, 63].into_iter().enumerate() {
            rig.objects.memory.store(out + (120 + n as u64) * 8, handle);
        }
        rig.objects.memory.store(into + 123 * 8, 40);
        rig.receive(server, false).unwrap();
        rig.words(client, &[99]);
        let message = MessageInfo::from_bits(1 << 8 | 3 << 16);
        rig.send(client, 20, message, Sending::Blocking).unwrap();
        let got = MessageInfo::from_bits(rig.registers(server).rsi);
        // The third handle names nothing.
        assert_eq!(got.capabilities(), if granted { 2 } else { 0 });
        assert_eq!(
            rig.registers(server).message()[0],
            99,
            "the words come anyway"
        );
        let kinds = [40, 41, 42].map(|n| rig.kind(n));
        if granted {
            assert_eq!(kinds, [Kind::Reply, Kind::Thread, Kind::Null]);
        } else {
            assert_eq!(kinds, [Kind::Null; 3]);
        }
        rig.check();
    }
}

#[test]
fn signals_add_up_and_are_taken_once() {
    let mut rig = Rig::new();
    let thread = rig.thread(10, 100);
    rig.make(ObjectType::Notification, 14);
    for (n, badge) in [(20, 1), (21, 4), (22, 2)] {
        rig.mint(n, 14, badge).unwrap();
    }
    rig.run(thread);
    let from = rig.capability(14);
    let poll = |rig: &mut Rig| {
        rig.objects.wait(thread, from, true).unwrap();
        rig.registers(thread).rdi
    };
    assert_eq!(poll(&mut rig), 0);
    rig.objects.signal(rig.capability(22)).unwrap();
    assert_eq!([poll(&mut rig), poll(&mut rig)], [2, 0]);
    for n in [20, 21, 21] {
        rig.objects.signal(rig.capability(n)).unwrap();
    }
    rig.objects.wait(thread, from, false).unwrap();
    assert_eq!(
        (rig.state(thread), rig.registers(thread).rdi),
        (State::Ready, 5)
    );
    assert_eq!(poll(&mut rig), 0);
    rig.objects.wait(thread, from, false).unwrap();
    assert_eq!(rig.state(thread), State::Waiting);
    rig.objects.signal(from).unwrap();
    assert_eq!(
        (rig.state(thread), rig.registers(thread).rdi),
        (State::Ready, 0)
    );
    assert_eq!(poll(&mut rig), 0);
    rig.run(thread);
    rig.objects.wait(thread, from, false).unwrap();
    rig.delete(14);
    assert_eq!(rig.state(thread), State::Waiting, "others still hold it");
    for n in 20..23 {
        rig.delete(n);
    }
    assert_eq!(
        (rig.state(thread), rig.status(thread)),
        (State::Ready, Some(Status::Aborted))
    );
}

#[test]
fn a_bound_notification_ends_receiving_too() {
    let (mut rig, server, client) = pair(100, 100);
    rig.make(ObjectType::Notification, 16);
    rig.mint(17, 16, 0x100).unwrap();
    rig.mint(20, ENDPOINT, 1).unwrap();
    let notification = rig.capability(16);
    rig.objects.bind(server, notification).unwrap();
    assert_eq!(
        rig.objects.bind(client, notification),
        Err(Error::DeleteFirst)
    );
    let mut got = Vec::new();
    for n in 0..6 {
        let first = n % 2 == 0;
        if first {
            rig.objects.signal(rig.capability(17)).unwrap();
        } else {
            rig.send(client, 20, info(0), Sending::Call).unwrap();
        }
        rig.receive(server, true).unwrap();
        got.push(rig.registers(server).rdi);
        if !first {
            rig.reply(server, info(0)).unwrap();
        }
    }
    assert_eq!(got, [0x100, 1, 0x100, 1, 0x100, 1]);
    rig.receive(server, true).unwrap();
    rig.objects.signal(rig.capability(17)).unwrap();
    assert_eq!(
        (rig.state(server), rig.registers(server).rdi),
        (State::Ready, 0x100)
    );
    // The reply object it waited with is free again.
    rig.receive(server, true).unwrap();
    rig.delete(16);
    rig.delete(17);
    assert_eq!(rig.objects.memory.get(server).bound(), None);
    rig.send(client, 20, info(0), Sending::Call).unwrap();
    assert_eq!(rig.registers(server).rdi, 1);
}

#[test]
fn faults_are_calls_to_the_handler() {
    let (mut rig, handler, thread) = pair(100, 100);
    rig.mint(20, ENDPOINT, 77).unwrap();
    let (from, to) = (rig.slot(20), thread.slot(ThreadSlot::FaultHandler));
    rig.objects.copy(to, from, Rights::ALL).unwrap();
    let before = Frame::start(0x40_0000, 0x7000, 5);
    rig.objects.memory.get_mut(thread).frame = before;
    let faults = [
        (
            Fault::Memory {
                address: 0xdead_b000,
                code: 6,
            },
            1,
            [0xdead_b000, 6],
        ),
        (Fault::UnknownCall { number: 999 }, 2, [999, 0]),
        (Fault::Exception { vector: 6, code: 0 }, 3, [6, 0]),
    ];
    for (fault, label, own) in faults {
        rig.receive(handler, true).unwrap();
        rig.run(thread);
        rig.objects.fault(thread, fault);
        let told = rig.registers(handler);
        let message = MessageInfo::from_bits(told.rsi);
        assert_eq!((message.label(), message.words(), told.rdi), (label, 5, 77));
        assert_eq!(
            told.message()[..5],
            [0x40_0000, 0x7000, before.rflags, own[0], own[1]]
        );
        assert_eq!(rig.state(thread), State::Calling);
        rig.reply(handler, MessageInfo::default()).unwrap();
        assert_eq!(rig.state(thread), State::Ready);
        assert_eq!(rig.registers(thread), before, "no register changed");
    }
    // With other registers.
    rig.receive(handler, true).unwrap();
    rig.run(thread);
    rig.objects.fault(thread, faults[0].0);
    rig.words(handler, &[0x40_0010, 0x8000, u64::MAX]);
    rig.reply(handler, MessageInfo::new(3, 0)).unwrap();
    let after = rig.registers(thread);
    assert_eq!((after.rip, after.rsp), (0x40_0010, 0x8000));
    assert_eq!(after.rflags, crate::frame::user_flags(u64::MAX));
    // An address that the CPU would refuse is passed over.
    rig.receive(handler, true).unwrap();
    rig.run(thread);
    rig.objects.fault(thread, faults[0].0);
    rig.words(handler, &[1 << 63]);
    rig.reply(handler, MessageInfo::new(1, 0)).unwrap();
    assert_eq!(rig.registers(thread).rip, 0x40_0010);
    // Registers set and resumed instead of an answer.
    rig.receive(handler, true).unwrap();
    rig.run(thread);
    rig.objects.fault(thread, faults[0].0);
    rig.objects.resume(thread);
    assert_eq!(rig.state(thread), State::Ready);
    assert_eq!(
        rig.reply(handler, MessageInfo::default()),
        Err(Error::NoCaller)
    );
    // Any other answer leaves it stopped.
    rig.receive(handler, true).unwrap();
    rig.run(thread);
    rig.objects.fault(thread, faults[0].0);
    rig.reply(handler, MessageInfo::new(0, 1)).unwrap();
    assert_eq!(rig.state(thread), State::Stopped);
}

#[test]
fn without_a_handler_a_fault_stops_the_thread_alone() {
    let (mut rig, server, thread) = pair(100, 100);
    rig.run(thread);
    rig.objects.fault(thread, Fault::UnknownCall { number: 1 });
    assert_eq!(rig.state(thread), State::Stopped);
    assert_eq!(rig.state(server), State::Ready);
    rig.objects.schedule(rig.now);
    assert_eq!(rig.objects.current(), Some(server));
    // A handler that cannot be called is none.
    let (from, to) = (rig.slot(ENDPOINT), thread.slot(ThreadSlot::FaultHandler));
    rig.objects.copy(to, from, Rights::WRITE).unwrap();
    rig.objects.resume(thread);
    rig.run(thread);
    rig.objects.fault(thread, Fault::UnknownCall { number: 1 });
    assert_eq!(rig.state(thread), State::Stopped);
}

/// A thread that is revoked with its memory takes nobody with it.
#[test]
fn a_revoked_thread_leaves_every_queue() {
    let (mut rig, server, client) = pair(100, 100);
    rig.make(ObjectType::Untyped { bits: 12 }, 2);
    let (from, root) = (rig.slot(2), rig.root);
    rig.objects
        .retype(from, ObjectType::Endpoint, root, 20, 1)
        .unwrap();
    rig.objects
        .retype(from, ObjectType::Thread, root, 21, 1)
        .unwrap();
    rig.objects
        .retype(from, ObjectType::CNode { radix: 2 }, root, 22, 1)
        .unwrap();
    let doomed = rig.capability(21).object_ref::<Thread>();
    rig.objects
        .relocate(doomed.slot(ThreadSlot::CSpace), rig.slot(22), None)
        .unwrap();
    rig.send(client, 20, info(0), Sending::Call).unwrap();
    rig.objects.revoke(rig.slot(2)).unwrap();
    assert_eq!(
        (rig.state(client), rig.status(client)),
        (State::Ready, Some(Status::Aborted))
    );
    assert!((20..23).all(|n| rig.kind(n) == Kind::Null));
    rig.check();
    rig.run(server);
    rig.objects.schedule(rig.now);
}
