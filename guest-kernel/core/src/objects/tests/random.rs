//! Random operations of many threads on a few objects: whatever they do, every thread stands where
//! its state says, and nowhere else; and a message that could go the short way does what it would
//! do on the long one.

use core::cell::Cell;

use bulkhead_abi::syscall::{CALL, REPLY_RECV};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::fault::Fault;
use super::super::ipc::{Endpoint, MessageInfo, Sending};
use super::super::schedule::SchedContext;
use super::*;

const THREADS: u64 = 5;
const INTERRUPTS: u64 = 2;
const CPUS: usize = 2;

struct World {
    rig: Rig,
    threads: Vec<Ref<Thread>>,
    /// How often a message could have gone the short way.
    short: usize,
}

impl World {
    fn new() -> Self {
        let mut rig = Rig::with_interrupts(20);
        let mut threads = Vec::new();
        for n in 0..THREADS {
            let thread = if n == 0 {
                rig.passive_thread(10, 100)
            } else {
                rig.thread(10 + n * 2, 98 + n)
            };
            threads.push(thread);
        }
        rig.make(ObjectType::AddressSpace, 29);
        for thread in &threads {
            rig.give_space(*thread, 29);
        }
        let mut world = Self {
            rig,
            threads,
            short: 0,
        };
        for n in 0..INTERRUPTS {
            world.rig.handle(20, 21 + n, n).unwrap();
        }
        for n in 0..3 {
            world.replace(30 + n);
            world.replace(40 + n);
            world.replace(50 + n);
        }
        // A server without time of its own waits from the start.
        let rig = &mut world.rig;
        let (server, endpoint, reply) = (world.threads[0], rig.capability(30), rig.capability(50));
        rig.run(server);
        (rig.objects)
            .receive(server, endpoint, Some(reply), false)
            .unwrap();
        world
    }

    /// Deletes what is in a slot, with its copies, and makes a new object of the slot's kind.
    fn replace(&mut self, number: u64) {
        self.rig.revoke(number);
        self.rig.delete(number);
        let object = match number / 10 {
            3 => ObjectType::Endpoint,
            4 => ObjectType::Notification,
            _ => ObjectType::Reply,
        };
        // The untyped is used up after a while; then the slot stays empty.
        let _ = self.rig.retype(object, number, 1);
    }

    fn step(&mut self, cpu: bool, (operation, x, y, z): (u8, u8, u8, u8)) {
        let rig = &mut self.rig;
        rig.objects.enter_cpu(usize::from(cpu));
        rig.now += u64::from(z) * 1000;
        let which = usize::from(x) % self.threads.len();
        let other = self.threads[which];
        let pick = |base: u64, n: u8| base + u64::from(n) % 3;
        let capability = |rig: &Rig, base, n| rig.capability(pick(base, n));
        let Some(thread) = rig.objects.schedule(rig.now) else {
            rig.objects.resume(other);
            return;
        };
        let info = MessageInfo::new(u64::from(z) % 11, u32::from(z) % 2);
        // Both copy all there is: not at every step.
        let asked = match z % 5 {
            0 => Some((CALL, 0)),
            1 | 2 => Some((REPLY_RECV, pick(50, x))),
            _ => None,
        };
        if let Some((number, reply)) = asked {
            let frame = &mut rig.objects.memory.get_mut(thread).frame;
            (frame.rax, frame.rdi, frame.rsi) = (number | info.bits(), pick(30, y), reply);
            let taken = super::fastpath::compare(rig, thread);
            self.short += usize::from(taken);
        }
        let endpoint = capability(rig, 30, y);
        let notification = capability(rig, 40, y);
        let reply = capability(rig, 50, x);
        let timeout = (operation >= 128).then(|| u64::from(x) * 500);
        // Refusals are as good as anything else here.
        let interrupt = u64::from(x) % INTERRUPTS;
        let _ = match operation % 22 {
            0 => rig.objects.send(thread, endpoint, info, Sending::Blocking),
            1 => rig
                .objects
                .send(thread, endpoint, info, Sending::NonBlocking),
            2 | 3 => rig.objects.send(thread, endpoint, info, Sending::Call),
            4 | 5 => rig
                .objects
                .receive(thread, endpoint, Some(reply), z % 4 == 0),
            6 => rig.objects.receive(thread, endpoint, None, z % 4 == 0),
            7 => rig.objects.reply(thread, reply, info),
            8 => rig.objects.reply_receive(thread, endpoint, reply, info),
            9 => rig.objects.signal(notification),
            10 => rig.objects.wait(thread, notification, z % 3 == 0),
            11 if z % 2 == 0 => rig.objects.bind(other, notification),
            11 => {
                rig.objects.unbind(other);
                Ok(())
            }
            12 => {
                rig.objects.suspend(other);
                Ok(())
            }
            13 => {
                rig.objects.resume(other);
                Ok(())
            }
            14 if z % 4 == 0 => {
                self.replace([30, 40, 50][usize::from(x) % 3] + u64::from(y) % 3);
                Ok(())
            }
            14 => {
                rig.objects.memory.interrupt_in = (z % 2 == 1).then(|| u32::from(x) % 4);
                let cancelled = rig.objects.cancel_badged_sends(endpoint);
                rig.objects.memory.interrupt_in = None;
                cancelled
            }
            // Whoever waits without time of its own is a server that runs on its callers'.
            15 | 16 => {
                let context = rig.capability(13 + u64::from(y) % (THREADS - 1) * 2);
                if z % 2 == 0 {
                    rig.objects.unbind_context(context.object_ref());
                    Ok(())
                } else {
                    rig.objects.bind_context(other, context.object_ref())
                }
            }
            17 => rig.bind_to(21 + interrupt, pick(40, y)),
            18 => rig.acknowledge(21 + interrupt),
            19 | 20 if z % 8 != 0 => {
                rig.objects.interrupt(interrupt);
                Ok(())
            }
            19 | 20 => {
                rig.delete(21 + interrupt);
                rig.handle(20, 21 + interrupt, interrupt)
            }
            // Time goes to another CPU.
            _ if z % 4 == 1 => {
                let context = rig.capability(13 + u64::from(y) % (THREADS - 1) * 2);
                let (cpu, now) = (u64::from(x) % CPUS as u64, rig.now);
                (rig.objects).configure_context(
                    context.object_ref(),
                    [500_000, 1_000_000],
                    cpu,
                    now,
                )
            }
            _ if z % 2 == 0 => {
                let (from, to) = (rig.slot(30), thread.slot(ThreadSlot::FaultHandler));
                let _ = rig.objects.copy(to, from, Rights::ALL);
                rig.objects.fault(
                    thread,
                    Fault::Memory {
                        address: 1,
                        code: 2,
                    },
                );
                Ok(())
            }
            _ => rig
                .objects
                .set_priority(other, u64::from(z) % 4 + 98, 0, 255),
        };
        if let Some(ticks) = timeout.filter(|_| operation % 22 < 11) {
            self.rig.objects.limit_wait(thread, ticks);
        }
        self.check();
    }

    fn check(&self) {
        let objects = &self.rig.objects;
        for cpu in (0..CPUS).filter(|cpu| objects.is_settled_on(*cpu)) {
            let running = objects
                .running_on(cpu)
                .map(|thread| objects.memory.get(thread).priority);
            assert!(
                running >= objects.most_urgent_of(cpu),
                "who runs is the most urgent"
            );
        }
        for cpu in 0..CPUS {
            let due: Vec<u64> = (objects.timers_of(cpu).iter())
                .map(|thread| objects.memory.get(*thread).due)
                .collect();
            assert!(due.is_sorted(), "timers are sorted: {due:?}");
        }
        let timers = [0, 1].map(|cpu| objects.timers_of(cpu)).concat();
        objects.check_interrupts();
        let mut expected: HashMap<u64, Vec<Ref<Thread>>> = HashMap::new();
        for thread in &self.threads {
            let found = objects.memory.get(*thread);
            let blocked = found
                .endpoint()
                .map(Ref::address)
                .or(found.awaited().map(Ref::address));
            if let Some(at) = blocked {
                expected.entry(at).or_default().push(*thread);
            }
            let can_run = found.state() == State::Ready && found.context().is_some();
            let timed = timers.contains(thread);
            assert_eq!(found.due != 0, timed, "{thread:?} is in the timer list");
            let refills = timed && found.state() == State::Ready;
            assert!(
                !refills || found.context().is_some_and(|held| objects.is_spent(held)),
                "{thread:?} has time and waits for it"
            );
            let queued = found.queued != 0 || refills;
            let runs = |cpu: &usize| objects.running_on(*cpu) == Some(*thread);
            let running = (0..CPUS).any(|cpu| runs(&cpu));
            assert!(!(queued && running), "{thread:?} runs and is queued");
            for cpu in (0..CPUS).filter(runs) {
                assert_eq!(cpu, objects.cpu_of(*thread), "{thread:?} runs elsewhere");
            }
            assert_eq!(can_run, queued || running, "{thread:?} {:?}", found.state());
            if let Some(context) = found.context() {
                assert_eq!(objects.memory.get(context).holder(), Some(*thread));
            }
            if let Some(home) = found.home() {
                assert_eq!(objects.memory.get(home).owner(), Some(*thread));
                assert!(
                    found.state() != State::Ready || found.context() == Some(home),
                    "a ready thread has its own time"
                );
            }
            assert!(found.fault == 0 || matches!(found.state(), State::Sending | State::Calling));
        }
        for n in 1..THREADS {
            let context = self.rig.capability(11 + n * 2);
            let holder = objects
                .memory
                .get(context.object_ref::<SchedContext>())
                .holder();
            let held = holder.map(|thread| objects.memory.get(thread).context());
            assert!(
                held.is_none_or(|held| held == Some(context.object_ref())),
                "who holds a context runs on it"
            );
        }
        for number in [30, 31, 32, 40, 41, 42] {
            let capability = self.rig.capability(number);
            if capability.is_null() {
                continue;
            }
            let mut waiting = objects.waiting(capability);
            if capability.kind() == Kind::Endpoint {
                let endpoint = objects.memory.get(capability.object_ref::<Endpoint>());
                let next = endpoint.cancellation.next();
                assert!(next.is_none_or(|next| waiting.contains(&next)), "{next:?}");
            }
            let mut wanted = expected.remove(&capability.address()).unwrap_or_default();
            waiting.sort();
            wanted.sort();
            assert_eq!(waiting, wanted, "at slot {number}");
        }
        assert!(
            expected.is_empty(),
            "a thread waits on what is gone: {expected:?}"
        );
        let replies = [50, 51, 52].map(|n| self.rig.capability(n));
        for thread in &self.threads {
            let found = objects.memory.get(*thread);
            let calling = found.state() == State::Calling;
            let by = replies
                .iter()
                .filter(|reply| objects.caller(**reply) == Some(*thread));
            assert_eq!(by.count(), usize::from(calling), "{thread:?} calls");
        }
    }
}

#[test]
fn every_thread_stands_where_its_state_says() {
    let steps = prop::collection::vec(any::<(bool, (u8, u8, u8, u8))>(), 1..400);
    let mut runner = TestRunner::new(ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::with_cases(600)
    });
    let short = Cell::new(0);
    let outcome = runner.run(&steps, |steps| {
        let mut world = World::new();
        for (cpu, step) in steps {
            world.step(cpu, step);
        }
        for n in 0..THREADS {
            world.rig.delete(10 + n * 2);
        }
        world.threads.clear();
        world.check();
        world.rig.revoke(1);
        world.rig.check();
        for cpu in 0..CPUS {
            world.rig.objects.enter_cpu(cpu);
            prop_assert_eq!(world.rig.objects.schedule(world.rig.now), None);
        }
        short.set(short.get() + world.short);
        Ok(())
    });
    outcome.unwrap();
    assert!(short.get() > 20, "{} short ways", short.get());
}
