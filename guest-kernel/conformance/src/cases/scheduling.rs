//! Priorities and time.

use alloc::string::String;
use core::sync::atomic::Ordering;

use bulkhead_runtime::abi::syscall::Status;
use bulkhead_runtime::object::FIRST_THREAD;
use bulkhead_runtime::{thread, time};

use super::bench::{Bench, CEILING, OWN, shared, stop};
use super::{check, check_eq, named};

fn word(index: usize) -> u64 {
    shared(index).load(Ordering::Relaxed)
}

extern "C" fn resume_itself(own: u64, _: u64, _: u64, _: u64) -> ! {
    let resumed = bulkhead_runtime::object::Thread(own).resume();
    shared(0).store(1 + u64::from(resumed == Ok(())), Ordering::Relaxed);
    stop(own)
}

pub(super) fn resume() -> Result<(), String> {
    check_eq!(FIRST_THREAD.resume(), Ok(()), "S1: the first thread itself");
    let mut bench = Bench::new()?;
    let assistant = bench.start(OWN + 1, resume_itself, [0; 3])?;
    check_eq!(word(0), 2, "S1");
    assistant.thread.suspend().map_err(named)?;
    bench.finish()
}

/// Nobody gives a priority above his own ceiling, neither to himself nor to others.
pub(super) fn ceiling() -> Result<(), String> {
    let mut bench = Bench::new()?;
    let (low, other) = (bench.assistant(10)?, bench.assistant(10)?);
    let set =
        |authority, priority, ceiling| other.thread.set_priority(authority, priority, ceiling);
    low.thread
        .set_priority(FIRST_THREAD, 10, 20)
        .map_err(named)?;
    check_eq!(set(low.thread, 20, 20), Ok(()), "S3: up to it");
    for (priority, most) in [(21, 0), (0, 21), (255, 255), (u64::MAX, 0)] {
        let refused = set(low.thread, priority, most);
        check_eq!(
            refused,
            Err(Status::OutOfRange),
            alloc::format!("S3: {priority} {most}")
        );
    }
    let beyond = low.thread.set_priority(FIRST_THREAD, 256, CEILING);
    check_eq!(beyond, Err(Status::OutOfRange), "S3: beyond all");
    bench.finish()
}

extern "C" fn spin(_: u64, pause: u64, _: u64, _: u64) -> ! {
    // How long it runs shows in the steps of the clock: a large one is somebody else's time.
    let (mut last, mut turn) = (time::ticks(), 0);
    loop {
        let now = time::ticks();
        let step = now - last;
        if step < pause / 100 {
            shared(0).fetch_add(step, Ordering::Relaxed);
        }
        if last - turn > pause / 2 {
            turn = last;
            shared(1).fetch_add(1, Ordering::Relaxed);
        }
        last = now;
    }
}

/// A budget in a period is kept, beside others and alone.
pub(super) fn budget() -> Result<(), String> {
    const PERIODS: u64 = 10;
    const PERIOD: u64 = 20_000_000;
    let mut bench = Bench::new()?;
    let hog = bench.assistant(OWN + 1)?;
    hog.context.configure(PERIOD / 4, PERIOD).map_err(named)?;
    let before = time::ticks();
    time::sleep_ns(PERIOD);
    let period = time::ticks() - before;
    let before = time::ticks();
    hog.begin(spin, [period, 0, 0])?;
    time::sleep_ns(PERIODS * PERIOD);
    let all = time::ticks() - before;
    hog.thread.suspend().map_err(named)?;
    let (share, turns) = (word(0) * 100 / all.max(1), word(1));
    // The host may take away any part of it, but the kernel gives no more, and gives it each time.
    check!(share <= 30, "S4: {share} % of the time and not 25");
    check!(
        turns >= PERIODS / 2,
        "S4: it ran in {turns} of {PERIODS} periods"
    );
    let refused = hog.context.configure(PERIOD * 2, PERIOD);
    check_eq!(refused, Err(Status::OutOfRange), "S4: more than all");
    let refused = hog.context.configure(1, PERIOD);
    check_eq!(refused, Err(Status::OutOfRange), "S4: less than a switch");
    thread::yield_now();
    bench.finish()
}
