//! Priorities, turns and budgets.

use super::super::fault::Fault;
use super::super::ipc::{MessageInfo, Sending};
use super::super::schedule::{MIN_BUDGET, SchedContext};
use super::*;

const MS: u64 = 1_000_000;

impl Rig {
    /// Lets the CPU run for `ticks`, as the timer interrupts; who ran, and for how long.
    fn elapse(&mut self, ticks: u64) -> HashMap<Option<Ref<Thread>>, u64> {
        let mut ran = HashMap::new();
        let end = self.now + ticks;
        while self.now < end {
            let current = self.objects.schedule(self.now);
            let next = self
                .objects
                .next_deadline()
                .unwrap_or(end)
                .clamp(self.now + 1, end);
            *ran.entry(current).or_default() += next - self.now;
            self.now = next;
        }
        ran
    }

    fn context(&self, number: u64) -> Ref<SchedContext> {
        self.capability(number).object_ref()
    }
}

#[test]
fn the_highest_priority_runs_and_equals_take_turns() {
    let mut rig = Rig::new();
    let low = rig.thread(10, 3);
    let [a, b] = [12, 14].map(|n| rig.thread(n, 200));
    let ran = rig.elapse(10 * MS);
    assert_eq!((ran[&Some(a)], ran[&Some(b)]), (5 * MS, 5 * MS));
    assert_eq!(ran.get(&Some(low)), None);
    rig.objects.suspend(a);
    rig.objects.suspend(b);
    assert_eq!(rig.elapse(MS), HashMap::from([(Some(low), MS)]));
    rig.objects.resume(b);
    assert_eq!(rig.objects.schedule(rig.now), Some(b), "preempted");
    rig.objects.set_priority(low, 201, 0, 255).unwrap();
    assert_eq!(rig.objects.schedule(rig.now), Some(low));
    assert_eq!(
        rig.objects.set_priority(b, 101, 0, 100),
        Err(Error::Range { min: 0, max: 100 })
    );
    assert_eq!(
        rig.objects.set_priority(b, 1, 101, 100),
        Err(Error::Range { min: 0, max: 100 })
    );
    rig.objects.suspend(low);
    rig.objects.suspend(b);
    assert_eq!(rig.objects.schedule(rig.now), None);
}

#[test]
fn a_budget_is_kept_in_every_period() {
    let mut rig = Rig::new();
    let (slow, rest) = (rig.thread(10, 200), rig.thread(12, 100));
    let context = rig.context(11);
    rig.objects
        .configure_context(context, [2 * MS, 10 * MS], 0, rig.now)
        .unwrap();
    for _ in 0..20 {
        let ran = rig.elapse(10 * MS);
        assert_eq!((ran[&Some(slow)], ran[&Some(rest)]), (2 * MS, 8 * MS));
    }
    // Alone as well: then nobody runs.
    rig.objects.suspend(rest);
    let ran = rig.elapse(10 * MS);
    assert_eq!((ran[&Some(slow)], ran[&None]), (2 * MS, 8 * MS));
    for (budget, period) in [(MIN_BUDGET - 1, MS), (2 * MS, MS), (u64::MAX, 0)] {
        let refused = rig
            .objects
            .configure_context(context, [budget, period], 0, rig.now);
        assert!(matches!(refused, Err(Error::Range { .. })));
    }
}

#[test]
fn a_server_without_time_runs_on_its_callers() {
    let mut rig = Rig::new();
    let server = rig.passive_thread(10, 150);
    let client = rig.thread(12, 100);
    rig.make(ObjectType::Endpoint, 14);
    rig.make(ObjectType::Reply, 15);
    assert_eq!(
        rig.objects.schedule(rig.now),
        Some(client),
        "the server has no time"
    );
    let (endpoint, reply) = (rig.capability(14), rig.capability(15));
    // It waits for its first call as if it had run so far.
    rig.run(server);
    rig.objects
        .receive(server, endpoint, Some(reply), false)
        .unwrap();
    rig.run(client);
    rig.objects
        .send(client, endpoint, MessageInfo::default(), Sending::Call)
        .unwrap();
    assert_eq!(rig.objects.current(), Some(server));
    let ran = rig.elapse(MS / 2);
    assert_eq!(ran[&Some(server)], MS / 2);
    rig.objects
        .reply_receive(server, endpoint, reply, MessageInfo::default())
        .unwrap();
    assert_eq!(rig.objects.current(), Some(client));
    assert_eq!(rig.objects.memory.get(server).context(), None);
    // A caller that stops waiting has its time back, and the server none.
    rig.objects
        .send(client, endpoint, MessageInfo::default(), Sending::Call)
        .unwrap();
    rig.objects.suspend(client);
    rig.objects.resume(client);
    assert_eq!(rig.objects.schedule(rig.now), Some(client));
    assert_eq!(rig.state(server), State::Ready);
    assert_eq!(rig.objects.memory.get(server).context(), None);
}

#[test]
fn time_that_is_lent_on_comes_back_the_same_way() {
    let mut rig = Rig::new();
    let (inner, outer) = (rig.passive_thread(10, 150), rig.passive_thread(12, 150));
    let client = rig.thread(14, 100);
    for n in [16, 17] {
        rig.make(ObjectType::Endpoint, n);
        rig.make(ObjectType::Reply, n + 2);
    }
    let [at_outer, at_inner, reply_outer, reply_inner] =
        [16, 17, 18, 19].map(|n| rig.capability(n));
    for (server, at, reply) in [
        (inner, at_inner, reply_inner),
        (outer, at_outer, reply_outer),
    ] {
        rig.run(server);
        rig.objects.receive(server, at, Some(reply), false).unwrap();
    }
    rig.run(client);
    let empty = MessageInfo::default();
    rig.objects
        .send(client, at_outer, empty, Sending::Call)
        .unwrap();
    rig.objects
        .send(outer, at_inner, empty, Sending::Call)
        .unwrap();
    assert_eq!(rig.objects.current(), Some(inner));
    rig.objects
        .reply_receive(inner, at_inner, reply_inner, empty)
        .unwrap();
    assert_eq!(rig.objects.current(), Some(outer));
    rig.objects
        .reply_receive(outer, at_outer, reply_outer, empty)
        .unwrap();
    assert_eq!(rig.objects.current(), Some(client));
    let holders = [inner, outer].map(|thread| rig.objects.memory.get(thread).context());
    assert_eq!(holders, [None, None]);
}

/// A server that is given time of its own while it runs on a caller's keeps it after the answer.
#[test]
fn time_of_its_own_is_not_taken_for_what_was_lent() {
    let mut rig = Rig::new();
    let (server, client) = (rig.passive_thread(10, 150), rig.thread(12, 100));
    rig.make(ObjectType::Endpoint, 16);
    rig.make(ObjectType::Reply, 17);
    rig.make(ObjectType::SchedContext, 18);
    let [at, reply, own] = [16, 17, 18].map(|n| rig.capability(n));
    let own = own.object_ref::<SchedContext>();
    let now = rig.now;
    rig.objects
        .configure_context(own, [MS, MS], 0, now)
        .unwrap();
    rig.run(server);
    rig.objects.receive(server, at, Some(reply), false).unwrap();
    rig.run(client);
    let empty = MessageInfo::default();
    rig.objects.send(client, at, empty, Sending::Call).unwrap();
    rig.objects.bind_context(server, own).unwrap();
    rig.objects.reply(server, reply, empty).unwrap();
    assert_eq!(rig.objects.memory.get(server).context(), Some(own));
    assert_eq!(rig.objects.schedule(now), Some(server));
    rig.objects.suspend(server);
    assert_eq!(rig.objects.schedule(now), Some(client));
}

/// A server without time of its own answers one caller and goes on, on the next one's time.
#[test]
fn a_server_on_lent_time_takes_the_next_call_of_the_queue() {
    let mut rig = Rig::new();
    let server = rig.passive_thread(10, 150);
    let clients = [rig.thread(12, 100), rig.thread(14, 100)];
    rig.make(ObjectType::Endpoint, 16);
    rig.make(ObjectType::Reply, 17);
    let [at, reply] = [16, 17].map(|n| rig.capability(n));
    let empty = MessageInfo::default();
    for client in clients {
        rig.run(client);
        rig.objects.send(client, at, empty, Sending::Call).unwrap();
    }
    rig.run(server);
    rig.objects.receive(server, at, Some(reply), false).unwrap();
    for _ in clients {
        assert_eq!(rig.objects.schedule(rig.now), Some(server));
        rig.objects.reply_receive(server, at, reply, empty).unwrap();
    }
    assert_eq!(rig.state(server), State::Receiving);
    assert_eq!(clients.map(|client| rig.state(client)), [State::Ready; 2]);
}

/// A caller that lost its time while it waits gets no one else's with the answer.
#[test]
fn an_answer_gives_back_only_what_was_lent() {
    let mut rig = Rig::new();
    let (server, client) = (rig.thread(10, 150), rig.thread(12, 100));
    rig.make(ObjectType::Endpoint, 16);
    rig.make(ObjectType::Reply, 17);
    let [at, reply, own, theirs] = [16, 17, 11, 13].map(|n| rig.capability(n));
    rig.run(server);
    rig.objects.receive(server, at, Some(reply), false).unwrap();
    rig.run(client);
    let empty = MessageInfo::default();
    rig.objects.send(client, at, empty, Sending::Call).unwrap();
    rig.objects.unbind_context(theirs.object_ref());
    rig.objects.reply(server, reply, empty).unwrap();
    let [server, client] = [server, client].map(|thread| rig.objects.memory.get(thread).context());
    assert_eq!((server, client), (Some(own.object_ref()), None));
}

/// A server on lent time that hands it back to a thread which stops has none left to go on with.
#[test]
fn who_gives_its_time_back_stops_at_once() {
    let mut rig = Rig::new();
    let (handler, server) = (rig.passive_thread(10, 150), rig.passive_thread(12, 150));
    let client = rig.thread(14, 100);
    for n in [16, 17] {
        rig.make(ObjectType::Endpoint, n);
        rig.make(ObjectType::Reply, n + 2);
    }
    let [at_server, at_handler, reply_server, reply_handler] =
        [16, 17, 18, 19].map(|n| rig.capability(n));
    let (from, to) = (rig.slot(17), server.slot(ThreadSlot::FaultHandler));
    rig.objects.copy(to, from, Rights::ALL).unwrap();
    for (thread, at, reply) in [
        (handler, at_handler, reply_handler),
        (server, at_server, reply_server),
    ] {
        rig.run(thread);
        rig.objects.receive(thread, at, Some(reply), false).unwrap();
    }
    rig.run(client);
    let empty = MessageInfo::default();
    rig.objects
        .send(client, at_server, empty, Sending::Call)
        .unwrap();
    rig.objects
        .fault(server, Fault::UnknownCall { number: 999 });
    assert_eq!(rig.objects.schedule(rig.now), Some(handler));
    let stop = MessageInfo::new(0, 1);
    rig.objects.reply(handler, reply_handler, stop).unwrap();
    assert!(!rig.objects.is_settled(), "the handler has no time");
    assert_eq!(rig.objects.schedule(rig.now), None);
}

#[test]
fn what_is_deleted_takes_its_time_along() {
    let mut rig = Rig::new();
    let thread = rig.thread(10, 100);
    rig.objects.schedule(rig.now);
    rig.delete(11);
    assert_eq!(rig.objects.schedule(rig.now), None, "a thread without time");
    rig.make(ObjectType::SchedContext, 11);
    let context = rig.context(11);
    rig.objects.bind_context(thread, context).unwrap();
    assert_eq!(
        rig.objects.schedule(rig.now),
        None,
        "a context without a budget"
    );
    rig.objects
        .configure_context(context, [MS, MS], 0, rig.now)
        .unwrap();
    assert_eq!(rig.objects.schedule(rig.now), Some(thread));
    let other = rig.thread(12, 100);
    assert_eq!(
        rig.objects.bind_context(other, context),
        Err(Error::DeleteFirst)
    );
    rig.delete(10);
    assert_eq!(rig.objects.schedule(rig.now), Some(other));
    rig.make(ObjectType::Thread, 10);
    let next = rig.capability(10).object_ref::<Thread>();
    assert_eq!(rig.objects.bind_context(next, context), Ok(()));
}

/// Input wakes all who waited for it, a few at a time; who comes later waits for the next.
#[test]
fn many_readers_are_woken_in_steps() {
    let mut rig = Rig::new();
    let threads: Vec<_> = (0..20).map(|n| rig.thread(10 + n * 2, 100)).collect();
    let waiting = |rig: &Rig| {
        let all = threads.iter();
        all.filter(|thread| rig.state(**thread) == State::Reading)
            .count()
    };
    for thread in &threads[..19] {
        rig.objects.wait_for_input(*thread);
    }
    assert!(!rig.objects.wake_some_readers(), "no input came");
    rig.objects.wake_readers();
    rig.objects.wait_for_input(threads[19]);
    // The last one that the input is for goes.
    rig.objects.suspend(threads[18]);
    assert!(rig.objects.wake_some_readers());
    assert_eq!(waiting(&rig), 3);
    assert!(!rig.objects.wake_some_readers());
    assert_eq!(waiting(&rig), 1, "whose input did not come");
    rig.objects.wake_readers();
    rig.objects.suspend(threads[19]);
    assert!(!rig.objects.wake_some_readers());
}
