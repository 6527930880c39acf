//! A demonstration: on each CPU a thread that calls, signals, retypes, revokes, maps, and stops,
//! moves and deletes what the others run, at random and without a pause. It ends well when none of
//! them ever stands still for long.
//!
//! `STRESS_SECONDS` in the environment says how long.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use alloc::string::String;
use alloc::vec::Vec;

use bulkhead_runtime::abi::object::{
    RIGHTS_ALL, TYPE_CNODE, TYPE_ENDPOINT, TYPE_FRAME, TYPE_NOTIFICATION, TYPE_SCHED_CONTEXT,
    TYPE_THREAD, TYPE_UNTYPED,
};
use bulkhead_runtime::message::Message;
use bulkhead_runtime::object::{
    ADDRESS_SPACE, CNODE, Configuration, Endpoint, FIRST_THREAD, Frame, Notification, Place,
    SchedContext, Thread, Untyped,
};
use bulkhead_runtime::{environment, eprintln, println, time};

use super::bench::{Assistant, Bench, CEILING, OWN, at_priority};
use super::cpus::serve;
use super::{READ_WRITE, SCRATCH, map, named, write};

/// Most CPUs.
const CPUS: usize = 8;
/// A turn.
const TURN: u64 = 2_000_000;
/// How long the test takes unless it is told.
const SECONDS: u64 = 10;
/// How long nobody may stand still: other tests may have the host's CPUs.
const PATIENCE_SECONDS: u64 = 20;
/// Bytes of a worker's own untyped, in bits.
const UNTYPED_BITS: u64 = 15;
/// Slots that a worker has for what it makes.
const MADE: u64 = 8;

/// What workers do.
const OPERATIONS: [&str; 9] = [
    "calls",
    "calls to a server without time",
    "signals",
    "retypes",
    "revocations",
    "copies deleted",
    "pages mapped",
    "threads stopped",
    "threads deleted",
];

/// How often each worker did what.
static DONE: [[AtomicU64; OPERATIONS.len()]; CPUS] =
    [const { [const { AtomicU64::new(0) }; OPERATIONS.len()] }; CPUS];
/// What all share.
static SHARED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
const ACTIVE: usize = 0;
const PASSIVE: usize = 1;
const NOTIFICATION: usize = 2;
/// Where the workers' own handles begin, by CPU.
static OWN_SLOTS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// Thread and scheduling context of each CPU's victim, and the top of its stack.
static VICTIMS: [[AtomicU64; 3]; CPUS] = [const { [const { AtomicU64::new(0) }; 3] }; CPUS];
/// The worker of each CPU.
static WORKERS: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
/// Who has a victim: it is killed by one at a time.
static TAKEN: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];

extern "C" fn victim(_: u64, _: u64, _: u64, _: u64) -> ! {
    loop {
        // In the kernel at times, by all ways in.
        let _ = Notification(SHARED[NOTIFICATION].load(Relaxed)).poll();
        for _ in 0..1000 {
            core::hint::spin_loop();
        }
    }
}

/// Operations of one worker.
struct Worker {
    number: usize,
    cpus: u64,
    state: u64,
    /// First of its slots: its untyped, then what it makes, then a frame.
    slots: u64,
}

impl Worker {
    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % below
    }

    /// Whether it was done: what was refused did not happen.
    fn step(&mut self, operation: usize) -> bool {
        match operation {
            0 | 1 => {
                let endpoint = Endpoint(SHARED[operation].load(Relaxed));
                let words = [self.random(100), self.random(100)];
                let answer = endpoint.call(&Message::new(0).words(&words));
                answer.is_ok_and(|answer| answer.words() == [words[0] + words[1]])
            }
            2 => {
                let notification = Notification(SHARED[NOTIFICATION].load(Relaxed));
                if self.random(2) == 0 {
                    return notification.poll().is_ok();
                }
                notification.signal().is_ok()
            }
            3 => self.retype(),
            4 => Untyped(self.slots).place().revoke().is_ok(),
            5 => self.copy(),
            6 => self.map(),
            7 => self.disturb(),
            _ => self.kill(),
        }
    }

    fn made(&mut self) -> u64 {
        self.slots + 1 + self.random(MADE)
    }

    fn retype(&mut self) -> bool {
        let (kind, size) = [
            (TYPE_ENDPOINT, 0),
            (TYPE_NOTIFICATION, 0),
            (TYPE_CNODE, 5),
            (TYPE_FRAME, 0),
            (TYPE_THREAD, 0),
            (TYPE_SCHED_CONTEXT, 0),
            (TYPE_UNTYPED, 12),
        ][self.random(7) as usize];
        let to = self.made();
        Untyped(self.slots).retype(kind, size, CNODE, to, 1).is_ok()
    }

    /// A badged copy of the shared notification, and its end.
    fn copy(&mut self) -> bool {
        let to = self.made();
        let from = Place::own(SHARED[NOTIFICATION].load(Relaxed));
        let copied = Place::own(to).copy(from, RIGHTS_ALL);
        Place::own(to).delete().is_ok() && copied.is_ok()
    }

    /// Maps a page that this CPU has used, and takes it away from all.
    fn map(&mut self) -> bool {
        let frame = Frame(self.slots + 1 + MADE);
        let at = SCRATCH + 0x40_0000 + self.number as u64 * 0x1000;
        let value = self.random(u64::MAX);
        // SAFETY: an address that only this worker uses.
        let mapped = unsafe { frame.map(ADDRESS_SPACE, at, READ_WRITE) }.is_ok();
        if mapped {
            write(at, value);
        }
        // SAFETY: as above.
        unsafe { frame.unmap() }.is_ok() && mapped
    }

    /// A victim, which nobody else kills meanwhile.
    fn take(&mut self) -> Option<(usize, Thread, SchedContext)> {
        let which = self.random(self.cpus) as usize;
        let taken =
            TAKEN[which].compare_exchange(0, 1, core::sync::atomic::Ordering::Acquire, Relaxed);
        let [thread, context, _] = &VICTIMS[which];
        let found = (
            which,
            Thread(thread.load(Relaxed)),
            SchedContext(context.load(Relaxed)),
        );
        taken.is_ok().then_some(found)
    }

    fn disturb(&mut self) -> bool {
        let Some((which, thread, context)) = self.take() else {
            return false;
        };
        let done = match self.random(5) {
            0 => thread.suspend().and_then(|()| thread.resume()),
            1 => thread.registers().map(|_| ()),
            // Never above the workers, which would have to wait for one another to go on.
            2 => thread.set_priority(FIRST_THREAD, OWN - self.random(8), CEILING),
            3 => {
                let cpu = self.random(self.cpus);
                context.configure_on(cpu, TURN / 2, TURN)
            }
            _ => context.unbind().and_then(|()| context.bind(thread)),
        };
        TAKEN[which].store(0, core::sync::atomic::Ordering::Release);
        done.is_ok()
    }

    /// Deletes a victim as it runs, and makes another one of it.
    fn kill(&mut self) -> bool {
        let Some((which, thread, context)) = self.take() else {
            return false;
        };
        let to = self.made();
        let killed = (|| {
            thread.place().delete()?;
            // Where its memory was no other can be made while the untyped has children.
            let _ = Place::own(to).delete();
            let mut made = Untyped(self.slots).retype(TYPE_THREAD, 0, CNODE, to, 1);
            if made.is_err() {
                Untyped(self.slots).place().revoke()?;
                made = Untyped(self.slots).retype(TYPE_THREAD, 0, CNODE, to, 1);
            }
            made?;
            thread.place().relocate(Place::own(to))?;
            thread.configure(Configuration::OWN)?;
            thread.set_priority(FIRST_THREAD, OWN, CEILING)?;
            context.bind(thread)?;
            let registers = bulkhead_runtime::abi::object::ThreadRegisters {
                rip: victim as *const () as u64,
                rsp: VICTIMS[which][2].load(Relaxed),
                ..bulkhead_runtime::object::EMPTY_REGISTERS
            };
            // SAFETY: a function that never returns, on a stack that nobody uses any more.
            unsafe { thread.set_registers(&registers, true) }
        })();
        TAKEN[which].store(0, core::sync::atomic::Ordering::Release);
        killed.is_ok()
    }
}

extern "C" fn work(_: u64, number: u64, cpus: u64, seed: u64) -> ! {
    let number = number as usize % CPUS;
    let mut worker = Worker {
        number,
        cpus,
        state: seed | 1,
        slots: OWN_SLOTS[number].load(Relaxed),
    };
    loop {
        let operation = worker.random(OPERATIONS.len() as u64) as usize;
        if worker.step(operation) {
            DONE[number][operation].fetch_add(1, Relaxed);
        }
    }
}

fn place(bench: &mut Bench, cpu: u64, priority: u64) -> Result<Assistant, String> {
    let assistant = bench.assistant(priority)?;
    let configured = assistant.context.configure_on(cpu, TURN, TURN);
    configured.map_err(named)?;
    Ok(assistant)
}

fn set_up(bench: &mut Bench, cpus: u64) -> Result<(), String> {
    for shared in [ACTIVE, PASSIVE] {
        let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
        SHARED[shared].store(endpoint.0, Relaxed);
        let server = place(bench, cpus - 1, OWN + 1)?;
        server.begin(serve, [endpoint.0, reply.0, 0])?;
        if shared == PASSIVE {
            // Once it waits.
            endpoint.call(&Message::new(0)).map_err(named)?;
            time::sleep_ns(20_000_000);
            server.context.unbind().map_err(named)?;
        }
    }
    SHARED[NOTIFICATION].store(bench.notification()?.0, Relaxed);
    // The tables above the pages that are mapped.
    map(SCRATCH + 0x40_0000 - 0x1000, 0x1000).map_err(named)?;
    map(SCRATCH + 0x40_0000 + CPUS as u64 * 0x1000, 0x1000).map_err(named)?;
    for (cpu, [thread, context, stack]) in (0..cpus).zip(&VICTIMS) {
        let made = place(bench, cpu, OWN)?;
        thread.store(made.thread.0, Relaxed);
        context.store(made.context.0, Relaxed);
        stack.store(made.registers(victim, [0; 3]).rsp, Relaxed);
        made.begin(victim, [0; 3])?;
    }
    for own in OWN_SLOTS.iter().take(cpus as usize) {
        let untyped = bench.make(TYPE_UNTYPED, UNTYPED_BITS)?;
        for _ in 0..MADE {
            bench.slot()?;
        }
        bench.make(TYPE_FRAME, 0)?;
        own.store(untyped, Relaxed);
    }
    for cpu in 0..cpus {
        let seed = time::ticks().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ cpu << 7;
        let worker = place(bench, cpu, OWN)?;
        WORKERS[cpu as usize % CPUS].store(worker.thread.0, Relaxed);
        worker.begin(work, [cpu, cpus, seed])?;
    }
    Ok(())
}

/// How often each worker did anything.
fn progress(cpus: usize) -> Vec<u64> {
    let all = DONE.iter().take(cpus);
    all.map(|done| done.iter().map(|n| n.load(Relaxed)).sum())
        .collect()
}

fn watch(seconds: u64, cpus: usize) -> Result<(), String> {
    let begin = time::monotonic_ns();
    let mut last = progress(cpus);
    let mut moved = alloc::vec![begin; cpus];
    loop {
        time::sleep_ns(500_000_000);
        let now = time::monotonic_ns();
        let seen = progress(cpus);
        for (cpu, ((seen, last), moved)) in seen.iter().zip(&last).zip(&mut moved).enumerate() {
            if seen != last {
                *moved = now;
            } else if now - *moved > PATIENCE_SECONDS * 1_000_000_000 {
                let at = Thread(WORKERS[cpu].load(Relaxed))
                    .registers()
                    .map_err(named)?;
                return Err(alloc::format!(
                    "CPU {cpu} stands still after {seen} operations, at {:#x} with call {:#x} of {}",
                    at.rip,
                    at.rax,
                    at.rdi
                ));
            }
        }
        last = seen;
        let missing = (0..OPERATIONS.len()).find(|index| done_by_all(*index) == 0);
        match (now - begin) / 1_000_000_000 {
            // On a busy host it takes longer until each was done once.
            passed if passed >= seconds && missing.is_none() => return Ok(()),
            passed if passed > seconds * 10 => {
                let name = missing.and_then(|index| OPERATIONS.get(index));
                return Err(alloc::format!(
                    "no {} so far",
                    name.copied().unwrap_or_default()
                ));
            }
            _ => {}
        }
    }
}

/// How often all workers together did something.
fn done_by_all(operation: usize) -> u64 {
    DONE.iter().map(|done| done[operation].load(Relaxed)).sum()
}

/// See the head of this file.
pub(super) fn stress() -> u8 {
    let seconds =
        environment::var("STRESS_SECONDS").and_then(|s| str::from_utf8(s).ok()?.parse().ok());
    let cpus = environment::cpus().min(CPUS as u64);
    let outcome = Bench::new().and_then(|mut bench| {
        // Above all that it watches.
        at_priority(200, || {
            set_up(&mut bench, cpus)?;
            watch(seconds.unwrap_or(SECONDS), cpus as usize)
        })??;
        bench.finish()
    });
    for (index, name) in OPERATIONS.into_iter().enumerate() {
        let by_cpu = DONE.iter().take(cpus as usize);
        let counts: Vec<u64> = by_cpu.map(|done| done[index].load(Relaxed)).collect();
        println!("{name}: {counts:?}");
    }
    match outcome {
        Ok(()) => {
            println!("nobody stood still");
            0
        }
        Err(why) => {
            eprintln!("stress: {why}");
            1
        }
    }
}
