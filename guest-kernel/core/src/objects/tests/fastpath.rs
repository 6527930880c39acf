//! The short way of messages: that it does what the long one does, when it is taken, and that it
//! leaves alone what it is not for.

use core::time::Duration;

use bulkhead_abi::syscall::{CALL, REPLY_RECV};
use bulkhead_abi::timeout::Timeout;

use super::super::fastpath::{Fast, Switch};
use super::super::ipc::{MessageInfo, Sending};
use super::ipc::{ENDPOINT, REPLY};
use super::*;

const SERVER: u64 = 10;
const CLIENT: u64 = 12;
const SPACE: u64 = 16;

/// Takes the short way of the system call in the registers of `thread`, which runs, and the long
/// one, both on copies; whether there was a short one. Both have to lead to the same.
pub(super) fn compare(rig: &Rig, thread: Ref<Thread>) -> bool {
    let frame = rig.registers(thread);
    let mut short = rig.objects.clone();
    let taken = match Fast::of(frame.rax) {
        Some(Fast::Call) => short.fast_call(thread),
        Some(Fast::ReplyReceive) => short.fast_reply_receive(thread),
        None => None,
    };
    let mut long = rig.objects.clone();
    let Some(Switch {
        from,
        to,
        root,
        words,
    }) = taken
    else {
        assert!(short.memory == long.memory, "nothing has changed");
        return false;
    };
    short.copy_registers(from, to, words);
    let info = MessageInfo::from_bits(frame.rax);
    let named = |handle| rig.objects.lookup(rig.root, handle).unwrap().1;
    let endpoint = named(frame.rdi);
    match Fast::of(frame.rax).unwrap() {
        Fast::Call => long.send(thread, endpoint, info, Sending::Call).unwrap(),
        Fast::ReplyReceive => long
            .reply_receive(thread, endpoint, named(frame.rsi), info)
            .unwrap(),
    }
    assert_eq!(long.schedule(rig.now), Some(to));
    assert_eq!((from, short.current()), (thread, Some(to)));
    let space = long.capability(to.slot(ThreadSlot::AddressSpace));
    assert_eq!(root, space.address());
    // A context whose period is over is filled when it changes hands the long way, and when it is
    // spent the short way.
    let context = short.memory.get(to).context().unwrap();
    if long.memory.get(context).is_filled_at(rig.now) {
        *short.memory.get_mut(context) = *long.memory.get(context);
    } else {
        assert_eq!(short.next_deadline(), long.next_deadline());
    }
    assert!(short.memory == long.memory, "the same in memory");
    true
}

/// The shortest timeout, in `rax`.
fn timeout() -> u64 {
    Timeout::after(Duration::ZERO).bits()
}

/// A server without time of its own that waits, and a client that runs.
fn pair(server: u64, client: u64) -> (Rig, Ref<Thread>, Ref<Thread>) {
    let mut rig = Rig::new();
    let server = rig.passive_thread(SERVER, server);
    let client = rig.thread(CLIENT, client);
    rig.make(ObjectType::Endpoint, ENDPOINT);
    rig.make(ObjectType::Reply, REPLY);
    rig.make(ObjectType::AddressSpace, SPACE);
    for thread in [server, client] {
        rig.give_space(thread, SPACE);
    }
    rig.receive(server, true).unwrap();
    assert_eq!(rig.objects.schedule(rig.now), Some(client));
    (rig, server, client)
}

impl Rig {
    /// Gives a thread the address space in a slot.
    pub(super) fn give_space(&mut self, thread: Ref<Thread>, number: u64) {
        let (to, from) = (thread.slot(ThreadSlot::AddressSpace), self.slot(number));
        self.objects.copy(to, from, Rights::ALL).unwrap();
    }

    /// The registers of a system call that the short way may be for.
    pub(super) fn ask(&mut self, thread: Ref<Thread>, number: u64, info: MessageInfo, by: u64) {
        let frame = &mut self.objects.memory.get_mut(thread).frame;
        frame.rax = number | info.bits();
        frame.rdi = by;
        frame.rsi = REPLY;
    }

    fn call(&mut self, client: Ref<Thread>, words: u64) {
        self.ask(client, CALL, MessageInfo::new(words, 7), ENDPOINT);
    }

    /// Calls the long way, so that the server runs and can answer.
    fn called(&mut self, client: Ref<Thread>) {
        let endpoint = self.capability(ENDPOINT);
        self.objects
            .send(client, endpoint, MessageInfo::new(0, 7), Sending::Call)
            .unwrap();
        self.objects.schedule(self.now);
    }

    fn answer(&mut self, server: Ref<Thread>, words: u64) {
        self.ask(server, REPLY_RECV, MessageInfo::new(words, 7), ENDPOINT);
    }
}

#[test]
fn calls_and_answers_of_every_length_go_the_short_way() {
    for (server, client) in [(100, 100), (102, 100)] {
        for words in 0..=10 {
            let (mut rig, server, client) = pair(server, client);
            let message: Vec<u64> = (1..=10).map(|n| n * 0x11).collect();
            rig.words(client, &message);
            rig.call(client, words);
            assert!(compare(&rig, client), "a call of {words} words");
            rig.called(client);
            rig.words(server, &message);
            rig.answer(server, words);
            assert!(compare(&rig, server), "an answer of {words} words");
        }
    }
}

#[test]
fn what_the_long_way_is_for_goes_the_long_way() {
    type Spoil = fn(&mut Rig, Ref<Thread>, Ref<Thread>);
    let cases: [(&str, Spoil); 12] = [
        ("a word too many", |rig, _, client| rig.call(client, 11)),
        ("a capability", |rig, _, client| {
            let info = MessageInfo::from_bits(1 << 16);
            rig.ask(client, CALL, info, ENDPOINT);
        }),
        ("a timeout", |rig, _, client| {
            let call = CALL | timeout();
            rig.ask(client, call, MessageInfo::new(0, 7), ENDPOINT);
        }),
        ("a server with a timeout", |rig, server, _| {
            rig.objects.limit_wait(server, 1);
        }),
        ("no such handle", |rig, _, client| {
            rig.ask(client, CALL, MessageInfo::new(0, 7), ENDPOINT + 64);
        }),
        ("another object", |rig, _, client| {
            rig.ask(client, CALL, MessageInfo::new(0, 7), REPLY);
        }),
        ("no right to be answered", |rig, _, client| {
            let (to, from) = (rig.slot(20), rig.slot(ENDPOINT));
            let rights = Rights::READ.or(Rights::WRITE);
            rig.objects.copy(to, from, rights).unwrap();
            rig.ask(client, CALL, MessageInfo::new(0, 7), 20);
        }),
        ("no right to send", |rig, _, client| {
            let (to, from) = (rig.slot(20), rig.slot(ENDPOINT));
            let rights = Rights::READ.or(Rights::GRANT);
            rig.objects.copy(to, from, rights).unwrap();
            rig.ask(client, CALL, MessageInfo::new(0, 7), 20);
        }),
        ("nobody waits", |rig, server, _| rig.objects.suspend(server)),
        ("a server with its own time", |rig, server, _| {
            rig.make(ObjectType::SchedContext, 20);
            let context = rig.capability(20).object_ref();
            rig.objects.bind_context(server, context).unwrap();
        }),
        ("a less urgent server", |rig, server, _| {
            rig.objects.set_priority(server, 99, 99, 255).unwrap();
        }),
        ("a server without an address space", |rig, server, _| {
            let slot = server.slot(ThreadSlot::AddressSpace);
            rig.objects.delete(slot).unwrap();
        }),
    ];
    for (name, spoil) in cases {
        let (mut rig, server, client) = pair(100, 100);
        rig.call(client, 0);
        spoil(&mut rig, server, client);
        assert!(!compare(&rig, client), "{name}");
    }
}

#[test]
fn what_the_long_way_is_for_is_answered_the_long_way() {
    type Spoil = fn(&mut Rig, Ref<Thread>, Ref<Thread>);
    let cases: [(&str, Spoil); 11] = [
        ("a word too many", |rig, server, _| rig.answer(server, 11)),
        ("a timeout", |rig, server, _| {
            let answer = REPLY_RECV | timeout();
            rig.ask(server, answer, MessageInfo::new(0, 7), ENDPOINT);
        }),
        ("a caller with a timeout", |rig, _, client| {
            rig.objects.limit_wait(client, 1);
        }),
        ("nobody called", |rig, _, client| {
            rig.objects.suspend(client);
        }),
        ("another object", |rig, server, _| {
            rig.ask(server, REPLY_RECV, MessageInfo::new(0, 7), REPLY);
        }),
        ("no right to receive", |rig, server, _| {
            let (to, from) = (rig.slot(20), rig.slot(ENDPOINT));
            rig.objects.copy(to, from, Rights::WRITE).unwrap();
            rig.ask(server, REPLY_RECV, MessageInfo::new(0, 7), 20);
        }),
        ("somebody sends", |rig, _, _| {
            let other = rig.thread(20, 90);
            let endpoint = rig.capability(ENDPOINT);
            rig.objects
                .send(other, endpoint, MessageInfo::new(0, 7), Sending::Blocking)
                .unwrap();
        }),
        ("a signal came", |rig, server, _| {
            rig.make(ObjectType::Notification, 20);
            let notification = rig.capability(20);
            rig.objects.bind(server, notification).unwrap();
            rig.objects.signal(notification).unwrap();
        }),
        ("somebody ready is more urgent", |rig, server, _| {
            // The server itself is more urgent than either.
            rig.objects.set_priority(server, 200, 200, 255).unwrap();
            rig.thread(20, 101);
        }),
        ("the caller has time already", |rig, _, client| {
            rig.make(ObjectType::SchedContext, 20);
            let context = rig.capability(20).object_ref();
            let home = rig.capability(CLIENT + 1).object_ref();
            rig.objects.unbind_context(home);
            rig.objects.bind_context(client, context).unwrap();
        }),
        ("a caller without an address space", |rig, _, client| {
            let slot = client.slot(ThreadSlot::AddressSpace);
            rig.objects.delete(slot).unwrap();
        }),
    ];
    for (name, spoil) in cases {
        let (mut rig, server, client) = pair(100, 100);
        rig.called(client);
        rig.answer(server, 0);
        spoil(&mut rig, server, client);
        assert!(!compare(&rig, server), "{name}");
    }
}

#[test]
fn a_handle_through_two_tables_goes_the_long_way() {
    let (mut rig, _, client) = pair(100, 100);
    rig.make(ObjectType::CNode { radix: 1 }, 20);
    let (to, from) = (rig.slot(21), rig.slot(20));
    rig.objects.mint(to, from, Rights::ALL, 0, 57).unwrap();
    let inner = rig.capability(21).object_ref::<Slot>();
    let from = rig.slot(ENDPOINT);
    rig.objects.copy(inner, from, Rights::ALL).unwrap();
    let root = rig.capability(0).with_guard(0, 0).unwrap();
    let slot = client.slot(ThreadSlot::CSpace);
    rig.objects.delete(slot).unwrap();
    rig.objects.plant(slot, root);
    let info = MessageInfo::new(0, 7);
    rig.ask(client, CALL, info, 21 << 58);
    assert!(!compare(&rig, client));
}
