//! Several CPUs: threads run at the same time, and what one CPU does to what another one runs has
//! happened when its call returns.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::Ordering::SeqCst;

use bulkhead_runtime::abi::object::{TYPE_FRAME, TYPE_THREAD};
use bulkhead_runtime::abi::syscall::Status;
use bulkhead_runtime::message::Message;
use bulkhead_runtime::object::{
    ADDRESS_SPACE, Configuration, Endpoint, FIRST_THREAD, Frame, Notification, Place, Reply,
    SchedContext,
};
use bulkhead_runtime::{environment, thread, time};

use super::bench::{Assistant, Bench, Body, CEILING, OWN, shared, stop};
use super::{READ_WRITE, SCRATCH, check, check_eq, map, named, read, write};

/// A turn on another CPU.
const TURN: u64 = 10_000_000;
/// How long something may take, in looks at it of a fifth of a millisecond.
const PATIENCE: u64 = 50_000;

fn word(index: usize) -> u64 {
    shared(index).load(SeqCst)
}

fn set(index: usize, value: u64) {
    shared(index).store(value, SeqCst);
}

/// Waits for what another CPU does, without giving this one away.
fn comes(condition: impl Fn() -> bool) -> bool {
    for _ in 0..PATIENCE {
        let end = time::ticks() + 400_000;
        while time::ticks() < end {
            if condition() {
                return true;
            }
            core::hint::spin_loop();
        }
    }
    condition()
}

/// Waits for it asleep, so that this CPU can do it too.
fn comes_in_time(condition: impl Fn() -> bool) -> bool {
    for _ in 0..PATIENCE {
        if condition() {
            return true;
        }
        time::sleep_ns(200_000);
    }
    condition()
}

impl Bench {
    /// An assistant that runs `body` on a CPU.
    fn start_on(
        &mut self,
        cpu: u64,
        priority: u64,
        body: Body,
        numbers: [u64; 3],
    ) -> Result<Assistant, String> {
        let assistant = self.assistant(priority)?;
        (assistant.context.configure_on(cpu, TURN, TURN)).map_err(named)?;
        assistant.begin(body, numbers)?;
        Ok(assistant)
    }
}

extern "C" fn count(_: u64, index: u64, _: u64, _: u64) -> ! {
    loop {
        shared(index as usize).fetch_add(1, SeqCst);
    }
}

/// A thread of low priority runs on another CPU while this one never stops.
pub(super) fn at_once() -> Result<(), String> {
    let mut bench = Bench::new()?;
    for cpu in 1..environment::cpus() {
        bench.start_on(cpu, 1, count, [cpu, 0, 0])?;
        check!(comes(|| word(cpu as usize) > 1000), "P1: CPU {cpu}");
    }
    let refused = SchedContext(bench.make(TYPE_THREAD, 0)?).configure_on(0, TURN, TURN);
    check_eq!(refused, Err(Status::InvalidCapability), "P1: no context");
    let context = bench.assistant(1)?.context;
    let none = context.configure_on(environment::cpus(), TURN, TURN);
    check_eq!(none, Err(Status::InvalidCapability), "P1: no such CPU");
    bench.finish()
}

/// Answers each call with the sum of its words.
pub(super) extern "C" fn serve(_: u64, endpoint: u64, reply: u64, _: u64) -> ! {
    let (endpoint, reply) = (Endpoint(endpoint), Reply(reply));
    loop {
        let mut next = endpoint.receive(Some(reply));
        while let Ok(received) = next {
            let sum = received.words().iter().sum();
            next = endpoint.reply_receive(reply, &Message::new(0).word(sum));
        }
    }
}

/// Calls and answers between CPUs: to a server with time of its own there, and to one that runs on
/// its callers'.
pub(super) fn messages() -> Result<(), String> {
    const CALLS: u64 = 300;
    for passive in [false, true] {
        let mut bench = Bench::new()?;
        let (endpoint, reply) = (bench.endpoint()?, bench.reply()?);
        let server = bench.start_on(1, OWN, serve, [endpoint.0, reply.0, 0])?;
        if passive {
            // It waits again before its time is taken.
            endpoint.call(&Message::new(0)).map_err(named)?;
            time::sleep_ns(20_000_000);
            server.context.unbind().map_err(named)?;
        }
        for call in 0..CALLS {
            let message = Message::new(0).words(&[call, 2, 3]);
            let answer = endpoint.call(&message).map_err(named)?;
            check_eq!(answer.words().first(), Some(&(call + 5)), "P2");
        }
        // Also from the other CPU, when it is passive for the first time.
        set(0, 0);
        bench.start_on(1, 1, call_often, [endpoint.0, CALLS, 0])?;
        check!(comes_in_time(|| word(0) == CALLS), "P2: from there");
        bench.finish()?;
    }
    Ok(())
}

extern "C" fn call_often(own: u64, endpoint: u64, calls: u64, _: u64) -> ! {
    for call in 0..calls {
        let answer = Endpoint(endpoint).call(&Message::new(0).words(&[call, 1]));
        if answer.is_ok_and(|answer| answer.words().first() == Some(&(call + 1))) {
            shared(0).fetch_add(1, SeqCst);
        }
    }
    stop(own)
}

extern "C" fn echo_signals(_: u64, from: u64, to: u64, _: u64) -> ! {
    while Notification(from).wait().is_ok() {
        let _ = Notification(to).signal();
    }
    loop {
        core::hint::spin_loop();
    }
}

/// Signals wake threads of another CPU, which is idle or has something less urgent to do.
pub(super) fn signals() -> Result<(), String> {
    for busy in [false, true] {
        let mut bench = Bench::new()?;
        let (there, back) = (bench.notification()?, bench.notification()?);
        let (there, back) = (bench.badged(there.0, 1)?, bench.badged(back.0, 2)?);
        if busy {
            bench.start_on(1, 1, count, [0, 0, 0])?;
        }
        bench.start_on(1, 200, echo_signals, [there, back, 0])?;
        for _ in 0..200 {
            Notification(there).signal().map_err(named)?;
            check_eq!(Notification(back).wait(), Ok(2), "P3");
        }
        bench.finish()?;
    }
    Ok(())
}

/// A thread that another CPU runs stands still as soon as it is suspended.
pub(super) fn suspend() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let counter = bench.start_on(1, OWN, count, [0, 0, 0])?;
    for _ in 0..100 {
        let before = word(0);
        check!(comes(|| word(0) > before), "P4: it runs");
        counter.thread.suspend().map_err(named)?;
        let seen = word(0);
        for _ in 0..1000 {
            core::hint::spin_loop();
        }
        check_eq!(word(0), seen, "P4: it ran on");
        counter.thread.resume().map_err(named)?;
    }
    bench.finish()
}

/// Counts in registers alone, so that whoever looks at them sees how far it is.
extern "C" fn count_in_registers(_: u64, fs: u64, gs: u64, _: u64) -> ! {
    // SAFETY: the values are user addresses that nothing uses; the loop touches registers only.
    unsafe {
        asm!(
            "wrfsbase {fs}", "wrgsbase {gs}",
            "xor r12d, r12d",
            "2:", "inc r12", "mov r13, r12", "jmp 2b",
            fs = in(reg) fs, gs = in(reg) gs, options(noreturn),
        );
    }
}

/// Registers of a thread that another CPU runs are seen as they are, and set.
pub(super) fn registers() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (fs, gs) = (0x1234_5000, 0x2345_6000);
    let counter = bench.start_on(1, OWN, count_in_registers, [fs, gs, 0])?;
    let mut last = 0;
    for look in 0..1000 {
        let seen = counter.thread.registers().map_err(named)?;
        let (a, b) = (seen.r12, seen.r13);
        check!(a.wrapping_sub(b) <= 1, "P5: {a:#x} and {b:#x}");
        check!(a >= last, "P5: {a:#x} after {last:#x}");
        if a > 1 {
            check_eq!((seen.fs_base, seen.gs_base), (fs, gs), "P5: bases");
        }
        last = a;
        if look > 50 && last > 1000 {
            break;
        }
        // Whoever is looked at all the time does nothing else.
        time::sleep_ns(1_000_000);
    }
    check!(last > 1000, "P5: it counted to {last}");
    counter.begin(count, [0, 0, 0])?;
    check!(comes(|| word(0) > 0), "P5: it runs what it was given");
    bench.finish()
}

/// Reads a word when it is told to, without ever entering the kernel.
extern "C" fn read_when_told(_: u64, address: u64, _: u64, _: u64) -> ! {
    let mut told = 0;
    loop {
        while word(0) == told {
            core::hint::spin_loop();
        }
        told = word(0);
        set(1, read(address));
        set(2, told);
    }
}

fn show(frame: Frame, at: u64) -> Result<(), String> {
    // SAFETY: nobody has a reference there.
    unsafe { frame.map(ADDRESS_SPACE, at, READ_WRITE) }.map_err(named)
}

fn hide(frame: Frame) -> Result<(), String> {
    // SAFETY: as in `show`.
    unsafe { frame.unmap() }.map_err(named)
}

/// What is unmapped is gone for programs on all CPUs.
pub(super) fn unmapping() -> Result<(), String> {
    let mut bench = Bench::new()?;
    // The tables on the way, which stay.
    map(SCRATCH + 0x20_0000, 0x1000).map_err(named)?;
    let frames = [
        Frame(bench.make(TYPE_FRAME, 0)?),
        Frame(bench.make(TYPE_FRAME, 0)?),
    ];
    let at = SCRATCH + 0x20_1000;
    for (value, frame) in (1..).zip(frames) {
        show(frame, at)?;
        write(at, value);
        hide(frame)?;
    }
    show(frames[0], at)?;
    bench.start_on(1, OWN, read_when_told, [at, 0, 0])?;
    for round in 1..100 {
        set(0, round);
        check!(comes(|| word(2) == round), "P6: it reads");
        let (now, next) = (frames[(round as usize + 1) % 2], frames[round as usize % 2]);
        check_eq!(word(1), 2 - round % 2, "P6: round {round}");
        hide(now)?;
        show(next, at)?;
    }
    bench.finish()
}

/// A thread that another CPU runs is deleted, and its memory used again.
pub(super) fn deletion() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let victim = bench.start_on(1, OWN, count, [0, 0, 0])?;
    for round in 0..50 {
        check!(comes(|| word(0) > 0), "P7: round {round}");
        victim.thread.place().delete().map_err(named)?;
        set(0, 0);
        for _ in 0..1000 {
            core::hint::spin_loop();
        }
        check_eq!(word(0), 0, "P7: it ran on");
        // Another one with the same stack and time.
        let made = bench.make(TYPE_THREAD, 0)?;
        victim
            .thread
            .place()
            .relocate(Place::own(made))
            .map_err(named)?;
        victim.thread.configure(Configuration::OWN).map_err(named)?;
        let set = victim.thread.set_priority(FIRST_THREAD, OWN, CEILING);
        set.and_then(|()| victim.context.bind(victim.thread))
            .map_err(named)?;
        victim.begin(count, [0, 0, 0])?;
    }
    bench.finish()
}

extern "C" fn move_itself(own: u64, context: u64, rounds: u64, _: u64) -> ! {
    for round in 0..rounds {
        if SchedContext(context)
            .configure_on(round % 2, TURN, TURN)
            .is_err()
        {
            break;
        }
        shared(0).fetch_add(1, SeqCst);
    }
    stop(own)
}

/// A thread goes to another CPU with its time, with all its registers; also by itself.
pub(super) fn migration() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (fs, gs) = (0x1234_5000, 0x2345_6000);
    let counter = bench.start_on(1, OWN + 1, count_in_registers, [fs, gs, 0])?;
    let mut last = 0;
    for round in 0..40 {
        // More urgent than this thread: on its CPU for as long as it has a budget.
        let moved = counter.context.configure_on(round % 2, TURN / 2, TURN);
        moved.map_err(named)?;
        let mut seen = counter.thread.registers().map_err(named)?;
        for _ in 0..1000 {
            if seen.r12 > last {
                break;
            }
            // Whoever is looked at all the time does nothing else.
            time::sleep_ns(5_000_000);
            seen = counter.thread.registers().map_err(named)?;
        }
        let (a, b) = (seen.r12, seen.r13);
        check!(a > last, "P8: round {round}: {a:#x} after {last:#x}");
        check!(a.wrapping_sub(b) <= 1, "P8: {a:#x} and {b:#x}");
        check_eq!((seen.fs_base, seen.gs_base), (fs, gs), "P8: bases");
        last = a;
    }
    let itself = bench.assistant(OWN + 1)?;
    itself.begin(move_itself, [itself.context.0, 100, 0])?;
    check!(
        comes_in_time(|| word(0) == 100),
        "P8: by itself: {}",
        word(0)
    );
    bench.finish()
}

/// Threads of the runtime on every CPU, which use its heap at once.
pub(super) fn spawned() -> Result<(), String> {
    for round in 1..=5 {
        let start = |n: u64| {
            let cpu = n % environment::cpus();
            let work = move || {
                (0..100)
                    .map(|part| Box::new(n * part))
                    .map(|part| *part)
                    .sum::<u64>()
            };
            thread::spawn_on(cpu, work).map_err(named)
        };
        let started = (0..8).map(start).collect::<Result<Vec<_>, _>>()?;
        let sums = started.into_iter().filter_map(thread::JoinHandle::join);
        check_eq!(
            sums.sum::<u64>(),
            28 * 4950,
            alloc::format!("P10: round {round}")
        );
    }
    let none = thread::spawn_on(environment::cpus(), || ());
    check_eq!(
        none.err(),
        Some(Status::InvalidCapability),
        "P10: no such CPU"
    );
    Ok(())
}

extern "C" fn spin(_: u64, index: u64, pause: u64, _: u64) -> ! {
    // As in `scheduling`: a large step of the clock is somebody else's time.
    let mut last = time::ticks();
    loop {
        let now = time::ticks();
        if now - last < pause / 100 {
            shared(index as usize).fetch_add(now - last, SeqCst);
        }
        last = now;
    }
}

/// A budget in a period is kept on each CPU.
pub(super) fn budgets() -> Result<(), String> {
    const PERIODS: u64 = 10;
    const PERIOD: u64 = 20_000_000;
    let mut bench = Bench::new()?;
    let mut hogs = [bench.assistant(OWN + 1)?, bench.assistant(OWN + 1)?];
    for (cpu, hog) in (0..).zip(&mut hogs) {
        hog.context
            .configure_on(cpu, PERIOD / 4, PERIOD)
            .map_err(named)?;
    }
    let before = time::ticks();
    time::sleep_ns(PERIOD);
    let period = time::ticks() - before;
    let before = time::ticks();
    for (cpu, hog) in (0..).zip(hogs) {
        hog.begin(spin, [cpu, period, 0])?;
    }
    time::sleep_ns(PERIODS * PERIOD);
    let all = time::ticks() - before;
    for (cpu, hog) in hogs.into_iter().enumerate() {
        hog.thread.suspend().map_err(named)?;
        let share = word(cpu) * 100 / all.max(1);
        check!(share <= 30, "S4: {share} % of CPU {cpu} and not 25");
        check!(share > 0, "S4: nothing of CPU {cpu}");
    }
    bench.finish()
}

extern "C" fn sleep_often(_: u64, index: u64, _: u64, _: u64) -> ! {
    loop {
        let before = time::monotonic_ns();
        time::sleep_ns(1_000_000);
        if time::monotonic_ns() - before >= 1_000_000 {
            shared(index as usize).fetch_add(1, SeqCst);
        } else {
            set(60, 1);
        }
    }
}

/// Every CPU has a timer, and their clocks agree.
pub(super) fn timers() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let cpus = environment::cpus().min(6);
    for cpu in 0..cpus {
        bench.start_on(cpu, OWN, sleep_often, [cpu, 0, 0])?;
    }
    let all = || (0..cpus as usize).all(|cpu| word(cpu) >= 20);
    check!(comes_in_time(all), "P9: {:?}", [word(0), word(1)]);
    check_eq!(word(60), 0, "P9: a sleep was too short");
    bench.start_on(1, OWN, tell_time, [0, 0, 0])?;
    for _ in 0..1000 {
        let before = time::ticks();
        set(61, 1);
        if !comes(|| word(61) == 2) {
            return Err(String::from("P9: no answer"));
        }
        let theirs = word(62);
        let after = time::ticks();
        check!(
            before <= theirs && theirs <= after,
            "P9: {theirs} is not between {before} and {after}"
        );
    }
    bench.finish()
}

extern "C" fn tell_time(_: u64, _: u64, _: u64, _: u64) -> ! {
    loop {
        while word(61) != 1 {
            core::hint::spin_loop();
        }
        set(62, time::ticks());
        set(61, 2);
    }
}
