//! Waits that end by the clock: when they do, when they do not, and what is left of them.

use super::super::ipc::{MessageInfo, Sending};
use super::super::schedule::{MIN_BUDGET, SchedContext};
use super::*;

const TICKS: u64 = 5_000_000;
/// What is in `rax` of somebody who waits: no status.
const UNANSWERED: u64 = 0x77;

const ENDPOINT: u64 = 30;
const NOTIFICATION: u64 = 31;
const REPLY: u64 = 32;

/// A way of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Send,
    Call,
    Receive,
    Signal,
}

const ALL: [Wait; 4] = [Wait::Send, Wait::Call, Wait::Receive, Wait::Signal];

impl Rig {
    fn with_objects() -> Self {
        let mut rig = Self::new();
        rig.make(ObjectType::Endpoint, ENDPOINT);
        rig.make(ObjectType::Notification, NOTIFICATION);
        rig.make(ObjectType::Reply, REPLY);
        rig
    }

    /// The time stamp counter goes on by so much.
    fn pass(&mut self, ticks: u64) -> Option<Ref<Thread>> {
        self.now += ticks;
        self.objects.schedule(self.now)
    }

    /// `thread` runs and begins to wait, for so long.
    fn begin(&mut self, thread: Ref<Thread>, wait: Wait, ticks: u64) {
        self.run(thread);
        self.objects.count_time(self.now);
        self.objects.memory.get_mut(thread).frame.rax = UNANSWERED;
        let [endpoint, notification, reply] =
            [ENDPOINT, NOTIFICATION, REPLY].map(|n| self.capability(n));
        let info = MessageInfo::new(1, 0);
        let objects = &mut self.objects;
        match wait {
            Wait::Send => objects.send(thread, endpoint, info, Sending::Blocking),
            Wait::Call => objects.send(thread, endpoint, info, Sending::Call),
            Wait::Receive => objects.receive(thread, endpoint, Some(reply), false),
            Wait::Signal => objects.wait(thread, notification, false),
        }
        .unwrap();
        objects.limit_wait(thread, ticks);
    }
}

#[test]
fn a_wait_ends_when_its_time_is_over() {
    for wait in ALL {
        let mut rig = Rig::with_objects();
        let thread = rig.thread(10, 100);
        rig.begin(thread, wait, TICKS);
        assert_eq!(rig.objects.schedule(rig.now), None, "{wait:?}");
        assert_eq!(rig.objects.next_deadline(), Some(rig.now + TICKS));
        assert_eq!(rig.pass(TICKS - 1), None, "not earlier");
        assert_eq!(rig.pass(1), Some(thread), "{wait:?}");
        assert_eq!(rig.status(thread), Some(Status::TimedOut));
        assert_eq!(rig.objects.next_deadline(), None);
        for n in [ENDPOINT, NOTIFICATION] {
            assert!(rig.objects.waiting(rig.capability(n)).is_empty());
        }
        // The reply object is free again: another can wait with it, and is answered.
        let (server, client) = (rig.thread(12, 100), rig.thread(14, 100));
        rig.begin(server, Wait::Receive, TICKS);
        rig.begin(client, Wait::Call, TICKS);
        let reply = rig.capability(REPLY);
        rig.run(server);
        (rig.objects)
            .reply(server, reply, MessageInfo::default())
            .unwrap();
        assert_eq!(rig.status(client), Some(Status::Ok));
    }
}

#[test]
fn what_comes_in_time_ends_the_wait_and_the_clock_with_it() {
    for wait in ALL {
        let mut rig = Rig::with_objects();
        let (thread, other) = (rig.thread(10, 100), rig.thread(12, 99));
        rig.begin(thread, wait, TICKS);
        rig.run(other);
        let [endpoint, notification, reply] =
            [ENDPOINT, NOTIFICATION, REPLY].map(|n| rig.capability(n));
        let info = MessageInfo::default();
        let objects = &mut rig.objects;
        match wait {
            Wait::Send => objects.receive(other, endpoint, None, false),
            Wait::Call => objects
                .receive(other, endpoint, Some(reply), false)
                .and_then(|()| objects.reply(other, reply, info)),
            Wait::Receive => objects.send(other, endpoint, info, Sending::Blocking),
            Wait::Signal => objects.signal(notification),
        }
        .unwrap();
        assert_eq!(rig.status(thread), Some(Status::Ok), "{wait:?}");
        assert_eq!(rig.objects.memory.get(thread).due, 0, "{wait:?}");
        rig.pass(TICKS);
        assert_eq!(rig.status(thread), Some(Status::Ok), "{wait:?}");
        // The next wait has no limit.
        rig.begin(thread, Wait::Signal, 0);
        rig.objects.unready(thread);
        let due = rig.objects.memory.get(thread).due;
        assert_eq!(due, rig.now, "one that is over at once");
        assert_eq!(rig.pass(0), Some(thread));
        assert_eq!(rig.status(thread), Some(Status::TimedOut));
    }
}

/// The time that a caller allows is for the whole call, and what was lent comes back with its end.
#[test]
fn a_call_that_is_not_answered_in_time_is_over() {
    let mut rig = Rig::with_objects();
    let server = rig.passive_thread(10, 150);
    let client = rig.thread(12, 100);
    let reply = rig.capability(REPLY);
    let endpoint = rig.capability(ENDPOINT);
    rig.run(server);
    (rig.objects)
        .receive(server, endpoint, Some(reply), false)
        .unwrap();
    rig.begin(client, Wait::Call, TICKS);
    assert_eq!(rig.objects.current(), Some(server), "on the caller's time");
    assert_eq!(rig.pass(TICKS - 1), Some(server));
    assert_eq!(rig.pass(1), Some(client));
    assert_eq!(rig.status(client), Some(Status::TimedOut));
    assert_eq!(rig.objects.memory.get(server).context(), None);
    let late = rig.objects.reply(server, reply, MessageInfo::default());
    assert_eq!(late, Err(Error::NoCaller));

    // Who waits for a receiver first has no more time for that.
    let mut rig = Rig::with_objects();
    let (server, client) = (rig.thread(10, 100), rig.thread(12, 100));
    rig.begin(client, Wait::Call, TICKS);
    rig.pass(TICKS / 2);
    rig.begin(server, Wait::Receive, 2 * TICKS);
    assert_eq!(rig.status(server), Some(Status::Ok));
    assert_eq!(rig.state(client), State::Calling);
    rig.pass(TICKS / 2 - 1);
    assert_eq!(rig.state(client), State::Calling);
    rig.pass(1);
    assert_eq!(rig.state(client), State::Ready);
    assert_eq!(rig.status(client), Some(Status::TimedOut));
}

/// Without time of its own, or of somebody else's, there is nothing to go on with.
#[test]
fn who_has_no_time_waits_on() {
    let mut rig = Rig::with_objects();
    let (server, client) = (rig.passive_thread(10, 150), rig.thread(12, 100));
    let endpoint = rig.capability(ENDPOINT);
    rig.begin(server, Wait::Receive, TICKS);
    rig.pass(TICKS);
    assert_eq!(rig.objects.waiting(endpoint), [server]);
    assert_eq!(rig.objects.memory.get(server).due, 0);
    rig.begin(client, Wait::Call, TICKS);
    assert_eq!(rig.objects.current(), Some(server));
    assert_eq!(rig.status(server), Some(Status::Ok));
    // On its caller's time it can wait for something else, for so long.
    rig.begin(server, Wait::Signal, TICKS / 2);
    assert_eq!(rig.pass(TICKS / 2), Some(server));
    assert_eq!(rig.status(server), Some(Status::TimedOut));
}

/// A thread in the timer list for its wait is there for its context afterwards, if need be.
#[test]
fn a_wait_that_ends_without_budget_goes_on_in_the_next_period() {
    let mut rig = Rig::with_objects();
    let thread = rig.thread(10, 100);
    let context = rig.capability(11).object_ref::<SchedContext>();
    let (budget, period, start) = (MIN_BUDGET, 20 * MIN_BUDGET, rig.now);
    (rig.objects)
        .configure_context(context, [budget, period], 0, start)
        .unwrap();
    rig.objects.schedule(rig.now);
    // It runs until its budget is spent, and begins to wait with the last of it.
    rig.now += budget;
    rig.begin(thread, Wait::Receive, budget);
    assert_eq!(rig.pass(budget), None, "its time is spent");
    assert_eq!(rig.status(thread), Some(Status::TimedOut));
    assert_eq!(rig.objects.next_deadline(), Some(start + period));
    assert_eq!(rig.pass(period - 2 * budget - 1), None);
    assert_eq!(rig.pass(1), Some(thread));
}

/// What happens to a context does not end its thread's wait, nor the time allowed for it.
#[test]
fn a_timeout_outlives_changes_of_the_context() {
    let mut rig = Rig::with_objects();
    let thread = rig.thread(10, 100);
    let context = rig.capability(11).object_ref::<SchedContext>();
    rig.begin(thread, Wait::Signal, TICKS);
    (rig.objects)
        .configure_context(context, [TICKS, TICKS], 0, rig.now)
        .unwrap();
    rig.objects.unbind_context(context);
    rig.objects.bind_context(thread, context).unwrap();
    rig.objects.set_priority(thread, 50, 50, 255).unwrap();
    assert_eq!(rig.state(thread), State::Waiting);
    assert_eq!(rig.pass(TICKS - 1), None);
    assert_eq!(rig.pass(1), Some(thread));
    assert_eq!(rig.status(thread), Some(Status::TimedOut));
}

#[test]
fn what_ends_a_wait_otherwise_ends_its_timeout() {
    for wait in ALL {
        for how in 0..3 {
            let mut rig = Rig::with_objects();
            let thread = rig.thread(10, 100);
            rig.begin(thread, wait, TICKS);
            match how {
                0 => rig.objects.suspend(thread),
                1 => {
                    rig.delete(ENDPOINT);
                    rig.delete(NOTIFICATION);
                }
                _ => rig.delete(10),
            }
            rig.objects.schedule(rig.now);
            assert_eq!(rig.objects.next_deadline(), None, "{wait:?} {how}");
            assert_eq!(rig.objects.timers_of(0), [], "{wait:?} {how}");
            if how < 2 {
                rig.objects.resume(thread);
                assert_eq!(rig.pass(TICKS), Some(thread));
                assert_eq!(rig.status(thread), Some(Status::Aborted));
            }
        }
    }
}

#[test]
fn a_bound_notification_ends_a_receive_in_time() {
    let mut rig = Rig::with_objects();
    let (thread, other) = (rig.thread(10, 100), rig.thread(12, 100));
    let notification = rig.capability(NOTIFICATION);
    rig.objects.bind(thread, notification).unwrap();
    rig.begin(thread, Wait::Receive, TICKS);
    rig.run(other);
    rig.objects.signal(notification).unwrap();
    assert_eq!(rig.status(thread), Some(Status::Ok));
    assert_eq!(rig.objects.timers_of(0), []);
}

/// The first whose time is over is the first to go on, whoever began first.
#[test]
fn timeouts_end_in_the_order_of_time() {
    let mut rig = Rig::with_objects();
    let threads = [10, 12, 14].map(|n| rig.thread(n, 100));
    for (thread, ticks) in threads.into_iter().zip([3, 1, 2]) {
        rig.begin(thread, Wait::Signal, ticks * TICKS);
    }
    let [a, b, c] = threads;
    assert_eq!(rig.objects.timers_of(0), [b, c, a]);
    assert_eq!(rig.pass(TICKS), Some(b));
    rig.objects.suspend(b);
    // Two at once.
    rig.pass(2 * TICKS);
    assert_eq!(rig.objects.timers_of(0), []);
    assert_eq!(
        [a, b, c].map(|t| rig.state(t)),
        [State::Ready, State::Stopped, State::Ready]
    );
    assert_eq!(rig.objects.waiting(rig.capability(NOTIFICATION)), []);
}
