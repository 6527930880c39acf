//! Several CPUs: who runs where, and when one CPU calls another.

use super::super::arena::bases_of;
use super::super::ipc::{MessageInfo, Sending};
use super::super::schedule::MAX_CPUS;
use super::*;

const MS: u64 = 1_000_000;

impl Rig {
    /// A thread that runs on a CPU, on a context of its own in the next slot.
    fn thread_on(&mut self, cpu: u64, number: u64, priority: u64) -> Ref<Thread> {
        let thread = self.thread(number, priority);
        self.place(number + 1, cpu);
        thread
    }

    fn place(&mut self, context: u64, cpu: u64) {
        let (context, now) = (self.capability(context).object_ref(), self.now);
        (self.objects)
            .configure_context(context, [MS, MS], cpu, now)
            .unwrap();
    }

    /// What runs when a CPU enters the kernel.
    fn enter(&mut self, cpu: usize) -> Option<Ref<Thread>> {
        self.objects.enter_cpu(cpu);
        self.objects.schedule(self.now)
    }

    /// CPUs that were called, and those whose programs were stopped, since the last question.
    fn calls(&mut self) -> (Vec<usize>, Vec<usize>) {
        let memory = &mut self.objects.memory;
        let take = core::mem::take::<Vec<usize>>;
        (take(&mut memory.called), take(&mut memory.stopped))
    }

    /// Two threads, each on a CPU of its own, and this one on the first.
    fn two() -> (Self, [Ref<Thread>; 2]) {
        let mut rig = Self::new();
        let threads = [rig.thread_on(0, 10, 100), rig.thread_on(1, 12, 100)];
        assert_eq!(rig.enter(1), Some(threads[1]));
        assert_eq!(rig.enter(0), Some(threads[0]));
        rig.calls();
        (rig, threads)
    }
}

const NOTHING: (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());

#[test]
fn a_thread_runs_where_its_time_is() {
    let mut rig = Rig::new();
    let threads: Vec<_> = (0..MAX_CPUS as u64)
        .map(|cpu| rig.thread_on(cpu, 10 + cpu * 2, 100))
        .collect();
    for round in 0..2 {
        for (cpu, thread) in threads.iter().enumerate() {
            assert_eq!(rig.enter(cpu), Some(*thread), "round {round}");
        }
    }
    rig.enter(0);
    rig.place(11, 3);
    assert_eq!(rig.enter(0), None);
    rig.objects.suspend(threads[3]);
    assert_eq!(rig.enter(3), Some(threads[0]));
}

#[test]
fn a_cpu_is_called_once_until_it_comes() {
    let (mut rig, [_, theirs]) = Rig::two();
    rig.objects.set_priority(theirs, 90, 0, 255).unwrap();
    assert_eq!(rig.calls(), (Vec::from([1]), Vec::new()));
    let urgent = rig.thread_on(1, 14, 200);
    assert_eq!(rig.calls(), NOTHING, "it was called already");
    assert_eq!(rig.enter(1), Some(urgent));
    assert_eq!(rig.enter(0), rig.objects.running_on(0));
    rig.objects.resume(urgent);
    rig.objects.resume(theirs);
    assert_eq!(rig.calls(), NOTHING, "nothing has changed");
    let third = rig.thread(16, 50);
    rig.objects.suspend(third);
    assert_eq!(rig.calls(), NOTHING, "here");
}

#[test]
fn what_another_cpu_runs_is_stopped_before_it_changes() {
    let (mut rig, [own, theirs]) = Rig::two();
    rig.objects.set_loaded(own);
    rig.objects.enter_cpu(1);
    rig.objects.set_loaded(theirs);
    rig.objects.enter_cpu(0);
    let stopped = (Vec::new(), Vec::from([1]));
    rig.now += MS / 4;
    rig.objects.memory.now = rig.now;
    rig.objects.suspend(theirs);
    assert_eq!(rig.calls(), stopped);
    let found = rig.objects.memory.get(theirs);
    assert_eq!([found.fs_base, found.gs_base], bases_of(1));
    assert_eq!(rig.objects.running_on(1), None);
    assert!(!rig.objects.is_settled_on(1));
    rig.objects.suspend(theirs);
    assert_eq!(rig.calls(), NOTHING, "it stands still");
    // What it used until then was counted.
    rig.objects.resume(theirs);
    assert_eq!(rig.enter(1), Some(theirs));
    assert_eq!(rig.objects.loaded(), None, "its bases are loaded again");
    assert_eq!(rig.objects.next_deadline(), None);
    rig.thread_on(1, 14, 100);
    rig.enter(1);
    assert_eq!(rig.objects.next_deadline(), Some(rig.now + 3 * MS / 4));
    // Its time goes, or it does.
    for end in [
        |rig: &mut Rig| rig.objects.unbind_context(rig.capability(13).object_ref()),
        |rig: &mut Rig| rig.delete(12),
    ] {
        let context = rig.capability(13).object_ref();
        let _ = rig.objects.bind_context(theirs, context);
        rig.objects.suspend(rig.capability(14).object_ref());
        assert_eq!(rig.enter(1), Some(theirs));
        rig.enter(0);
        rig.calls();
        end(&mut rig);
        assert_eq!(rig.calls(), stopped);
        assert_eq!(rig.enter(1), None);
    }
}

#[test]
fn registers_are_seen_where_the_thread_stands_still() {
    let (mut rig, [own, theirs]) = Rig::two();
    rig.objects.hold_still(theirs);
    assert_eq!(rig.calls(), (Vec::new(), Vec::from([1])));
    assert_eq!(rig.objects.running_on(1), Some(theirs), "and goes on");
    assert_eq!(rig.enter(1), Some(theirs));
    rig.enter(0);
    rig.objects.hold_still(own);
    rig.objects.suspend(theirs);
    rig.calls();
    rig.objects.hold_still(theirs);
    assert_eq!(rig.calls(), NOTHING);
}

#[test]
fn messages_pass_between_cpus() {
    let (mut rig, [client, server]) = Rig::two();
    rig.make(ObjectType::Endpoint, 14);
    rig.make(ObjectType::Reply, 15);
    let (endpoint, reply) = (rig.capability(14), rig.capability(15));
    rig.enter(1);
    rig.objects
        .receive(server, endpoint, Some(reply), false)
        .unwrap();
    assert_eq!(rig.enter(1), None);
    for _ in 0..2 {
        assert_eq!(rig.enter(0), Some(client));
        rig.calls();
        let info = MessageInfo::new(0, 0);
        rig.objects
            .send(client, endpoint, info, Sending::Call)
            .unwrap();
        assert_eq!(rig.calls(), (Vec::from([1]), Vec::new()));
        assert_eq!(rig.enter(0), None);
        assert_eq!(rig.enter(1), Some(server));
        rig.objects
            .reply_receive(server, endpoint, reply, info)
            .unwrap();
        assert_eq!(rig.calls(), (Vec::from([0]), Vec::new()));
        assert_eq!(rig.enter(1), None);
    }
}

/// A server without time of its own runs where its caller does, and leaves when its owner is ready.
#[test]
fn lent_time_takes_its_cpu_along() {
    let (mut rig, [one, two]) = Rig::two();
    rig.make(ObjectType::Endpoint, 14);
    rig.make(ObjectType::Reply, 15);
    let server = rig.passive_thread(16, 150);
    let (endpoint, reply) = (rig.capability(14), rig.capability(15));
    rig.run(server);
    rig.objects
        .receive(server, endpoint, Some(reply), false)
        .unwrap();
    rig.objects.resume(one);
    for (cpu, caller) in [(0, one), (1, two), (0, one)] {
        assert_eq!(rig.enter(cpu), Some(caller));
        let info = MessageInfo::new(0, 0);
        rig.objects
            .send(caller, endpoint, info, Sending::Call)
            .unwrap();
        assert_eq!(rig.enter(cpu), Some(server));
        rig.objects
            .reply_receive(server, endpoint, reply, info)
            .unwrap();
        assert_eq!(rig.enter(cpu), Some(caller));
    }
    // The caller is stopped from elsewhere, and wants its time back.
    rig.enter(1);
    let info = MessageInfo::new(0, 0);
    rig.objects
        .send(two, endpoint, info, Sending::Call)
        .unwrap();
    assert_eq!(rig.enter(1), Some(server));
    rig.enter(0);
    rig.calls();
    rig.objects.suspend(two);
    rig.objects.resume(two);
    assert_eq!(
        rig.calls(),
        (Vec::new(), Vec::from([1])),
        "the server stops"
    );
    assert_eq!(rig.enter(1), Some(two));
    // A thread on lent time of one CPU gets its own of another.
    rig.enter(0);
    rig.objects.send(one, endpoint, info, Sending::Call).ok();
    rig.make(ObjectType::SchedContext, 18);
    rig.place(18, 1);
    let context = rig.capability(18).object_ref();
    rig.objects.bind_context(server, context).unwrap();
    assert_eq!(rig.enter(1), Some(server));
}

#[test]
fn every_cpu_has_timers() {
    let (mut rig, [own, theirs]) = Rig::two();
    rig.objects.sleep(own, 5 * MS);
    assert_eq!(rig.enter(0), None);
    assert_eq!(rig.objects.deadline(), None, "set by whoever schedules");
    assert_eq!(rig.objects.next_deadline(), Some(5 * MS));
    rig.enter(1);
    rig.objects.sleep(theirs, 3 * MS);
    assert_eq!(rig.enter(1), None);
    assert_eq!(rig.objects.next_deadline(), Some(3 * MS));
    // Where a sleeper's time goes meanwhile, there it wakes up.
    rig.place(11, 1);
    rig.now = 6 * MS;
    assert_eq!(rig.enter(1), Some(theirs));
    rig.calls();
    assert_eq!(rig.enter(0), None);
    assert_eq!(rig.calls(), (Vec::from([1]), Vec::new()));
    rig.objects.suspend(theirs);
    assert_eq!(rig.enter(1), Some(own));
    // One CPU ends what waits on another.
    rig.objects.sleep(own, 9 * MS);
    rig.enter(1);
    rig.enter(0);
    rig.objects.suspend(own);
    assert!(rig.objects.timers_of(1).is_empty());
}

/// One CPU wakes a thread of another, whose clock it has not looked at for long.
#[test]
fn a_budget_is_kept_whoever_wakes() {
    let (mut rig, [own, theirs]) = Rig::two();
    let (context, now) = (rig.capability(13).object_ref(), rig.now);
    (rig.objects)
        .configure_context(context, [MS, 10 * MS], 1, now)
        .unwrap();
    rig.make(ObjectType::Notification, 20);
    let bell = rig.capability(20);
    // Its next period begins as it is woken there.
    rig.objects.enter_cpu(1);
    assert_eq!(rig.objects.schedule(now), Some(theirs));
    rig.objects.wait(theirs, bell, false).unwrap();
    assert_eq!(rig.objects.schedule(20 * MS), None);
    rig.objects.signal(bell).unwrap();
    assert_eq!(rig.objects.schedule(20 * MS), Some(theirs));
    rig.objects.count_time(20 * MS + 9 * MS / 10);
    rig.objects.wait(theirs, bell, false).unwrap();
    assert_eq!(rig.objects.schedule(21 * MS), None);
    rig.objects.enter_cpu(0);
    assert_eq!(rig.objects.current(), Some(own));
    rig.objects.signal(bell).unwrap();
    rig.objects.enter_cpu(1);
    assert_eq!(rig.objects.schedule(22 * MS), Some(theirs));
    let left = MS / 10;
    assert_eq!(rig.objects.next_deadline(), Some(22 * MS + left));
    // And is filled when it is time, seen from there.
    rig.objects.wait(theirs, bell, false).unwrap();
    rig.objects.enter_cpu(0);
    rig.objects.memory.now = 31 * MS;
    rig.objects.signal(bell).unwrap();
    rig.objects.enter_cpu(1);
    assert_eq!(rig.objects.schedule(31 * MS), Some(theirs));
    assert_eq!(rig.objects.next_deadline(), Some(32 * MS));
}

#[test]
fn who_runs_elsewhere_looks_again_when_its_space_changes() {
    let (mut rig, _) = Rig::two();
    for cpu in [1, 0] {
        rig.enter(cpu);
        assert!(!rig.objects.take_space_changed());
    }
    rig.make(ObjectType::AddressSpace, 20);
    rig.delete(20);
    let (called, stopped) = rig.calls();
    assert!(called.is_empty() && !stopped.is_empty(), "{called:?}");
    for cpu in [0, 1] {
        rig.enter(cpu);
        assert!(rig.objects.take_space_changed(), "{cpu}");
        assert!(!rig.objects.take_space_changed(), "{cpu}");
    }
}
